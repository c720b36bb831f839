// @ts-check
// Boots the guest under QEMU and runs one command in it: its output is passed on, its exit status comes back.

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { ProcessError, onStopSignals, exitStatusOf, shellQuote } from '../process.mjs'
import { passUntilMarker } from './marker.mjs'

/** The exit statuses that are ours, not the command's. 124 is what timeout(1) gives. */
export const TIMED_OUT = 124
export const NEVER_REPORTED = 125

/** A guest that has not come up after this time will not. It takes 5 s on a quick machine. */
const BOOT_SECONDS = 120

/**
 * @typedef {object} GuestRun
 * @property {string[]} command
 * @property {Record<string, string>} environment
 * @property {string} folder the command's working directory
 * @property {string[]} shares folders of the host that the command may write to, at the same path
 * @property {'two' | 'none'} devices
 * @property {number} mtu of the wire
 * @property {number} memory MB
 * @property {number} processors
 * @property {number} timeout seconds, boot included
 */

/**
 * @param {import('./fetch.mjs').GuestFiles} files
 * @param {GuestRun} run
 * @returns {Promise<number>} the exit status
 */
export async function runInGuest(files, run) {
  // The guest sees this folder through the host's root, so it needs no device of its own.
  const runFolder = realpathSync(mkdtempSync(join(tmpdir(), 'soft-roce-')))
  const marker = `\x01end ${randomBytes(16).toString('hex')}\n`
  try {
    writeRunFolder(runFolder, run, marker)
    return await boot(files, run, runFolder, marker)
  } finally {
    rmSync(runFolder, { recursive: true, force: true })
  }
}

/**
 * @param {string} runFolder
 * @param {GuestRun} run
 * @param {string} marker
 */
function writeRunFolder(runFolder, run, marker) {
  const settings = {
    DEVICES: run.devices,
    DEVICES_SCRIPT: fileURLToPath(new URL('two-devices.sh', import.meta.url)),
    MTU: String(run.mtu),
    MARKER: marker,
    SHARES: run.shares.join('\n'),
  }
  writeFileSync(join(runFolder, 'settings'), assignments(settings))
  const exports = assignments(run.environment, 'export ')
  const enter = `cd ${shellQuote(run.folder)} || exit ${NEVER_REPORTED}\n`
  writeFileSync(join(runFolder, 'command'), `${exports}${enter}exec ${run.command.map(shellQuote).join(' ')}\n`)
}

/**
 * @param {Record<string, string>} values
 * @param {string} [prefix]
 */
function assignments(values, prefix = '') {
  return Object.entries(values)
    .map(([name, value]) => `${prefix}${name}=${shellQuote(value)}\n`)
    .join('')
}

/**
 * @param {import('./fetch.mjs').GuestFiles} files
 * @param {GuestRun} run
 * @param {string} runFolder
 * @param {string} marker
 * @returns {Promise<number>}
 */
