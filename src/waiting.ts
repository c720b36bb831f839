import { abortError, onAbort } from './abort.js'

/** Someone who waits for one thing. */
export interface Waiting<T> {
  resolve(value: T): void
  reject(error: Error): void
}

/** A promise and the two functions that settle it. */
export interface Deferred<T> extends Waiting<T> {
  readonly promise: Promise<T>
}

/** `Promise.withResolvers()`, which Node 20 does not have. */
export function defer<T>(): Deferred<T> {
  let waiting!: Waiting<T>
  const promise = new Promise<T>((resolve, reject) => {
    waiting = { resolve, reject }
  })
  return { promise, ...waiting }
}

/** Someone in a queue, and what for. */
interface Queued<T, P> extends Waiting<T> {
  readonly purpose: P
}

/**
 * Promises that are settled one after the other, in the order in which they were asked for.
 *
 * @typeParam P what tells those who settle them what each is for
 */
export class PromiseQueue<T, P = undefined> {
  // A set keeps the order, and an aborted wait leaves it at once wherever it stands.
  readonly #waiting = new Set<Queued<T, P>>()

  get isEmpty(): boolean {
    return this.#waiting.size === 0
  }

  get size(): number {
    return this.#waiting.size
  }

  /** The one that has waited longest. */
  get first(): Queued<T, P> | undefined {
    for (const first of this.#waiting) return first
    return undefined
  }

  /** One more promise. Aborting takes it out of the queue. */
  add(signal: AbortSignal | undefined, purpose: P): Promise<T> {
    if (signal === undefined) {
      return new Promise((resolve, reject) => {
        this.#waiting.add({ resolve, reject, purpose })
      })
    }
    return new Promise((resolve, reject) => {
      const waiting: Queued<T, P> = {
        purpose,
        resolve: (value) => {
          stop()
          resolve(value)
        },
        reject: (error) => {
          stop()
          reject(error)
        },
      }
      // Before the signal is asked, since it may be aborted by now.
      this.#waiting.add(waiting)
      let stop = (): void => undefined
      try {
        stop = onAbort(signal, (signal) => {
          this.#waiting.delete(waiting)
          reject(abortError(signal))
        })
      } catch (error) {
        // What was given is no signal: nobody waits.
        this.#waiting.delete(waiting)
        throw error
      }
    })
  }

  /** Takes one out of the queue, who is to be settled then. */
  remove(one: Queued<T, P>): void {
    this.#waiting.delete(one)
  }

  /** Fulfils the one that has waited longest. */
  resolve(value: T): void {
    const { first } = this
    if (!first) return
    this.#waiting.delete(first)
    first.resolve(value)
  }
}
