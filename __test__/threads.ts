// Workers, and ends of processes, with RDMA in flight: nothing crashes, nothing hangs, the other side is told.

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { deviceTest, processTest } from './_device.js'
import { connecting, serve } from './_peers.js'

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

processTest('ends of processes in flight keep their exit code', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const ends = {
    'process.exit(7)': 7,
    'process.kill(process.pid, "SIGTERM")': 'SIGTERM',
    'process.abort()': 'SIGABRT',
    'throw new Error("uncaught")': 1,
    'Promise.reject(new Error("unhandled"))': 1,
  }
  const options = await connecting(place, toServer.port)
  for (const [end, expected] of Object.entries(ends)) {
    const program = `
      const { connect } = require(${JSON.stringify(packagePath)})
      connect(${JSON.stringify(options)}).then((connection) => {
        const flood = () => { for (let i = 0; i < 8; i++) connection.send(Buffer.alloc(20_000)).catch(() => {}) }
        flood()
        setInterval(flood, 1)
        setTimeout(() => { ${end} }, 30)
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
