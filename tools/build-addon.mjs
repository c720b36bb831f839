#!/usr/bin/env node
// @ts-check
// Builds the addon: secure-rdma.<platform>.node, binding.cjs (its loader) and binding.d.cts at the top of the repository.
// CLI: node tools/build-addon.mjs [--fake]
//   --fake   the test build instead, which has in-memory devices beside the real ones, and an embedded device that can be
//            told to drop packets: build/fake/*.node, not optimised

import { mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { mainOf, run } from './process.mjs'
import { buildEnvironment } from './system-packages.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))

/** Where `--fake` puts the test build. Loaded instead of the published one by NAPI_RS_NATIVE_LIBRARY_PATH. */
export const FAKE_BUILD = 'build/fake'

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('build-addon', async () => {
    const fake = process.argv.includes('--fake')
    const folder = join(root, fake ? FAKE_BUILD : '.')
    mkdirSync(folder, { recursive: true })
    const cli = createRequire(import.meta.url).resolve('@napi-rs/cli')
    const common = ['build', '--platform', '--manifest-path', 'crates/node/Cargo.toml', '-o', folder]
    const own = fake ? ['--features', 'fake'] : ['--release', '--strip']
    // Cargo.lock as it is: what was tested is what is built.
    const args = [...common, '--js', 'binding.cjs', '--dts', 'binding.d.cts', ...own, '--', '--locked']
    await run(process.execPath, [join(dirname(cli), 'cli.js'), ...args], { cwd: root, env: buildEnvironment() })
  })
}
