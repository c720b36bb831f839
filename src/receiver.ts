// The messages that come on a connection, and who gets them.

import type { NativeConnection, NativeError } from '#binding'
import { abortError } from './abort.js'
import { Arrivals } from './arrivals.js'
import { Claim } from './claims.js'
import { Inbox } from './inbox.js'
import type { News } from './news.js'

/** Gives messages to those who wait for them, in the order of their calls, or to one stream alone. @internal */
export class Receiver {
  readonly #inbox: Inbox
  readonly #arrivals: Arrivals<Buffer>
  /** Which stream has the messages. Nobody else may then. */
  readonly claim = new Claim()

  /** @param failure makes the error that users see */
  constructor(native: NativeConnection, failure: (error: NativeError) => Error) {
    this.#inbox = new Inbox(native)
    this.#arrivals = new Arrivals<Buffer>(
      () => this.#inbox.next(),
      () => this.#inbox.mayHave,
      failure,
    )
  }

  /** Whether somebody waits. */
  get isAwaited(): boolean {
    return this.#arrivals.awaited > 0
  }

  /** Messages that have crossed and wait. */
  get ready(): number {
    return this.#inbox.ready
  }

  /** Their bytes. */
  get readyBytes(): number {
    return this.#inbox.readyBytes
  }

  /** Takes what came with the news. */
  add(news: News): void {
    this.#inbox.add(news)
  }

  /** Gives what is there to those who wait. */
  serve(): void {
    this.#arrivals.serve()
  }

  /** The next message, for whoever is no stream; `null` at the end. */
  receive(signal: AbortSignal | undefined): Promise<Buffer | null> {
    if (signal?.aborted) throw abortError(signal)
    this.claim.refuse('receive()')
    return this.#arrivals.next(signal)
  }

  /** The next message, for a stream; `null` at the end. */
  next(): Promise<Buffer | null> {
    return this.#arrivals.next(undefined)
  }

  /** The messages that are there, at least one and `limit` at the most, for whoever is no stream; `null` at the end. */
  batch(limit: number, signal: AbortSignal | undefined): Promise<Buffer[] | null> {
    if (signal?.aborted) throw abortError(signal)
    this.claim.refuse('receiveBatch()')
    return this.#arrivals.ask(() => this.#takeBatch(limit), signal)
  }

  #takeBatch(limit: number): Buffer[] | null | false | NativeError {
    // What follows the first belongs to who waits behind.
    const batch = this.#inbox.batch(this.#arrivals.awaited > 1 ? 1 : limit)
    if (Array.isArray(batch)) this.#arrivals.count(batch.length - 1)
    return batch
  }
}
