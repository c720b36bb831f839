// A crowd that never comes to a handshake does not keep an honest client out, and a handshake that fails ends nothing.

import { connect as connectTcp } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import * as rdma from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { Authority } from './_authority.js'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { deviceTest, testDevice } from './_device.js'
import type { Crowd, Seen } from './_flood.js'
import { serve, warmUp } from './_peers.js'

const CROWD = 500
const HONEST = 20

/** Milliseconds that an honest client may have to wait. */
const LIMIT = 2000

/**
 * An honest client waits behind those of the crowd that the server has not taken in yet. An emulated guest on a busy
 * machine may stand still for seconds; whoever is kept out by the crowd is so each time.
 */
const ATTEMPTS = testDevice === 'rxe' ? 3 : 1

/** The module with the crowd, for the child. */
const crowdModule = require.resolve('./_flood.js')

/** What an honest client has seen: how long connecting took, and each step of it, in milliseconds. */
interface Honest {
  took: number
  steps: Record<string, number>
}

/**
 * An honest client: connects, and exchanges a message each way. Where this machine gives it no processor for as long as
 * the whole crowd takes to come by, it is itself the one that has stalled longest; then it tries again, as long as a
 * client may have to wait.
 */
async function honest(
  { rdma }: Pick<Scope, 'rdma'>,
  { limit, ...options }: rdma.ConnectOptions & { limit: number },
): Promise<Honest> {
  const began = performance.now()
  const passed = (): number => performance.now() - began
  const connect = async (): Promise<rdma.Connection> => {
    for (;;) {
      try {
        return await rdma.connect(options)
      } catch (error) {
        if ((error as rdma.RdmaError).code !== 'ERR_RDMA_HANDSHAKE_CLOSED' || passed() > limit) throw error
      }
    }
  }
  const client = await connect()
  const took = passed()
  await client.send(Buffer.from('honest'))
  await client.receive()
  await client.close()
  return { took, steps: Object.fromEntries(client.handshake.steps.map(({ name, duration }) => [name, duration])) }
}

/** A TLS record's header, and the beginning of a ClientHello in it: no reason to refuse it yet. */
const beginning = Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, ...Buffer.alloc(32, 7)])

deviceTest('a crowd of 1000 that stalls keeps no honest client out for 2 s', async (t, place) => {
  const served = await serve(t, place)
  const { server, toServer } = served
  await warmUp(served)
  const before = await census()
  // A process of its own, but for in-memory devices, which reach none.
  const client = testDevice === 'fake' ? undefined : Child.start(t)
  const visit = async (): Promise<Honest> => {
    const visiting =
      client?.run(honest, { ...toServer, limit: LIMIT }) ?? honest({ rdma }, { ...toServer, limit: LIMIT })
    const accepted = await Promise.race([server.accept(), visiting.then(() => undefined)])
    t.is(String(await accepted?.receive()), 'honest')
    await accepted?.send(Buffer.from('welcome'))
    return visiting
  }
  // The first connect of a process opens the device and loads its code, which in an emulated guest takes a second.
  await visit()

  const child = Child.start(t)
  const { host, port, localAddress } = toServer
  const crowd: Crowd = { host, port, localAddress, silent: CROWD, dripping: CROWD, bytes: beginning }
  await child.run(
    (_scope, { module, crowd }) => {
      const require = process.getBuiltinModule('node:module').createRequire(module)
      const { flood } = require(module) as { flood: (crowd: Crowd) => () => Seen }
      Object.assign(globalThis, { seen: flood(crowd) })
    },
    { module: crowdModule, crowd },
  )
  const seen = (): Promise<Seen> => child.run(() => (globalThis as unknown as { seen: () => Seen }).seen())
  // All have come once, and many of them again.
  while ((await seen()).made < 3 * CROWD) await sleep(100)

  let longest = Infinity
  for (let attempt = 0; attempt < ATTEMPTS && longest >= LIMIT; attempt++) {
    const visits: Honest[] = []
    for (let i = 0; i < HONEST; i++) visits.push(await visit())
    visits.sort((one, other) => one.took - other.took)
    const median = visits[HONEST / 2]?.took ?? NaN
    const last = visits.at(-1)
    longest = last?.took ?? NaN
    t.log(`${HONEST} honest connects: ${Math.round(median)} ms in the middle, ${Math.round(longest)} ms at the most`)
    const steps = Object.entries(last?.steps ?? {}).map(([name, ms]) => `${name} ${Math.round(ms)}`)
    t.log('the slowest:', steps.join(', '))
    t.true(median < LIMIT)
  }
  t.log('the crowd:', JSON.stringify(await seen()), 'the server:', JSON.stringify(server.stats()))
  t.true(longest < LIMIT, `${longest} ms`)
  t.true(server.stats().evicted > CROWD, 'the crowd filled the server')
  t.true(server.stats().pending <= 256)
  for (const process of [child, client]) {
    process?.kill()
    await process?.exited
  }
  await assertAsBefore(t, before, 15_000)
})

deviceTest('handshakes that fail between honest ones end no iteration', async (t, place) => {
  const served = await serve(t, place)
  const { server, toServer } = served
  const names: (string | undefined)[] = []
  const iterating = (async () => {
    for await (const connection of server) {
      names.push(connection.peer.names?.commonName)
      await connection.closed
    }
  })()
  const stranger = { ...toServer, ...(await (await Authority.make('CN=Other Authority')).issue()) }
  const raw = async (bytes: string): Promise<void> => {
    const socket = connectTcp({ host: toServer.host, port: toServer.port, localAddress: toServer.localAddress })
    socket.on('error', () => undefined).resume()
    socket.end(bytes)
    await new Promise((resolve) => socket.once('close', resolve))
  }
  const failing = {
    'a bad certificate': () => t.throwsAsync<rdma.RdmaError>(rdma.connect(stranger), { code: 'ERR_RDMA_TLS_ALERT' }),
    garbage: () => raw('GET / HTTP/1.1\r\n\r\n'),
    'a plain close': () => raw(''),
  }
  let failed = 0
  for (let round = 0; round < 3; round++) {
    for (const fail of Object.values(failing)) {
      await fail()
      await (await rdma.connect(toServer)).close()
      while (server.stats().failed < failed + 1) await sleep(5)
      failed++
    }
  }
  t.is(server.stats().failed, failed)
  t.is(server.stats().established, 9)
  while (names.length < 9) await sleep(5)
  t.deepEqual([...new Set(names)], ['client.test'])
  await server.close()
  await iterating
})
