import type { NativeConnection, NativeError, NativeOutcome } from '#binding'
import { abortError, onAbort } from './abort.js'

/** What came of a list: of each atomic what was there before, `undefined` of all others. */
export type Outcomes = (bigint | undefined)[]

/** Someone who waits for a list that was posted. */
interface Wait {
  readonly first: number
  /** Whether more may have come of it than its having been carried out. */
  readonly hasOutcomes: boolean
  resolve(outcomes: Outcomes): void
  reject(error: Error): void
}

/** What an aborted wait says, by whether all of it was taken back. */
export interface AbortTexts {
  readonly withdrawn: string
  readonly begun: string
}

/** Those who wait until what was posted is over. Ids grow in the order of posting, and complete in it. */
export class Completions {
  readonly #native: NativeConnection
  /** By the last id of each. A Map keeps the order in which they came. */
  readonly #waits = new Map<number, Set<Wait>>()
  /** What native code has told of ids that somebody waits for. */
  readonly #told = new Map<number, NativeOutcome>()
  #withOutcomes = 0
  readonly #failure: (error: NativeError) => Error

  constructor(native: NativeConnection, failure: (error: NativeError) => Error) {
    this.#native = native
    this.#failure = failure
  }

  /** Waits until everything from `first` to `last` is over. */
  wait(
    first: number,
    last: number,
    hasOutcomes: boolean,
    signal: AbortSignal | undefined,
    texts: AbortTexts,
  ): Promise<Outcomes> {
    return new Promise((resolve, reject) => {
      const wait: Wait = {
        first,
        hasOutcomes,
        resolve: (outcomes) => {
          stop()
          resolve(outcomes)
        },
        reject: (error) => {
          stop()
          reject(error)
        },
      }
      // First what may throw, where a signal is none.
      const stop = onAbort(signal, (signal) => {
        this.#forget(last, wait)
        const withdrawn = this.#native.giveUp(first, last) === last - first + 1
        reject(abortError(signal, withdrawn ? texts.withdrawn : texts.begun))
        this.settle()
      })
      if (signal?.aborted) return
      // Several may wait for one id: each call of end() waits for the same.
      const others = this.#waits.get(last)
      if (others) others.add(wait)
      else this.#waits.set(last, new Set([wait]))
      if (hasOutcomes) this.#withOutcomes++
      this.settle()
    })
  }

  /** Settles what is over. */
  settle(): void {
    if (this.#waits.size === 0) return
    const done = this.#look()
    for (const [last, waits] of this.#waits) {
      if (last > done) break
      this.#waits.delete(last)
      for (const wait of waits) this.#finish(wait, last)
    }
  }

  /** The connection is over: what is not done never will be. */
  fail(error: Error): void {
    for (const waits of this.#waits.values()) for (const wait of waits) wait.reject(error)
    this.#waits.clear()
    this.#told.clear()
    this.#withOutcomes = 0
  }

  /** Up to where all is done. */
  #look(): number {
    if (this.#withOutcomes === 0) return this.#native.sent()
    const { done, outcomes } = this.#native.outcomes()
    for (const outcome of outcomes) this.#told.set(outcome.id, outcome)
    return done
  }

  #finish(wait: Wait, last: number): void {
    if (!wait.hasOutcomes) {
      wait.resolve([])
      return
    }
    this.#withOutcomes--
    const told = this.#take(wait.first, last)
    const failed = told.find((outcome) => outcome?.error)
    if (failed?.error) wait.reject(this.#failure(failed.error))
    else wait.resolve(told.map((outcome) => outcome?.value))
  }

  #take(first: number, last: number): (NativeOutcome | undefined)[] {
    return Array.from({ length: last - first + 1 }, (_, index) => {
      const outcome = this.#told.get(first + index)
      this.#told.delete(first + index)
      return outcome
    })
  }

  #forget(last: number, wait: Wait): void {
    const others = this.#waits.get(last)
    if (!others?.delete(wait)) return
    if (others.size === 0) this.#waits.delete(last)
    if (!wait.hasOutcomes) return
    this.#withOutcomes--
    this.#take(wait.first, last)
  }
}
