// @ts-check
// The tests of the guest as the host sees them: guest-suite.mjs in two guests, at once where there is room for both.

import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, freemem } from 'node:os'
import { join } from 'node:path'
import { Counts } from './counts.mjs'
import { deviceTests } from './device-tests.mjs'
import { NODES } from './node-versions.mjs'
import { capture, runForStatus } from './process.mjs'
import { ROOT } from './set-up.mjs'
import { fetchGuest } from './soft-roce/fetch.mjs'

/** What guest-suite.mjs does in each of them. */
const PARTS = ['rxe', 'mixed']

/** MB of each. */
const MEMORY = 4096

/** Seconds that each may take, boot included. */
const TIMEOUT = 5400

/** What the tests load, and the tools among it that they do not. */
const LOADED = ['node_modules', 'build/__test__', 'dist', 'binding.cjs']
const NOT_LOADED = [
  ...['*.d.ts', '*.d.mts', '*.d.cts', '*.map', '*.md', '*.node'],
  ...[
    '@arethetypeswrong',
    '@napi-rs',
    '@octokit',
    '@typescript-eslint',
    'es-toolkit',
    'eslint',
    'prettier',
    'typescript',
  ].map((name) => `node_modules/${name}`),
]

/** What ran in the guests, by kind. */
export const guests = { rust: new Counts(), ava: new Counts(), together: new Counts(), mixed: new Counts() }

/** Runs all of it. @param {NodeJS.ProcessEnv} env @returns {Promise<number>} an exit status that is not 0, if there was one */
export async function testInGuests(env) {
  const results = join(ROOT, 'build/soft-roce')
  rmSync(results, { recursive: true, force: true })
  mkdirSync(results, { recursive: true })
  const executables = await deviceTests()
  const files = join(results, 'files.tar')
  capture('tar', ['-C', ROOT, '-cf', files, ...NOT_LOADED.map((name) => `--exclude=${name}`), ...LOADED])
  // Before either wants it.
  fetchGuest()

  const runPart = async (/** @type {string} */ part, /** @type {'inherit' | number} */ output) => {
    const resultFile = join(results, `${part}.json`)
    const suite = [
      join(ROOT, 'tools/guest-suite.mjs'),
      `--part=${part}`,
      `--files=${files}`,
      resultFile,
      ...executables,
    ]
    const own = ['--share', results, '--timeout', String(TIMEOUT), '--memory', String(MEMORY)]
    const args = [...own, '--env', `SECURE_RDMA_NODES=${NODES}`, '--', process.execPath, ...suite]
    const status = await runForStatus(process.execPath, ['tools/soft-roce/run.mjs', ...args], {
      cwd: ROOT,
      env,
      stdio: ['ignore', output, output],
    })
    if (existsSync(resultFile)) {
      /** @type {Partial<typeof guests>} */
      const found = JSON.parse(readFileSync(resultFile, 'utf8'))
      for (const [kind, counts] of Object.entries(found)) guests[/** @type {keyof typeof guests} */ (kind)].add(counts)
    }
    return status
  }

  const [first = '', ...others] = PARTS
  const apart = async (/** @type {string} */ part) => {
    // In one piece, behind what is shown as it comes.
    const file = join(results, `${part}.log`)
    const log = openSync(file, 'w')
    const status = await runPart(part, log)
    closeSync(log)
    return { file, status }
  }
  const statuses = []
  if (availableParallelism() > 1 && freemem() > PARTS.length * MEMORY * 1.25 * 2 ** 20) {
    const beside = others.map(apart)
    statuses.push(await runPart(first, 'inherit'))
    for (const { file, status } of await Promise.all(beside)) {
      process.stdout.write(readFileSync(file))
      statuses.push(status)
    }
  } else {
    for (const part of PARTS) statuses.push(await runPart(part, 'inherit'))
  }
  return statuses.find((status) => status !== 0) ?? 0
}
