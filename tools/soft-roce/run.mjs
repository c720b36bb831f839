#!/usr/bin/env node
// @ts-check
// Runs a command in a guest that has two real rdma_rxe devices, over this machine's own files. See README.md.

import { mkdirSync, realpathSync } from 'node:fs'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { ProcessError, mainOf } from '../process.mjs'
import { ensureSystemPackages } from '../system-packages.mjs'
import { fetchGuest } from './fetch.mjs'
import { NEVER_REPORTED, runInGuest } from './guest.mjs'

const USAGE = `usage: node tools/soft-roce/run.mjs [options] -- COMMAND [ARGUMENT...]
  --devices two|none   two rxe devices on a wire (the default), or no RDMA in the kernel at all
  --mtu N              of the wire, 4200 unless told otherwise: RoCE's path MTU is then 4096
  --share FOLDER       what the command writes there stays; any number of times
  --env NAME[=VALUE]   a variable for the command; without a value, ours; any number of times
  --memory MB          2048
  --cpus N             2
  --timeout SECONDS    600, boot included; exit status 124 then
The exit status is the command's, or 125 when the guest never reported one.
Environment: SOFT_ROCE_DIR (cache), SOFT_ROCE_ACCELERATOR=kvm, SOFT_ROCE_KERNEL (a version of Debian's linux-image).`

/** What the command sees of our environment without being asked. The rest may not make sense in the guest. */
const INHERITED = [
  'HOME',
  'USER',
  'LOGNAME',
  'LANG',
  'LC_ALL',
  'TZ',
  'LD_LIBRARY_PATH',
  'CI',
  'NO_COLOR',
  'FORCE_COLOR',
]

/** @param {string[]} argv */
function parseCommandLine(argv) {
  const separator = argv.indexOf('--')
  const own = separator < 0 ? argv : argv.slice(0, separator)
  const command = separator < 0 ? [] : argv.slice(separator + 1)
  let values
  try {
    ;({ values } = parseArgs({
      args: own,
      options: {
        help: { type: 'boolean', short: 'h' },
        memory: { type: 'string', default: '2048' },
        cpus: { type: 'string', default: '2' },
        timeout: { type: 'string', default: '600' },
        mtu: { type: 'string', default: '4200' },
        devices: { type: 'string', default: 'two' },
        share: { type: 'string', multiple: true, default: [] },
        env: { type: 'string', multiple: true, default: [] },
      },
    }))
  } catch (error) {
    throw usageError(/** @type {Error} */ (error).message)
  }
  if (values.help) return undefined
  if (command.length === 0) throw usageError('no command given: it follows --')

  const { devices } = values
  if (devices !== 'two' && devices !== 'none') throw usageError('--devices is either two or none')
  return {
    command,
    devices: /** @type {'two' | 'none'} */ (devices),
    environment: environment(values.env),
    folder: process.cwd(),
    shares: values.share.map(sharedFolder),
    mtu: number('--mtu', values.mtu, 1280, 65535),
    memory: number('--memory', values.memory, 256, 1 << 20),
    processors: number('--cpus', values.cpus, 1, 64),
    timeout: number('--timeout', values.timeout, 1, 86400),
  }
}

/** @param {string} message */
const usageError = (message) => new ProcessError(`${message}\n${USAGE}`, NEVER_REPORTED)

/** @param {string} option @param {string} text @param {number} least @param {number} most */
function number(option, text, least, most) {
  const value = Number(text)
  if (!Number.isInteger(value) || value < least || value > most) {
    throw usageError(`${option} is a whole number from ${least} to ${most}`)
  }
  return value
}

/** @param {string} path */
function sharedFolder(path) {
  mkdirSync(path, { recursive: true })
  return realpathSync(path)
}

/**
 * @param {string[]} asked
 * @returns {Record<string, string>}
 */
function environment(asked) {
  /** @type {Record<string, string>} */
  const values = {
    // The same node as here, even where it is not in PATH; and the tools for administrators.
    PATH: [process.env.PATH, dirname(process.execPath), '/usr/local/sbin:/usr/sbin:/sbin'].filter(Boolean).join(':'),
    TERM: 'dumb',
    SECURE_RDMA_GUEST: '1',
  }
  for (const entry of [...INHERITED, ...asked]) {
    const [, name, , value] = /^([A-Za-z_]\w*)(=(.*))?$/s.exec(entry) ?? []
    if (!name) throw usageError(`--env ${entry}: NAME=VALUE or NAME is what it takes`)
    const given = value ?? process.env[name]
    if (given !== undefined) values[name] = given
  }
  return values
}

await mainOf('soft-roce', async () => {
  const run = parseCommandLine(process.argv.slice(2))
  if (!run) return console.log(USAGE)
  await ensureSystemPackages(['guest'])
  process.exitCode = await runInGuest(fetchGuest(), run)
})
