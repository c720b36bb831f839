#!/usr/bin/env node
// @ts-check
// Tests everything, from a fresh clone on: set-up, checks, Rust, TypeScript, packages, and all of it on real rxe devices.
// CLI: node tools/test.mjs [--only=STEP,...] [--skip=STEP,...]

import { closeSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { FAKE_BUILD } from './build-addon.mjs'
import { Ava, Counts, RustTests } from './counts.mjs'
import { guests, testInGuests } from './guest-tests.mjs'
import { OTHER_MAJORS, fetchNode } from './node-versions.mjs'
import { ProcessError, mainOf, run, runForStatus } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment, checkLinters, lintsStrictly } from './system-packages.mjs'

const env = buildEnvironment()
const node = process.execPath
const bin = (/** @type {string} */ name) => join(ROOT, 'node_modules/.bin', name)
const fakeAddon = () => join(ROOT, FAKE_BUILD, `secure-rdma.${process.platform}-${process.arch}-gnu.node`)

/** What ran, for the summary. */
const rust = new Counts()
const ava = new Counts()
const fake = new Counts()
const soft = new Counts()

/**
 * Where a step's output goes.
 * @typedef {object} Output
 * @property {(line: string) => void} print
 * @property {string[]} prefix of its commands
 * @property {import('node:child_process').StdioOptions} stdio of its commands
 */

/** @type {Output} */
const HERE = { print: console.log, prefix: [], stdio: 'inherit' }

/**
 * @typedef {object} Step
 * @property {string} title
 * @property {(output: Output) => Promise<unknown>} work rejects when the step failed
 * @property {boolean} [vital] without it nothing that follows makes sense
 * @property {boolean} [beside] it needs no quiet: it runs beside the guest, where there is one
 */

/** In the order in which they run. @type {Record<string, Step>} */
const STEPS = {
  'set-up': {
    title: 'Set-up: system packages, npm packages, addon, TypeScript, other versions of Node',
    vital: true,
    async work() {
      if (selected('format') || selected('lint')) checkLinters()
      /** @type {import('./system-packages.mjs').Group[]} */
      const packages = selected('soft-roce') ? ['build', 'guest'] : ['build']
      if (selected('rust')) packages.push('test')
      await setUp(['addon', 'typescript', 'examples', 'tests'], packages)
      if (selected('soft-roce')) for (const major of OTHER_MAJORS) await fetchNode(major)
    },
  },
  rust: {
    title: 'Rust: cargo test',
    async work() {
      const tests = new RustTests()
      // The set-up has installed it: a test that finds none then is no skipped one.
      const all = { ...env, SECURE_RDMA_REQUIRE_TSHARK: '1' }
      const status = await tests.run('cargo', ['test', '--locked', '--workspace', '--no-fail-fast'], all)
      // That the simulation can fail: engines with a defect each, which only this build can plant.
      const defects = ['-p', 'secure-rdma-soft', '--features', 'defects', '--test', 'defects']
      const planted = await tests.run('cargo', ['test', '--locked', ...defects], all)
      rust.add(tests.counts)
      expectSuccess('cargo test', status)
      expectSuccess('cargo test with planted defects', planted)
    },
  },
  ava: {
    title: 'TypeScript: ava on this host, device tests on no device',
    work: () => runAva(ava, {}),
  },
  pack: {
    title: 'Packages: publint, attw, install of the tarballs in an empty folder',
    work: () => run(node, ['tools/test-pack.mjs'], { cwd: ROOT, env }),
  },
  'soft-roce': {
    title:
      'Soft-RoCE: Rust device tests and ava in a guest with real rxe devices, among them and with the embedded one',
    work: testInGuest,
  },
  format: {
    title: 'Format: prettier, rustfmt',
    beside: true,
    work: (output) => all(output, [bin('prettier'), '--check', '.'], ['cargo', 'fmt', '--all', '--check']),
  },
  lint: {
    title: 'Lint: types, eslint, import table, clippy',
    beside: true,
    work: (output) =>
      all(
        output,
        [bin('tsc'), '--project', 'tsconfig.json'],
        [bin('eslint'), '--max-warnings', '0', '.'],
        [node, 'tools/check-imports.mjs'],
        ['cargo', 'clippy', '--locked', '--workspace', '--all-targets', ...denials()],
        ['cargo', 'clippy', '--locked', '-p', 'secure-rdma-node', '--features', 'fake', ...denials()],
        ['cargo', 'clippy', '--locked', '-p', 'secure-rdma-soft', '--tests', '-F', 'defects,fuzzing', ...denials()],
      ),
  },
  'test-addon': {
    title: 'The test build of the addon',
    beside: true,
    work: (output) => all(output, TEST_ADDON),
  },
  fake: {
    title: 'TypeScript: ava on in-memory devices (a test build of the addon; no device test counts as one)',
    async work() {
      await buildTestAddon()
      await runAva(fake, { SECURE_RDMA_TEST_DEVICE: 'fake', NAPI_RS_NATIVE_LIBRARY_PATH: fakeAddon() })
    },
  },
  soft: {
    title: 'TypeScript: ava on the embedded device over loopback, IPv4 and IPv6',
    async work() {
      await runAva(soft, { SECURE_RDMA_TEST_DEVICE: 'soft' })
      // What cuts the wire: in a test build, since nothing else can without root.
      await buildTestAddon()
      const cuts = { SECURE_RDMA_TEST_DEVICE: 'soft', NAPI_RS_NATIVE_LIBRARY_PATH: fakeAddon() }
      await runAva(soft, cuts, CUT_TESTS)
      if (soft.onDevice === 0) throw new ProcessError('not one ava test ran on the embedded device', 1)
    },
  },
}

