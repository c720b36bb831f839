#!/usr/bin/env node
// @ts-check
// Measures the embedded device against plain sockets, on this host, over loopback, in one run: Rust's side by `cargo bench`,
// then TypeScript's, against node:net and node:tls; and in the guest, on soft-RoCE, TypeScript's side against perftest.
// CLI: node tools/bench.mjs [--json FILE] [--rounds N] [--seconds S] [--part rust,node,rxe] [--only NAME,...]
//   --only   of names as in the table: soft.write_1m, node.rtt_64, rxe.write_1m
// Where there can be no guest, a line says so, the other figures stand, and the exit status is not 0.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { measureNode } from './bench/node.mjs'
import { measureRxe } from './bench/rxe.mjs'
import { ProcessError, mainOf, run } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const { values } = parseArgs({
  options: {
    json: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    part: { type: 'string' },
    only: { type: 'string' },
  },
})

/** What was found, by its name. @type {Record<string, number | string>} */
const found = {}

await mainOf('bench', async () => {
  const parts = values.part?.split(',') ?? ['rust', 'node', 'rxe']
  const only = values.only?.split(',')
  const isWanted = (/** @type {string} */ name) => only?.some((start) => name.startsWith(start)) ?? true
  if (parts.includes('rust')) await measureRust(only)
  if (parts.includes('node')) {
    await setUp(['addon', 'typescript', 'examples'], ['build'])
    show(await measureNode({ rounds: Number(values.rounds ?? 5), seconds: Number(values.seconds ?? 1), isWanted }))
  }
  if (parts.includes('rxe') && isWanted('rxe.write_1m')) {
    try {
      await setUp(['addon', 'typescript', 'examples'], ['build', 'guest'])
      show(await measureRxe({ rounds: Number(values.rounds ?? 5), seconds: Number(values.seconds ?? 2) }))
    } catch (error) {
      if (!(error instanceof ProcessError)) throw error
      show([['rxe.write_1m.not_measured', `${error.message} (--part rust,node leaves it out)`]])
      process.exitCode = 1
    }
  }
  if (values.json) {
    writeFileSync(resolve(values.json), `${JSON.stringify(found, null, 2)}\n`)
    console.log(`\nwritten to ${values.json}`)
  }
})

/** @param {Iterable<[string, number | string]>} lines */
function show(lines) {
  for (const [name, value] of lines) {
    found[name] = value
    console.log(`${name.padEnd(78)} ${typeof value === 'number' ? figure(value) : value.padStart(16)}`)
  }
}

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
