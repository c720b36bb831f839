// @ts-check
// What the benchmark runs in the guest: WRITEs of 1 MiB from one soft-RoCE device to the other, by secure-rdma and by perftest
// one after the other, with as many in flight, the same path MTU, and two processes each.
// CLI: node tools/bench/rxe-guest.mjs RESULT-FILE ROUNDS SECONDS
//
// `ib_write_bw` polls: it has no event mode (it refuses `-e`: "Events feature not available on WRITE verb"). What perftest
// does with completion events, `ib_send_bw -e`, is measured beside it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ProcessError, mainOf } from '../process.mjs'
import { BULK, BULK_IN_FLIGHT, PLACES } from './loads.mjs'
import { makeCertificates, measure, median } from './measure.mjs'

const PORT = 18515
const PATH_MTU = 4096
/** Of the IPv4 address, in the guest. */
const GID_INDEX = 1
const DEVICES = { server: 'rxe0', client: 'rxe1' }

/** perftest's MB are of 2^20 bytes. */
const MB = 1 << 20

/**
 * Bytes per second, by one of perftest's programs.
 * @param {string} program
 * @param {string[]} options
 */
async function perftest(program, options) {
  const common = ['-F', '-m', `${PATH_MTU}`, '-x', `${GID_INDEX}`, '-q', '1', '-p', `${PORT}`]
  const load = ['-s', `${BULK}`, '-t', `${BULK_IN_FLIGHT}`, ...options]
  const start = (/** @type {string} */ device, /** @type {string[]} */ ...more) => {
    const child = spawn(program, ['-d', device, ...common, ...load, ...more], { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes) => (output += bytes))
    const ended = once(child, 'close').then(([status]) => {
      if (status === 0) return output
      throw new ProcessError(`${program} on ${device} ended with ${status}: ${output.trim()}`, 1)
    })
    return { child, ended }
  }
  const server = start(DEVICES.server)
  try {
    await listening(server.child)
    const client = start(DEVICES.client, PLACES.rxe?.server ?? '')
    const [output] = await Promise.all([client.ended, server.ended])
    // #bytes #iterations BW-peak BW-average message-rate
    const columns = output.split('\n').map((line) => line.trim().split(/\s+/))
    const average = Number(columns.find(([bytes, count]) => bytes === `${BULK}` && Number(count) > 0)?.[3])
    if (!output.includes('BW average[MB/sec]') || !(average > 0)) {
      throw new ProcessError(`${program} tells no bandwidth: ${output.trim()}`, 1)
    }
    return average * MB
  } finally {
    server.child.kill('SIGKILL')
  }
}

/**
 * Until perftest's server listens, or has ended. It says so before it does, and it takes one connection only: the client's.
 * @param {import('node:child_process').ChildProcess} server
 */
async function listening(server) {
  const LISTEN = '0A'
  const isOne = (/** @type {string} */ line) => {
    const [, local, , state] = line.trim().split(/\s+/)
    return state === LISTEN && Number.parseInt(local?.split(':')[1] ?? '', 16) === PORT
  }
  const listed = () => ['tcp', 'tcp6'].map((kind) => readFileSync(`/proc/net/${kind}`, 'utf8')).join('')
  while (server.exitCode === null && !listed().split('\n').some(isOne)) await sleep(20)
}

/** Bytes per second, by secure-rdma. @param {string} folder @param {number} seconds */
async function secureRdma(folder, seconds) {
  const { count, time, device, pathMtu } = await measure('rxe', 'write', folder, seconds)
  if (device !== DEVICES.client || pathMtu !== PATH_MTU) {
    throw new ProcessError(`secure-rdma used ${device} with a path MTU of ${pathMtu}, which is not what is compared`, 1)
  }
  return ((count * BULK) / time) * 1000
}

await mainOf('rxe-guest', async () => {
  const [file, roundsText, secondsText] = process.argv.slice(2)
  const [rounds, seconds] = [Number(roundsText), Number(secondsText)]
  if (!file || !(rounds > 0) || !(seconds > 0)) {
    throw new ProcessError('usage: node tools/bench/rxe-guest.mjs RESULT-FILE ROUNDS SECONDS', 2)
  }
  const folder = await mkdtemp(join(tmpdir(), 'rxe-guest-'))
  makeCertificates(folder, PLACES.rxe?.server ?? '')

  /** @type {Record<'ours' | 'write' | 'sendEvents' | 'ratio' | 'toEvents', number[]>} */
  const found = { ours: [], write: [], sendEvents: [], ratio: [], toEvents: [] }
  for (let round = 0; round < rounds; round++) {
    const ours = await secureRdma(folder, seconds)
    const write = await perftest('ib_write_bw', ['-D', `${Math.max(2, Math.round(seconds))}`])
    // With events perftest counts operations, not seconds: as many as take about as long.
    const count = Math.max(4 * BULK_IN_FLIGHT, Math.round((write / BULK) * seconds))
    const sendEvents = await perftest('ib_send_bw', ['-e', '-n', `${count}`])
    const values = { ours, write, sendEvents, ratio: ours / write, toEvents: ours / sendEvents }
    for (const [key, value] of Object.entries(values)) found[/** @type {keyof typeof found} */ (key)].push(value)
    const told = [ours, write, sendEvents].map((value) => (value / 1e6).toFixed(1))
    console.error(`round ${round + 1}: MB/s: secure-rdma ${told[0]}, ib_write_bw ${told[1]}, ib_send_bw -e ${told[2]}`)
  }
  const lines = {
    'rxe.write_1m.vs_perftest': median(found.ratio),
    'rxe.write_1m.vs_send_events': median(found.toEvents),
    'raw.rxe.write_1m.secure_rdma': median(found.ours),
    'raw.rxe.write_1m.ib_write_bw': median(found.write),
    'raw.rxe.write_1m.ib_send_bw_events': median(found.sendEvents),
  }
  writeFileSync(file, JSON.stringify(lines))
})
