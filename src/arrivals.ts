import type { NativeError } from '#binding'
import { isError } from './native.js'
import { PromiseQueue } from './waiting.js'

/** How many are given out before the event loop has its turn. */
const AT_ONCE = 64

/** What comes from the peer, one after the other, and those who wait for it. */
export class Arrivals<T> {
  readonly #take: () => T | null | false | NativeError
  readonly #failure: (error: NativeError) => Error
  readonly #waiting = new PromiseQueue<T | null>()
  /** Given out since the event loop last had its turn. */
  #served = 0

  /**
   * @param take the next one; `false` when none is there yet, `null` when no more will come
   * @param failure makes the error that users see
   */
  constructor(take: () => T | null | false | NativeError, failure: (error: NativeError) => Error) {
    this.#take = take
    this.#failure = failure
  }

  /** Whether somebody waits. */
  get isAwaited(): boolean {
    return !this.#waiting.isEmpty
  }

  /** The next one, or `null` at the end. Served in the order of the calls. */
  next(signal: AbortSignal | undefined): Promise<T | null> {
    const wait = this.#waiting.add(signal)
    this.serve()
    return wait
  }

  /** Lets the event loop have its turn before anything more is given out. */
  rest(): void {
    this.#count(AT_ONCE)
  }

  /** Gives what is there to those who wait. */
  serve(): void {
    while (!this.#waiting.isEmpty && this.#served < AT_ONCE) {
      const arrived = this.#take()
      if (arrived === false) return
      this.#count(1)
      if (isError(arrived)) this.#waiting.reject(this.#failure(arrived))
      else this.#waiting.resolve(arrived)
    }
  }

  /** A peer that sends without pause must not keep timers, signals and other connections from their turn. */
  #count(more: number): void {
    if (this.#served === 0) {
      setImmediate(() => {
        this.#served = 0
        this.serve()
      })
    }
    this.#served += more
  }
}
