// What JavaScript may do with memory while RDMA is under way: collect it, transfer it, shrink it, detach it. On every version
// of Node, in processes of their own. Reliability §C, §F.5 #41 and #42, for messages; what peers write to directly is not
// JavaScript's to take away (crates/rdma/src/memory.rs).
//
// SECURE_RDMA_GC_ROUNDS: how many random orders of letting go; `npm run soak` does 1000.

import type { CommonOptions } from 'secure-rdma'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { testDevice } from './_device.js'
import { connecting, listening } from './_peers.js'
import { versionTest } from './_versions.js'

const ROUNDS = Number(process.env['SECURE_RDMA_GC_ROUNDS'] ?? (testDevice === 'rxe' ? 10 : 60))

/**
 * Of messages: one that is copied, one that is handed over, and, where it is quick, one that is more than the credits of a
 * connection, so that most of it waits while the memory goes.
 */
const LENGTHS = [100, 20_000, ...(testDevice === 'rxe' ? [] : [300_000])]

interface Given {
  server: CommonOptions & { host: string }
  client: CommonOptions & { host: string; localAddress: string }
}

interface Wasm {
  Memory: new (pages: { initial: number }) => { buffer: ArrayBuffer }
}

// Tasks for Child.run. They travel as source text.

/** Every way to take memory away, on every kind of buffer, before and after it was sent, and on messages received. */
async function takeAway(
  { rdma }: Scope,
  { server, client, lengths }: Given & { lengths: number[] },
): Promise<string[]> {
  const load = process.getBuiltinModule.bind(process)
  load('node:v8').setFlagsFromString('--expose-gc')
  const gc = load('node:vm').runInNewContext('gc') as () => void
  const { MessageChannel } = load('node:worker_threads')

  type Movable = ArrayBuffer & { transfer?: (length?: number) => ArrayBuffer; resize?: (length: number) => void }
  const takes: Record<string, (buffer: Movable) => unknown> = {
    nothing: () => undefined,
    structuredClone: (buffer) => structuredClone(buffer, { transfer: [buffer] }),
    postMessage: (buffer) => {
      const { port1, port2 } = new MessageChannel()
      port1.postMessage(buffer, [buffer])
      port1.close()
      port2.close()
      return undefined
    },
    transfer: (buffer) => buffer.transfer?.(),
    'transfer to less': (buffer) => buffer.transfer?.(8),
    resize: (buffer) => buffer.resize?.(8),
  }
  const Resizable = ArrayBuffer as new (length: number, options: { maxByteLength: number }) => ArrayBuffer
  // The types of Node alone do not know it.
  const { Memory } = (globalThis as unknown as { WebAssembly: Wasm }).WebAssembly
  const makes: Record<string, (length: number) => Uint8Array> = {
    Buffer: (length) => Buffer.alloc(length),
    // Like Node's pooled Buffers. Those themselves are Node's to lose: it does not survive it everywhere.
    part: (length) => Buffer.from(new ArrayBuffer(length + 5000), 8, length),
    Uint8Array: (length) => new Uint8Array(length),
    resizable: (length) => new Uint8Array(new Resizable(length, { maxByteLength: 2 * length })),
    shared: (length) => new Uint8Array(new SharedArrayBuffer(length)),
    wasm: (length) => new Uint8Array(new Memory({ initial: Math.ceil(length / 65_536) }).buffer, 0, length),
  }
  const listener = await rdma.listen(server)
  const port = listener.address()?.port ?? 0
  const [one, other] = await Promise.all([rdma.connect({ ...client, port }), listener.accept()])
  const wrong: string[] = []

  let fill = 0
  for (const [kind, make] of Object.entries(makes)) {
    for (const [name, take] of Object.entries(takes)) {
      const bytes = ++fill & 0xff
      const sends = lengths.map((length) => {
        const held = { view: make(length).fill(bytes) as Uint8Array | undefined }
        const sent = one.send(held.view ?? Buffer.alloc(0))
        const expected = held.view?.length ?? 0
        try {
          take(held.view?.buffer as Movable)
        } catch {
          // Refused by Node: then it is still there, and let go of.
        }
        held.view = undefined
        gc()
        return { sent, expected }
      })
      for (const { expected } of sends) {
        const message = await other.receive()
        if (!message?.equals(Buffer.alloc(expected, bytes))) wrong.push(`sent ${kind}, ${name}`)
      }
      await Promise.all(sends.map(({ sent }) => sent))

      // What is gone before is refused, or sent as what is left.
      const view = make(20_000)
      try {
        take(view.buffer as Movable)
      } catch {
        continue
      }
      try {
        const left = view.length
        await one.send(view)
        if ((await other.receive())?.length !== left) wrong.push(`gone ${kind}, ${name}`)
      } catch (error) {
        if (!(error instanceof TypeError)) throw error
      }
    }
  }

  // Received ones are the caller's own, whatever it does with them.
  for (const [name, take] of Object.entries(takes)) {
    for (const length of [0, 100, 16_384, 1_000_000]) {
      const sent = one.send(Buffer.alloc(length, 7))
      const held: { message?: Buffer | null; taken?: unknown } = { message: await other.receive() }
      await sent
      if (!held.message?.equals(Buffer.alloc(length, 7))) wrong.push(`received ${length}, ${name}`)
      try {
        held.taken = take(held.message?.buffer as Movable)
      } catch (error) {
        if (!/^(DataCloneError|TypeError)$/.test((error as Error).name)) throw error
      }
      delete held.message
      gc()
      const { taken } = held
      if (taken instanceof ArrayBuffer && taken.byteLength === length) {
        if (!Buffer.from(taken).equals(Buffer.alloc(length, 7))) wrong.push(`kept ${length}, ${name}`)
      }
      delete held.taken
      gc()
    }
  }

  // Memory, and what stands for a connection, cannot go to another thread by mistake.
  for (const thing of [one, listener]) {
    try {
      structuredClone(thing)
      wrong.push('a handle was cloned')
    } catch (error) {
      if ((error as Error).name !== 'DataCloneError') throw error
    }
  }
  await one.send(Buffer.from('it lives'))
  if (String(await other.receive()) !== 'it lives') wrong.push('the end')
  await one.close()
  await listener.close()
  return wrong
}

