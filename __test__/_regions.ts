// What regions.ts runs in processes of their own, with --expose-gc: whatever JavaScript does to the memory of regions while
// RDMA uses it. A script of its own, since it runs on several versions of Node.
//
// node --expose-gc _regions.js JSON, with a Plan. Prints what it did as JSON; exit status 7 when all went as planned.

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { MessageChannel, Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { allocate, connect, listen, RdmaError, type Connection, type ConnectOptions, type Region } from 'secure-rdma'
import type { CommonOptions, RemoteRegion } from 'secure-rdma'
import { Random } from './_random.js'

/** The exit status of a process that did what it should. */
export const PLANNED = 7

/** What the process does. */
export interface Plan {
  task: 'orders' | 'workers' | 'exit'
  seed: number
  rounds: number
  server: CommonOptions & { host: string }
  client: ConnectOptions
}

const SIZE = 64 * 1024

/** All that JavaScript has of one region. */
interface Held {
  region?: Region | undefined
  buffer?: ArrayBuffer | undefined
  /** Where its bytes went. */
  moved?: unknown
}

/** What JavaScript may do to it. */
const actions: Record<string, (held: Held, counts: Record<string, number>) => void> = {
  'drop region': (held) => {
    held.region = undefined
  },
  'drop buffer': (held) => {
    held.buffer = undefined
  },
  'drop what was moved': (held) => {
    held.moved = undefined
  },
  'close region': ({ region }) => {
    region?.close()
  },
  gc: () => {
    gc?.()
  },
  transfer: (held) => {
    const { buffer } = held as { buffer?: ArrayBuffer & { transfer?: (length?: number) => ArrayBuffer } }
    if (buffer?.transfer && buffer.byteLength > 0) held.moved = buffer.transfer()
  },
  'transfer to a shorter one': (held) => {
    const { buffer } = held as { buffer?: ArrayBuffer & { transfer?: (length?: number) => ArrayBuffer } }
    if (buffer?.transfer && buffer.byteLength > 0) held.moved = buffer.transfer(8)
  },
  structuredClone: (held, counts) => {
    attempt(counts, () => (held.moved = structuredClone(held.buffer, { transfer: held.buffer ? [held.buffer] : [] })))
  },
  postMessage: ({ buffer }, counts) => {
    const { port1, port2 } = new MessageChannel()
    attempt(counts, () => {
      port1.postMessage(buffer, buffer ? [buffer] : [])
    })
    port1.close()
    port2.close()
  },
  resize: ({ buffer }, counts) => {
    attempt(counts, () => {
      ;(buffer as { resize?: (length: number) => void } | undefined)?.resize?.(8)
    })
  },
  use: ({ buffer, moved }) => {
    for (const bytes of [buffer, moved])
      if (bytes instanceof ArrayBuffer && bytes.byteLength > 0) new Uint8Array(bytes).fill(1)
  },
}

/** What the engine forbids is as good as done. */
function attempt(counts: Record<string, number>, action: () => void): void {
  try {
    action()
  } catch (error) {
    const name = (error as Error).name
    if (name !== 'DataCloneError' && name !== 'TypeError') throw error
    counts[`refused by ${name}`] = (counts[`refused by ${name}`] ?? 0) + 1
  }
}

/** An RdmaError is an answer; anything else is not. */
function answer(error: unknown): string {
  if (error instanceof RdmaError) return error.code
  throw error
}

interface Ends {
  client: Connection
  accepted: Connection
  close: () => Promise<void>
}

async function ends({ server, client }: Plan): Promise<Ends> {
  const listener = await listen(server)
  const port = listener.address()?.port ?? 0
  const [one, other] = await Promise.all([connect({ ...client, port }), listener.accept()])
  const close = async (): Promise<void> => {
    one.destroy()
    other.destroy()
    await listener.close()
  }
  return { client: one, accepted: other, close }
}

/** Operations on both regions, in flight. They are told of as codes. */
function fly(client: Connection, own: Region, inbox: RemoteRegion): Promise<string>[] {
  const flying: Promise<unknown>[] = []
  for (let i = 0; i < 4; i++) flying.push(client.write(own, inbox), client.read(inbox, own))
  flying.push(client.batch().write(own.slice(0, 64), inbox).write(own.slice(64, 64), inbox).post())
  return flying.map((operation) => operation.then(() => 'ok', answer))
}

/** Actions in random orders, while operations are in flight on both sides' regions. */
async function orders(plan: Plan): Promise<unknown> {
  const random = new Random(plan.seed)
  const counts: Record<string, number> = {}
  const { client, accepted, close } = await ends(plan)
  for (let round = 0; round < plan.rounds; round++) {
    const name = `inbox ${round}`
    const sides: Held[] = []
    // In a function of its own, whose variables hold nothing afterwards.
    const flying = await (async () => {
      const [theirs, own] = await Promise.all([allocate(SIZE), allocate(SIZE)])
      await accepted.publish(name, theirs, { access: ['read', 'write'] })
      const inbox = await client.remote(name)
      // Half of the rounds with the region registered before: all is in flight at once then.
      if (random.chance(0.5)) await client.write(own.slice(0, 8), inbox)
      for (const region of [theirs, own]) sides.push({ region, buffer: region.buffer })
      return { operations: fly(client, own, inbox) }
    })()
    for (let i = 0; i < 12; i++) {
      const names = Object.keys(actions)
      const action = names[random.below(names.length)] ?? 'gc'
      const held = sides[random.below(2)]
      if (held) actions[action]?.(held, counts)
      counts[action] = (counts[action] ?? 0) + 1
      if (random.chance(0.1)) await sleep(0)
    }
    for (const code of await Promise.all(flying.operations)) counts[code] = (counts[code] ?? 0) + 1
    await accepted.unpublish(name)
  }
  await close()
  gc?.()
  return counts
}

/** A worker with operations in flight; the bytes of a region of it go to the main thread, where that can be. */
async function inWorker(plan: Plan): Promise<void> {
  const { client, accepted } = await ends(plan)
  const [theirs, own, moved] = await Promise.all([allocate(SIZE), allocate(SIZE), allocate(SIZE)])
  await accepted.publish('inbox', theirs, { access: ['read', 'write'] })
  const inbox = await client.remote('inbox')
  await client.write([own, moved.slice(0, 0)], inbox)
  await client.read(inbox, moved)
  const { buffer } = moved as unknown as { buffer: ArrayBuffer & { transfer?: () => ArrayBuffer } }
  const bytes = buffer.transfer?.()
  try {
    parentPort?.postMessage(bytes, bytes ? [bytes] : [])
  } catch {
    // Some versions of Node keep them where they are.
    parentPort?.postMessage(undefined)
  }
  for (;;) await Promise.all([...fly(client, own, inbox), client.read(inbox, moved).then(() => 'ok', answer)])
}

async function workers(plan: Plan): Promise<unknown> {
  const counts = { workers: 0, moved: 0 }
  const kept: Uint8Array[] = []
  const one = async (number: number): Promise<void> => {
    const worker = new Worker(__filename, { workerData: plan })
    worker.on('error', (error) => {
      console.error(error)
      process.exit(1)
    })
    const [bytes] = (await once(worker, 'message')) as [ArrayBuffer | undefined]
    if (bytes) kept.push(new Uint8Array(bytes))
    await sleep((number * 7) % 40)
    await worker.terminate()
    counts.workers++
  }
  // Two at a time, since their ends may meet.
  for (let round = 0; round < plan.rounds; round += 2) await Promise.all([one(round), one(round + 1)])
  gc?.()
  // Whose thread is gone is read and written all the same.
  for (const bytes of kept) bytes.fill(bytes[0] ?? 0)
  counts.moved = kept.length
  return counts
}

/** Ends the process with operations in flight. */
async function exit(plan: Plan): Promise<unknown> {
  const { client, accepted } = await ends(plan)
  const [theirs, own] = await Promise.all([allocate(16 << 20), allocate(16 << 20)])
  await accepted.publish('inbox', theirs, { access: ['read', 'write'] })
  const inbox = await client.remote('inbox')
  await client.write(own.slice(0, 8), inbox)
  void Promise.allSettled(fly(client, own, inbox))
  await sleep(plan.seed % 30)
  return { flying: client.stats().workInFlight }
}

const failed = (error: unknown): never => {
  console.error(error)
  process.exit(1)
}

const tasks = { orders, workers, exit }

async function main(plan: Plan): Promise<void> {
  console.log(JSON.stringify(await tasks[plan.task](plan)))
  process.exit(PLANNED)
}

if (!isMainThread) inWorker(workerData as Plan).catch(failed)
else if (require.main === module) main(JSON.parse(process.argv[2] ?? '') as Plan).catch(failed)
