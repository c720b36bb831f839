#!/usr/bin/env node
// @ts-check
// Checks who may import whom, in crates/. The table is ARCHITECTURE.md's.
// CLI: node tools/check-imports.mjs

import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessError, capture, mainOf } from './process.mjs'
import { buildEnvironment } from './system-packages.mjs'

const PREFIX = 'secure-rdma-'

/** Which crates of ours each crate may import. Tests may import what they like. */
const MAY_IMPORT = {
  rdma: [],
  roce: [],
  soft: ['rdma', 'roce'],
  verbs: ['rdma'],
  session: ['rdma'],
  connection: ['rdma', 'session'],
  node: ['rdma', 'session', 'connection', 'soft', 'verbs'],
}

/** @typedef {{ owner: string, crates: RegExp, tests?: boolean }} Monopoly */

/**
 * Foreign crates that only one of ours may import. `tests` says whether others' tests may nevertheless.
 * @type {Monopoly[]}
 */
const ALONE = [
  { owner: 'soft', crates: /^(socket2|nix|quinn-udp|rustix)$/ },
  { owner: 'verbs', crates: /^(rdma-sys|libloading)$/ },
  { owner: 'session', crates: /^(rustls|rustls-.*|tokio|tokio-.*|aws-lc-.*)$/, tests: true },
  { owner: 'node', crates: /^napi(-.*)?$/ },
]

/**
 * What is wrong with the packages that `cargo metadata` tells of.
 * @param {{ name: string, dependencies: { name: string, kind: string | null }[] }[]} packages
 * @returns {string[]}
 */
export function violations(packages) {
  return packages.flatMap(({ name, dependencies }) => {
    const crate = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : ''
    if (!Object.hasOwn(MAY_IMPORT, crate))
      return [`${name} is not in the table of tools/check-imports.mjs: say what it may import`]
    /** @type {string[]} */
    const allowed = MAY_IMPORT[/** @type {keyof typeof MAY_IMPORT} */ (crate)]
    return dependencies.flatMap((dependency) => {
      const isTest = dependency.kind === 'dev'
      if (dependency.name.startsWith(PREFIX)) {
        const imported = dependency.name.slice(PREFIX.length)
        return isTest || allowed.includes(imported)
          ? []
          : [`${crate} may not import ${imported}; it may import ${allowed.join(', ') || 'nothing of ours'}`]
      }
      const monopoly = ALONE.find(({ owner, crates }) => owner !== crate && crates.test(dependency.name))
      return monopoly && !(isTest && monopoly.tests)
        ? [`${crate} may not import ${dependency.name}: that is for ${monopoly.owner} alone`]
        : []
    })
  })
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await mainOf('check-imports', () => {
    const root = dirname(dirname(fileURLToPath(import.meta.url)))
    const args = ['metadata', '--format-version=1', '--no-deps', '--manifest-path', resolve(root, 'Cargo.toml')]
    const { packages } = JSON.parse(capture('cargo', args, { env: buildEnvironment() }).toString())
    // A check that cannot fail is none: the same function must object to what is known to be wrong.
    const wrong = [
      {
        name: 'secure-rdma-session',
        dependencies: [
          { name: 'secure-rdma-verbs', kind: null },
          { name: 'napi', kind: null },
        ],
      },
    ]
    if (violations(wrong).length !== 2)
      throw new ProcessError('the check of the import table does not find violations any more', 1)
    const found = violations(packages)
    if (found.length > 0) throw new ProcessError(found.join('\n'), 1)
    console.log(`${packages.length} crates keep to the import table`)
  })
}