interface Kept {
  alive: number
  wrong: string[]
}

/**
 * Connections, streams, buffers and promises are let go of in random orders, with collections between, while messages are on
 * their way to a slow reader: all of them arrive. When all is closed, all is collected.
 */
async function letGo(
  { rdma }: Scope,
  { server, client, rounds, seed }: Given & { rounds: number; seed: number },
): Promise<Kept> {
  const load = process.getBuiltinModule.bind(process)
  load('node:v8').setFlagsFromString('--expose-gc')
  const gc = load('node:vm').runInNewContext('gc') as () => void
  const { setImmediate: turn } = load('node:timers/promises')
  let state = seed
  const below = (limit: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    return Math.floor((state / 2 ** 32) * limit)
  }
  const listener = await rdma.listen(server)
  const port = listener.address()?.port ?? 0
  const refs: WeakRef<object>[] = []
  const wrong: string[] = []

  const round = async (number: number): Promise<void> => {
    const [one, other] = await Promise.all([rdma.connect({ ...client, port }), listener.accept()])
    const weak = [new WeakRef(one), new WeakRef(other)] as const
    refs.push(...weak)
    // Everything that a program may hold of them, each to be let go of by itself.
    const held: (object | undefined)[] = [one, other]
    const asStream = below(3) === 0
    let mayFail = false
    const lengths = Array.from({ length: 1 + below(6) }, () => 1 + below(60_000))
    if (asStream) {
      // Where the other side ends it first, the stream is told.
      const stream = one.toDuplex().on('error', () => undefined)
      held.push(stream)
      refs.push(new WeakRef(stream))
      for (const length of lengths) stream.write(Buffer.alloc(length, number))
    } else {
      for (const length of lengths) {
        const bytes = new Uint8Array(length).fill(number)
        const sent = one.send(bytes).catch((error: unknown) => {
          // The other side may have read what this one has not been told of yet.
          if (!mayFail) wrong.push(`round ${number}: ${String(error)}`)
        })
        held.push(bytes, sent)
      }
    }
    const total = lengths.reduce((sum, length) => sum + length, 0)
    const reading = (async (reader: typeof other) => {
      let seen = 0
      while (seen < total) {
        if (below(2) === 0) gc()
        await turn()
        const message = await reader.receive()
        if (!message?.equals(Buffer.alloc(message.length, number))) wrong.push(`round ${number}`)
        seen += message?.length ?? total
      }
    })(other)
    while (held.some((thing) => thing !== undefined)) {
      const index = below(held.length)
      if (held[index] === undefined) continue
      held[index] = undefined
      if (below(2) === 0) gc()
      if (below(2) === 0) await turn()
    }
    await reading
    // As long as it is open a connection is kept, whoever holds it: its news must find somebody.
    gc()
    const [mine, theirs] = [weak[0].deref(), weak[1].deref()]
    if (!mine || !theirs) {
      wrong.push(`round ${number}: an open connection was collected`)
      return
    }
    const end = below(3)
    mayFail = end < 2
    if (end === 0) mine.destroy()
    else if (end === 1) theirs.destroy()
    else await theirs.close()
    await Promise.all([mine.closed, theirs.closed])
  }

  for (let number = 0; number < rounds; number++) await round(number & 0xff)
  await listener.close()
  // A WeakRef that was looked at keeps its target until the turn is over.
  const alive = (): number => refs.filter((ref) => ref.deref() !== undefined).length
  for (let tries = 0; tries < 50; tries++) {
    await turn()
    gc()
    await turn()
    if (alive() === 0) break
  }
  return { alive: alive(), wrong }
}

versionTest('memory that is taken away by JavaScript is missed by nobody', async (t, place, node) => {
  t.timeout(240_000)
  const child = Child.start(t, { node })
  const given = { server: await listening(place), client: await connecting(place, 1), lengths: LENGTHS }
  t.deepEqual(await child.run(takeAway, given), [])
  child.release()
  t.deepEqual(await child.exited, { code: 0, signal: null })
})

versionTest(`${ROUNDS} random orders of letting go, with collections in flight`, async (t, place, node) => {
  t.timeout(240_000 + ROUNDS * 2000)
  const seed = Math.floor(Math.random() * 2 ** 31)
  const child = Child.start(t, { node })
  const given = { server: await listening(place), client: await connecting(place, 1), rounds: ROUNDS, seed }
  t.deepEqual(await child.run(letGo, given), { alive: 0, wrong: [] }, `seed ${seed}`)
  child.release()
  t.deepEqual(await child.exited, { code: 0, signal: null })
})
