import { argumentTypeError } from './validate.js'

/** What Node's own functions reject with: name `AbortError`, code `ABORT_ERR`, and the signal's reason as cause. */
export function abortError(signal: AbortSignal, message = 'The operation was aborted'): Error {
  const error = new Error(message, { cause: signal.reason })
  Object.defineProperty(error, 'name', { value: 'AbortError', configurable: true, writable: true })
  return Object.assign(error, { code: 'ABORT_ERR' })
}

/** Checks `options.signal`. */
export function checkSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined) return undefined
  // Not instanceof: a signal may come from another realm (vm contexts, test runners).
  if (typeof signal === 'object' && signal !== null && 'aborted' in signal && 'addEventListener' in signal) {
    return signal as AbortSignal
  }
  throw argumentTypeError('signal', 'an AbortSignal', signal)
}

/** The `signal` of an optional last argument that has no other member. */
export function signalOf(options: unknown): AbortSignal | undefined {
  if (options === undefined) return undefined
  if (typeof options !== 'object' || options === null) throw argumentTypeError('options', 'an object', options)
  return checkSignal((options as { signal?: unknown }).signal)
}

/**
 * Calls `onAbort` once if the signal is aborted before the returned function is called: at once if it is aborted by now,
 * since no event will come.
 */
export function onAbort(signal: AbortSignal | undefined, onAbort: (signal: AbortSignal) => void): () => void {
  if (!signal) return () => undefined
  const listener = (): void => {
    onAbort(signal)
  }
  if (signal.aborted) {
    listener()
    return () => undefined
  }
  signal.addEventListener('abort', listener, { once: true })
  return () => {
    signal.removeEventListener('abort', listener)
  }
}