/** The tests that cut the wire of RDMA. */
const CUT_TESTS = ['abort', 'faults-handshake', 'faults-path'].map((name) => `build/__test__/${name}.js`)

/** The addon with in-memory devices, and with an embedded device whose wire can be cut. */
const TEST_ADDON = [node, 'tools/build-addon.mjs', '--fake']

const buildTestAddon = () => all(HERE, TEST_ADDON)

const denials = () => (lintsStrictly() ? ['--', '-D', 'warnings'] : [])

/** @param {Counts} counts @param {NodeJS.ProcessEnv} extra @param {string[]} [files] */
async function runAva(counts, extra, files = []) {
  const runner = new Ava(ROOT)
  const status = await runner.run(files, { ...env, ...extra })
  counts.add(runner.counts)
  expectSuccess('ava', status)
}

async function testInGuest() {
  expectSuccess('the guest', await testInGuests(env))
  if (guests.rust.passed === 0) throw new ProcessError('not one Rust device test ran in the guest', 1)
  if (guests.ava.onDevice === 0) throw new ProcessError('not one ava test ran on an rxe device', 1)
  if (guests.together.onDevice === 0) throw new ProcessError('not one ava test ran on soft and rxe in one process', 1)
  if (guests.mixed.onDevice === 0) throw new ProcessError('not one ava test ran between soft and rxe', 1)
}

/** @param {Output} output @param {string[][]} commands all of them run, also when one fails */
async function all({ prefix, stdio }, ...commands) {
  let failed = 0
  for (const words of commands) {
    const [command = '', ...args] = [...prefix, ...words]
    const status = await runForStatus(command, args, { cwd: ROOT, env, stdio })
    failed ||= status
  }
  expectSuccess('one of the commands', failed)
}

/** @param {string} what @param {number} status */
function expectSuccess(what, status) {
  if (status !== 0) throw new ProcessError(`${what} ended with exit status ${status}`, 1)
}

const { values: chosen } = parseArgs({ options: { only: { type: 'string' }, skip: { type: 'string' } } })
const only = chosen.only?.split(',')
const skip = chosen.skip?.split(',') ?? []

/** @param {string} name */
function selected(name) {
  // The rest stands on the set-up, which is quick where there is nothing to do.
  return !skip.includes(name) && (only === undefined || only.includes(name) || name === 'set-up')
}

/** @param {string} text */
const heading = (text) => `\n=== ${text} ${'='.repeat(Math.max(0, 110 - text.length))}`

/** What became of the steps, by name. @type {Record<string, { line: string, failed: boolean }>} */
const outcomes = {}

