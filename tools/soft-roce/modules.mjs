// @ts-check
// Picks the kernel modules that the guest loads, in an order in which each finds those it depends on.
// Debian's package holds no modules.dep (depmod makes it on installation), so the modules themselves are asked.

import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { ProcessError, capture } from '../process.mjs'

/** @typedef {{ name: string, content: Buffer }} KernelModule */

/** What the guest needs in order to start and to talk to us. */
const BASE_MODULES = [
  'virtio_pci',
  'virtio_console', // the command's output
  'virtio_rng', // entropy from the first moment: TLS asks for it
  '9pnet_virtio',
  '9p',
  'overlay',
]

/** What tests use besides the devices. */
const NETWORK_MODULES = [
  'veth',
  'dummy',
  'sch_netem', // delay, loss, reordering
  'sch_tbf',
  'crc32c_generic', // libcrc32c, which nf_tables uses, asks for it at run time
  'nf_tables', // packet filter: dropping UDP 4791 or TCP
  'nft_limit',
  'nft_numgen', // drop one in n
  'nft_quota',
  'nft_reject_inet', // reset a TCP connection
  'udp_diag', // `ss`
  'tcp_diag',
]

/** Loaded only where the guest has devices: rdma_rxe holds UDP 4791 from the moment that it is loaded. */
const RDMA_MODULES = [
  'crc32_generic', // rdma_rxe asks for "crc32" at run time, which no dependency says
  'crc32_pclmul',
  'rdma_rxe',
  'ib_uverbs',
  'rdma_ucm',
]

const MODULE_LISTS = { base: [...BASE_MODULES, ...NETWORK_MODULES], rdma: RDMA_MODULES }

/** Module names use _ and - alike. @param {string} name */
const normal = (name) => name.replaceAll('-', '_')

/**
 * Copies the wanted modules, uncompressed, and beside them the files `base` and `rdma`: their names in load order.
 * @param {string} root the folder /lib/modules/<version> of an unpacked kernel package
 * @param {string} target
 */
export function saveModules(root, target) {
  mkdirSync(target)
  const loaded = new Set()
  for (const [list, wanted] of Object.entries(MODULE_LISTS)) {
    const picked = pickModules(root, wanted, loaded)
    for (const { name, content } of picked) writeFileSync(join(target, `${name}.ko`), content)
    writeFileSync(join(target, list), picked.map(({ name }) => `${name}.ko\n`).join(''))
  }
}

/**
 * @param {string} root the folder /lib/modules/<version> of an unpacked kernel package
 * @param {string[]} wanted
 * @param {Set<string>} loaded names that are there already; those that are picked are added
 * @returns {KernelModule[]} in load order
 */
function pickModules(root, wanted, loaded) {
  const builtIn = new Set(
    readFileSync(join(root, 'modules.builtin'), 'utf8')
      .split('\n')
      .map((line) => normal(basename(line, '.ko'))),
  )
  const files = moduleFiles(join(root, 'kernel'))
  /** @type {KernelModule[]} */
  const picked = []

  /** @param {string} name */
  const pick = (name) => {
    if (loaded.has(name) || builtIn.has(name)) return
    const file = files.get(name)
    if (!file) throw new ProcessError(`this kernel has no module ${name}`, 1)
    loaded.add(name)
    const content = file.endsWith('.xz') ? capture('xz', ['-dc', file]) : readFileSync(file)
    for (const dependency of dependenciesOf(content)) pick(dependency)
    picked.push({ name, content })
  }
  for (const name of wanted) pick(name)
  return picked
}

/**
 * @param {string} folder
 * @returns {Map<string, string>} file by module name
 */
function moduleFiles(folder) {
  const files = new Map()
  for (const entry of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    const match = /([^/]+)\.ko(\.xz)?$/.exec(entry)
    if (match) files.set(normal(match[1]), join(folder, entry))
  }
  return files
}

/**
 * The section .modinfo holds NUL-separated "key=value" strings.
 * @param {Buffer} content
 */
function dependenciesOf(content) {
  const key = '\0depends='
  const start = content.indexOf(key, 0, 'latin1') + key.length
  const names = content.toString('latin1', start, content.indexOf(0, start))
  return names.split(',').filter(Boolean).map(normal)
}
