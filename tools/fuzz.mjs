#!/usr/bin/env node
// @ts-check
// Runs the fuzz targets of all crates (crates/*/fuzz), one on each processor, from their committed corpora and from what
// earlier runs have found (build/fuzz/corpus). Installs cargo-fuzz into build/fuzz where there is none. Output goes to
// build/fuzz/TARGET.log, an input that fails to crates/*/fuzz/artifacts/TARGET.
// CLI: node tools/fuzz.mjs [--minutes=30] [TARGET ...]

import { closeSync, existsSync, mkdirSync, openSync, readFileSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { ProcessError, capture, mainOf, run, runForStatus } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const FOLDER = join(ROOT, 'build/fuzz')
const CARGO_FUZZ = 'cargo-fuzz@0.13.2'

/** @typedef {{ name: string, crate: string }} Target `crate` is its folder */

/** @returns {Target[]} */
function targetsOf() {
  const crates = readdirSync(join(ROOT, 'crates')).map((name) => join(ROOT, 'crates', name))
  return crates
    .filter((crate) => existsSync(join(crate, 'fuzz/fuzz_targets')))
    .flatMap((crate) =>
      readdirSync(join(crate, 'fuzz/fuzz_targets')).map((file) => ({ name: file.replace(/\.rs$/, ''), crate })),
    )
}

/** Runs targets, each for so many minutes. @param {number} minutes @param {string[]} [names] all of them where none is given */
export async function fuzz(minutes, names = []) {
  const all = targetsOf()
  const unknown = names.find((name) => !all.some((target) => target.name === name))
  if (unknown) throw new ProcessError(`no target ${unknown}: there are ${all.map(({ name }) => name).join(', ')}`, 1)
  const targets = all.filter(({ name }) => names.length === 0 || names.includes(name))

  // Sanitizers and coverage are options of a nightly compiler only, and so is building with them.
  const env = { ...buildEnvironment(), RUSTC_BOOTSTRAP: '1' }
  env.PATH = [join(FOLDER, 'bin'), env.PATH].join(delimiter)
  await setUp([], ['build'])
  mkdirSync(FOLDER, { recursive: true })
  if ((await runForStatus('cargo', ['fuzz', '--version'], { env })) !== 0)
    await run('cargo', ['install', '--locked', '--root', FOLDER, CARGO_FUZZ], { cwd: ROOT, env })
  for (const crate of new Set(targets.map((target) => target.crate)))
    await run('cargo', ['fuzz', 'build'], { cwd: crate, env })
  const host = /^host: (.+)$/m.exec(capture('rustc', ['-vV'], { env }).toString())?.[1]

  /** @type {string[]} */
  const failures = []
  const queue = [...targets]
  const worker = async () => {
    for (let target = queue.shift(); target; target = queue.shift()) {
      console.log(`${target.name}: ${minutes} min …`)
      const { ok, line } = await runTarget(target, `${host}`, minutes, env)
      console.log(`${target.name}: ${line}`)
      if (!ok) failures.push(target.name)
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
  if (failures.length > 0) throw new ProcessError(`fuzzing failed: ${failures.join(', ')}; see ${FOLDER}`, 1)
}

/** @param {Target} target @param {string} host @param {number} minutes @param {NodeJS.ProcessEnv} env */
async function runTarget({ name, crate }, host, minutes, env) {
  const found = join(FOLDER, 'corpus', name)
  const artifacts = join(crate, 'fuzz/artifacts', name)
  for (const folder of [found, artifacts]) mkdirSync(folder, { recursive: true })
  const options = [`-max_total_time=${Math.round(minutes * 60)}`, '-timeout=300', `-artifact_prefix=${artifacts}/`]
  const log = join(FOLDER, `${name}.log`)
  const output = openSync(log, 'w')
  const status = await runForStatus(
    join(crate, 'fuzz/target', host, 'release', name),
    [...options, found, join(crate, 'fuzz/corpus', name)],
    { env, stdio: ['ignore', output, output] },
  ).finally(() => closeSync(output))
  const done = readFileSync(log, 'utf8').match(/^Done \d+ runs in \d+ second\(s\)$/m)?.[0]
  const ok = status === 0 && done !== undefined
  return { ok, line: ok ? done : `FAILED with exit status ${status}: ${log}` }
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('fuzz', async () => {
    const options = { minutes: { type: /** @type {const} */ ('string'), default: '30' } }
    const { values, positionals } = parseArgs({ options, allowPositionals: true })
    await fuzz(Number(values.minutes), positionals)
  })
}
