// @ts-check
// From TypeScript's side: secure-rdma on the embedded device against node:net and node:tls, two processes over loopback.
// Each round measures the neighbours one after the other; what counts is the median of the rounds' ratios.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BULK } from './loads.mjs'
import { makeCertificates, measure, median } from './measure.mjs'

/**
 * What is measured: a transport, a task, and what the number is.
 * @typedef {{ transport: 'rdma' | 'tls' | 'net', task: string, value: (found: Found) => number }} Side
 * @typedef {import('./measure.mjs').Found} Found
 */

/** @param {Side['transport']} transport @param {string} task @param {Side['value']} value @returns {Side} */
const side = (transport, task, value) => ({ transport, task, value })
/** Bytes, or messages, that arrived, per second. @param {Found} found */
const arrivals = ({ arrived, elapsed }) => (arrived / elapsed) * 1000
/** Calls that the client has made, per second. @param {Found} found */
const calls = ({ count, time }) => (count / time) * 1000
/** @param {Found} found */
const middle = ({ median }) => median

/** The ratios: ours, theirs. @type {Record<string, [Side, Side]>} */
const RATIOS = {
  'write_1m.vs_tls': [side('rdma', 'write', (found) => calls(found) * BULK), side('tls', 'bulk', arrivals)],
  'write_1m.vs_net': [side('rdma', 'write', (found) => calls(found) * BULK), side('net', 'bulk', arrivals)],
  'messages_1m.vs_tls': [side('rdma', 'bulk', arrivals), side('tls', 'bulk', arrivals)],
  'rtt_64.vs_tls': [side('rdma', 'ping', middle), side('tls', 'ping', middle)],
  'msgs_64.vs_tls': [side('rdma', 'messages', arrivals), side('tls', 'messages', arrivals)],
  'batch_64.vs_tls': [side('rdma', 'batch', arrivals), side('tls', 'messages', arrivals)],
  'connects.vs_tls': [side('rdma', 'connects', calls), side('tls', 'connects', calls)],
}

/**
 * @param {{ rounds: number, seconds: number, isWanted: (name: string) => boolean }} options
 * @returns {Promise<Map<string, number | string>>} by name
 */
export async function measureNode({ rounds, seconds, isWanted }) {
  const folder = mkdtempSync(join(tmpdir(), 'secure-rdma-bench-'))
  try {
    makeCertificates(folder, '127.0.0.1')
    /** @type {Map<string, number | string>} */
    const lines = new Map()
    for (const [name, sides] of Object.entries(RATIOS)) {
      if (isWanted(`node.${name}`)) await compare(lines, name, sides, { folder, rounds, seconds })
    }
    if (isWanted('node.idle_connection')) {
      // Of what a connection takes, TLS and its buffers included: the client's side, and the server's.
      const { count, time, resident } = await measure('rdma', 'idle', folder, seconds)
      lines.set('raw.node.idle_connection.client_bytes', count)
      lines.set('raw.node.idle_connection.server_bytes', resident / time)
    }
    return lines
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/**
 * @param {Map<string, number | string>} lines
 * @param {string} name
 * @param {[Side, Side]} sides
 * @param {{ folder: string, rounds: number, seconds: number }} options
 */
async function compare(lines, name, sides, { folder, rounds, seconds }) {
  /** @type {number[]} */
  const ratios = []
  /** @type {Map<string, number[]>} */
  const raw = new Map()
  const keep = (/** @type {string} */ key, /** @type {number} */ value) =>
    raw.set(key, [...(raw.get(key) ?? []), value])
  for (let round = 0; round < rounds; round++) {
    const values = []
    for (const { transport, task, value } of sides) {
      const found = await measure(transport, task, folder, seconds)
      values.push(value(found))
      keep(`${transport}_${task}`, value(found))
      if (found.p99 > 0) keep(`${transport}_${task}.p99`, found.p99)
      if (found.group) lines.set(`raw.node.${name}.${transport}.group`, found.group)
    }
    ratios.push((values[0] ?? NaN) / (values[1] ?? NaN))
  }
  lines.set(`node.${name}`, median(ratios))
  for (const [key, values] of raw) lines.set(`raw.node.${name}.${key}`, median(values))
}
