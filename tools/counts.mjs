// @ts-check
// Runs cargo's and ava's tests, shows what they say, and counts.

import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { runLines } from './lines.mjs'

/** How much of what a failed test said is said again at the end. */
const FAILURE_LINES = 30

/**
 * What a runner counted. `onDevice` are those of `passed` that ran on the device that was asked for, `places` how many of them
 * on which addresses of it. `failures` name those of `failed`, each with how it failed.
 */
export class Counts {
  passed = 0
  failed = 0
  skipped = 0
  onDevice = 0
  /** @type {Record<string, number>} */
  places = {}
  /** @type {string[]} */
  failures = []

  /** @param {Partial<Counts>} other */
  add(other) {
    this.passed += other.passed ?? 0
    this.failed += other.failed ?? 0
    this.skipped += other.skipped ?? 0
    this.onDevice += other.onDevice ?? 0
    this.failures.push(...(other.failures ?? []))
    for (const [place, count] of Object.entries(other.places ?? {})) {
      this.places[place] = (this.places[place] ?? 0) + count
    }
    return this
  }

  /** `ipv4 12, ipv6 13` */
  listPlaces() {
    return Object.entries(this.places)
      .map(([place, count]) => `${place} ${count}`)
      .join(', ')
  }

  toString() {
    const skipped = this.skipped > 0 ? `, ${this.skipped} skipped` : ''
    return `${this.passed} passed, ${this.failed} failed${skipped}`
  }
}

/** Runs something that speaks as Rust's test harness does: `cargo test`, or a test executable. */
export class RustTests {
  counts = new Counts()

  /**
   * @param {string} command
   * @param {string[]} args
   * @param {NodeJS.ProcessEnv} env
   * @returns {Promise<number>} the exit status
   */
  async run(command, args, env) {
    /** The report of a failed test, while its lines come. @type {string[] | undefined} */
    let report
    const endReport = () => {
      if (report) this.counts.failures.push(report.slice(0, FAILURE_LINES).join('\n'))
      report = undefined
    }
    const status = await runLines(command, args, { env }, (line) => {
      console.log(line)
      const [, failed] = /^---- (.*) stdout ----$/.exec(line) ?? []
      if (failed !== undefined || line === 'failures:') endReport()
      if (failed === undefined) report?.push(line)
      else report = [failed]
      const closing = /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/.exec(line)
      if (closing) {
        const [passed, failed, skipped] = closing.slice(1).map(Number)
        this.counts.add({ passed, failed, skipped })
      }
    })
    endReport()
    return status
  }
}

/** Titles of tests on a device begin with it, and where on it: `[rxe ipv4 hybrid] …`. */
const ON_DEVICE = /(?:^| › )\[(\w+) ?([^\]]*)\]/

/** Runs ava, with one line per test and the details of failures. */
export class Ava {
  counts = new Counts()

  /** @param {string} root the repository */
  constructor(root) {
    this.root = root
    const manifest = createRequire(join(root, 'package.json')).resolve('ava')
    this.cli = join(dirname(manifest), 'cli.mjs')
  }

  /**
   * @param {string[]} args
   * @param {NodeJS.ProcessEnv} env
   * @param {string[]} [through] a command that runs another: into a network namespace, say
   * @returns {Promise<number>} the exit status
   */
  async run(args, env, through = []) {
    const device = env.SECURE_RDMA_TEST_DEVICE
    const [command = '', ...rest] = [...through, process.execPath, this.cli, '--tap', ...args]
    /** The failed test whose details may follow. @type {string[]} */
    let report = []
    const endReport = () => {
      if (report.length > 0) this.counts.failures.push(report.slice(0, FAILURE_LINES).join('\n'))
      report = []
    }
    const status = await runLines(command, rest, { cwd: this.root, env }, (line) => {
      const [, not, title, directive] = /^(not )?ok \d+ - (.*?)(?: # (SKIP|TODO).*)?$/.exec(line) ?? []
      if (title === undefined) {
        if (report.length > 0 && line.startsWith('  ')) report.push(line)
        // The plan and the totals are said again below, in plain words.
        if (!/^(TAP version|1\.\.\d|# tests|# pass|# fail|# skip|\s*$)/.test(line)) console.log(line)
        return
      }
      endReport()
      if (directive) this.counts.skipped++
      else if (not) {
        this.counts.failed++
        report = [title]
      } else {
        const [, name, place] = ON_DEVICE.exec(title) ?? []
        const isThere = device !== undefined && name === device
        this.counts.add({ passed: 1, onDevice: isThere ? 1 : 0, places: isThere && place ? { [place]: 1 } : {} })
      }
      console.log(`  ${directive ? '-' : not ? '✘' : '✔'} ${title}`)
    })
    endReport()
    // A file that crashed may have no test that failed.
    if (status !== 0 && this.counts.failed === 0) {
      this.counts.add({ failed: 1, failures: [`ava ended with exit status ${status}, and no test failed: see above`] })
    }
    console.log(`ava: ${this.counts}`)
    return status
  }
}
