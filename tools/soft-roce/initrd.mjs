// @ts-check
// Builds the guest's initial file system: busybox, the kernel modules in load order, and our `init`.

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { CpioWriter } from './cpio.mjs'

/** The commands that `init` uses before and beside the host's file system. */
const APPLETS = ['sh', 'cat', 'chmod', 'chroot', 'cut', 'hostname', 'insmod', 'kill', 'ln', 'mkdir', 'mkfifo', 'mount',
  'printf', 'setsid', 'sleep', 'sync'] // prettier-ignore

/**
 * @param {{ busybox: string, modules: string, init: string }} paths `modules` is what saveModules made
 * @returns {Buffer}
 */
export function buildInitrd({ busybox, modules, init }) {
  const archive = new CpioWriter()
  for (const folder of ['dev', 'proc', 'sys', 'host', 'packages', 'scratch', 'root']) archive.directory(folder)

  archive.file('bin/busybox', readFileSync(busybox), 0o755)
  for (const applet of APPLETS) archive.symlink(join('bin', applet), 'busybox')
  archive.file('init', readFileSync(init), 0o755)

  for (const name of readdirSync(modules)) archive.file(`modules/${name}`, readFileSync(join(modules, name)))
  return archive.finish()
}
