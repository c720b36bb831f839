// The embedded device and a soft-RoCE device, over one wire: either side serves, and nothing but the addresses is said.

import type { ExecutionContext } from 'ava'
import { devices } from 'secure-rdma'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { kindOf, mixedTest, namespace } from './_device.js'
import { command, receiverNotReady } from './_guest.js'
import { closed, connected, connectOptions, listenOptions, tasks } from './_processes.js'
import { fileFromServer, messagesBothWays } from './_transfer.js'

/** The two interfaces of the wire, and the arguments that lead there. */
const interfaces = [
  { name: 'v2', to: [] },
  { name: 'p0', to: ['-n', namespace] },
] as const

/** The MTU of Ethernet and of a jumbo frame, and the path MTU that RoCE makes of it. */
const widths = [
  { mtu: 4200, pathMtu: 4096, count: 1000, size: 8 << 20 },
  { mtu: 1500, pathMtu: 1024, count: 1000, size: 8 << 20 },
] as const

/** Percent of the packets that are lost, in either direction. */
const losses = [0, 2] as const

/** Changes the wire, until the end of the test. */
async function setWire(t: ExecutionContext, mtu: number, loss: number): Promise<void> {
  t.teardown(() => {
    for (const { name, to } of interfaces) command('tc', ...to, 'qdisc', 'delete', 'dev', name, 'root')
  })
  for (const { name, to } of interfaces) {
    command('ip', ...to, 'link', 'set', name, 'mtu', String(mtu))
    command('tc', ...to, 'qdisc', 'replace', 'dev', name, 'root', 'netem', 'loss', `${loss}%`, 'limit', '10000')
  }
  // The driver learns of it in its own time.
  const [wanted] = widths.filter((width) => width.mtu === mtu)
  for (;;) {
    const rxe2 = (await devices()).find(({ name }) => name === 'rxe2')
    if (rxe2?.ports[0]?.activeMtu === wanted?.pathMtu) return
  }
}

/** Packets that netem has dropped, at both ends. */
function dropped(): number[] {
  return interfaces.map(({ name, to }) => {
    const [root] = JSON.parse(command('tc', ...to, '-s', '-j', 'qdisc', 'show', 'dev', name)) as { drops: number }[]
    return root?.drops ?? NaN
  })
}

for (const { mtu, pathMtu, count, size } of widths) {
  for (const loss of losses) {
    mixedTest(`path MTU ${pathMtu}, ${loss} % loss: messages both ways, then a file`, async (t, place) => {
      t.timeout(240_000)
      await setWire(t, mtu, loss)
      const refusals = receiverNotReady()
      const processes = await connected(t, place)
      for (const end of ['server', 'client'] as const) {
        const { device, handshake } = processes.told[end]
        t.is(device.name, place.devices[end])
        const kind: string = device.kind
        t.is(kind, kindOf(place, end))
        t.is(handshake.pathMtu, pathMtu)
        t.is(handshake.udpPort, 4791)
        t.log(`${end}: ${device.name}: ${device.reason}; addressing ${handshake.addressing}`)
      }
      const divisor = loss === 0 ? 1 : 4
      await messagesBothWays(t, processes, count / divisor)
      await fileFromServer(t, processes, size / divisor)
      await closed(t, processes)
      t.is(receiverNotReady(), refusals, 'nobody was sent to when it was not ready')
      const drops = dropped()
      t.log(`${drops.join(' and ')} packets were dropped`)
      t.true(drops.every((count) => (loss === 0 ? count === 0 : count > 0)))
    })
  }
}

/** In the child: how its end of the connection ended. */
async function ending({ kept }: Scope): Promise<string> {
  const { reason, error } = await kept.connection.closed
  return `${reason} ${(error as { code?: string } | undefined)?.code ?? ''}`
}

mixedTest('kill -9 of either end is noticed by the other within a second', async (t, place) => {
  for (const killed of ['server', 'client'] as const) {
    const processes = await connected(t, place)
    const left = killed === 'server' ? 'client' : 'server'
    const ended = processes[left].run(ending)
    const began = performance.now()
    processes[killed].kill()
    t.is(await ended, 'error ERR_RDMA_PEER_LOST')
    t.true(performance.now() - began < 1000, `${performance.now() - began} ms after the ${killed} was killed`)
    processes[left].kill()
  }
})

mixedTest('soft where rdma_rxe has UDP 4791 cannot meet a verbs peer, and says who has it', async (t, place) => {
  // Both in the first namespace, at the two ends of the wire between rxe0 and rxe1.
  const there = { ...place, server: '10.8.0.1', client: '10.8.0.2', enter: {} }
  for (const [server, client] of [
    [{}, { device: 'soft' }],
    [{ device: 'soft' }, {}],
  ] as const) {
    const [serving, connecting] = [Child.start(t), Child.start(t)]
    const port = await serving.run(tasks.listen, await listenOptions(there, server))
    const options = await connectOptions(there, port, client)
    const error = await t.throwsAsync<Error & { code: string }>(connecting.run(tasks.connect, options))
    t.log(`${error.code}: ${error.message}`)
    t.regex(error.message, /4791/)
  }
})
