#!/usr/bin/env node
// @ts-check
// Long runs in the guest, too long for every `npm test`: 200 ends of workers and processes with RDMA in flight, on each of
// Node 20, 22 and 24. Fetches the versions that are missing (tools/node-versions.mjs).
// CLI: node tools/soak.mjs [--rounds=200] [--timeout=3600]

import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { NODES, OTHER_MAJORS, fetchNode } from './node-versions.mjs'
import { mainOf, run } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '200' }, timeout: { type: 'string', default: '3600' } },
})

await mainOf('soak', async () => {
  await setUp(['addon', 'typescript', 'tests'], ['build', 'guest'])
  for (const major of OTHER_MAJORS) await fetchNode(major)
  const environment = [
    'SECURE_RDMA_TEST_DEVICE=rxe',
    `SECURE_RDMA_NODES=${NODES}`,
    `SECURE_RDMA_TEARDOWN_ROUNDS=${values.rounds}`,
  ]
  const options = ['--timeout', values.timeout, '--memory', '4096', ...environment.flatMap((entry) => ['--env', entry])]
  const ava = [process.execPath, join(ROOT, 'node_modules/ava/entrypoints/cli.mjs'), '--timeout=30m']
  const command = [...ava, join(ROOT, 'build/__test__/teardown.js')]
  await run(process.execPath, ['tools/soft-roce/run.mjs', ...options, '--', ...command], {
    cwd: ROOT,
    env: buildEnvironment(),
  })
})
