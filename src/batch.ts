import { inspect, type InspectOptions } from 'node:util'
import { signalOf } from './abort.js'
import { Commands, type OperationOptions, type WriteOptions } from './commands.js'
import type { MessageBytes, SignalOptions } from './connection-types.js'
import type { LocalBytes } from './region.js'
import type { RemoteBytes } from './remote.js'

/** What the constructor wants to see. */
const key = Symbol('secure-rdma')

/** Makes what {@link Connection.batch} gives. @internal */
export let createBatch: (post: (commands: Commands, signal: AbortSignal | undefined) => Promise<BatchOutcomes>) => Batch

/** What came of each entry of a {@link Batch}: of an atomic what was there before, of all others `undefined`. */
export type BatchOutcomes = (bigint | undefined)[]

/**
 * A list of messages and operations that crosses into native code once, and is posted as one: {@link Connection.batch}
 * makes it. Each method adds an entry and checks it at once; nothing goes out before {@link post}.
 *
 * ```ts
 * const [, , before] = await connection.batch()
 *   .write(region.slice(0, 64), inbox)
 *   .write(region.slice(64, 64), inbox, { offset: 64 })
 *   .fetchAndAdd(counter, 2n)
 *   .post()
 * ```
 */
export class Batch {
  readonly #post: (commands: Commands, signal: AbortSignal | undefined) => Promise<BatchOutcomes>
  #commands = new Commands()

  private constructor(
    shown: symbol,
    post: (commands: Commands, signal: AbortSignal | undefined) => Promise<BatchOutcomes>,
  ) {
    if (shown !== key) throw new TypeError('Illegal constructor: connection.batch() makes batches')
    this.#post = post
  }

  static {
    createBatch = (post) => new this(key, post)
  }

  /** How many entries there are. */
  get length(): number {
    return this.#commands.length
  }

  /** Adds a message, as {@link Connection.send}. The bytes are copied now. */
  send(message: MessageBytes): this {
    this.#commands.send(message)
    return this
  }

  /** Adds an RDMA WRITE, as {@link Connection.write}. */
  write(local: LocalBytes | readonly LocalBytes[], remote: RemoteBytes, options: WriteOptions = {}): this {
    this.#commands.write(local, remote, options)
    return this
  }

  /** Adds an RDMA READ, as {@link Connection.read}. */
  read(remote: RemoteBytes, local: LocalBytes | readonly LocalBytes[], options: OperationOptions = {}): this {
    this.#commands.read(remote, local, options)
    return this
  }

  /** Adds an atomic, as {@link Connection.compareAndSwap}. */
  compareAndSwap(remote: RemoteBytes, expected: bigint, desired: bigint, options: OperationOptions = {}): this {
    this.#commands.compareAndSwap(remote, expected, desired, options)
    return this
  }

  /** Adds an atomic, as {@link Connection.fetchAndAdd}. */
  fetchAndAdd(remote: RemoteBytes, addend: bigint, options: OperationOptions = {}): this {
    this.#commands.fetchAndAdd(remote, addend, options)
    return this
  }

  /**
   * Posts everything, in the order in which it was added; the batch is then empty, and may be filled again. Fulfils when all
   * of it is over. What is refused is refused as a whole: nothing of it has gone out then. Where entries fail alone
   * (`ERR_RDMA_REGION_REVOKED`), it rejects with the error of the first of them, when all are over.
   *
   * When `signal` is aborted, what has not begun is taken back, the last entry first.
   *
   * @throws {RdmaError} those of the entries' methods; `ERR_RDMA_OPERATION_LIMIT` for more than 16,384 operations
   */
  async post(options?: SignalOptions): Promise<BatchOutcomes> {
    const signal = signalOf(options)
    const commands = this.#commands
    this.#commands = new Commands()
    return this.#post(commands, signal)
  }

  /** Shows how many entries there are. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    return `Batch ${inspect({ length: this.length }, { ...options, depth })}`
  }
}
