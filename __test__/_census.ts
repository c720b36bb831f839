// What a process holds: descriptors, threads, and objects of the RDMA devices. Taken before and after, to see a leak.

import { readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { ExecutionContext } from 'ava'
import { inGuest, rdmaResources } from './_guest.js'

/** Counts by kind, such as `fd socket`, `thread secure-rdma-ctl`, `rdma qp`. */
export type Census = Record<string, number>

/** Threads of pools, which come and go by themselves within ten seconds. */
const POOLS = /^(libuv-worker|node|secure-rdma-blk|V8Worker|iou-)/

function gone<T>(read: () => T, otherwise: T): T {
  try {
    return read()
  } catch {
    // It ended between the listing and the look.
    return otherwise
  }
}

function descriptors(): string[] {
  const links = readdirSync('/proc/self/fd').map((fd) => gone(() => readlinkSync(`/proc/self/fd/${fd}`), ''))
  // The listing's own descriptor is among them.
  const kept = links.filter((link) => link !== '' && !/^\/proc\/\d+\/fd$/.test(link))
  return kept.map((link) => `fd ${link.replace(/:\[\d+\]$/, '')}`)
}

function threads(): string[] {
  const names = readdirSync('/proc/self/task').map((task) =>
    gone(() => readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim(), ''),
  )
  return names.filter((name) => name !== '' && !POOLS.test(name)).map((name) => `thread ${name}`)
}

/** What the kernel counts, of all processes together: a peer that was killed must not leave anything either. */
function devices(): [string, number][] {
  return inGuest ? Object.entries(rdmaResources()).map(([kind, count]) => [`rdma ${kind}`, count]) : []
}

function count(): Census {
  const counts: Census = {}
  for (const name of [...descriptors(), ...threads()]) counts[name] = (counts[name] ?? 0) + 1
  return Object.assign(counts, Object.fromEntries(devices()))
}

/** Counts, when they have not changed for a while: what was closed before may still be on its way out. */
export async function census(): Promise<Census> {
  let counts = count()
  for (let same = 0; same < 3;) {
    await sleep(100)
    const next = count()
    same = difference(counts, next).length === 0 ? same + 1 : 0
    counts = next
  }
  return counts
}

/** What is different, as `name: before → after`. */
export function difference(before: Census, after: Census): string[] {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort()
  const changed = names.filter((name) => (before[name] ?? 0) !== (after[name] ?? 0))
  return changed.map((name) => `${name}: ${before[name] ?? 0} → ${after[name] ?? 0}`)
}

/** Collects garbage: sockets of node:net and the like are let go of then. */
export function collectGarbage(): void {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  gc()
}

/** Asserts that all is as it was, at the latest after `within` milliseconds. */
export async function assertAsBefore(t: ExecutionContext, before: Census, within = 5000): Promise<void> {
  const began = performance.now()
  let left = difference(before, count())
  while (left.length > 0 && performance.now() - began < within) {
    await sleep(50)
    left = difference(before, count())
  }
  t.deepEqual(left, [], `this is left, or missing, after ${within} ms`)
}
