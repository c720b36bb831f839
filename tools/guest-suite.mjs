#!/usr/bin/env node
// @ts-check
// What tools/test.mjs runs in the guest. Part `rxe`: Rust device tests that were built outside, then the ava suite, on real
// rxe. Part `mixed`: between rxe and the embedded device what needs one process at both ends, and what has two.
// CLI: node tools/guest-suite.mjs [--part=rxe|mixed] [--rust] [--files=TAR] RESULT-FILE [TEST-EXECUTABLE ...]
//   --rust    leaves out what is TypeScript
//   --files   files of this repository that are read from memory, since each opening of one of the host's costs milliseconds

import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Ava, RustTests } from './counts.mjs'
import { mainOf, run } from './process.mjs'

/** The tests that know a place between both, with a process at each end. */
const MIXED_TESTS = ['capture', 'mixed', 'transfer']

/** Those of the data plane, of messages and of ends: with one process at both ends. */
const TOGETHER_TESTS = [
  ...['operations', 'grants', 'gathering', 'batch', 'turns', 'streams', 'web-streams', 'regions', 'throws', 'uses'],
  ...['connection', 'ends', 'abort', 'tracing', 'certificates', 'device-stats', 'pending'],
]

/** Those that ask for no device, which the host has run, and those of other places. */
const ELSEWHERE = ['address-space', 'answers', 'mixed', 'options', 'package', 'readme']

const root = dirname(dirname(fileURLToPath(import.meta.url)))

const testsOfDevices = () =>
  readdirSync(join(root, 'build/__test__'))
    .filter((name) => /^[^_].*\.js$/.test(name))
    .map((name) => basename(name, '.js'))
    .filter((name) => !ELSEWHERE.includes(name))

await mainOf('guest-suite', async () => {
  const options = /** @type {const} */ ({
    part: { type: 'string' },
    rust: { type: 'boolean' },
    files: { type: 'string' },
  })
  const { positionals, values } = parseArgs({ allowPositionals: true, options })
  const [resultFile, ...executables] = positionals
  if (values.files !== undefined) await run('tar', ['-xf', values.files, '-C', root])
  // Made once: JavaScript is several times slower here.
  const identities = join(mkdtempSync(join(tmpdir(), 'identities-')), 'identities.json')
  const given = { SECURE_RDMA_REQUIRE_RXE: '1', SECURE_RDMA_TEST_IDENTITIES: identities }
  const env = { ...process.env, ...given, SECURE_RDMA_TEST_DEVICE: 'rxe' }
  const rust = new RustTests()
  let failed = false
  const runRust = async (/** @type {string[]} */ some) => {
    for (const executable of some) {
      console.log(`\n${basename(executable)}`)
      const status = await rust.run(executable, ['--include-ignored'], env)
      failed ||= status !== 0
    }
  }
  const needsPeer = (/** @type {string} */ executable) => basename(executable).startsWith('interop-')
  const runAva = async (
    /** @type {string} */ device,
    /** @type {string[]} */ names,
    /** @type {string[] | undefined} */ through = undefined,
  ) => {
    const ava = new Ava(root)
    if (values.rust) return ava.counts
    const files = names.map((name) => join(root, `build/__test__/${name}.js`))
    // One file at a time: what some filter, capture and count is the whole guest's.
    const args = ['--timeout=240s', '--concurrency=1', ...files]
    // What other versions of Node do with memory is seen on rxe alone, and on the host on the embedded device.
    const nodes = device === 'rxe' ? {} : { SECURE_RDMA_NODES: '' }
    const status = await ava.run(args, { ...env, SECURE_RDMA_TEST_DEVICE: device, ...nodes }, through)
    failed ||= status !== 0
    return ava.counts
  }

  /** @type {Record<string, import('./counts.mjs').Counts>} */
  const result = { rust: rust.counts }
  if (values.part !== 'mixed') {
    await runRust(executables.filter((executable) => !needsPeer(executable)))
    console.log('\nava on rxe')
    result.ava = await runAva('rxe', values.rust ? [] : testsOfDevices())
  }
  if (values.part !== 'rxe') {
    const peer = join(root, 'tools/soft-roce/peer.sh')
    console.log('\nbetween rxe and soft, in one process')
    if (!values.rust) await run('sh', [peer, '--together'])
    result.together = await runAva('together', TOGETHER_TESTS, ['nsenter', '--net=/run/netns/peer'])

    console.log('\nbetween rxe and soft, in two')
    await run('sh', [peer])
    await runRust(executables.filter(needsPeer))
    result.mixed = await runAva('mixed', MIXED_TESTS)
  }
  writeFileSync(resultFile, JSON.stringify(result))
  process.exitCode = failed ? 1 : 0
})
