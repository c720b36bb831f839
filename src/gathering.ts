import type { NativeConnection, NativeError } from '#binding'
import type { Completions, MessageWait } from './completions.js'
import { Pack } from './pack.js'
import type { Waiting } from './waiting.js'

/** Longer messages go by themselves: of these the crossing is not what costs. */
const SHORT = 4096

/** What is gathered before it goes at the latest: the peer has something to do while the rest of a long turn is gathered. */
const MOST_BYTES = 1 << 16
const MOST_MESSAGES = 16

/** Throws what native code gave as an error. */
type Unwrap = <T>(result: T | NativeError) => T

/**
 * Messages that are sent within one turn of JavaScript. They cross into native code together, at the end of the turn, and
 * share segments: that saves each of them a call, a packet and a system call. Where turns send but one, it goes at once.
 */
export class Gathering {
  readonly #native: NativeConnection
  readonly #unwrap: Unwrap
  readonly #completions: Completions
  /** Messages of this turn, and of the last one that had any. */
  #turn = 0
  #before = 0
  #pack: Pack | undefined
  #waiting: Waiting<void>[] = []

  constructor(native: NativeConnection, unwrap: Unwrap, completions: Completions) {
    this.#native = native
    this.#unwrap = unwrap
    this.#completions = completions
  }

  /** Whether it takes a message of this length. */
  static takes(length: number): boolean {
    return length <= SHORT
  }

  /** Sends a copy of a message now or at the end of this turn; fulfils when the peer's device has it. */
  send(message: Uint8Array, length: number): Promise<void> {
    if (this.#turn++ === 0) this.#begin()
    if (this.#pack && !hasRoom(this.#pack, length)) this.flush()
    this.#pack ??= Pack.take()
    this.#pack.add(message, length)
    const sent = new Promise<void>((resolve, reject) => {
      this.#waiting.push({ resolve, reject })
    })
    if (this.#turn === 1 && this.#before <= 1) this.flush()
    return sent
  }

  /** Posts what was gathered. To be called before everything that must not overtake it. */
  flush(): void {
    const pack = this.#pack
    if (!pack) return
    const waiting = this.#waiting
    this.#pack = undefined
    this.#waiting = []
    try {
      this.#post(pack.bytes, pack.lengths, waiting)
    } catch (error) {
      // Each of them then has an answer of its own.
      if (waiting.length === 1) waiting[0]?.reject(error as Error)
      else this.#each(pack, waiting)
    }
    pack.give()
  }

  #begin(): void {
    queueMicrotask(() => {
      this.#before = this.#turn
      this.#turn = 0
      this.flush()
    })
  }

  #post(bytes: Uint8Array, lengths: Uint32Array, waiting: readonly Waiting<void>[]): void {
    const first = this.#unwrap(this.#native.sendMany(bytes, lengths, waiting.length))
    this.#completions.add(first, first + waiting.length - 1, new Waits(waiting))
  }

  #each(pack: Pack, waiting: readonly Waiting<void>[]): void {
    let index = 0
    for (const message of pack.messages()) {
      const one = waiting.slice(index, ++index)
      try {
        this.#post(message, Uint32Array.of(message.length), one)
      } catch (error) {
        one[0]?.reject(error as Error)
      }
    }
  }
}

function hasRoom({ count, used }: Pack, length: number): boolean {
  return count < MOST_MESSAGES && used + length <= MOST_BYTES
}

/** Several who wait for one thing. */
class Waits implements MessageWait {
  readonly #all: readonly Waiting<void>[]

  constructor(all: readonly Waiting<void>[]) {
    this.#all = all
  }

  resolve(): void {
    for (const one of this.#all) one.resolve()
  }

  reject(error: Error): void {
    for (const one of this.#all) one.reject(error)
  }
}
