#!/usr/bin/env node
// @ts-check
// The Debian packages that building and testing need, and why. Lists what is missing before anything is installed.
// CLI: node tools/system-packages.mjs [build|test|guest ...]     (all of them when none is named)

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, dirname, join, resolve } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { fileURLToPath } from 'node:url'
import { ProcessError, capture, commandExists, mainOf, run } from './process.mjs'

/** @typedef {'build' | 'test' | 'guest'} Group */
/** @typedef {{ names: string[], reason: string, spared?: () => boolean }} SystemPackage */

/**
 * Any one of `names` will do; the first is preferred. A package is `spared` where something else takes its place.
 * @type {Record<Group, SystemPackage[]>}
 */
export const SYSTEM_PACKAGES = {
  build: [
    { names: ['build-essential'], reason: 'C compiler and linker, for Rust and for the cryptography library' },
    { names: ['pkg-config', 'pkgconf'], reason: 'finds libibverbs and librdmacm' },
    { names: ['libibverbs-dev'], reason: 'headers of the verbs, for rdma-sys' },
    { names: ['librdmacm-dev'], reason: 'headers of the connection manager, for rdma-sys' },
    {
      names: ['libclang-14-dev', 'libclang-15-dev'],
      reason: 'rdma-sys 0.3.0 reads those headers with libclang 14 or 15; newer ones break it',
      spared: () => Boolean(process.env.LIBCLANG_PATH),
    },
    { names: ['git'], reason: 'fetches sources' },
    { names: ['ca-certificates'], reason: 'lets cargo and npm check whom they download from' },
  ],
  test: [{ names: ['tshark'], reason: 'reads captures of the embedded device: a third opinion on its packets' }],
  guest: [
    { names: ['qemu-system-x86'], reason: 'runs the guest that has real soft-RoCE devices' },
    { names: ['xz-utils'], reason: 'unpacks the guest’s kernel' },
  ],
}

/** @type {Group[]} */
const GROUPS = ['build', 'test', 'guest']

const LEAST_NODE = [20, 19]

/**
 * The Rust whose clippy finds nothing here, and which CI installs. Each release knows new warnings: to others they are
 * shown, and fail nothing.
 */
const LINT_RUST = '1.95'

/**
 * What is missing of the groups.
 * @param {Group[]} groups
 * @returns {SystemPackage[]}
 */
export function missingPackages(groups) {
  const wanted = groups.flatMap((group) => SYSTEM_PACKAGES[group]).filter(({ spared }) => !spared?.())
  const installed = installedOf(wanted.flatMap(({ names }) => names))
  return wanted.filter(({ names }) => !names.some((name) => installed.has(name)))
}

/** @param {string[]} names */
function installedOf(names) {
  // It complains about each name that it does not know, which is what we ask it for.
  const format = '${db:Status-Status} ${Package}\\n'
  const answer = capture('dpkg-query', ['--show', `--showformat=${format}`, ...names], { quiet: true, anyStatus: true })
  const lines = answer.toString().split('\n')
  return new Set(lines.filter((line) => line.startsWith('installed ')).map((line) => line.slice('installed '.length)))
}

/**
 * Installs what is missing: asks first on a terminal, goes on without one (CI). Silent when nothing is missing.
 * @param {Group[]} groups
 */
export async function ensureSystemPackages(groups) {
  if (!isDebian()) {
    // People on other systems may have all of it under other names; they say so once.
    if (process.env.SECURE_RDMA_SKIP_PACKAGES) return
    console.error(
      `These Debian packages, or what this system calls them, are needed:\n${listing(groups.flatMap((group) => SYSTEM_PACKAGES[group]))}`,
    )
    throw new ProcessError(
      'this is neither Debian nor Ubuntu, so nothing is installed for you: install what the list names, then set SECURE_RDMA_SKIP_PACKAGES=1',
      1,
    )
  }
  const missing = missingPackages(groups)
  if (missing.length === 0) return

  console.error(`Missing Debian packages:\n${listing(missing)}`)
  const prefix = await permission()
  const apt = (/** @type {string[]} */ ...args) => {
    const [command, ...rest] = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', ...args]
    return run(command, rest)
  }
  await apt('update')
  const names = missing.map(availableName)
  await apt('install', '-y', '--no-install-recommends', ...names)
}

/** Ubuntu calls itself "like debian". */
function isDebian() {
  if (!existsSync('/etc/os-release') || !commandExists('apt-get') || !commandExists('dpkg-query')) return false
  const release = readFileSync('/etc/os-release', 'utf8')
  return /^ID(_LIKE)?=.*\b(debian|ubuntu)\b/m.test(release)
}

/** @param {SystemPackage[]} packages */
function listing(packages) {
  const width = Math.max(...packages.map(({ names }) => names[0].length))
  return packages.map(({ names, reason }) => `  ${names[0].padEnd(width)}  ${reason}`).join('\n')
}

/**
 * Asks where there is somebody to ask.
 * @returns {Promise<string[]>} what goes before a command that needs root
 */
async function permission() {
  const terminal = Boolean(process.stdin.isTTY && process.stderr.isTTY)
  const isRoot = process.getuid?.() === 0
  if (!isRoot && !commandExists('sudo')) {
    throw new ProcessError('installing them needs root, and there is no sudo: install them as root, then try again', 1)
  }
  if (terminal) {
    const line = createInterface({ input: process.stdin, output: process.stderr })
    const answer = await line.question(`Install them now with ${isRoot ? '' : 'sudo '}apt-get? [Y/n] `)
    line.close()
    if (!/^(y|yes|)$/i.test(answer.trim())) throw new ProcessError('nothing was installed, so this stops here', 1)
    return isRoot ? [] : ['sudo']
  }
  console.error('No terminal to ask on: installing them.')
  // Without a terminal, sudo must not wait for a password.
  return isRoot ? [] : ['sudo', '--non-interactive']
}

