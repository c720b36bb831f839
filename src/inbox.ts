import type { NativeConnection, NativeError } from '#binding'
import { receiveShort } from './news.js'

const nothing: readonly Buffer[] = []

/**
 * Messages on their way from native code to whoever receives them: short ones cross several at a time, also with the news
 * where one was asked for in vain.
 *
 * @internal
 */
export class Inbox {
  readonly #native: NativeConnection
  #ready = nothing
  #first = 0

  constructor(native: NativeConnection) {
    this.#native = native
  }

  /** Messages that have crossed and wait. */
  get ready(): number {
    return this.#ready.length - this.#first
  }

  /** Their bytes. */
  get readyBytes(): number {
    return this.#ready.slice(this.#first).reduce((sum, { length }) => sum + length, 0)
  }

  /** Takes what came with the news. */
  add(messages: readonly Buffer[]): void {
    if (messages.length === 0) return
    this.#ready = this.ready === 0 ? messages : [...this.#ready.slice(this.#first), ...messages]
    this.#first = 0
  }

  /** The next message; `false` when there is none yet; `null` when no more will come; why the connection failed. */
  next(): Buffer | false | null | NativeError {
    const message = this.#ready[this.#first++]
    if (message) return message
    this.#first = 0
    // Whatever has been given out is not held here.
    this.#ready = nothing
    const more = receiveShort(this.#native)
    if (more === false) return false
    if (more === undefined) return this.#native.receive() as Buffer | false | null | NativeError
    this.#ready = more
    return this.#ready[this.#first++] ?? false
  }
}