/** @param {string} name @param {Step} step @param {Output} output */
async function runStep(name, step, output) {
  output.print(heading(step.title))
  const began = performance.now()
  let why = ''
  try {
    await step.work(output)
  } catch (error) {
    why = error instanceof ProcessError ? error.message : String(error instanceof Error ? error.stack : error)
  }
  const seconds = `${((performance.now() - began) / 1000).toFixed(1)} s`
  output.print(why ? `--- ${name} FAILED after ${seconds}: ${why}` : `--- ${name}: ${seconds}`)
  const line = why ? `  ✘  ${name}: ${seconds}: ${why}` : `  ✔  ${name}: ${seconds}`
  outcomes[name] = { line, failed: why !== '' }
}

/**
 * Runs steps beside the guest, which leaves a processor of two idle for most of its time. They give way to it, and what each
 * prints comes in one piece.
 * @param {[string, Step][]} steps
 */
async function runBeside(steps) {
  mkdirSync(join(ROOT, 'build'), { recursive: true })
  for (const [name, step] of steps) {
    const file = join(ROOT, `build/${name}.log`)
    const log = openSync(file, 'w')
    const print = (/** @type {string} */ line) => void writeSync(log, `${line}\n`)
    await runStep(name, step, { print, prefix: ['nice', '-n', '19'], stdio: ['ignore', log, log] })
    closeSync(log)
    process.stdout.write(readFileSync(file))
  }
}

await mainOf('test', async () => {
  const unknown = [...(only ?? []), ...skip].find((name) => !Object.hasOwn(STEPS, name))
  if (unknown) throw new ProcessError(`no step ${unknown}: the steps are ${Object.keys(STEPS).join(', ')}`, 1)

  const steps = Object.entries(STEPS)
  const picked = steps.filter(([name]) => selected(name))
  const isBeside = (/** @type {Step} */ { beside = false }) => beside && selected('soft-roce')
  for (const [name, step] of picked) {
    if (isBeside(step)) continue
    const beside = name === 'soft-roce' ? runBeside(picked.filter(([, step]) => isBeside(step))) : undefined
    await runStep(name, step, HERE)
    await beside
    if (step.vital && outcomes[name]?.failed) break
  }

  // Last, since where CI shows only the end of this, what failed must be there.
  for (const { failures } of [rust, ava, fake, soft, ...Object.values(guests)]) {
    for (const failure of failures) console.log(`\nFAILED: ${failure}`)
  }
  console.log(heading('Summary'))
  for (const [name] of steps) console.log(outcomes[name]?.line ?? `  -  ${name}: left out`)
  if (selected('rust')) console.log(`Rust on this host: ${rust} (skipped: those that need a device)`)
  if (selected('ava')) console.log(`ava on this host, no device: ${ava}`)
  if (selected('fake')) console.log(`ava on in-memory devices: ${fake}`)
  if (selected('soft')) console.log(`ava on soft: ${soft}; on the embedded device: ${soft.listPlaces()}`)
  if (selected('soft-roce')) {
    console.log(`Rust device tests in the guest: ${guests.rust}`)
    console.log(`ava in the guest: ${guests.ava}; on real rxe devices: ${guests.ava.listPlaces()}`)
    const { together, mixed } = guests
    console.log(
      `ava between soft and rxe, in one process: ${together}; which connects to which: ${together.listPlaces()}`,
    )
    console.log(`ava between soft and rxe, in two processes: ${mixed}; which connects to which: ${mixed.listPlaces()}`)
  } else {
    console.log(`NO TEST RAN ON ${selected('soft') ? 'A KERNEL' : 'AN RDMA'} DEVICE: the soft-roce step was left out`)
  }
  // What passed on no device at all is no test of RDMA: in-memory passes do not count, their failures do.
  const total = [ava, soft, guests.ava, guests.together, guests.mixed].reduce(
    (sum, some) => sum.add(some),
    new Counts(),
  )
  console.log(`${total.passed} passed, ${total.failed + fake.failed} failed`)
  if (Object.values(outcomes).some(({ failed }) => failed)) process.exitCode = 1
})