/** The name that this distribution has. @param {SystemPackage} wanted */
function availableName({ names, reason }) {
  const found = names.find((name) => {
    const policy = capture('apt-cache', ['policy', name], { quiet: true, env: { ...process.env, LC_ALL: 'C' } })
    return /Candidate: (?!\(none\))/.test(policy.toString())
  })
  if (found) return found
  const hint = names[0].startsWith('libclang')
    ? ': install libclang 14 or 15 from elsewhere and set LIBCLANG_PATH to the folder of its libclang.so'
    : ''
  throw new ProcessError(`this distribution has no ${names.join(' and no ')} (${reason})${hint}`, 1)
}

/** Checks what no Debian package gives: a Node and a Rust that are new enough. */
export function checkToolchain() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < LEAST_NODE[0] || (major === LEAST_NODE[0] && minor < LEAST_NODE[1])) {
    throw new ProcessError(`Node ${LEAST_NODE.join('.')} or newer is needed, and this is ${process.versions.node}`, 1)
  }
  if (!existsSync(join(cargoFolder(), 'cargo')) && !commandExists('cargo')) {
    throw new ProcessError('Rust is needed, and there is no cargo: https://rustup.rs installs it', 1)
  }
  const [least, found] = [leastRust(), rustVersion()]
  if (!isAtLeast(found, least)) {
    throw new ProcessError(`Rust ${least} or newer is needed, and this is ${found}: rustup update stable`, 1)
  }
}

/** Checks that there are rustfmt and clippy, which rustup's minimal profile leaves out. */
export function checkLinters() {
  const missing = Object.entries({ rustfmt: 'fmt', clippy: 'clippy' }).filter(([, command]) => {
    // rustup puts a stand-in there for each, which fails.
    try {
      capture('cargo', [command, '--version'], { quiet: true, env: buildEnvironment() })
      return false
    } catch {
      return true
    }
  })
  if (missing.length === 0) return
  const names = missing.map(([name]) => name).join(' ')
  throw new ProcessError(`format and lint need what this Rust lacks: rustup component add ${names}`, 1)
}

/** Whether warnings of this machine's clippy are failures: those of another release are news, and not ours. */
export const lintsStrictly = () => rustVersion().startsWith(`${LINT_RUST}.`)

/** What Cargo.toml says. */
function leastRust() {
  const manifest = readFileSync(join(dirname(fileURLToPath(import.meta.url)), '../Cargo.toml'), 'utf8')
  const [, version] = /^rust-version = "([\d.]+)"$/m.exec(manifest) ?? []
  if (version === undefined) throw new ProcessError('Cargo.toml has no rust-version', 1)
  return version
}

function rustVersion() {
  const answer = capture('rustc', ['--version'], { env: buildEnvironment() }).toString()
  const [, version] = /^rustc (\d+\.\d+\.\d+)/.exec(answer) ?? []
  if (version === undefined) throw new ProcessError(`rustc --version says ${answer.trim()}`, 1)
  return version
}

/** @param {string} version @param {string} least both as in `1.88.0`; parts that are left out are 0 */
export function isAtLeast(version, least) {
  const wanted = least.split('.').map(Number)
  const parts = version.split('.').map(Number)
  const differs = wanted.findIndex((part, i) => part !== (parts[i] ?? 0))
  return differs === -1 || (parts[differs] ?? 0) > wanted[differs]
}

/** Where rustup puts cargo. */
const cargoFolder = () => join(process.env.CARGO_HOME || join(homedir(), '.cargo'), 'bin')

/**
 * The whole environment for cargo and napi builds.
 * @param {NodeJS.ProcessEnv} [base]
 * @returns {NodeJS.ProcessEnv}
 */
export function buildEnvironment(base = process.env) {
  const environment = { ...base }
  const libclang = base.LIBCLANG_PATH || libclangFolder()
  if (libclang) environment.LIBCLANG_PATH = libclang
  // A shell that has not read ~/.cargo/env since the installation does not find cargo.
  const cargo = cargoFolder()
  if (existsSync(join(cargo, 'cargo')) && !base.PATH?.split(delimiter).includes(cargo)) {
    environment.PATH = [base.PATH, cargo].filter(Boolean).join(delimiter)
  }
  // Named as napi names it: cargo keeps what it builds for a named target apart, and would build it all twice.
  const target = base.CARGO_BUILD_TARGET || ownTarget(environment)
  if (target) environment.CARGO_BUILD_TARGET = target
  return environment
}

/** @type {string | undefined} */
let knownTarget

/**
 * The target of this machine; none where there is no Rust yet.
 * @param {NodeJS.ProcessEnv} env
 */
function ownTarget(env) {
  try {
    knownTarget ??= /^host: (.+)$/m.exec(capture('rustc', ['-vV'], { quiet: true, env }).toString())?.[1]
  } catch {
    return undefined
  }
  return knownTarget
}

/** The folder of a libclang that rdma-sys can use. */
function libclangFolder() {
  return ['/usr/lib/llvm-14/lib', '/usr/lib/llvm-15/lib'].find(
    (folder) => existsSync(folder) && readdirSync(folder).some((name) => /^libclang(-\d.*)?\.so/.test(name)),
  )
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('system-packages', async () => {
    const named = /** @type {Group[]} */ (process.argv.slice(2))
    const unknown = named.find((group) => !GROUPS.includes(group))
    if (unknown) throw new ProcessError(`no group ${unknown}: the groups are ${GROUPS.join(', ')}`, 1)
    checkToolchain()
    await ensureSystemPackages(named.length > 0 ? named : GROUPS)
  })
}
