import { onAbort } from './abort.js'
import type { Waiting } from './waiting.js'

/** Promises for the peer's device having what was sent, by the ids that native code gave. Ids grow. @internal */
export class Acknowledgements {
  // Several may wait for one id: each call of end() waits for the same.
  readonly #waiting = new Map<number, Set<Waiting<void>>>()

  get isEmpty(): boolean {
    return this.#waiting.size === 0
  }

  /**
   * One more promise: for everything up to `id`.
   *
   * @param aborted gives the error to reject with when `signal` is aborted
   */
  add(id: number, signal: AbortSignal | undefined, aborted: (signal: AbortSignal) => Error): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiting = {
        resolve: () => {
          stop()
          resolve()
        },
        reject: (error: Error) => {
          stop()
          reject(error)
        },
      }
      const others = this.#waiting.get(id)
      if (others) others.add(waiting)
      else this.#waiting.set(id, new Set([waiting]))
      let stop = (): void => undefined
      try {
        stop = onAbort(signal, (signal) => {
          this.#forget(id, waiting)
          reject(aborted(signal))
        })
      } catch (error) {
        // What was given is no signal.
        this.#forget(id, waiting)
        throw error
      }
    })
  }

  /** Everything up to `id` has arrived. */
  settle(id: number): void {
    // A Map keeps the order in which they came.
    for (const [sent, waiting] of this.#waiting) {
      if (sent > id) break
      this.#waiting.delete(sent)
      for (const one of waiting) one.resolve()
    }
  }

  /** Nothing more will arrive. */
  fail(error: Error): void {
    for (const waiting of this.#waiting.values()) for (const one of waiting) one.reject(error)
    this.#waiting.clear()
  }

  #forget(id: number, waiting: Waiting<void>): void {
    const others = this.#waiting.get(id)
    others?.delete(waiting)
    if (others?.size === 0) this.#waiting.delete(id)
  }
}
