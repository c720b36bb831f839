import type { Commands } from './commands.js'
import type { Waiting } from './waiting.js'

/** Longer messages go by themselves: of these the crossing is not what costs. */
const SHORT = 4096

/** What is gathered before it goes at the latest. */
const MOST_BYTES = 1 << 16
const MOST_MESSAGES = 256

/** What a list is posted with, and a message by itself. */
export interface Sender {
  /** An empty list, which nobody else fills. */
  list(): Commands
  /**
   * Fulfils when the peer's device has all of the list, which is not the caller's any more. Throws where it is refused, as a
   * whole.
   */
  post(list: Commands): Promise<unknown>
  /** The same for one message. */
  send(bytes: Uint8Array): Promise<void>
}

/**
 * Messages that are sent within one turn of JavaScript. The first goes at once; those that follow it in the same turn cross
 * into native code together, at its end, and share segments: that saves each of them a call, a packet and a system call.
 */
export class Gathering {
  readonly #sender: Sender
  /** Whether something was sent in this turn. */
  #begun = false
  #list: Commands | undefined
  #ends: number[] = []
  #bytes = 0
  #waiting: Waiting<void>[] = []

  constructor(sender: Sender) {
    this.#sender = sender
  }

  /** Whether `message` may wait for the end of the turn. If so it is {@link add}ed. */
  takes(message: Uint8Array): boolean {
    if (message.length > SHORT) return false
    if (this.#begun) return true
    this.#begun = true
    queueMicrotask(() => {
      this.#begun = false
      this.flush()
    })
    return false
  }

  /** Gathers a copy of a message; fulfils when the peer's device has it. */
  add(message: Uint8Array): Promise<void> {
    if (this.#bytes + message.length > MOST_BYTES || this.#waiting.length === MOST_MESSAGES) this.flush()
    this.#list ??= this.#sender.list()
    this.#list.append(message)
    this.#bytes += message.length
    this.#ends.push(this.#bytes)
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject })
    })
  }

  /** Posts what was gathered. To be called before everything that must not overtake it. */
  flush(): void {
    const list = this.#list
    if (!list) return
    const [waiting, ends, copies] = [this.#waiting, this.#ends, list.messages]
    // Others may be given it as soon as it is posted.
    this.#list = undefined
    this.#waiting = []
    this.#ends = []
    this.#bytes = 0
    try {
      this.#sender.post(list).then(
        () => {
          for (const one of waiting) one.resolve()
        },
        (error: unknown) => {
          for (const one of waiting) one.reject(error as Error)
        },
      )
    } catch {
      // Each of them then has an answer of its own.
      waiting.forEach((one, index) => {
        this.#alone(copies.subarray(ends[index - 1] ?? 0, ends[index]), one)
      })
    }
  }

  #alone(message: Uint8Array, waiting: Waiting<void>): void {
    const failed = (error: unknown): void => {
      waiting.reject(error as Error)
    }
    try {
      this.#sender.send(message).then(() => {
        waiting.resolve()
      }, failed)
    } catch (error) {
      failed(error)
    }
  }
}
