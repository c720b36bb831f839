import type { NativeError } from '#binding'
import { turns } from './events.js'
import { isError } from './native.js'
import { PromiseQueue } from './waiting.js'

/** How many are given out before the event loop has its turn. */
const AT_ONCE = 64

/** What comes from the peer, one after the other, and those who wait for it. */
export class Arrivals<T> {
  readonly #take: () => T | null | false | NativeError
  readonly #failure: (error: NativeError) => Error
  readonly #waiting = new PromiseQueue<T | null>()
  /** Given out since the event loop last had its turn, and which turn that was. */
  #served = 0
  #turn = 0
  /** Whether nothing is given out before the event loop has had its turn. */
  #rests = false

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
    if (this.#waiting.isEmpty && this.#mayServe()) {
      const arrived = this.#take()
      if (arrived !== false) {
        this.#served++
        return isError(arrived) ? Promise.reject(this.#failure(arrived)) : Promise.resolve(arrived)
      }
    }
    return this.#waiting.add(signal)
  }

  /** So many more have been given out otherwise. */
  count(more: number): void {
    this.#served += more
  }

  /** Gives what is there to those who wait. */
  serve(): void {
    while (!this.#waiting.isEmpty && this.#mayServe()) {
      const arrived = this.#take()
      if (arrived === false) return
      this.#served++
      if (isError(arrived)) this.#waiting.reject(this.#failure(arrived))
      else this.#waiting.resolve(arrived)
    }
  }

  /** A peer that sends without pause must not keep timers, signals and other connections from their turn. */
  #mayServe(): boolean {
    if (this.#rests) return false
    const turn = turns()
    if (turn !== this.#turn) {
      this.#turn = turn
      this.#served = 0
    }
    if (this.#served < AT_ONCE) return true
    this.#rests = true
    setImmediate(() => {
      this.#rests = false
      this.#served = 0
      this.serve()
    })
    return false
  }
}
