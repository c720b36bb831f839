#!/usr/bin/env node
// @ts-check
// Brings a checkout from nothing to ready: Debian packages, npm packages, the addon, compiled TypeScript. Does only what
// is missing or stale, says what it does and how long it took. Works before `npm ci`.
// CLI: node tools/set-up.mjs [--groups=build,guest] [addon|typescript|examples|tests ...]

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessError, mainOf, run } from './process.mjs'
import { checkToolchain, ensureSystemPackages } from './system-packages.mjs'

/** The top of the repository. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)))

/**
 * What is built here. `outputs` must exist; where one of the `sources` (files or folders) or of the outputs is not as it
 * was when the command had last ended well, the command runs again. `afresh` is removed before, so that what comes from
 * a deleted source does not stay.
 * @typedef {object} Product
 * @property {string} title
 * @property {string[]} command arguments of node
 * @property {string[]} sources
 * @property {() => string[]} outputs
 * @property {string[]} [afresh]
 */

/** @typedef {'addon' | 'typescript' | 'examples' | 'tests'} ProductName */

const tsc = ['node_modules/typescript/bin/tsc', '--project']
const shared = ['tsconfig.base.json', 'package.json', 'package-lock.json']
const addonFile = () => readdirSync(ROOT).filter((name) => /^secure-rdma\..+\.node$/.test(name))
const declarations = ['dist/index.d.ts', 'binding.d.cts']

/** In the order in which they need each other. @type {Record<ProductName, Product>} */
const PRODUCTS = {
  addon: {
    title: 'the addon, from Rust (some minutes the first time)',
    command: ['tools/build-addon.mjs'],
    sources: ['crates', 'Cargo.toml', 'Cargo.lock', 'tools/build-addon.mjs', ...shared.slice(1)],
    outputs: () => ['binding.cjs', 'binding.d.cts', ...(addonFile().length > 0 ? addonFile() : ['secure-rdma.*.node'])],
  },
  typescript: {
    title: 'the TypeScript face',
    command: [...tsc, 'tsconfig.build.json'],
    sources: ['index.ts', 'index.mts', 'src', 'binding.d.cts', 'tsconfig.build.json', ...shared],
    outputs: () => ['dist/index.js', 'dist/index.mjs', 'dist/index.d.ts'],
    afresh: ['dist'],
  },
  examples: {
    title: 'the examples',
    command: [...tsc, 'tsconfig.examples.json'],
    sources: ['examples', 'tsconfig.examples.json', ...declarations, ...shared],
    outputs: () => ['build/examples/hello.mjs', 'build/examples/demo/main.js'],
    afresh: ['build/examples'],
  },
  tests: {
    title: 'the tests',
    command: [...tsc, 'tsconfig.test.json'],
    sources: ['__test__', 'tsconfig.test.json', ...declarations, ...shared],
    outputs: () => ['build/__test__'],
    afresh: ['build/__test__'],
  },
}

/**
 * Makes everything ready that `products` need.
 * @param {ProductName[]} products
 * @param {import('./system-packages.mjs').Group[]} [groups] of Debian packages
 */
export async function setUp(products, groups = ['build']) {
  checkToolchain()
  await ensureSystemPackages(groups)
  await ensureNodeModules()
  for (const name of products) await ensure(name, PRODUCTS[name])
}

/** Runs `npm ci` where node_modules is not what package-lock.json says. */
async function ensureNodeModules() {
  if (nodeModulesAreCurrent()) return
  await timed('npm packages', () => run('npm', ['ci', '--no-audit', '--no-fund'], { cwd: ROOT }))
}

function nodeModulesAreCurrent() {
  const installed = lockedPackages('node_modules/.package-lock.json')
  const wanted = lockedPackages('package-lock.json')
  if (!installed || !wanted) return false
  // npm leaves optional packages for other platforms out, and writes its own list last.
  return (
    Object.entries(wanted).every(([path, { version, optional }]) => {
      const found = installed[path]
      return path === '' || (found ? found.version === version : optional === true)
    }) && Object.keys(installed).every((path) => path in wanted)
  )
}

/**
 * @param {string} path
 * @returns {Record<string, { version?: string, optional?: boolean }> | undefined}
 */
function lockedPackages(path) {
  try {
    return JSON.parse(readFileSync(join(ROOT, path), 'utf8')).packages
  } catch {
    return undefined
  }
}

/** @param {ProductName} name @param {Product} product */
async function ensure(name, product) {
  const stamp = join(ROOT, 'build/.set-up', name)
  // Taken before the command: what is edited while it runs makes it run again next time.
  const sources = digestOf(product.sources)
  if (read(stamp) === `${sources} ${digestOf(product.outputs(), true)}`) return
  for (const folder of product.afresh ?? []) rmSync(join(ROOT, folder), { recursive: true, force: true })
  await timed(product.title, () => run(process.execPath, product.command, { cwd: ROOT }))
  const missing = product.outputs().find((output) => !existsSync(join(ROOT, output)))
  if (missing) throw new ProcessError(`${product.command.join(' ')} ended well, but there is no ${missing}`, 1)
  mkdirSync(dirname(stamp), { recursive: true })
  writeFileSync(stamp, `${sources} ${digestOf(product.outputs(), true)}`)
}

/** @param {string} what @param {() => Promise<void>} work */
async function timed(what, work) {
  console.error(`set-up: ${what} …`)
  const began = performance.now()
  await work()
  console.error(`set-up: ${what}: done in ${((performance.now() - began) / 1000).toFixed(1)} s`)
}

/**
 * A digest of files, and of folders with all that is in them: of their contents, or of times and sizes only.
 * @param {string[]} paths @param {boolean} [byTime]
 */
function digestOf(paths, byTime = false) {
  const hash = createHash('sha256')
  for (const path of paths.flatMap(filesOf)) {
    const { mtimeMs, size } = statSync(join(ROOT, path))
    hash.update(`${path}\0${byTime ? mtimeMs : ''}\0${size}\0`)
    if (!byTime) hash.update(readFileSync(join(ROOT, path)))
  }
  return hash.digest('hex')
}

/** @param {string} path @returns {string[]} */
function filesOf(path) {
  const entry = statSync(join(ROOT, path), { throwIfNoEntry: false })
  if (!entry) return []
  if (!entry.isDirectory()) return [path]
  const within = readdirSync(join(ROOT, path)).sort()
  return within.flatMap((name) => filesOf(join(path, name)))
}

/** @param {string} path */
function read(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : undefined
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('set-up', async () => {
    const args = process.argv.slice(2)
    const groups = args.find((arg) => arg.startsWith('--groups='))?.slice('--groups='.length)
    const named = /** @type {ProductName[]} */ (args.filter((arg) => !arg.startsWith('--')))
    const all = /** @type {ProductName[]} */ (Object.keys(PRODUCTS))
    const unknown = named.find((name) => !all.includes(name))
    if (unknown) throw new ProcessError(`no product ${unknown}: there are ${all.join(', ')}`, 1)
    const wanted = /** @type {import('./system-packages.mjs').Group[]} */ (groups?.split(',') ?? ['build'])
    await setUp(named.length > 0 ? all.filter((name) => named.includes(name)) : all, wanted)
  })
}
