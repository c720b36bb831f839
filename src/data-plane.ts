import type { NativeConnection, NativeError, NativeRegion, NativeRemote } from '#binding'
import { abortError } from './abort.js'
import { Arrivals } from './arrivals.js'
import { Commands } from './commands.js'
import { Completions, type AbortTexts, type Outcomes } from './completions.js'
import { Gathering } from './gathering.js'
import { asked } from './lookup.js'
import { OUTCOMES, type News } from './news.js'
import { Order } from './order.js'
import type { Pack } from './pack.js'
import type { LocalRange } from './region.js'
import { unshared } from './validate.js'

/** Throws what native code gave as an error. */
type Unwrap = <T>(result: T | NativeError) => T

const messageTexts: AbortTexts = {
  withdrawn: 'The send was aborted; the message was not sent',
  begun: 'The send was aborted; the message had been begun and may still arrive',
}
const operationTexts: AbortTexts = {
  withdrawn: 'The operation was aborted; nothing of it was carried out',
  begun: 'The operation was aborted; it had been begun and may still be carried out',
}

/**
 * What goes out on a connection, messages and one-sided operations alike: in one order, and with what came of it. And what
 * its regions need.
 */
export class DataPlane {
  readonly #native: NativeConnection
  readonly #unwrap: Unwrap
  readonly #order = new Order()
  readonly #completions: Completions
  /** Regions that were registered with the device since this connection is there. */
  readonly #registered = new WeakSet<NativeRegion>()
  readonly #immediates: Arrivals<number>
  readonly #gathering: Gathering
  /** A list to be used again. */
  #spare: Commands | undefined

