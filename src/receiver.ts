// The messages that come on a connection, and who gets them.

import type { NativeConnection, NativeError } from '#binding'
import { abortError } from './abort.js'
import { Arrivals } from './arrivals.js'
import { Claim } from './claims.js'
import { Inbox } from './inbox.js'
import type { Packed } from './news.js'

/** Gives messages to those who wait for them, in the order of their calls, or to one stream alone. @internal */
export class Receiver {
  readonly #inbox: Inbox
  readonly #arrivals: Arrivals<Buffer>
  /** Which stream has the messages. Nobody else may then. */
  readonly claim = new Claim()

  /** @param failure makes the error that users see */
  constructor(native: NativeConnection, failure: (error: NativeError) => Error) {
    this.#inbox = new Inbox(native)
    this.#arrivals = new Arrivals<Buffer>(() => this.#inbox.next(), failure)
  }

  /** Whether somebody waits. */
  get isAwaited(): boolean {
    return this.#arrivals.isAwaited
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
  add(packed: Packed | undefined): void {
    this.#inbox.add(packed)
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

  /** A message, and those behind it that have arrived: `limit` in all at the most. */
  batch(first: Buffer, limit: number): Buffer[] {
    const batch = [first]
    // Whoever else waits has asked before for what comes now.
    if (!this.#arrivals.isAwaited) this.#inbox.fill(batch, limit)
    this.#arrivals.count(batch.length - 1)
    return batch
  }
}
