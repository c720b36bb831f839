import type { NativeConnection, NativeError } from '#binding'
import { isError } from './native.js'
import { copyOf, hasMore, receiveShort, type News, type Packed } from './news.js'

/**
 * What makes a Buffer of given memory: the class that `subarray` makes its Buffers of (`Buffer[Symbol.species]`). `Buffer.from`
 * looks at what it is given first, and takes half as long again.
 */
const View = (
  Buffer as unknown as { [Symbol.species]: new (memory: ArrayBufferLike, begin: number, length: number) => Buffer }
)[Symbol.species]

const nothing: Packed = { bytes: Buffer.alloc(0), lengths: [] }

/**
 * Messages on their way from native code to whoever receives them: short ones cross several at a time, mostly with the news.
 *
 * @internal
 */
export class Inbox {
  readonly #native: NativeConnection
  #packed = nothing
  /** The next one of `#packed`, and where it begins. */
  #next = 0
  #begin = 0
  /** What crossed before `#packed` was taken. */
  readonly #behind: Packed[] = []
  /** Whether native code may have more. Where it has none, the news tell of the next. */
  #hasMore = true

  constructor(native: NativeConnection) {
    this.#native = native
  }

  /** Messages that have crossed and wait. */
  get ready(): number {
    return this.#behind.reduce((count, { lengths }) => count + lengths.length, this.#packed.lengths.length - this.#next)
  }

  /** Their bytes. */
  get readyBytes(): number {
    return this.#behind.reduce((count, { bytes }) => count + bytes.length, this.#packed.bytes.length - this.#begin)
  }

  /** Whether there may be something to take. */
  get mayHave(): boolean {
    return this.#packed !== nothing || this.#hasMore
  }

  /** Takes what came with the news. */
  add(news: News): void {
    const { messages } = news
    this.#hasMore = hasMore(news)
    if (!messages) return
    if (this.#packed === nothing) {
      this.#hold(messages)
      return
    }
    // Nobody takes them as they come: what comes now stays where it makes the peer wait.
    this.#behind.push(messages)
    this.#native.keepMessages()
  }

  /** The next message; `false` when there is none yet; `null` when no more will come; why the connection failed. */
  next(): Buffer | false | null | NativeError {
    const alone = this.#cross()
    return alone === undefined ? this.#shift() : alone
  }

  /** The same of it and those that follow, `limit` at the most; they share memory. What is no message stays. */
  batch(limit: number): Buffer[] | false | null | NativeError {
    const batch: Buffer[] = []
    while (batch.length < limit) {
      const alone = this.#cross()
      if (alone === undefined) this.#show(batch, limit)
      else if (alone === false || alone === null || isError(alone)) return batch.length > 0 ? batch : alone
      else batch.push(alone)
    }
    return batch
  }

  /** `undefined` where messages have crossed together, now or before: else what crosses alone. */
  #cross(): Buffer | false | null | NativeError | undefined {
    if (this.#packed !== nothing) return undefined
    if (!this.#hasMore) return false
    const { messages, hasMore } = receiveShort(this.#native)
    this.#hasMore = hasMore
    if (!messages) return hasMore && (this.#native.receive() as Buffer | false | null | NativeError)
    this.#hold(messages)
    return undefined
  }

  /** Adds what has crossed, in memory that has nothing of what stays. */
  #show(batch: Buffer[], limit: number): void {
    const { bytes, lengths } = this.#packed
    const [first, begin] = [this.#next, this.#begin]
    const last = Math.min(lengths.length, first + limit - batch.length)
    for (; this.#next < last; this.#next++) this.#begin += lengths[this.#next] ?? 0
    const shown = last === lengths.length ? bytes.subarray(begin) : copyOf(bytes, begin, this.#begin)
    const { buffer } = shown
    let at = shown.byteOffset
    for (let index = first; index < last; index++) {
      const length = lengths[index] ?? 0
      batch.push(new View(buffer, at, length))
      at += length
    }
    this.#rest()
  }

  /** Memory of its own: whoever has one message must not see the others. */
  #shift(): Buffer {
    const { bytes, lengths } = this.#packed
    const begin = this.#begin
    this.#begin += lengths[this.#next++] ?? 0
    const message = lengths.length === 1 ? bytes : copyOf(bytes, begin, this.#begin)
    this.#rest()
    return message
  }

  #hold(packed: Packed): void {
    this.#packed = packed
    this.#next = this.#begin = 0
  }

  /** What has been given out is not held here. */
  #rest(): void {
    if (this.#next === this.#packed.lengths.length) this.#hold(this.#behind.shift() ?? nothing)
  }
}
