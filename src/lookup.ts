import type { NativeError } from '#binding'
import { abortError, onAbort } from './abort.js'
import { forget, Hold, register } from './events.js'
import { unwrap } from './native.js'

/** Something that native code does off the event loop. */
export interface Lookup<T> {
  /** What came of it; `null` while that is not known. */
  take(): T | NativeError | null
  /** Gives it up. */
  cancel?(): void
}

/** What may differ. */
export interface AskedOptions<T> {
  /** Gives it up, where that can be done. */
  signal?: AbortSignal | undefined
  /** Throws what native code gave as an error. */
  unwrap?: (outcome: T | NativeError) => T
}

/**
 * Begins something, and waits for what comes of it.
 *
 * @param begin given the id that native code rings; may throw
 */
export function asked<T>(begin: (id: number) => Lookup<T>, options: AskedOptions<T> = {}): Promise<T> {
  const { signal, unwrap: unwrapped = unwrap } = options
  return new Promise((resolve, reject) => {
    const hold = new Hold()
    let lookup: Lookup<T>
    const id = register({
      news() {
        const outcome = lookup.take()
        if (outcome === null) return
        over()
        try {
          resolve(unwrapped(outcome as T | NativeError))
        } catch (error) {
          reject(error)
        }
      },
    })
    let stop = (): void => undefined
    const over = (): void => {
      stop()
      forget(id)
      hold.release()
    }
    try {
      lookup = begin(id)
      stop = onAbort(signal, (signal) => {
        over()
        lookup.cancel?.()
        reject(abortError(signal))
      })
    } catch (error) {
      over()
      throw error
    }
  })
}
