#!/usr/bin/env node
// @ts-check
// Long runs, too long for every `npm test`. Fetches what is missing: versions of Node (tools/node-versions.mjs), cargo-fuzz.
// CLI: node tools/soak.mjs [--only=PART,...] [--rounds=200] [--timeout=3600] [--minutes=30] [--fuzz-seconds=60]
// Environment: SIM_SEEDS (1,000,000 in all), SIM_FIRST, SIM_FORGED (10,000,000 of each class)

import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { deviceTests } from './device-tests.mjs'
import { fuzz } from './fuzz.mjs'
import { NODES, OTHER_MAJORS, fetchNode } from './node-versions.mjs'
import { ProcessError, mainOf, run } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    rounds: { type: 'string', default: '200' },
    timeout: { type: 'string', default: '3600' },
    minutes: { type: 'string', default: '30' },
    'fuzz-seconds': { type: 'string', default: '60' },
  },
})

/** In the order in which they run. @type {Record<string, () => Promise<void>>} */
const PARTS = {
  // a million seeds of the simulation
  async simulation() {
    await setUp([], ['build'])
    const [first, seeds] = [Number(process.env.SIM_FIRST ?? 0), Number(process.env.SIM_SEEDS ?? 1_000_000)]
    // In pieces, so that it can be seen how far it is. Each must meet everything that the simulation has to meet.
    const piece = 50_000
    for (let done = 0; done < seeds; done += piece) {
      const count = Math.min(piece, seeds - done)
      console.log(`seeds ${first + done} to ${first + done + count - 1}:`)
      await softTests(['simulation'], { SIM_FIRST: `${first + done}`, SIM_SEEDS: `${count}` })
    }
  },

  // forged packets against live connections, ten million of each class
  async forged() {
    await setUp([], ['build'])
    await softTests(['forged', 'grants'], {})
  },

  // each fuzz target for some time
  fuzz: () => fuzz(Number(values.minutes)),

  // 100,000 regions that are dropped while a peer uses them. Not optimised: only so is a late access a crash
  async races() {
    await setUp([], ['build'])
    const env = { ...buildEnvironment(), RACES: '100000' }
    await run('cargo', ['test', '--locked', '-p', 'secure-rdma-soft', '--test', 'device_races'], { cwd: ROOT, env })
  },

  // random arguments into every export, on the embedded device
  arguments: () => avaOnSoft(['fuzz-arguments'], { SECURE_RDMA_FUZZ_SECONDS: values['fuzz-seconds'] }),

  // on each of Node 20, 22 and 24, on the embedded device: 1000 random orders of letting go, and 5000 of what can be done to
  // memory in flight; 1000 ends of workers and processes in flight; 500 workers that are terminated and 250 processes that exit
  // with regions in flight; 200 ends of all kinds
  async node() {
    for (const major of OTHER_MAJORS) await fetchNode(major)
    await avaOnSoft(['memory', 'teardown', 'regions', 'threads'], {
      SECURE_RDMA_NODES: NODES,
      SECURE_RDMA_GC_ROUNDS: '1000',
      SECURE_RDMA_TEARDOWN_ROUNDS: '1000',
      SECURE_RDMA_REGION_ROUNDS: '5000',
      SECURE_RDMA_END_ROUNDS: '40',
    })
  },

  // 100,000 connections that come and go, on the embedded device, over IPv4 and over IPv6
  leak: () => avaOnSoft(['leak'], { SECURE_RDMA_LEAK_CYCLES: '100000' }),

  // 200 ends of workers and processes with RDMA in flight, on each of Node 20, 22 and 24
  async teardown() {
    await setUp(['addon', 'typescript', 'tests'], ['build', 'guest'])
    for (const major of OTHER_MAJORS) await fetchNode(major)
    const environment = [
      'SECURE_RDMA_TEST_DEVICE=rxe',
      `SECURE_RDMA_NODES=${NODES}`,
      `SECURE_RDMA_TEARDOWN_ROUNDS=${values.rounds}`,
    ]
    const ava = [process.execPath, join(ROOT, 'node_modules/ava/entrypoints/cli.mjs'), '--timeout=30m']
    const options = environment.flatMap((entry) => ['--env', entry])
    await inGuest(options, [...ava, join(ROOT, 'build/__test__/teardown.js')])
  },

  // the Rust device tests, those between rxe and the embedded device among them, on the rxe of another kernel
  async 'linux-6.12'() {
    await setUp([], ['build', 'guest'])
    const results = join(ROOT, 'build/soak')
    rmSync(results, { recursive: true, force: true })
    mkdirSync(results, { recursive: true })
    const resultFile = join(results, 'result.json')
    const suite = [process.execPath, join(ROOT, 'tools/guest-suite.mjs'), '--rust', resultFile]
    await inGuest(['--share', results], [...suite, ...(await deviceTests())], '6.12.117+deb12-amd64')
    const { rust } = JSON.parse(readFileSync(resultFile, 'utf8'))
    if (rust.passed === 0) throw new ProcessError('not one Rust device test ran in the guest', 1)
    console.log(`Rust device tests on Linux 6.12: ${rust.passed} passed`)
  },
}

/**
 * Files of ava's on the embedded device, one at a time.
 * @param {string[]} files @param {NodeJS.ProcessEnv} extra
 */
async function avaOnSoft(files, extra) {
  await setUp(['addon', 'typescript', 'tests'], ['build'])
  const ava = [join(ROOT, 'node_modules/ava/entrypoints/cli.mjs'), '--timeout=120m', '--concurrency=1']
  const paths = files.map((file) => join(ROOT, `build/__test__/${file}.js`))
  const env = { ...buildEnvironment(), SECURE_RDMA_TEST_DEVICE: 'soft', ...extra }
  await run(process.execPath, [...ava, ...paths], { cwd: ROOT, env })
}

/**
 * Test binaries of the embedded device, optimised.
 * @param {string[]} tests @param {NodeJS.ProcessEnv} extra
 */
async function softTests(tests, extra) {
  const binaries = tests.flatMap((test) => ['--test', test])
  await run('cargo', ['test', '--locked', '--release', '-p', 'secure-rdma-soft', ...binaries], {
    cwd: ROOT,
    env: { ...buildEnvironment(), ...extra },
  })
}

/**
 * @param {string[]} options
 * @param {string[]} command
 * @param {string} [kernel] a version of Debian's linux-image
 */
async function inGuest(options, command, kernel) {
  const env = { ...buildEnvironment(), ...(kernel && { SOFT_ROCE_KERNEL: kernel }) }
  const all = ['--timeout', values.timeout, '--memory', '4096', ...options]
  await run(process.execPath, ['tools/soft-roce/run.mjs', ...all, '--', ...command], { cwd: ROOT, env })
}

await mainOf('soak', async () => {
  const parts = values.only?.split(',') ?? Object.keys(PARTS)
  const unknown = parts.find((part) => !Object.hasOwn(PARTS, part))
  if (unknown) throw new ProcessError(`no part ${unknown}: the parts are ${Object.keys(PARTS).join(', ')}`, 1)
  for (const part of parts) {
    console.log(`\n=== ${part}`)
    await PARTS[part]()
  }
})
