// Workers, and ends of processes, with RDMA in flight: nothing crashes, nothing hangs, the other side is told.

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import type { Connection } from 'secure-rdma'
import { deviceTest, processTest } from './_device.js'
import { connecting, join, serve, until } from './_peers.js'

/** What a worker does: connects, sends without end, and says when it has begun. */
const FLOOD = `
  const { parentPort, workerData } = require('node:worker_threads')
  const { connect } = require(workerData.package)
  async function main() {
    const connection = await connect(workerData.options)
    connection.closed.then(() => {})
    parentPort.postMessage('begun')
    for (;;) await Promise.all(Array.from({ length: 8 }, () => connection.send(Buffer.alloc(20_000))))
  }
  main()`

const packagePath = require.resolve('secure-rdma')

function startWorker(options: unknown): Worker {
  return new Worker(FLOOD, { eval: true, workerData: { package: packagePath, options } })
}

test('the addon loads in eight workers at once, again and again', async (t) => {
  const program = `require(${JSON.stringify(packagePath)}).devices()`
  for (let round = 0; round < 3; round++) {
    const workers = Array.from({ length: 8 }, () => new Worker(program, { eval: true }))
    const codes = await Promise.all(workers.map((worker) => once(worker, 'exit')))
    t.deepEqual(
      codes.flat(),
      Array.from({ length: 8 }, () => 0),
    )
  }
})

test('workers that are terminated while they load and list devices harm nobody', async (t) => {
  const program = `const { devices } = require(${JSON.stringify(packagePath)}); for (;;) devices()`
  for (let delay = 0; delay < 60; delay += 6) {
    const worker = new Worker(`(async () => { ${program.replace('devices()', 'await devices()')} })()`, { eval: true })
    await sleep(delay)
    t.true([0, 1].includes(await worker.terminate()), 'terminated, or not begun')
  }
})

deviceTest('worker.terminate() in flight: the other side is told, the process lives', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  for (let round = 0; round < 5; round++) {
    const accepting = server.accept()
    const worker = startWorker(toServer)
    const [said] = (await once(worker, 'message')) as unknown[]
    t.is(said, 'begun')
    const accepted = await accepting
    await accepted.receive()
    await sleep(round * 3)
    await worker.terminate()
    const began = performance.now()
    const { reason } = await accepted.closed
    t.is(reason, 'error')
    t.true(performance.now() - began < 5000)
  }
  t.is(server.connections, 0)
})

/** A worker that is a client of its own: says what came back, and stays until it is told to go on. */
const CLIENT = `
  const { once } = require('node:events')
  const { parentPort, workerData } = require('node:worker_threads')
  const { connect } = require(workerData.package)
  async function main() {
    const connection = await connect(workerData.options)
    const echo = async (number) => {
      const message = Buffer.alloc(30_000, number)
      await connection.send(message)
      if (!(await connection.receive()).equals(message)) throw new Error('something else came back')
    }
    for (let number = 0; number < 10; number++) await echo(number)
    parentPort.postMessage('worked')
    await once(parentPort, 'message')
    for (let number = 0; number < 10; number++) await echo(number)
    await connection.close()
  }
  main()`

deviceTest('the main thread and eight workers use RDMA at once, and know nothing of each other', async (t, place) => {
  const { server, client, accepted, toServer } = await join(t, await serve(t, place))
  const echo = async (connection: Connection): Promise<void> => {
    for await (const message of connection) await connection.send(message)
  }
  const echoing = (async () => {
    for await (const connection of server) echo(connection).catch(() => undefined)
  })()
  void echo(accepted)
  // Loaded again, and again: what the last worker leaves is there for the next one.
  for (let round = 0; round < 2; round++) {
    const workerData = { package: packagePath, options: toServer }
    const workers = Array.from({ length: 8 }, () => new Worker(CLIENT, { eval: true, workerData }))
    t.deepEqual((await Promise.all(workers.map((worker) => once(worker, 'message')))).flat(), Array(8).fill('worked'))
    // Half of them are ended in the middle; the others, and this thread, go on.
    const [ended, going] = [workers.slice(0, 4), workers.slice(4)]
    await Promise.all(ended.map((worker) => worker.terminate()))
    const exits = going.map((worker) => once(worker, 'exit'))
    for (const worker of going) worker.postMessage('go on')
    t.deepEqual((await Promise.all(exits)).flat(), [0, 0, 0, 0])
    const message = Buffer.alloc(30_000, round)
    await client.send(message)
    t.true((await client.receive())?.equals(message))
    await until('the connections of the workers are over', () => server.connections === 1)
  }
  await client.close()
  await server.close()
  await echoing
})

/** Rounds of every kind of end; `npm run soak` does 40. */
const ENDS = Number(process.env['SECURE_RDMA_END_ROUNDS'] ?? 1)

processTest('ends of processes in flight keep their exit code', async (t, place) => {
  t.timeout(240_000 * ENDS)
  const { server, toServer } = await serve(t, place)
  const ends = {
    'process.exit(7)': 7,
    'process.kill(process.pid, "SIGTERM")': 'SIGTERM',
    'process.abort()': 'SIGABRT',
    'throw new Error("uncaught")': 1,
    'Promise.reject(new Error("unhandled"))': 1,
  }
  const options = await connecting(place, toServer.port)
  const rounds = Array.from({ length: ENDS }, (_, round) => Object.entries(ends).map((end) => [round, ...end] as const))
  for (const [round, end, expected] of rounds.flat()) {
    const program = `
      const { connect } = require(${JSON.stringify(packagePath)})
      connect(${JSON.stringify(options)}).then((connection) => {
        const flood = () => { for (let i = 0; i < 8; i++) connection.send(Buffer.alloc(20_000)).catch(() => {}) }
        flood()
        setInterval(flood, 1)
        setTimeout(() => { ${end} }, ${30 + ((round * 7) % 50)})
      })`
    const accepting = server.accept()
    const running = promisify(execFile)(process.execPath, ['-e', program])
    const ending = running.catch((error: unknown) => error) as Promise<{ code: unknown; signal: unknown }>
    const accepted = await Promise.race([accepting, ending])
    if (!('closed' in accepted)) throw new Error('the program ended before it was connected', { cause: accepted })
    const outcome = await ending
    t.is(outcome.signal ?? outcome.code, expected, end)
    t.is((await accepted.closed).reason, 'error', end)
  }
})
