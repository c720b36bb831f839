import type { NativeError } from '#binding'
import { turns } from './events.js'
import { isError } from './native.js'
import { PromiseQueue } from './waiting.js'

/** How many are given out before the event loop has its turn. */
const AT_ONCE = 64

/** Takes what has come: `false` when nothing has yet, `null` when no more will. */
export type Take<T> = () => T | null | false | NativeError

/** What comes from the peer, one after the other, and those who wait for it. */
export class Arrivals<T> {
  readonly #take: Take<T>
  readonly #mayHave: () => boolean
  readonly #failure: (error: NativeError) => Error
  readonly #waiting = new PromiseQueue<unknown, Take<unknown>>()
  /** Given out since the event loop last had its turn, and which turn that was. */
  #served = 0
  #turn = 0
  /** Whether nothing is given out before the event loop has had its turn. */
  #rests = false

  /**
   * @param take takes the next one
   * @param mayHave whether there may be any: where it is known that there are none, the event loop is given no turn for it
   * @param failure makes the error that users see
   */
  constructor(take: Take<T>, mayHave: () => boolean, failure: (error: NativeError) => Error) {
    this.#take = take
    this.#mayHave = mayHave
    this.#failure = failure
  }

  /** How many wait. */
  get awaited(): number {
    return this.#waiting.size
  }

  /** The next one, or `null` at the end. Served in the order of the calls. */
  next(signal: AbortSignal | undefined): Promise<T | null> {
    return this.ask(this.#take, signal)
  }

  /** What `take` takes, or `null` at the end. Served in the order of the calls. */
  ask<U>(take: Take<U>, signal: AbortSignal | undefined): Promise<U | null> {
    if (this.#waiting.isEmpty && this.#mayHave() && this.#mayServe()) {
      try {
        const arrived = take()
        if (arrived !== false) {
          this.#served++
          return isError(arrived) ? Promise.reject(this.#failure(arrived)) : Promise.resolve(arrived)
        }
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return this.#waiting.add(signal, take) as Promise<U | null>
  }

  /** So many more have been given out otherwise. */
  count(more: number): void {
    this.#served += more
  }

  /** Gives what is there to those who wait. */
  serve(): void {
    for (let first = this.#waiting.first; first && this.#mayServe(); first = this.#waiting.first) {
      try {
        const arrived = first.purpose()
        if (arrived === false) return
        this.#served++
        this.#waiting.remove(first)
        if (isError(arrived)) first.reject(this.#failure(arrived))
        else first.resolve(arrived)
      } catch (error) {
        // For want of memory, say: told to whose turn it was, and the others go on.
        this.#waiting.remove(first)
        first.reject(error as Error)
      }
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
