#!/usr/bin/env node
// @ts-check
// npm run demo: makes the checkout ready, then sends a file over RDMA between two processes (examples/demo): on an RDMA
// device of this machine, otherwise on the embedded one; in the soft-RoCE guest if that is asked for.

import { statSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { ProcessError, mainOf, runForStatus } from './process.mjs'
import { ROOT, setUp } from './set-up.mjs'

const USAGE = `usage: npm run demo -- [options]
  --file PATH       the file to send; this node executable unless told otherwise
  --size BYTES      how much of it: 1000, 64M, 1G (powers of 1024); the whole file, and at least 64M, unless told otherwise
  --show-secrets    print the starting PSNs themselves, not their fingerprints: for looking into a capture
  --server ADDRESS  where the server listens, and
  --client ADDRESS  where the client connects from: IP addresses of this machine's RDMA devices, or loopback addresses
  --soft-roce       run on two soft-RoCE devices of a Linux kernel, in a small virtual machine
Exit status 0: the file has arrived, and both sides agree on everything they can compare.`

/** The guest's two devices, rxe0 and rxe1. */
const GUEST = { server: '10.8.0.1', client: '10.8.0.2' }

/** @typedef {{ server: string, client: string, why: string }} Place */

/** @param {string[]} args */
function parseCommandLine(args) {
  let values
  try {
    ;({ values } = parseArgs({
      args,
      options: {
        help: { type: 'boolean', short: 'h', default: false },
        file: { type: 'string', default: process.execPath },
        size: { type: 'string' },
        'show-secrets': { type: 'boolean', default: false },
        server: { type: 'string' },
        client: { type: 'string' },
        'soft-roce': { type: 'boolean', default: false },
      },
    }))
  } catch (error) {
    throw usageError(/** @type {Error} */ (error).message)
  }
  const { help, server, client } = values
  if (help) return undefined
  if ((server === undefined) !== (client === undefined)) throw usageError('--server and --client belong together')
  if (server !== undefined && values['soft-roce']) throw usageError('--soft-roce has its own addresses')
  return {
    file: fileOf(values.file),
    size: values.size === undefined ? undefined : bytesOf(values.size),
    showSecrets: values['show-secrets'],
    softRoce: values['soft-roce'],
    addresses: server !== undefined && client !== undefined ? { server, client } : undefined,
  }
}

/** @param {string} message */
const usageError = (message) => new ProcessError(`${message}\n${USAGE}`, 2)

/** @param {string} path */
function fileOf(path) {
  // npm runs scripts at the top of the repository, and says where it was called.
  const file = resolve(process.env.INIT_CWD ?? process.cwd(), path)
  const found = statSync(file, { throwIfNoEntry: false })
  if (!found?.isFile() || found.size === 0) throw usageError(`--file ${path}: it is not a file with something in it`)
  return file
}

/** @param {string} text */
function bytesOf(text) {
  const [, digits, unit] = /^(\d+)([KMG]?)$/i.exec(text) ?? []
  const bytes = Number(digits) * 1024 ** ' KMG'.indexOf((unit || ' ').toUpperCase())
  if (!Number.isSafeInteger(bytes) || bytes < 1) throw usageError(`--size ${text}: 1000, 64M and 1G are sizes`)
  return bytes
}

/** Over the embedded device. @type {Omit<Place, 'why'>} */
const LOOPBACK = { server: '127.0.0.1', client: '127.0.0.1' }

/**
 * Where on this machine the demo runs.
 * @returns {Promise<Place>}
 */
async function placeOnHost() {
  /** @type {typeof import('../dist/index.mjs')} */
  const { devices } = await import(pathToFileURL(join(ROOT, 'dist/index.mjs')).href)
  const others = (await devices()).filter(({ kind }) => kind !== 'soft')
  if (others.length === 0) {
    const why = 'This machine has no RDMA device, so the demo runs on the embedded one, over loopback'
    return { ...LOOPBACK, why }
  }
  const fit = others.flatMap(({ name, unusable, ports }) => {
    const addresses = unusable ? [] : ports.filter(({ active }) => active).flatMap((port) => port.addresses)
    // A link-local address says nothing without its interface.
    const [address] = addresses.filter((candidate) => !/^(fe80:|169\.254\.)/i.test(candidate))
    return address ? [{ name, address }] : []
  })
  const [first] = fit
  if (!first) {
    const names = others.map(({ name, unusable }) => (unusable ? `${name}: ${unusable}` : name)).join('; ')
    const why =
      `No RDMA device of this machine has an active port with an IP address (${names}),\n` +
      'so the demo runs on the embedded one, over loopback'
    return { ...LOOPBACK, why }
  }
  // One device for both: whether two of them have a wire between them is not known here.
  const why = `This machine has an RDMA device, ${first.name} at ${first.address}, so the demo runs on it`
  return { server: first.address, client: first.address, why }
}

await mainOf('demo', async () => {
  const wanted = parseCommandLine(process.argv.slice(2))
  if (!wanted) return console.log(USAGE)
  await setUp(['addon', 'typescript', 'examples'])

  const options = ['--file', wanted.file]
  if (wanted.size !== undefined) options.push('--size', String(wanted.size))
  if (wanted.showSecrets) options.push('--show-secrets')
  const command = (/** @type {{ server: string, client: string }} */ { server, client }) => {
    const main = join(ROOT, 'build/examples/demo/main.js')
    return [main, '--server', server, '--client', client, ...options]
  }

  if (!wanted.softRoce) {
    const place = wanted.addresses ? { ...wanted.addresses, why: 'On the given addresses' } : await placeOnHost()
    console.log(`${place.why}.\n`)
    process.exitCode = await runForStatus(process.execPath, command(place))
    return
  }
  console.log(
    `Asked for with --soft-roce: the demo runs in a small virtual machine (QEMU) with Debian's\n` +
      `kernel and two soft-RoCE devices, rxe0 and rxe1, at the two ends of a virtual wire.\n`,
  )
  const guest = relative(process.cwd(), join(ROOT, 'tools/soft-roce/run.mjs'))
  const env = { ...process.env }
  // In the guest the output is a pipe, whatever it is here.
  if (process.stdout.isTTY && !env.NO_COLOR) env.FORCE_COLOR ??= '1'
  process.exitCode = await runForStatus(process.execPath, [guest, '--', process.execPath, ...command(GUEST)], { env })
})
