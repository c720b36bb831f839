import type { NativeConnection } from '#binding'

/** Messages, one behind the other. */
export interface Packed {
  readonly bytes: Buffer
  readonly lengths: readonly number[]
}

/** What a connection is told, all of one moment. Flags as crates/node/src/news.rs has them. */
export interface News {
  /** Every id up to this one has been acknowledged. */
  readonly done: number
  readonly flags: number
  /** Messages, unless some that came before are known to wait for whoever takes them. */
  readonly messages: Packed | undefined
}

/** What has crossed, and whether native code has more. */
export interface Given {
  readonly messages: Packed | undefined
  readonly hasMore: boolean
}

/** The connection is over. */
export const OVER = 1
/** Operations have outcomes. */
export const OUTCOMES = 2
/** Native code has more to give than the messages that came with this. */
const MORE = 4

const HEAD = 4
const words = new Float64Array(2048)
const bytes = new Uint8Array(1 << 16)
/** Asks native code for the news of everything that has rung, and gives them, with the id of each, first to `bring`. */
export function drain(
  ask: (words: Float64Array, bytes: Uint8Array) => number,
  bring: (id: number, news: News) => void,
  tell: (id: number, news: News | undefined) => void,
): void {
  let isAll = false
  while (!isAll) {
    const answer = ask(words, bytes)
    isAll = answer >= 0
    const entries = read(isAll ? answer : -1 - answer)
    for (const [id, news] of entries) if (news) bring(id, news)
    for (const [id, news] of entries) tell(id, news)
  }
}

/** The news of one connection. */
export function look(native: NativeConnection): News {
  native.look(words, bytes)
  const [entry] = read(HEAD)
  return entry?.[1] ?? { done: 0, flags: OVER | MORE, messages: undefined }
}

/** Whether native code has more to give than came with these news. */
export function hasMore(news: News): boolean {
  return (news.flags & MORE) !== 0
}

/** Short messages that are there. If there are none, and still more is said to be there, `native.receive()` gives it. */
export function receiveShort(native: NativeConnection): Given {
  const answer = native.receiveShort(words, bytes)
  const hasMore = answer < 0
  const count = hasMore ? -1 - answer : answer
  return { messages: count > 0 ? unpack(0, count, 0) : undefined, hasMore }
}

/** All of it at once: whoever is told may ask for more, and that comes to lie here too. */
function read(used: number): [id: number, news: News | undefined][] {
  const entries: [number, News | undefined][] = []
  let start = 0
  for (let at = 0; at < used;) {
    const [id, flags, done, count] = [words[at], words[at + 1], words[at + 2] ?? 0, words[at + 3] ?? 0]
    const messages = count > 0 ? unpack(at + HEAD, count, start) : undefined
    start += messages?.bytes.length ?? 0
    entries.push([id ?? 0, flags === undefined || flags < 0 ? undefined : { done, flags, messages }])
    at += HEAD + count
  }
  return entries
}

/** Copies the messages whose lengths begin at `at`, and their bytes at `start`. */
function unpack(at: number, count: number, start: number): Packed {
  const lengths: number[] = []
  let end = start
  for (let index = at; index < at + count; index++) {
    const length = words[index] ?? 0
    lengths.push(length)
    end += length
  }
  if (count === 1) return { bytes: copyOf(bytes, start, end), lengths }
  // Several share memory in any case: Node's pool of it, where they are few.
  const copy = Buffer.allocUnsafe(end - start)
  copy.set(bytes.subarray(start, end))
  return { bytes: copy, lengths }
}

/** A copy with memory of its own. */
export function copyOf(bytes: Uint8Array, start: number, end: number): Buffer {
  // Of so few bytes V8 keeps the memory in the object itself.
  const copy = end - start <= 64 ? Buffer.alloc(end - start) : Buffer.allocUnsafeSlow(end - start)
  copy.set(bytes.subarray(start, end))
  return copy
}
