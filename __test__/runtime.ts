// What goes on behind a blocked event loop, in forked children, and where Node takes no memory of others. Reliability §F.5
// #48, #49 and #51.

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join as path } from 'node:path'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import type { ExecutionContext } from 'ava'
import { connect } from 'secure-rdma'
import { Child } from './_child.js'
import { deviceTest, testDevice } from './_device.js'
import { connecting, join, listening, serve } from './_peers.js'

const packagePath = require.resolve('secure-rdma')

/** How long the event loop is blocked. Longer than a peer may be silent, and than sent work may go unanswered. */
const BLOCKED = 5000

const RECEIVE_BUFFER = 65_536

/** The default: messages that may be on their way before any credit comes back. */
const CREDITS = 16
const SIZE = 1000

/**
 * A worker that serves one connection: sends one message; when it is told to, numbered messages without pause, and notes when
 * each was acknowledged; and tells when it is asked.
 */
const SENDER = `
  const { once } = require('node:events')
  const { parentPort, workerData } = require('node:worker_threads')
  const { listen } = require(workerData.package)
  const now = () => performance.timeOrigin + performance.now()
  async function main() {
    const server = await listen(workerData.options)
    parentPort.postMessage(server.address().port)
    const connection = await server.accept()
    const acknowledged = []
    await connection.send(Buffer.alloc(${SIZE}))
    let sent = 1
    await once(parentPort, 'message')
    let stopped = false
    parentPort.once('message', () => { stopped = true })
    while (!stopped) {
      const number = sent++
      const message = Buffer.alloc(${SIZE})
      message.writeUInt32BE(number)
      const send = connection.send(message).then(() => { acknowledged[number] = now() })
      if (sent % 8 === 0) await send
    }
    await connection.end()
    parentPort.postMessage({ sent, acknowledged, closed: (await connection.closed).reason })
    await server.close()
  }
  main()`

interface Sent {
  sent: number
  acknowledged: number[]
  closed: string
}

deviceTest(
  `an event loop that is blocked for ${BLOCKED / 1000} s: the device acknowledges, and nothing is lost`,
  async (t, place) => {
    const options = { ...(await listening(place)), receiveBufferSize: RECEIVE_BUFFER }
    const worker = new Worker(SENDER, { eval: true, workerData: { package: packagePath, options } })
    t.teardown(() => worker.terminate())
    const [port] = (await once(worker, 'message')) as [number]
    const connection = await connect({ ...(await connecting(place, port)), receiveBufferSize: RECEIVE_BUFFER })
    const first = await connection.receive()
    t.is(first?.length, SIZE)
    const now = (): number => performance.timeOrigin + performance.now()
    const began = now()
    worker.postMessage('go')
    while (now() - began < BLOCKED);
    const ended = now()
    const { bytesReady, creditsGranted } = connection.stats()
    t.true(connection.handshake.peerTerms.maxMessageSize > 0)

    // What had arrived has its bound, whatever the peer would have sent.
    t.true(bytesReady <= RECEIVE_BUFFER + 64 * SIZE, `${bytesReady} bytes wait`)
    t.true(creditsGranted >= 0)
    worker.postMessage('stop')
    let count = 1
    for (let message = await connection.receive(); message; message = await connection.receive()) {
      if (message.readUInt32BE() !== count++) t.fail(`${message.readUInt32BE()} came instead of ${count - 1}`)
    }
    const told = once(worker, 'message')
    await connection.close()
    const [{ sent, acknowledged, closed }] = (await told) as [Sent]
    t.is(count, sent)
    t.regex(closed, /^(closed|peerClosed)$/)
    const meanwhile = acknowledged.filter((at) => at > began && at < ended).length
    t.log(`${sent} messages, ${meanwhile} of them acknowledged while nobody here could run`)
    t.true(meanwhile > CREDITS, 'more than there was credit for: it has been given back meanwhile')
  },
)

