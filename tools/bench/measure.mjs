// @ts-check
// One measurement of the Node benchmarks: a server process, a client process, and what both say.

import { fork, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { ProcessError } from '../process.mjs'
import { ROOT } from '../set-up.mjs'

/**
 * What both say: what arrived, what the client counted, and over what.
 * @typedef {object} Found
 * @property {number} arrived
 * @property {number} elapsed
 * @property {number} resident
 * @property {number} count
 * @property {number} time
 * @property {number} median
 * @property {number} p99
 * @property {string} group
 * @property {string} [device]
 * @property {number} [pathMtu]
 */

/**
 * An authority, and certificates for a server at this address and for its client.
 * @param {string} folder
 * @param {string} address
 */
export function makeCertificates(folder, address) {
  const made = spawnSync(process.execPath, [join(ROOT, 'build/examples/demo/certificates.js'), folder, address])
  if (made.status !== 0) throw new ProcessError(`the certificates could not be made: ${made.stderr}`, 1)
}

/**
 * One measurement, by two processes.
 * @param {string} transport
 * @param {string} task
 * @param {string} folder
 * @param {number} seconds
 * @returns {Promise<Found>}
 */
export async function measure(transport, task, folder, seconds) {
  const start = (/** @type {string} */ file, /** @type {string[]} */ ...more) =>
    fork(join(ROOT, 'tools/bench', file), [transport, task, folder, ...more], {
      serialization: 'advanced',
      execArgv: ['--expose-gc'],
    })
  const server = start('server.mjs')
  const told = () =>
    /** @type {Promise<any>} */ (
      new Promise((resolve, reject) => {
        server.once('message', resolve)
        server.once('exit', (code) => reject(new ProcessError(`the server of ${transport} ${task} ended: ${code}`, 1)))
      })
    )
  const arrived = () => {
    const answer = told()
    server.send('how much?')
    return answer
  }
  try {
    const { port } = await told()
    const client = start('client.mjs', String(port), String(seconds))
    return await new Promise((resolve, reject) => {
      /** @type {Found} */
      const found = { arrived: 0, elapsed: 1, resident: 0, count: 0, time: 1, median: 0, p99: 0, group: '' }
      /** @type {Promise<any> | undefined} */
      let before
      /** @type {Promise<any> | undefined} */
      let after
      client.on('message', (/** @type {any} */ news) => {
        if (news.begins) before = arrived()
        if (news.ends) after = arrived()
        Object.assign(found, news)
      })
      // Messages may come after the process has gone; none comes after this.
      client.once('disconnect', async () => {
        const [first, last] = await Promise.all([before, after])
        if (!first || !last)
          return reject(new ProcessError(`the client of ${transport} ${task} has measured nothing`, 1))
        const resident = last.resident - first.resident
        resolve({ ...found, arrived: last.arrived - first.arrived, elapsed: last.at - first.at, resident })
      })
    })
  } finally {
    server.removeAllListeners('exit')
    server.disconnect()
  }
}

/** @param {readonly number[]} values */
export function median(values) {
  const sorted = values.toSorted((one, other) => one - other)
  return sorted[sorted.length >> 1] ?? NaN
}
