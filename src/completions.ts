import type { NativeConnection, NativeError, NativeOutcome } from '#binding'
import { abortError, onAbort } from './abort.js'

/** What came of a list: of each atomic what was there before, `undefined` of all others. */
export type Outcomes = (bigint | undefined)[]

/** So many that were settled are kept at the most, until the rest is moved. */
const MOST_SETTLED = 1024

const nothing = (): void => undefined
const none: Outcomes = []

/** Someone who waits for what was posted. */
interface Wait {
  resolve(outcomes: Outcomes): void
  reject(error: Error): void
}

/** Someone who waits for messages alone. */
export interface MessageWait {
  resolve(): void
  reject(error: Error): void
}

/** One who waits, and for what. */
interface Entry {
  readonly first: number
  readonly last: number
  /** Whether more may have come of it than its having been carried out. */
  readonly hasOutcomes: boolean
  /** How many outcomes who waits is told: none who waits for messages without more ado. */
  readonly shown: number
  /** Gone where it waits no more. */
  wait: Wait | MessageWait | undefined
}

/** What an aborted wait says, by whether all of it was taken back. */
export interface AbortTexts {
  readonly withdrawn: string
  readonly begun: string
}

/** Those who wait until what was posted is over. Ids grow in the order of posting, and complete in it. */
export class Completions {
  readonly #native: NativeConnection
  /** In the order of posting, which is that of their last ids; those before `#next` have been settled. */
  #entries: Entry[] = []
  #next = 0
  /** What native code has told of ids that somebody waits for. */
  readonly #told = new Map<number, NativeOutcome>()
  #withOutcomes = 0
  readonly #failure: (error: NativeError) => Error

  constructor(native: NativeConnection, failure: (error: NativeError) => Error) {
    this.#native = native
    this.#failure = failure
  }

  /** Has `wait` told when what was posted last, `first` to `last`, is over. */
  add(first: number, last: number, wait: MessageWait): void {
    this.#entries.push({ first, last, hasOutcomes: false, shown: 0, wait })
  }

  /** Waits until what was posted last, from `first` to `last`, is over. */
  wait(
    first: number,
    last: number,
    hasOutcomes: boolean,
    signal: AbortSignal | undefined,
    texts: AbortTexts,
  ): Promise<Outcomes> {
    return new Promise((resolve, reject) => {
      let stop = nothing
      const wait: Wait = {
        resolve: (outcomes) => {
          stop()
          resolve(outcomes)
        },
        reject: (error) => {
          stop()
          reject(error)
        },
      }
      const entry: Entry = { first, last, hasOutcomes, shown: last - first + 1, wait }
      // First what may throw, where a signal is none.
      stop = onAbort(signal, (signal) => {
        this.#forget(entry)
        const withdrawn = this.#native.giveUp(first, last) === last - first + 1
        reject(abortError(signal, withdrawn ? texts.withdrawn : texts.begun))
        // What was behind it may be over now.
        this.settle(this.#native.sent(), true)
      })
      if (signal?.aborted) return
      this.#entries.push(entry)
      if (hasOutcomes) this.#withOutcomes++
    })
  }

  /** Settles what is over: up to `done`, and native code may have outcomes. */
  settle(done: number, mayHaveOutcomes: boolean): void {
    if (this.#next === this.#entries.length) return
    const over = mayHaveOutcomes && this.#withOutcomes > 0 ? this.#look() : done
    for (let entry = this.#entries[this.#next]; entry && entry.last <= over; entry = this.#entries[this.#next]) {
      this.#next++
      this.#finish(entry)
    }
    if (this.#next < this.#entries.length && this.#next < MOST_SETTLED) return
    this.#entries = this.#entries.slice(this.#next)
    this.#next = 0
  }

  /** The connection is over: what is not done never will be. */
  fail(error: Error): void {
    const failed = this.#entries.slice(this.#next)
    this.#entries = []
    this.#next = 0
    for (const { wait } of failed) wait?.reject(error)
    this.#told.clear()
    this.#withOutcomes = 0
  }

  /** Up to where all is done. */
  #look(): number {
    const { done, outcomes } = this.#native.outcomes()
    for (const outcome of outcomes) this.#told.set(outcome.id, outcome)
    return done
  }

  #finish({ first, last, hasOutcomes, shown, wait }: Entry): void {
    if (!wait) return
    if (!hasOutcomes) {
      wait.resolve(shown > 0 ? new Array<undefined>(shown).fill(undefined) : none)
      return
    }
    this.#withOutcomes--
    const told = this.#take(first, last)
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

  #forget(entry: Entry): void {
    if (!entry.wait || !this.#entries.includes(entry)) return
    entry.wait = undefined
    if (!entry.hasOutcomes) return
    this.#withOutcomes--
    this.#take(entry.first, entry.last)
  }
}
