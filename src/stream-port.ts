import { RdmaError } from './errors.js'
import type { Closed } from './connection-types.js'

/**
 * What a stream needs of its connection, and all that it uses. Messages come out of one place, `receive`, which another way
 * of handing them over can take.
 *
 * @internal
 */
export interface StreamPort {
  /**
   * Takes the messages that come for this stream alone; again does nothing.
   *
   * @throws {RdmaError} `ERR_RDMA_LOCKED` where another stream has them
   */
  claimReading(): void
  /** The same for the messages that go. */
  claimWriting(): void
  /** The next message; `null` at the end. */
  receive(): Promise<Uint8Array | null>
  /**
   * Queues one message; the promise is for the peer's device having it. Throws at once where it cannot be queued, so that
   * the next one cannot overtake it.
   */
  post(message: Uint8Array): Promise<void>
  /** Ends this side's direction. */
  end(): Promise<void>
  /** Closes in order. */
  close(): Promise<void>
  /** Ends the connection at once. */
  destroy(error?: Error): void
  /** How the connection has ended, if it has. */
  outcome(): Closed | undefined
  /** Fulfils when it has. */
  readonly closed: Promise<Closed>
  /** The longest message that the peer takes, in bytes. */
  readonly maxMessage: number
}

/** Whether both sides had closed it, or one had and all has arrived. */
export function isOrderly(outcome: Closed | undefined): boolean {
  return outcome?.reason === 'closed' || outcome?.reason === 'peerClosed'
}

/**
 * Sends for a stream, in order. What the peer's device has not acknowledged is kept below a window: backpressure is the wait
 * for it to shrink, and one message is always let through.
 *
 * @internal
 */
export class StreamSender {
  readonly #port: StreamPort
  readonly #window: number
  readonly #weigh: (message: Uint8Array) => number
  readonly #failed: (error: Error) => void
  #inFlight = 0
  #failure: Error | undefined
  #wake: (() => void) | undefined

  /**
   * @param window what may be in flight, as `weigh` measures it
   * @param failed told once, of the first message that did not arrive
   */
  constructor(
    port: StreamPort,
    window: number,
    weigh: (message: Uint8Array) => number,
    failed: (error: Error) => void,
  ) {
    this.#port = port
    this.#window = window
    this.#weigh = weigh
    this.#failed = failed
  }

  /** Sends one message, and fulfils when there is room for another. Calls must not overlap. */
  async send(message: Uint8Array): Promise<void> {
    const weight = this.#weigh(message)
    let sent = this.#post(message)
    while (!sent) {
      await this.#change()
      sent = this.#post(message)
    }
    this.#inFlight += weight
    const landed = (error?: Error): void => {
      this.#inFlight -= weight
      if (error && !this.#failure) {
        this.#failure = error
        this.#failed(error)
      }
      this.#wake?.()
    }
    sent.then(
      () => {
        landed()
      },
      (error: unknown) => {
        landed(error as Error)
      },
    )
    await this.#until(this.#window)
  }

  /** Fulfils when all that was sent has arrived. */
  async flush(): Promise<void> {
    await this.#until(0)
  }

  /** `undefined` where the send buffer has no room, and will have some: something of ours is in it. */
  #post(message: Uint8Array): Promise<void> | undefined {
    if (this.#failure) throw this.#failure
    try {
      return this.#port.post(message)
    } catch (error) {
      if (this.#inFlight > 0 && error instanceof RdmaError && error.code === 'ERR_RDMA_SEND_BUFFER_FULL')
        return undefined
      throw error
    }
  }

  async #until(most: number): Promise<void> {
    while (this.#inFlight > most && !this.#failure) await this.#change()
    if (this.#failure) throw this.#failure
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        this.#wake = undefined
        resolve()
      }
    })
  }
}
