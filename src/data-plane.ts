import type { NativeConnection, NativeError, NativeRegion, NativeRemote } from '#binding'
import { abortError } from './abort.js'
import { Arrivals } from './arrivals.js'
import { Commands } from './commands.js'
import { Completions, type AbortTexts, type Outcomes } from './completions.js'
import { Gathering } from './gathering.js'
import { asked } from './lookup.js'
import { Order } from './order.js'
import type { LocalRange } from './region.js'

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
    this.#gathering = new Gathering({
      list: () => this.list(),
      post: (list) => this.#post(list, undefined),
      send: (bytes) => this.#acknowledged(this.#unwrap(this.#native.send(bytes)), undefined),
    })
    this.#immediates = new Arrivals<number>(
      () => native.receiveImmediate() as number | null | false | NativeError,
      failure,
    )
  }

  /** Asks native code what is new. */
  news(): void {
    this.#completions.settle()
    this.#immediates.serve()
  }

  /** The connection is over, and what was done has been settled. */
  fail(error: Error): void {
    this.flush()
    this.#completions.fail(error)
  }

  /** Sends one message; throws at once where it cannot be queued, unless something before it has to wait. */
  send(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    // What can be taken back needs an id at once.
    const gathers = this.#order.isFree && !signal && this.#gathering.takes(bytes)
    return gathers ? this.#gathering.add(bytes) : this.sendNow(bytes, signal)
  }

  /** The same, and never later in this turn. */
  sendNow(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    this.flush()
    if (this.#order.isFree) return this.#acknowledged(this.#unwrap(this.#native.send(bytes)), signal)
    const copy = bytes.slice()
    return this.#behind(() => {
      if (signal?.aborted) throw abortError(signal, messageTexts.withdrawn)
      return this.#acknowledged(this.#unwrap(this.#native.send(copy)), signal)
    })
  }

  /** Hands over what was gathered of this turn. */
  flush(): void {
    this.#gathering.flush()
  }

  /** Ends this side's direction. */
  end(signal?: AbortSignal): Promise<void> {
    this.flush()
    const end = (): Promise<void> => this.#acknowledged(this.#unwrap(this.#native.end()), signal)
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

  async #acknowledged(id: number, signal: AbortSignal | undefined): Promise<void> {
    await this.#completions.wait(id, id, false, signal, messageTexts)
  }

  /** Begins something in its turn; what comes of it does not keep others from theirs. */
  async #behind<T>(begin: () => Promise<T>, first?: Promise<unknown>): Promise<T> {
    const begun = await this.#order.queue(() => ({ outcome: begin() }), first)
    return begun.outcome
  }
}
