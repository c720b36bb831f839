#!/usr/bin/env node
// @ts-check
// What tools/test.mjs runs in the guest: Rust device tests that were built outside, then the ava suite, on real rxe.
// CLI: node tools/guest-suite.mjs RESULT-FILE [TEST-EXECUTABLE ...]

import { writeFileSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Ava, RustTests } from './counts.mjs'
import { mainOf } from './process.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

await mainOf('guest-suite', async () => {
  const [resultFile, ...executables] = process.argv.slice(2)
  const env = { ...process.env, SECURE_RDMA_REQUIRE_RXE: '1', SECURE_RDMA_TEST_DEVICE: 'rxe' }
  const rust = new RustTests()
  let failed = false
  for (const executable of executables) {
    console.log(`\n${basename(executable)}`)
    const status = await rust.run(executable, ['--include-ignored'], env)
    failed ||= status !== 0
  }
  console.log('\nava on rxe')
  const ava = new Ava(root)
  // JavaScript is several times slower here. One file at a time: what some filter, capture and count is the whole guest's.
  const status = await ava.run(['--timeout=240s', '--concurrency=1'], env)
  failed ||= status !== 0
  writeFileSync(resultFile, JSON.stringify({ rust: rust.counts, ava: ava.counts }))
  process.exitCode = failed ? 1 : 0
})