deviceTest('a cluster: its workers use RDMA, one is killed, and the primary is unharmed', async (t, place) => {
  t.timeout(240_000)
  const folder = scratch(t)
  const program = path(folder, 'cluster.cjs')
  // The emulated guest needs a while for four processes at once.
  const patient = { handshakeTimeout: 60_000 }
  const given = {
    server: { ...(await listening(place)), ...patient },
    client: { ...(await connecting(place, 1)), ...patient },
  }
  const source = `
    const cluster = require('node:cluster')
    const { once } = require('node:events')
    const { connect, listen } = require(${JSON.stringify(packagePath)})
    const { server, client } = ${JSON.stringify(given)}
    async function talk() {
      const listener = await listen(server)
      const { port } = listener.address()
      const [one, other] = await Promise.all([connect({ ...client, port }), listener.accept()])
      await one.send(Buffer.from(cluster.isPrimary ? 'primary' : 'worker'))
      return { listener, one, said: String(await other.receive()), port }
    }
    async function close({ listener, one }) {
      await one.close()
      await listener.close()
    }
    async function worker() {
      const talked = await talk()
      process.send({ said: talked.said, port: talked.port })
      await once(process, 'message')
      await close(talked)
      process.disconnect()
    }
    async function primary() {
      // What the primary has open before it forks stays its own.
      const talked = await talk()
      const workers = Array.from({ length: 3 }, () => cluster.fork())
      const answer = (worker) => new Promise((resolve, reject) => {
        worker.once('message', resolve)
        worker.once('exit', (code) => reject(new Error('a worker ended with ' + code)))
      })
      const said = await Promise.all(workers.map(answer))
      workers[0].process.kill('SIGKILL')
      await once(workers[0], 'exit')
      // A port that somebody has is refused by name: nothing is shared as cluster shares net.Server.
      const taken = await listen({ ...server, port: said[1].port }).catch((error) => error.code)
      for (const worker of workers.slice(1)) worker.send('end')
      const exits = await Promise.all(workers.slice(1).map((worker) => once(worker, 'exit')))
      await close(talked)
      await close(await talk())
      console.log(JSON.stringify({ own: talked.said, said: said.map(({ said }) => said), taken, codes: exits.map(([code]) => code) }))
    }
    const main = cluster.isPrimary ? primary : worker
    main().catch((error) => { console.error(error); process.exit(1) })`
  writeFileSync(program, source)
  const { stdout } = await promisify(execFile)(process.execPath, [program], { timeout: 200_000 })
  const told = JSON.parse(stdout) as unknown
  t.deepEqual(told, { own: 'primary', said: ['worker', 'worker', 'worker'], taken: 'ERR_RDMA_TCP', codes: [0, 0] })
})

function scratch(t: ExecutionContext): string {
  const folder = mkdtempSync(path(tmpdir(), 'secure-rdma-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true })
  })
  return folder
}

/** Only a test build of the addon can fork, and say that Node takes no external buffers. */
const testBuild: typeof deviceTest = (title, implementation) => {
  if (testDevice === 'fake') deviceTest(title, implementation)
}

testBuild('a child of fork(2) without exec is refused, and its parent goes on', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const binding = path(dirname(packagePath), '../binding.cjs')
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- what the package does not export
  const { isRefusedInFork } = require(binding) as { isRefusedInFork: () => boolean | null }
  const sending = client.send(Buffer.alloc(100_000, 1))
  t.true(isRefusedInFork())
  await Promise.all([sending, client.send(Buffer.from('from the parent'))])
  t.is((await accepted.receive())?.length, 100_000)
  t.is(String(await accepted.receive()), 'from the parent')
  await client.close()
})

testBuild('where Node takes no external buffers, messages are copied, and it can be asked', async (t, place) => {
  for (const forbidden of [true, false]) {
    const child = Child.start(t, { env: forbidden ? { SECURE_RDMA_TEST_NO_EXTERNAL_BUFFERS: '1' } : {} })
    const given = { server: await listening(place), client: await connecting(place, 1), package: packagePath }
    const told = await child.run(async ({ rdma }, { server, client, package: main }) => {
      const load = process.getBuiltinModule('node:module').createRequire(main)
      const { environment } = load('./src/events.js') as { environment: { takesExternalBuffers(): boolean } }
      const listener = await rdma.listen(server)
      const [one, other] = await Promise.all([
        rdma.connect({ ...client, port: listener.address()?.port ?? 0 }),
        listener.accept(),
      ])
      const data = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251))
      const lengths: boolean[] = []
      for (const length of [0, 100, 16_383, 16_384, 100_000]) {
        await one.send(data.subarray(0, length))
        lengths.push(data.subarray(0, length).equals((await other.receive()) ?? Buffer.from('none')))
      }
      await one.close()
      await listener.close()
      return { takes: environment.takesExternalBuffers(), lengths }
    }, given)
    t.deepEqual(told, { takes: !forbidden, lengths: [true, true, true, true, true] })
    child.release()
    t.deepEqual(await child.exited, { code: 0, signal: null })
  }
})