  constructor(native: NativeConnection, unwrap: Unwrap, failure: (error: NativeError) => Error) {
    this.#native = native
    this.#unwrap = unwrap
    this.#completions = new Completions(native, failure)
    this.#gathering = new Gathering(native, unwrap, this.#completions)
    this.#immediates = new Arrivals<number>(
      () => native.receiveImmediate() as number | null | false | NativeError,
      () => true,
      failure,
    )
  }

  /** There is news. */
  news({ done, flags }: News): void {
    this.#completions.settle(done, (flags & OUTCOMES) !== 0)
    this.#immediates.serve()
  }

  /** The connection is over, and what was done has been settled. */
  fail(error: Error): void {
    this.flush()
    this.#completions.fail(error)
  }

  /**
   * Sends one message, of which `length` bytes are; throws at once where it cannot be queued, unless it is gathered or
   * something before it has to wait.
   */
  send(message: Uint8Array, length: number, signal?: AbortSignal): Promise<void> {
    // What can be taken back needs an id at once.
    const gathers = !signal && this.#order.isFree && Gathering.takes(length)
    return gathers ? this.#gathering.send(message, length) : this.sendNow(message, signal)
  }

  /** The same, and never later in this turn. */
  sendNow(message: Uint8Array, signal?: AbortSignal): Promise<void> {
    this.flush()
    const bytes = unshared(message)
    if (this.#order.isFree) return this.#one(this.#unwrap(this.#native.send(bytes)), signal)
    const copy = bytes.slice()
    return this.#behind(() => {
      if (signal?.aborted) throw abortError(signal, messageTexts.withdrawn)
      return this.#one(this.#unwrap(this.#native.send(copy)), signal)
    })
  }

  /** Sends many messages as one list, which is not the caller's any more. */
  sendMany(pack: Pack, signal: AbortSignal | undefined): Promise<void> {
    this.flush()
    if (this.#order.isFree) return this.#sendPack(pack, signal)
    return this.#behind(() => this.#sendPack(pack, signal))
  }

  /** Hands over what was gathered of this turn. */
  flush(): void {
    this.#gathering.flush()
  }

  /** Ends this side's direction. */
  end(signal?: AbortSignal): Promise<void> {
    this.flush()
    const end = (): Promise<void> => {
      const ended = this.#one(this.#unwrap(this.#native.end()), signal)
      // It may have been ended before, and then no news need come.
      this.#completions.settle(this.#native.sent(), true)
      return ended
    }
    return this.#order.isFree ? end() : this.#behind(end)
  }

  /** Does something behind all that goes out. */
  last(work: () => void): void {
    this.flush()
    if (this.#order.isFree) work()
    else void this.#order.queue(work)
  }

  /** An empty list. Not one that is being filled: what fills it may run code of the user's, and that may ask for another. */
  list(): Commands {
    const list = this.#spare ?? new Commands()
    this.#spare = undefined
    return list
  }

  /** Posts a list, and waits until all of it is over. The list is not the caller's any more. */
  post(commands: Commands, signal: AbortSignal | undefined): Promise<Outcomes> {
    if (commands.length === 0) return Promise.resolve([])
    this.flush()
    const missing = commands.regions.filter((region) => !this.#registered.has(region))
    if (this.#order.isFree && missing.length === 0) return this.#post(commands, signal)
    const registered = missing.length > 0 ? Promise.all(missing.map((region) => this.#register(region))) : undefined
    registered?.catch(() => {
      commands.clear()
    })
    return this.#behind(() => this.#post(commands, signal), registered)
  }

  publish(name: string, { native, byteOffset, byteLength }: LocalRange, access: number): Promise<boolean> {
    return this.#asked((id) => this.#native.publish(id, name, native, byteOffset, byteLength, access))
  }

  unpublish(name: string): Promise<boolean> {
    return this.#asked((id) => this.#native.unpublish(id, name))
  }

  seek(name: string, signal: AbortSignal | undefined): Promise<NativeRemote> {
    const unwrap = this.#unwrap<NativeRemote>
    return asked<NativeRemote>((id) => this.#unwrap(this.#native.seek(id, name)), { signal, unwrap })
  }

  receiveImmediate(signal: AbortSignal | undefined): Promise<number | null> {
    return this.#immediates.next(signal)
  }

  #asked(begin: (id: number) => { take(): boolean | NativeError | null } | NativeError): Promise<boolean> {
    return asked<boolean>((id) => this.#unwrap(begin(id)), { unwrap: this.#unwrap<boolean> })
  }

  async #register(region: NativeRegion): Promise<void> {
    await this.#asked((id) => this.#native.register(id, region))
    this.#registered.add(region)
  }

  #post(commands: Commands, signal: AbortSignal | undefined): Promise<Outcomes> {
    const { length, hasOperations, words, wordCount, messages, regions, remotes } = commands
    let first: number
    try {
      if (signal?.aborted) throw abortError(signal, operationTexts.withdrawn)
      first = this.#unwrap(this.#native.post(words, wordCount, messages, regions, remotes))
    } finally {
      commands.clear()
      this.#spare = commands
    }
    const texts = hasOperations ? operationTexts : messageTexts
    return this.#completions.wait(first, first + length - 1, hasOperations, signal, texts)
  }

  async #sendPack(pack: Pack, signal: AbortSignal | undefined): Promise<void> {
    const { bytes, lengths, count } = pack
    if (count === 0) return
    let first: number
    try {
      if (signal?.aborted) throw abortError(signal, messageTexts.withdrawn)
      first = this.#unwrap(this.#native.sendMany(bytes, lengths, count))
    } finally {
      pack.give()
    }
    await this.#acknowledged(first, first + count - 1, signal)
  }

  #one(id: number, signal: AbortSignal | undefined): Promise<void> {
    return this.#acknowledged(id, id, signal)
  }

  async #acknowledged(first: number, last: number, signal: AbortSignal | undefined): Promise<void> {
    if (signal) {
      await this.#completions.wait(first, last, false, signal, messageTexts)
      return
    }
    await new Promise<void>((resolve, reject) => {
      this.#completions.add(first, last, { resolve, reject })
    })
  }

  /** Begins something in its turn; what comes of it does not keep others from theirs. */
  async #behind<T>(begin: () => Promise<T>, first?: Promise<unknown>): Promise<T> {
    const begun = await this.#order.queue(() => ({ outcome: begin() }), first)
    return begun.outcome
  }
}