function boot(files, run, runFolder, marker) {
  const started = Date.now()
  // Should we be killed outright, the kernel takes QEMU with us.
  const qemu = spawn(
    'setpriv',
    ['--pdeathsig', 'KILL', 'qemu-system-x86_64', ...qemuArguments(files, run, runFolder)],
    {
      // 3 stdout, 4 stderr, 5 control, 6 the kernel's console
      stdio: ['ignore', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe'],
    },
  )
  const [, qemuOutput, qemuErrors, output, errors, control, console_] =
    /** @type {import('node:stream').Readable[]} */ (/** @type {unknown} */ (qemu.stdio))

  return new Promise((resolve, reject) => {
    /** @type {number | undefined} */
    let status
    let ready = false
    /** @type {string[]} */
    const complaints = []

    /** @param {number} exitStatus @param {string} [complaint] */
    const end = (exitStatus, complaint) => {
      if (status !== undefined) return
      status = exitStatus
      if (complaint) complaints.push(complaint)
      qemu.kill('SIGKILL') // nothing in the guest is worth saving
    }

    const stopListening = onStopSignals((signal) => end(exitStatusOf(null, signal)))
    const bootTimer = setTimeout(
      () => end(NEVER_REPORTED, `the guest did not come up within ${BOOT_SECONDS} s`),
      BOOT_SECONDS * 1000,
    )
    const timer = setTimeout(() => end(TIMED_OUT, `stopped after ${run.timeout} s (--timeout)`), run.timeout * 1000)

    // That QEMU is gone shows below, in `close`; its sockets may say so too, as errors.
    for (const stream of qemu.stdio) stream?.on('error', () => {})
    // Whoever read our output has gone (`| head`): nothing more to do.
    for (const stream of [process.stdout, process.stderr]) stream.on('error', () => end(exitStatusOf(null, 'SIGPIPE')))
    const outputs = Promise.all([
      passUntilMarker(output, process.stdout, marker),
      passUntilMarker(errors, process.stderr, marker),
    ])
    outputs.catch(() => {})

    createInterface({ input: control }).on('line', (line) => {
      const [, word, rest] = /^(\w+) (.*)$/.exec(line) ?? []
      if (word === 'ready') {
        ready = true
        clearTimeout(bootTimer)
        console.error(`soft-roce: guest up in ${seconds(started)} s (Linux ${files.release}, ${describe(run)})`)
      } else if (word === 'status') {
        outputs.then(() => end(Number(rest)))
      } else if (word === 'failed') {
        end(NEVER_REPORTED, `the guest failed: ${rest}`)
      }
    })
    // The kernel's own words are rare (`quiet`) and then matter: an oops, a lost disk, no memory left.
    for (const [source, stream] of [
      ['kernel', console_],
      ['qemu', qemuErrors],
      ['qemu', qemuOutput],
    ]) {
      createInterface({ input: /** @type {import('node:stream').Readable} */ (stream) }).on('line', (line) => {
        // QEMU's emulated processor lacks some features of `-cpu max`, and it says so for each.
        if (line.trim() && !line.includes("TCG doesn't support requested feature")) {
          console.error(`soft-roce ${source}| ${line.trimEnd()}`)
        }
      })
    }

    qemu.once('error', (error) => reject(new ProcessError(`cannot start QEMU: ${error.message}`, NEVER_REPORTED)))
    qemu.once('close', () => {
      clearTimeout(timer)
      clearTimeout(bootTimer)
      stopListening()
      if (status === undefined) {
        complaints.push(`the guest ${ready ? 'ended before the command did' : 'never came up'}`)
      }
      for (const complaint of complaints) console.error(`soft-roce: ${complaint}`)
      resolve(status ?? NEVER_REPORTED)
    })
  })
}

/** @param {number} since */
const seconds = (since) => ((Date.now() - since) / 1000).toFixed(1)

/** @param {GuestRun} run */
function describe(run) {
  return run.devices === 'none' ? 'no RDMA' : `rxe0 10.8.0.1 and rxe1 10.8.0.2, MTU ${run.mtu}`
}

/**
 * @param {import('./fetch.mjs').GuestFiles} files
 * @param {GuestRun} run
 * @param {string} runFolder
 */
function qemuArguments(files, run, runFolder) {
  const kernelLine = [
    'console=ttyS0 quiet loglevel=4 panic=-1',
    // Each of these spares time at boot.
    'tsc=reliable no_timer_check mitigations=off nokaslr cryptomgr.notests random.trust_cpu=on',
    `guest.run=${runFolder}`,
  ]
  /** @param {string} id @param {string} path @param {boolean} writable */
  const folder = (id, path, writable) => [
    '-fsdev', `local,id=${id},path=${path.replaceAll(',', ',,')},security_model=none,multidevs=remap${writable ? '' : ',readonly=on'}`,
    '-device', `virtio-9p-pci,fsdev=${id},mount_tag=${id}`,
  ] // prettier-ignore
  /** @param {string} id @param {number} descriptor @param {number} number */
  const port = (id, descriptor, number) => [
    '-chardev', `socket,id=${id},fd=${descriptor}`,
    '-device', `virtserialport,chardev=${id},nr=${number}`,
  ] // prettier-ignore

  return [
    ...['-M', 'q35,smm=off,hpet=off,usb=off,sata=off,smbus=off,vmport=off'],
    ...accelerator(),
    ...['-smp', String(run.processors), '-m', String(run.memory)],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-kernel', files.kernel, '-initrd', files.initrd, '-append', kernelLine.join(' ')],
    ...['-device', 'virtio-rng-pci'],
    ...['-chardev', 'socket,id=console,fd=6', '-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci'],
    ...port('stdout', 3, 1),
    ...port('stderr', 4, 2),
    ...port('control', 5, 3),
    ...folder('host', '/', false),
    ...folder('packages', files.userland, false),
    ...run.shares.flatMap((path, number) => folder(`share${number}`, path, true)),
  ]
}

/** KVM only on request: on many machines /dev/kvm is offered, but a guest that uses it hangs. */
function accelerator() {
  switch (process.env.SOFT_ROCE_ACCELERATOR ?? 'tcg') {
    case 'tcg':
      // 1024 MiB for what is translated were 10 % faster. With them ibv_destroy_qp hung in the kernel in the only whole run, and
      // the kernel warned of a lost tasklet in one of seven runs of that test; with 256 in none of ten. The cause is not known.
      return ['-accel', 'tcg,thread=multi,tb-size=256', '-cpu', 'max']
    case 'kvm':
      return ['-accel', 'kvm', '-cpu', 'host']
    default:
      throw new ProcessError('SOFT_ROCE_ACCELERATOR is either tcg or kvm', NEVER_REPORTED)
  }
}
