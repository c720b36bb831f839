// @ts-check
// Makes the guest's files once: downloads Debian packages, unpacks them without root, builds kernel and initrd.
// CLI: node tools/soft-roce/fetch.mjs [--refresh]

import { createHash } from 'node:crypto'
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync,
  rmSync, writeFileSync } from 'node:fs' // prettier-ignore
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessError, capture, commandExists, mainOf } from '../process.mjs'
import { buildInitrd } from './initrd.mjs'
import { saveModules } from './modules.mjs'
import { GUEST_PACKAGES, KERNEL_META_PACKAGE } from './packages.mjs'
import { unpackVmlinux } from './vmlinux.mjs'

/**
 * @typedef {object} GuestFiles
 * @property {string} kernel the ELF kernel
 * @property {string} initrd
 * @property {string} userland a folder that the guest lays over the host's root
 * @property {string} release the kernel's version
 */

const here = fileURLToPath(new URL('.', import.meta.url))

/** Where everything is kept between runs. */
export function cacheFolder() {
  return resolve(process.env.SOFT_ROCE_DIR || join(homedir(), '.cache', 'secure-rdma', 'soft-roce'))
}

/**
 * The guest's files, made if they are not there yet.
 * @param {{ refresh?: boolean }} [options] `refresh` makes them anew, with the newest kernel that apt knows
 * @returns {GuestFiles}
 */
export function fetchGuest({ refresh = false } = {}) {
  const cache = cacheFolder()
  const packages = join(cache, `packages-${fingerprint(PACKAGE_SOURCES)}`)
  make(packages, refresh, unpackPackages)
  // Apart, so that a change of `init` costs no download.
  const initrd = join(packages, `initrd-${fingerprint(INITRD_SOURCES)}`)
  make(initrd, refresh, (work) => {
    const archive = buildInitrd({
      busybox: join(packages, 'userland/usr/bin/busybox'),
      modules: join(packages, 'modules'),
      init: join(here, 'init'),
    })
    writeFileSync(join(work, 'initrd.cpio'), archive)
  })
  return {
    kernel: join(packages, 'vmlinux'),
    initrd: join(initrd, 'initrd.cpio'),
    userland: join(packages, 'userland'),
    release: readFileSync(join(packages, 'release'), 'utf8').trim(),
  }
}

const PACKAGE_SOURCES = ['fetch.mjs', 'packages.mjs', 'modules.mjs', 'vmlinux.mjs']
const INITRD_SOURCES = ['initrd.mjs', 'cpio.mjs', 'init']

/**
 * Everything that decides what a folder of the cache holds. A change in any of it gives another folder, so that
 * nobody runs an old guest after a `git pull`.
 * @param {string[]} sources
 */
function fingerprint(sources) {
  const hash = createHash('sha256')
  for (const file of sources) hash.update(readFileSync(join(here, file)))
  hash.update(process.env.SOFT_ROCE_KERNEL ?? '')
  return hash.digest('hex').slice(0, 12)
}

/**
 * Makes a folder unless it is there. It is filled beside its place and renamed at the end: what was interrupted never
 * looks complete, and two that make the same folder at the same time do not meet.
 * @param {string} folder
 * @param {boolean} refresh
 * @param {(work: string) => void} fill
 */
