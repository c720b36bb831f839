#!/usr/bin/env node
// @ts-check
// Measures the embedded device against plain sockets, on this host, over loopback, in one run: Rust's side by `cargo bench`,
// then TypeScript's, against node:net and node:tls.
// CLI: node tools/bench.mjs [--json FILE] [--rounds N] [--seconds S] [--part rust,node] [--only NAME,...]
//   --only   of names as in the table: soft.write_1m, node.rtt_64

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { measureNode } from './bench/node.mjs'
import { mainOf, run } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const { values } = parseArgs({
  options: {
    json: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    part: { type: 'string', default: 'rust,node' },
    only: { type: 'string' },
  },
})

/** What was found, by its name. @type {Record<string, number | string>} */
const found = {}

await mainOf('bench', async () => {
  const parts = values.part.split(',')
  const only = values.only?.split(',')
  const isWanted = (/** @type {string} */ name) => only?.some((start) => name.startsWith(start)) ?? true
  if (parts.includes('rust')) await measureRust(only)
  if (parts.includes('node')) {
    await setUp(['addon', 'typescript', 'examples'], ['build'])
    const options = { rounds: Number(values.rounds ?? 5), seconds: Number(values.seconds ?? 1), isWanted }
    for (const [name, value] of await measureNode(options)) {
      found[name] = value
      console.log(`${name.padEnd(78)} ${typeof value === 'number' ? figure(value) : value.padStart(16)}`)
    }
  }
  if (values.json) {
    writeFileSync(resolve(values.json), `${JSON.stringify(found, null, 2)}\n`)
    console.log(`\nwritten to ${values.json}`)
  }
})

/** @param {string[] | undefined} only */
async function measureRust(only) {
  const names = only?.filter((name) => name.startsWith('soft.')).map((name) => name.slice('soft.'.length))
  if (names?.length === 0) return
  const folder = mkdtempSync(join(tmpdir(), 'secure-rdma-bench-'))
  try {
    const file = join(folder, 'rust.json')
    const given = { rounds: values.rounds, seconds: values.seconds, only: names?.join(','), json: file }
    const options = Object.entries(given).flatMap(([name, value]) => (value ? [`--${name}`, value] : []))
    const command = ['bench', '--locked', '-p', 'secure-rdma-soft', '--bench', 'wire', '--', ...options]
    await run('cargo', command, { cwd: ROOT, env: buildEnvironment() })
    Object.assign(found, JSON.parse(readFileSync(file, 'utf8')))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** @param {number} value */
function figure(value) {
  return value.toFixed(Math.abs(value) < 0.1 ? 9 : 3).padStart(16)
}
