#!/usr/bin/env node
// @ts-check
// Measures the embedded device against plain sockets, on this host, over loopback, in one run.
// CLI: node tools/bench.mjs [--json FILE] [--rounds N] [--seconds S] [--only NAME,...]

import { resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { mainOf, run } from './process.mjs'
import { ROOT } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

const { values } = parseArgs({
  options: {
    json: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    only: { type: 'string' },
  },
})

await mainOf('bench', async () => {
  const passed = { ...values, json: values.json && resolve(values.json) }
  const options = Object.entries(passed).flatMap(([name, value]) => (value ? [`--${name}`, value] : []))
  const command = ['bench', '--locked', '-p', 'secure-rdma-soft', '--bench', 'wire', '--', ...options]
  await run('cargo', command, { cwd: ROOT, env: buildEnvironment() })
})
