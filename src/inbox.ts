import type { NativeConnection, NativeError } from '#binding'

/** Longer messages come by themselves. */
const SHORT = 4096

const bytes = new Uint8Array(1 << 16)
const lengths = new Uint32Array(64)

/**
 * Messages on their way from native code to whoever receives them: short ones cross several at a time.
 *
 * @internal
 */
export class Inbox {
  readonly #native: NativeConnection
  #ready: Buffer[] = []
  #first = 0
  #readyBytes = 0

  constructor(native: NativeConnection) {
    this.#native = native
  }

  /** Messages that have crossed and wait. */
  get ready(): number {
    return this.#ready.length - this.#first
  }

  /** Their bytes. */
  get readyBytes(): number {
    return this.#readyBytes
  }

  /** The next message; `false` when there is none yet; `null` when no more will come; why the connection failed. */
  next(): Buffer | false | null | NativeError {
    if (this.#first === this.#ready.length && !this.#fill()) {
      return this.#native.receive() as Buffer | false | null | NativeError
    }
    const message = this.#ready[this.#first++]
    if (!message) return false
    this.#readyBytes -= message.length
    return message
  }

  /** Those that have crossed, at most so many. */
  take(limit: number): Buffer[] {
    const taken = this.#ready.slice(this.#first, this.#first + limit)
    this.#first += taken.length
    for (const { length } of taken) this.#readyBytes -= length
    return taken
  }

  #fill(): boolean {
    const count = this.#native.receiveShort(bytes, lengths, SHORT)
    if (count === 0) return false
    this.#ready = []
    this.#first = 0
    let start = 0
    for (let index = 0; index < count; index++) {
      const length = lengths[index] ?? 0
      // Memory of its own: whoever has one message must not see the others.
      const message = length > 0 && length <= 64 ? Buffer.alloc(length) : Buffer.allocUnsafeSlow(length)
      message.set(bytes.subarray(start, start + length))
      this.#ready.push(message)
      start += length
    }
    this.#readyBytes = start
    return true
  }
}
