// The versions of Node that tests run in processes of their own.
//
// SECURE_RDMA_NODES: the folder that tools/node-versions.mjs fetches other versions into (`npm test` and `npm run soak` do).
// With it a version that is not there fails, and is not skipped. Empty: our own version alone.

import { existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { processTest, type DeviceTest, type Place } from './_device.js'
import type { ExecutionContext } from 'ava'

const nodes = process.env['SECURE_RDMA_NODES']

/** Versions of Node by major number: our own, and those in the cache. */
export function versions(): Map<string, string> {
  const own = process.versions.node.split('.')[0] ?? ''
  const found = new Map([[own, process.execPath]])
  if (nodes === '') return found
  const name = `node-${process.platform}-${process.arch}`
  const folder = nodes ?? join(homedir(), '.cache/secure-rdma/node')
  for (const major of ['20', '22', '24']) {
    const node = join(folder, major, 'node_modules', name, 'bin/node')
    if (major !== own) found.set(major, node)
  }
  return found
}

/** A test on each version of Node, with the path of its executable; the other end is in this process, or in none. */
export function versionTest(
  title: string,
  implementation: (t: ExecutionContext, place: Place, node: string) => ReturnType<DeviceTest>,
): void {
  for (const [major, node] of versions()) {
    const whole = `Node ${major}: ${title}`
    if (!existsSync(node) && nodes === undefined) {
      test.skip(`[no Node ${major}: node tools/node-versions.mjs fetches it] ${whole}`, () => undefined)
      continue
    }
    processTest(whole, (t, place) => implementation(t, place, node))
  }
}
