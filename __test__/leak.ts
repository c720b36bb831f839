// Connections that come and go: after many of them a process holds what it held before. Reliability §E, "leak".
//
// SECURE_RDMA_LEAK_CYCLES: how many; `npm run soak` does 100,000. The more, the less can a leak hide in what memory wavers by.

import type { ExecutionContext } from 'ava'
import type { CommonOptions } from 'secure-rdma'
import type * as Census from './_census.js'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { deviceTest, testDevice, type Place } from './_device.js'
import { connecting, listening } from './_peers.js'

const CYCLES = Number(process.env['SECURE_RDMA_LEAK_CYCLES'] ?? (testDevice === 'rxe' ? 50 : 1000))

/** What 1000 cycles may add to the memory, in bytes. */
const SLOPE = 1024

/** What memory wavers by while V8 compiles and caches fill. */
const EARLY_NOISE = 4 << 20
/** And behind the warming up of a long run. */
const LATE_NOISE = 64 << 10
const NOISE = CYCLES < 100_000 ? EARLY_NOISE : LATE_NOISE

const censusPath = require.resolve('./_census.js')

interface Given {
  census: string
  server: CommonOptions & { host: string }
  client: CommonOptions & { host: string; localAddress: string }
  cycles: number
  /** What each cycle leaks, in bytes. */
  planted: number
}

// A task for Child.run: it travels as source text.

/** Connects, sends, publishes, writes and closes, again and again. The memory in use over time, and what else is left. */
async function cycle(
  { rdma, numbered }: Scope,
  { census: file, server, client, cycles, planted }: Given,
): Promise<Told> {
  const load = process.getBuiltinModule.bind(process)
  const { census, difference } = load('node:module').createRequire(file)(file) as typeof Census
  load('node:v8').setFlagsFromString('--expose-gc')
  const gc = load('node:vm').runInNewContext('gc') as (options?: object) => void
  const { readFileSync } = load('node:fs')
  const listener = await rdma.listen(server)
  const toServer = { ...client, port: listener.address()?.port ?? 0 }
  const leaked: Buffer[] = []

  const once = async (number: number): Promise<void> => {
    const [one, other] = await Promise.all([rdma.connect(toServer), listener.accept()])
    const message = numbered(number)
    await Promise.all([one.send(message), other.send(message)])
    for (const end of [one, other])
      if (!(await end.receive())?.equals(message)) throw new Error(`message ${number} came otherwise`)
    // Every other region is left to the end of its connection and to the collector. One that stays is 4 KiB of memory.
    const region = await rdma.allocate(message.length)
    await other.publish('inbox', region, { access: ['read', 'write'] })
    const inbox = await one.remote('inbox')
    await one.write(message, inbox)
    if (!message.equals(new Uint8Array(region.buffer))) throw new Error(`WRITE ${number} came otherwise`)
    if (number % 2 === 0) {
      await other.unpublish('inbox')
      region.close()
    }
    // Each way to end, in turn.
    if (number % 3 === 0) one.destroy()
    else await (number % 3 === 1 ? one : other).close()
    await Promise.all([one.closed, other.closed])
    if (planted > 0) leaked.push(Buffer.alloc(planted, 1))
  }
  /**
   * Anonymous memory (that of files, which the kernel counts too, is read in and given back as it likes), of which V8's heap
   * counts with what is in use: it keeps empty pages as it likes.
   */
  const memory = async (): Promise<number> => {
    gc()
    // What native code has of collected objects is let go of in a later turn, and connections are a while on their way out.
    await new Promise((resolve) => setTimeout(resolve, 100))
    gc({ type: 'major', execution: 'sync', flavor: 'last-resort' })
    const [, kib] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
    const { total_physical_size: mapped, used_heap_size: used } = load('node:v8').getHeapStatistics()
    return Number(kib) * 1024 - mapped + used
  }
  // Caches and pools of Node, of V8 and of the allocator fill at the beginning, and what keeps queue pair numbers.
  const warm = Math.max(10, Math.min(2000, cycles >> 1), Math.floor(cycles / 8))
  for (let number = 0; number < warm; number++) await once(number)
  // What the collector had not come to yet is no loss.
  for (let times = 0; times < 3; times++) await memory()
  const before = await census()
  const parts = 20
  const samples: [number, number][] = []
  for (let part = 0; part < parts; part++) {
    const size = Math.ceil(cycles / parts)
    for (let number = 0; number < size; number++) await once(number)
    samples.push([(part + 1) * size, await memory()])
  }
  let left = difference(before, await census())
  // What was closed last may still be on its way out.
  for (let tries = 0; tries < 10 && left.length > 0; tries++) {
    await memory()
    left = difference(before, await census())
  }
  if (listener.connections > 0) left.push(`${listener.connections} connections`)
  await listener.close()
  return { samples, left }
}

/** Settings that keep comings and goings out of what is looked for. */
const STEADY = {
  env: {
    // A young generation of one size.
    NODE_OPTIONS: '--max-semi-space-size=1',
    // One pool of glibc's allocator, which joins what is freed at once and gives back what it can.
    MALLOC_ARENA_MAX: '1',
    GLIBC_TUNABLES: ['tcache_count=0', 'mxfast=0', 'trim_threshold=65536', 'top_pad=0', 'mmap_threshold=65536']
      .map((tunable) => `glibc.malloc.${tunable}`)
      .join(':'),
  },
}

interface Told {
  /** Cycles, and bytes in use after them. */
  samples: [number, number][]
  /** Descriptors, threads and objects of devices (regions among them) that were not there before, or are missing. */
  left: string[]
}

/** Bytes per cycle: the median of the slopes between all pairs, which a few leaps do not move (Theil and Sen). */
function slope(samples: Told['samples']): number {
  const slopes = samples.flatMap(([x, y], i) => samples.slice(i + 1).map(([x2, y2]) => (y2 - y) / (x2 - x)))
  slopes.sort((one, other) => one - other)
  return slopes[slopes.length >> 1] ?? NaN
}

async function growth(t: ExecutionContext, child: Child, place: Place, cycles: number, planted = 0): Promise<number> {
  const given = { server: await listening(place), client: await connecting(place, 1) }
  const { samples, left } = await child.run(cycle, { ...given, census: censusPath, cycles, planted })
  t.deepEqual(left, [])
  return slope(samples) * 1000
}

deviceTest(`${CYCLES} cycles of connect, transfer and close leave nothing`, async (t, place) => {
  t.timeout(240_000 + CYCLES * (testDevice === 'rxe' ? 5000 : 100))
  const child = Child.start(t, STEADY)
  const allowed = SLOPE + (NOISE * 1000) / CYCLES
  const per1000 = await growth(t, child, place, CYCLES)
  t.log(`${CYCLES} cycles: ${Math.round(per1000)} bytes per 1000; ${Math.round(allowed)} are allowed`)
  t.true(per1000 < allowed, `${Math.round(per1000)} bytes per 1000 cycles`)
  child.release()
  t.deepEqual(await child.exited, { code: 0, signal: null })
})

deviceTest('the control: what each cycle leaks is seen', async (t, place) => {
  t.timeout(240_000)
  const cycles = 40
  const planted = (4 * EARLY_NOISE) / cycles
  const per1000 = await growth(t, Child.start(t, STEADY), place, cycles, planted)
  t.true(per1000 > (EARLY_NOISE * 1000) / cycles, `${Math.round(per1000)} bytes per 1000 cycles`)
})
