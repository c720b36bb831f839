import type { NativeConnection } from '#binding'

/** What a connection is told, all of one moment. Flags as crates/node/src/news.rs has them. */
export interface News {
  /** Every id up to this one has been acknowledged. */
  readonly done: number
  readonly flags: number
  /** Messages that somebody had asked for. */
  readonly messages: readonly Buffer[]
}

/** The connection is over. */
export const OVER = 1
/** Operations have outcomes. */
export const OUTCOMES = 2

const HEAD = 4
const words = new Float64Array(2048)
const bytes = new Uint8Array(1 << 16)
/** The same bytes: what is sliced off is a Buffer. */
const buffer = Buffer.from(bytes.buffer)
// Not the method of Buffer, which gives a view.
// eslint-disable-next-line @typescript-eslint/unbound-method -- called on `buffer`
const { slice } = Uint8Array.prototype
const nothing: readonly Buffer[] = []

/** Asks native code for the news of everything that has rung, and gives them to `tell`, with the id of each. */
export function drain(
  ask: (words: Float64Array, bytes: Uint8Array) => number,
  tell: (id: number, news: News | undefined) => void,
): void {
  let isAll = false
  while (!isAll) {
    const answer = ask(words, bytes)
    isAll = answer >= 0
    const entries = read(isAll ? answer : -1 - answer)
    for (const [id, news] of entries) tell(id, news)
  }
}

/** The news of one connection. */
export function look(native: NativeConnection): News {
  native.look(words, bytes)
  const [entry] = read(HEAD)
  return entry?.[1] ?? { done: 0, flags: OVER, messages: nothing }
}

/** Short messages that are there; `false` when there is nothing, `undefined` when `native.receive()` gives what comes next. */
export function receiveShort(native: NativeConnection): Buffer[] | false | undefined {
  const count = native.receiveShort(words, bytes)
  if (count <= 0) return count === 0 ? false : undefined
  const messages: Buffer[] = []
  unpack(messages, 0, count, 0)
  return messages
}

/** All of it at once: whoever is told may ask for more, and that comes to lie here too. */
function read(used: number): [id: number, news: News | undefined][] {
  const entries: [number, News | undefined][] = []
  let start = 0
  for (let at = 0; at < used;) {
    const count = words[at + 3] ?? 0
    const messages: Buffer[] = []
    start = unpack(messages, at + HEAD, count, start)
    const flags = words[at + 1] ?? -1
    entries.push([words[at] ?? 0, flags < 0 ? undefined : { done: words[at + 2] ?? 0, flags, messages }])
    at += HEAD + count
  }
  return entries
}

/** Messages whose lengths begin at `at`, and their bytes at `start`. Gives where the bytes end. */
function unpack(messages: Buffer[], at: number, count: number, start: number): number {
  for (let index = at; index < at + count; index++) {
    const length = words[index] ?? 0
    messages.push(copyOf(start, length))
    start += length
  }
  return start
}

/** Memory of its own: whoever has one message must not see the others. */
function copyOf(start: number, length: number): Buffer {
  // Of so few bytes V8 keeps the memory in the object itself, and this is the quickest way to it.
  if (length <= 64) return slice.call(buffer, start, start + length) as Buffer
  const long = Buffer.allocUnsafeSlow(length)
  long.set(bytes.subarray(start, start + length))
  return long
}
