// One-sided operations, each in a list of its own, and batches: posted, and told to those who trace them.

import { abortError, signalOf } from './abort.js'
import type { BatchOutcomes } from './batch.js'
import type { Commands } from './commands.js'
import type { Connection } from './connection.js'
import type { SignalOptions } from './connection-types.js'
import type { DataPlane } from './data-plane.js'
import { RdmaError } from './errors.js'
import type { RemoteBytes } from './remote.js'
import { isTraced, tracedWithoutResult, traces, type OperationTrace } from './tracing.js'

/** The operations of one connection. @internal */
export class Operations {
  /** Who subscribers are told that it is. */
  readonly #connection: Connection
  readonly #plane: DataPlane

  constructor(connection: Connection, plane: DataPlane) {
    this.#connection = connection
    this.#plane = plane
  }

  /**
   * Posts one operation.
   *
   * @param add puts it into a list, as the options beside the signal say, and gives its length in bytes
   */
  async post(
    operation: Exclude<OperationTrace['operation'], 'batch'>,
    remote: RemoteBytes,
    options: SignalOptions,
    add: (list: Commands, rest: unknown) => number,
  ): Promise<BatchOutcomes> {
    const { signal, rest } = splitSignal(options)
    if (signal?.aborted) throw abortError(signal)
    const list = this.#plane.list()
    const byteLength = add(list, rest)
    const region = 'region' in remote ? remote.region.name : remote.name
    return this.#traced({ operation, region, byteLength }, () => this.#plane.post(list, signal))
  }

  /** Posts an atomic, and gives what was there before. */
  async atomic(
    operation: 'compareAndSwap' | 'fetchAndAdd',
    remote: RemoteBytes,
    options: SignalOptions,
    add: (list: Commands, rest: unknown) => void,
  ): Promise<bigint> {
    const [before] = await this.post(operation, remote, options, (list, rest) => {
      add(list, rest)
      return 8
    })
    if (before === undefined) throw new RdmaError('ERR_RDMA_INTERNAL', 'an atomic came back without a value')
    return before
  }

  /** Posts a list of several. */
  batch(commands: Commands, signal: AbortSignal | undefined): Promise<BatchOutcomes> {
    return this.#traced({ operation: 'batch' }, () => this.#plane.post(commands, signal))
  }

  #traced(
    trace: Omit<OperationTrace, 'connection' | 'error'>,
    work: () => Promise<BatchOutcomes>,
  ): Promise<BatchOutcomes> {
    if (!isTraced(traces.operation)) return work()
    return tracedWithoutResult(traces.operation, { connection: this.#connection, ...trace }, work)
  }
}

/** The signal, and what is told beside it. */
function splitSignal(options: SignalOptions): { signal: AbortSignal | undefined; rest: unknown } {
  const signal = signalOf(options)
  // An object that is not plain is refused by what comes next, as it is.
  if (signal === undefined || Object.getPrototypeOf(options) !== Object.prototype) return { signal, rest: options }
  return { signal, rest: { ...options, signal: undefined } }
}
