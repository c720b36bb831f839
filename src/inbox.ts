import type { NativeConnection, NativeError } from '#binding'
import { copyOf, receiveShort, type Packed } from './news.js'

/**
 * What makes a Buffer of given memory: the class that `subarray` makes its Buffers of (`Buffer[Symbol.species]`). `Buffer.from`
 * looks at what it is given first, and takes half as long again.
 */
const View = (
  Buffer as unknown as { [Symbol.species]: new (memory: ArrayBufferLike, begin: number, length: number) => Buffer }
)[Symbol.species]

const nothing: Packed = { bytes: Buffer.alloc(0), lengths: [] }

/**
 * Messages on their way from native code to whoever receives them: short ones cross several at a time, also with the news
 * where one was asked for in vain.
 *
 * @internal
 */
export class Inbox {
  readonly #native: NativeConnection
  #packed = nothing
  /** The next one of `#packed`, and where it begins. */
  #next = 0
  #begin = 0

  constructor(native: NativeConnection) {
    this.#native = native
  }

  /** Messages that have crossed and wait. */
  get ready(): number {
    return this.#packed.lengths.length - this.#next
  }

  /** Their bytes. */
  get readyBytes(): number {
    return this.#packed.bytes.length - this.#begin
  }

  /** Takes what came with the news: only who has asked in vain, and so has nothing, is given any. */
  add(packed: Packed | undefined): void {
    if (!packed) return
    if (this.ready > 0) throw new Error('messages came with the news to who had some')
    this.#hold(packed)
  }

  /** The next message; `false` when there is none yet; `null` when no more will come; why the connection failed. */
  next(): Buffer | false | null | NativeError {
    if (this.ready > 0) return this.#shift()
    const more = receiveShort(this.#native)
    if (more === false) return false
    if (more === undefined) return this.#native.receive() as Buffer | false | null | NativeError
    this.#hold(more)
    return this.#shift()
  }

  /** Adds the messages that follow to `batch`, until it has `limit`; they share memory. What is no message stays. */
  fill(batch: Buffer[], limit: number): void {
    while (batch.length < limit) {
      if (this.ready > 0) {
        this.#show(batch, limit)
        continue
      }
      const next = this.next()
      if (!(next instanceof Uint8Array)) return
      batch.push(next)
    }
  }

  /** Adds what has crossed. */
  #show(batch: Buffer[], limit: number): void {
    const { bytes, lengths } = this.#packed
    const { buffer, byteOffset } = bytes
    const end = Math.min(lengths.length, this.#next + limit - batch.length)
    for (; this.#next < end; this.#next++) {
      const length = lengths[this.#next] ?? 0
      batch.push(new View(buffer, byteOffset + this.#begin, length))
      this.#begin += length
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
    if (this.ready === 0) this.#hold(nothing)
  }
}