function make(folder, refresh, fill) {
  if (existsSync(folder) && !refresh) return
  const parent = dirname(folder)
  mkdirSync(parent, { recursive: true })
  removeAbandoned(parent)
  const work = mkdtempSync(join(parent, `building-${process.pid}-`))
  try {
    // A folder made by mkdtemp is for its owner alone, but an unprivileged user in the guest looks into it.
    chmodSync(work, 0o755)
    fill(work)
    if (refresh) rmSync(folder, { recursive: true, force: true })
    renameSync(work, folder)
  } catch (error) {
    // Renaming fails where another process was quicker; its result is as good, and a guest may be running on it.
    if (refresh || !existsSync(folder)) throw error
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** What interrupted builds left behind. A running one is not touched. @param {string} cache */
function removeAbandoned(cache) {
  for (const name of readdirSync(cache)) {
    const owner = /^building-(\d+)-/.exec(name)?.[1]
    if (owner && !existsSync(`/proc/${owner}`)) rmSync(join(cache, name), { recursive: true, force: true })
  }
}

/** @param {string} work the folder to fill */
function unpackPackages(work) {
  if (process.arch !== 'x64') throw new ProcessError('the guest runs on x86-64 machines only', 1)
  if (!commandExists('apt-get') || !commandExists('dpkg-deb')) {
    throw new ProcessError('the guest is made of Debian packages, and this system has no apt-get and dpkg-deb', 1)
  }
  const started = Date.now()
  const downloads = join(work, 'downloads')
  const lists = join(work, 'apt')
  const kernel = join(work, 'kernel')
  const userland = join(work, 'userland')
  mkdirSync(downloads)
  const release = download(downloads, lists)

  for (const name of readdirSync(downloads)) {
    const target = name.startsWith('linux-image-') ? kernel : userland
    capture('dpkg-deb', ['--extract', join(downloads, name), target])
  }
  mergeUsr(userland)
  for (const unused of ['doc', 'man', 'locale', 'lintian', 'bug', 'doc-base']) {
    rmSync(join(userland, 'usr/share', unused), { recursive: true, force: true })
  }

  const image = readFileSync(join(kernel, 'boot', `vmlinuz-${release}`))
  writeFileSync(join(work, 'vmlinux'), unpackVmlinux(image))
  writeFileSync(join(work, 'release'), `${release}\n`)
  const modules = ['lib/modules', 'usr/lib/modules'].map((path) => join(kernel, path, release)).find(existsSync)
  if (!modules) throw new ProcessError(`the package of kernel ${release} holds no modules`, 1)
  saveModules(modules, join(work, 'modules'))

  // 400 MB that nobody needs any more
  for (const folder of [downloads, lists, kernel]) rmSync(folder, { recursive: true, force: true })
  console.error(`soft-roce: made in ${((Date.now() - started) / 1000).toFixed(1)} s, kept in ${cacheFolder()}`)
}

/**
 * Downloads with the system's package lists, and where those are missing or too old, with lists of our own:
 * refreshing the system's would need root.
 * @param {string} downloads
 * @param {string} ownLists
 * @returns {string} the kernel's version
 */
function download(downloads, ownLists) {
  console.error('soft-roce: downloading the guest’s Debian packages (about 80 MB, once)')
  try {
    return downloadWith([], downloads)
  } catch {
    console.error('soft-roce: the system’s package lists did not do; fetching fresh ones for ourselves')
  }
  mkdirSync(join(ownLists, 'lists/partial'), { recursive: true })
  mkdirSync(join(ownLists, 'cache/archives/partial'), { recursive: true })
  const options = ['-o', `Dir::State::lists=${ownLists}/lists`, '-o', `Dir::Cache=${ownLists}/cache`]
  capture('apt-get', [...options, ...AS_OURSELVES, '-qq', 'update'])
  return downloadWith(options, downloads)
}

/** As root, apt would download as the user _apt, who cannot enter a cache under /root. Signatures are checked either way. */
const AS_OURSELVES = process.getuid?.() === 0 ? ['-o', 'APT::Sandbox::User=root'] : []

/**
 * @param {string[]} options
 * @param {string} downloads
 */
function downloadWith(options, downloads) {
  const release = process.env.SOFT_ROCE_KERNEL || newestKernel(options)
  const packages = [`linux-image-${release}`, ...GUEST_PACKAGES]
  capture('apt-get', [...options, ...AS_OURSELVES, '-qq', 'download', ...packages], { cwd: downloads })
  return release
}

/** @param {string[]} options */
function newestKernel(options) {
  const env = { ...process.env, LC_ALL: 'C' }
  const depends = capture('apt-cache', [...options, 'depends', KERNEL_META_PACKAGE], {
    env,
    quiet: true,
    anyStatus: true,
  })
  const release = /Depends: linux-image-(\S+)/.exec(depends.toString())?.[1]
  if (!release)
    throw new ProcessError(`apt knows no package ${KERNEL_META_PACKAGE}: the guest needs Debian’s kernel`, 1)
  return release
}

/**
 * Moves bin, sbin and lib under usr, as Debian's root has them: laid over the host's root, real folders of these
 * names would hide the host's links.
 * @param {string} root
 */
function mergeUsr(root) {
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    const folder = join(root, name)
    if (!existsSync(folder) || lstatSync(folder).isSymbolicLink()) continue
    cpSync(folder, join(root, 'usr', name), { recursive: true, verbatimSymlinks: true })
    rmSync(folder, { recursive: true })
  }
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('soft-roce', () => {
    const files = fetchGuest({ refresh: process.argv.includes('--refresh') })
    console.error(`soft-roce: Linux ${files.release}, in ${dirname(files.kernel)}`)
  })
}
