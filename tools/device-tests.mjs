// @ts-check
// The Rust tests that need an RDMA device, built here in order to run in a guest.

import { runLines } from './lines.mjs'
import { ProcessError, capture } from './process.mjs'
import { ROOT } from './set-up.mjs'
import { buildEnvironment } from './system-packages.mjs'

/** The crates whose ignored tests are those that need a device. Elsewhere some are ignored for other reasons. */
const DEVICE_CRATES = /\/crates\/(node|verbs)#/

/** Builds all Rust tests, and gives the executables in which some are only for a device. There are some. */
export async function deviceTests() {
  /** @type {string[]} */
  const executables = []
  const args = ['test', '--locked', '--workspace', '--no-run', '--message-format=json-render-diagnostics']
  const status = await runLines('cargo', args, { cwd: ROOT, env: buildEnvironment() }, (line) => {
    const message = JSON.parse(line)
    if (message.executable && message.profile?.test && DEVICE_CRATES.test(message.package_id))
      executables.push(message.executable)
  })
  if (status !== 0) throw new ProcessError(`cargo test --no-run ended with exit status ${status}`, 1)
  const forDevices = executables.filter((executable) => / test$/m.test(list(executable)))
  if (forDevices.length === 0) throw new ProcessError('no Rust test asks for a device', 1)
  return forDevices
}

/** @param {string} executable */
const list = (executable) =>
  capture(executable, ['--list', '--ignored', '--format=terse'], { quiet: true })
    .toString()
    .replaceAll(/: test$/gm, ' test')
