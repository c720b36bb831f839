// How a connection ends: what it was destroyed with, what came of it, and what whoever waits is told.

import { types } from 'node:util'
import type { NativeClosed, NativeError } from '#binding'
import type { Closed } from './connection-types.js'
import { RdmaError } from './errors.js'
import { toRdmaError, unwrap } from './native.js'
import { defer } from './waiting.js'

/** The end of one connection, before and after it has come. @internal */
export class Ending {
  readonly #over = defer<Closed>()
  #outcome: Closed | undefined
  #destroyedWith: Error | undefined
  /** Whether everything that was sent had arrived at the end. */
  #isDelivered = false

  /** Fulfils when it has come. */
  get closed(): Promise<Closed> {
    return this.#over.promise
  }

  /** What has come, if it has. */
  get outcome(): Closed | undefined {
    return this.#outcome
  }

  /** The user has destroyed the connection, with `reason`. */
  destroyedWith(reason: unknown): void {
    this.#destroyedWith = reasonOf(reason)
  }

  /** Makes the error that users see, with what the user destroyed the connection with as its cause. */
  failure(error: NativeError): RdmaError {
    return toRdmaError(error, this.#destroyedWith)
  }

  /** Throws what native code gave as an error, as {@link failure} makes it. */
  unwrap<T>(result: T | NativeError): T {
    return unwrap(result, this.#destroyedWith)
  }

  /** It has come. Gives the error of what was not acknowledged; behind that, {@link tell} tells everybody. */
  come(closed: NativeClosed): Error {
    const native = closed.error && this.failure(closed.error)
    const error = closed.reason === 'destroyed' ? this.#destroyedWith : native
    this.#outcome = { reason: closed.reason as Closed['reason'], ...(error && { error }) }
    this.#isDelivered = closed.delivered
    return (
      native ?? new RdmaError('ERR_RDMA_CLOSED', "the connection was closed before the peer's device had the message")
    )
  }

  /** Fulfils {@link closed}. */
  tell(): void {
    if (this.#outcome) this.#over.resolve(this.#outcome)
  }

  /**
   * Throws where `close()` does not have what it is called for.
   *
   * @param wasOver whether the end had come before `close()` was called
   */
  requireClosed({ reason, error }: Closed, wasOver: boolean): void {
    const isOrderly = reason === 'closed' || reason === 'peerClosed'
    if (wasOver ? this.#isDelivered || reason === 'destroyed' : this.#isDelivered && isOrderly) return
    if (error) throw error
    if (isOrderly)
      throw new RdmaError(
        'ERR_RDMA_CLOSED',
        'the peer closed the connection before everything that was sent had arrived',
      )
    throw new RdmaError('ERR_RDMA_DESTROYED', 'the connection was destroyed before it was closed')
  }
}

function reasonOf(value: unknown): Error | undefined {
  if (value === undefined || value === null) return undefined
  if (value instanceof Error || types.isNativeError(value)) return value
  return new RdmaError('ERR_RDMA_DESTROYED', 'the connection was destroyed with what is no Error', { cause: value })
}
