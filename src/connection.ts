import type { Duplex } from 'node:stream'
import type { ReadableStream, WritableStream } from 'node:stream/web'
import { inspect, types, type InspectOptions } from 'node:util'
import type { NativeClosed, NativeConnection, NativeError } from '#binding'
import { abortError, signalOf } from './abort.js'
import { Acknowledgements } from './acknowledgements.js'
import { Claim, locked } from './claims.js'
import type { Closed, ConnectionStats, MessageBytes, SignalOptions } from './connection-types.js'
import { checkDuplex, ConnectionDuplex, type DuplexOptions } from './duplex.js'
import { RdmaError } from './errors.js'
import { forget, Hold, reassign } from './events.js'
import { toRdmaError, unwrap } from './native.js'
import { toPeer, type Peer } from './peer.js'
import { toDevice, toHandshake, type ConnectionDevice, type Handshake } from './report.js'
import type { StreamPort } from './stream-port.js'
import { isTraced, traced, traces } from './tracing.js'
import { messageBytes } from './validate.js'
import { defer, PromiseQueue } from './waiting.js'
import { WebStreams } from './web-streams.js'

/** Messages that are given out before the event loop has its turn. */
const SERVED_AT_ONCE = 64

/** What the constructor wants to see, so that nobody else constructs. */
const key = Symbol('secure-rdma')

/** Makes what users see of a connection whose news come under `id`. @internal */
export let createConnection: (native: NativeConnection, id: number) => Connection

/**
 * A connection: an RDMA queue pair, and the TLS connection that set it up and watches over it.
 *
 * Messages arrive whole, in order and once. **They travel neither encrypted nor authenticated.** Made by
 * {@link connect} and by {@link Server.accept}. It cannot be transferred to another thread.
 */
export class Connection implements AsyncDisposable {
  readonly #native: NativeConnection
  readonly #id: number
  readonly #hold: Hold
  readonly #sends = new Acknowledgements()
  readonly #receives = new PromiseQueue<Buffer | null>()
  /** Messages given out since the event loop last had its turn. */
  #served = 0
  readonly #over = defer<Closed>()
  #outcome: Closed | undefined
  #destroyedWith: Error | undefined
  /** Whether everything that was sent had arrived at the end. */
  #isDelivered = false
  /** Which stream has the messages that come, and which those that go. Nobody else may then. */
  readonly #reading = new Claim()
  readonly #writing = new Claim()
  #streams: WebStreams | undefined
  #peer: Peer | undefined
  #device: ConnectionDevice | undefined
  #handshake: Handshake | undefined

  /** Fulfils when the connection is over, and tells how it ended. Never rejects. */
  // A property of its own on purpose: a promise cannot be cloned, and so no structuredClone makes a lifeless copy.
  readonly closed: Promise<Closed> = this.#over.promise

  private constructor(shown: symbol, native: NativeConnection, id: number) {
    if (shown !== key) throw new TypeError('Illegal constructor: connect() and server.accept() make connections')
    this.#native = native
    this.#hold = new Hold()
    this.#id = id
    reassign(id, {
      news: () => {
        this.#news()
      },
    })
    this.#news()
  }

  static {
    createConnection = (native, id) => new this(key, native, id)
  }

  /** Who the other side is. */
  get peer(): Peer {
    return (this.#peer ??= toPeer(this.#native.peer()))
  }

  /** The RDMA device, port and GID of this side, and why these were chosen. */
  get device(): ConnectionDevice {
    return (this.#device ??= toDevice(this.#native.local()))
  }

  /** What happened while the connection came up, step by step. */
  get handshake(): Handshake {
    return (this.#handshake ??= toHandshake(this.#native.report()))
  }

  /**
   * Sends one message. The bytes are copied before this returns, so the caller may use them again at once. Any number
   * of sends may be in flight; they arrive in the order of the calls. An empty message is a message too.
   *
   * Waits while the peer does not read. Fulfils when the peer's device has the whole message: that is not "read by the
   * peer's application".
   *
   * When `signal` is aborted, a message of which nothing was sent yet is taken back; of another, only the wait ends,
   * and it still arrives.
   *
   * @param message the bytes, at the most the peer's `maxMessageSize` of them
   * @throws {RdmaError} `ERR_RDMA_MESSAGE_TOO_LARGE`, `ERR_RDMA_SEND_BUFFER_FULL` (await earlier sends, or raise
   * `sendBufferSize`), `ERR_RDMA_ENDED`, `ERR_RDMA_CLOSED`, `ERR_RDMA_LOCKED` where a stream writes, or why the
   * connection failed
   * @throws {TypeError} for anything that is not bytes
   */
  async send(message: MessageBytes, options?: SignalOptions): Promise<void> {
    const bytes = messageBytes(message)
    const signal = signalOf(options)
    if (isTraced(traces.send)) {
      const trace = { connection: this, byteLength: bytes.length }
      return traced(traces.send, trace, () => this.#send(bytes, signal))
    }
    return this.#send(bytes, signal)
  }

  /**
   * The next message, or `null` when none will come: the peer has called `end()`, or the connection was closed in
   * order. Many may wait; they are served in the order of the calls.
   *
   * The Buffer is the caller's own, to keep and to change. To transfer its memory to another thread, copy it before:
   * that of a message of 16 KiB or more was not allocated by Node, which refuses to (Node 20 copies it, unasked).
   *
   * An aborted wait loses no message: the next call gets it.
   *
   * @throws {RdmaError} why the connection failed, after all messages that had arrived; `ERR_RDMA_LOCKED` where a stream
   * reads
   */
  async receive(options?: SignalOptions): Promise<Buffer | null> {
    const signal = signalOf(options)
    if (isTraced(traces.receive)) return this.#traceReceive(signal)
    return this.#receive(signal)
  }

  /** All messages until the end. Leaving the loop closes nothing: another loop, or `receive()`, goes on from there. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer, undefined, undefined> {
    for (let message = await this.receive(); message !== null; message = await this.receive()) yield message
    return undefined
  }

  /**
   * Ends this side's direction: after everything that was sent, the peer's `receive()` gives `null`. The other
   * direction goes on. Fulfils when the peer's device has been told.
   *
   * @throws {RdmaError} why the connection is over
   */
  async end(options?: SignalOptions): Promise<void> {
    const signal = signalOf(options)
    if (signal?.aborted) throw abortError(signal)
    this.#writing.refuse('end()')
    return this.#acknowledged(this.#unwrap(this.#native.end()), signal)
  }

  /**
   * Closes in order: what was sent arrives, then the peer is told. Fulfils when that has happened. Where the connection
   * is over already, it fulfils at once if all that was sent had arrived, or if this side had destroyed it.
   *
   * @throws {RdmaError} when it fails or is destroyed meanwhile; `ERR_RDMA_CLOSE_TIMEOUT` after `closeTimeout`;
   * `ERR_RDMA_CLOSED` when the peer closed it before everything had arrived
   */
  async close(): Promise<void> {
    const wasOver = this.#outcome !== undefined
    if (!wasOver) {
      this.#native.close()
      this.#news()
    }
    const { reason, error } = await this.closed
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

  /**
   * Ends the connection at once. What was not acknowledged may be lost; whoever waits is told, with `error` as cause. What is
   * no Error becomes the `cause` of one, `ERR_RDMA_DESTROYED`: an end must not fail for want of a reason.
   */
  destroy(error?: Error): void {
    if (this.#outcome) return
    this.#native.destroy()
    // What had failed before has a cause of its own.
    if (this.#native.closed()?.reason === 'destroyed') this.#destroyedWith = reasonOf(error)
    this.#news()
  }

  /**
   * The connection as a `stream.Duplex`: of bytes, or with `objectMode` of messages. From then on only the stream reads and
   * writes: `receive()`, iteration, `send()`, `end()` and other streams are refused with `ERR_RDMA_LOCKED`, since they would
   * take messages out of the middle, or put some in.
   *
   * - What the peer does not read makes `write()` give false; what the stream's user does not read makes the peer wait.
   * - `end()` ends this side's direction, and `'end'` tells that the peer has ended its own. When both have, the connection
   *   is closed.
   * - `destroy(error)` destroys the connection, and whatever ends the connection otherwise than in order destroys the
   *   stream, with the same error. `for await` over a stream destroys it when it is left, and at the end too where writing has
   *   not ended: so it is with sockets; `stream.iterator({ destroyOnReturn: false })` does not.
   *
   * `'finish'` means that the peer's **device** has everything, not its application.
   *
   * @throws {RdmaError} `ERR_RDMA_LOCKED` when another stream has it, or `receive()` calls wait
   * @throws {TypeError | RangeError} for an option that is unknown or cannot be
   */
  toDuplex(options: DuplexOptions = {}): Duplex {
    const checked = checkDuplex(options)
    if (!this.#receives.isEmpty) throw locked('toDuplex()', 'receive() calls wait for messages')
    this.#reading.refuse('toDuplex()')
    this.#writing.refuse('toDuplex()')
    this.#reading.take('toDuplex()')
    this.#writing.take('toDuplex()')
    return new ConnectionDuplex(this.#port('toDuplex()', 'toDuplex()'), checked)
  }

  /**
   * Messages as a WHATWG stream, one chunk each; always the same one. Once it has been read from, `receive()` and iteration
   * are refused with `ERR_RDMA_LOCKED`. Nothing is read ahead. It closes when the peer has ended its direction; cancelling
   * it, and so leaving a `for await` over it early, destroys the connection. When both this and {@link writable} have come
   * to their ends, the connection is closed.
   */
  get readable(): ReadableStream<Uint8Array> {
    return this.#webStreams.readable
  }

  /**
   * A WHATWG stream whose chunks are sent, one message each; those that are longer than the peer takes, in several. Always
   * the same one. Once it has been written to, `send()` and `end()` are refused with `ERR_RDMA_LOCKED`. `ready` waits while
   * the peer does not read. Closing it ends this side's direction; aborting it, or writing what is not bytes, destroys the
   * connection.
   */
  get writable(): WritableStream<MessageBytes> {
    return this.#webStreams.writable
  }

  /** Keeps the program running while the connection is open. That is the default. */
  ref(): this {
    this.#hold.ref()
    return this
  }

  /** Lets the program end although the connection is open. */
  unref(): this {
    this.#hold.unref()
    return this
  }

  /** Counters and levels at this moment. */
  stats(): ConnectionStats {
    return this.#native.stats()
  }

  /** The same as {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Shows what is known of the connection, and nothing secret. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    if (depth < 0) return '[Connection]'
    const { tlsPeer, role, pathMtu } = this.handshake
    const shown = {
      peer: `${this.peer.names?.subject ?? 'anonymous'} at ${tlsPeer.address} port ${tlsPeer.port}`,
      device: this.device.name,
      role,
      pathMtu,
      state: this.#outcome?.reason ?? 'open',
    }
    return `Connection ${inspect(shown, { ...options, depth })}`
  }

  async #send(bytes: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    if (signal?.aborted) throw abortError(signal)
    this.#writing.refuse('send()')
    return this.#acknowledged(this.#unwrap(this.#native.send(bytes)), signal)
  }

  async #receive(signal: AbortSignal | undefined): Promise<Buffer | null> {
    if (signal?.aborted) throw abortError(signal)
    this.#reading.refuse('receive()')
    return this.#next(signal)
  }

  #traceReceive(signal: AbortSignal | undefined): Promise<Buffer | null> {
    const trace: { connection: Connection; byteLength?: number | null } = { connection: this }
    return traced(traces.receive, trace, async () => {
      const message = await this.#receive(signal)
      trace.byteLength = message?.length ?? null
      return message
    })
  }

  #next(signal: AbortSignal | undefined): Promise<Buffer | null> {
    const wait = this.#receives.add(signal)
    this.#serve()
    return wait
  }

  get #webStreams(): WebStreams {
    return (this.#streams ??= new WebStreams(this.#port('readable', 'writable')))
  }

  #port(reader: string, writer: string): StreamPort {
    return {
      claimReading: () => {
        this.#reading.take(reader)
      },
      claimWriting: () => {
        this.#writing.take(writer)
      },
      receive: () => this.#next(undefined),
      post: (message) => this.#acknowledged(this.#unwrap(this.#native.send(message)), undefined),
      end: async () => this.#acknowledged(this.#unwrap(this.#native.end()), undefined),
      close: () => this.close(),
      destroy: (error) => {
        this.destroy(error)
      },
      outcome: () => this.#outcome,
      closed: this.closed,
      maxMessage: this.handshake.peerTerms.maxMessageSize,
    }
  }

  /** Throws what native code gave as an error, with what the user destroyed the connection with. */
  #unwrap<T>(result: T | NativeError): T {
    return unwrap(result, this.#destroyedWith)
  }

  /** Waits until the peer's device has everything up to `id`. */
  #acknowledged(id: number, signal: AbortSignal | undefined): Promise<void> {
    const wait = this.#sends.add(id, signal, (signal) => {
      const withdrawn = this.#native.withdraw(id)
      const what = withdrawn ? 'the message was not sent' : 'the message had been begun and may still arrive'
      return abortError(signal, `The send was aborted; ${what}`)
    })
    this.#settleSends()
    return wait
  }

  #news(): void {
    // Asked first: what has arrived before the end must be given out before the end is told.
    const closed = this.#outcome ? undefined : this.#native.closed()
    this.#settleSends()
    this.#serve()
    if (closed) this.#finish(closed)
  }

  #settleSends(): void {
    if (!this.#sends.isEmpty) this.#sends.settle(this.#native.sent())
  }

  /** Gives messages to those who wait for them. */
  #serve(): void {
    while (!this.#receives.isEmpty && this.#served < SERVED_AT_ONCE) {
      const received = this.#native.receive()
      if (received === false) return
      // A peer that sends without pause must not keep timers, signals and other connections from their turn.
      if (this.#served++ === 0) {
        setImmediate(() => {
          this.#served = 0
          this.#serve()
        })
      }
      if (received === null || Buffer.isBuffer(received)) this.#receives.resolve(received)
      else this.#receives.reject(toRdmaError(received as NativeError, this.#destroyedWith))
    }
  }

  #finish(closed: NativeClosed): void {
    const native = closed.error && toRdmaError(closed.error, this.#destroyedWith)
    const error = closed.reason === 'destroyed' ? this.#destroyedWith : native
    this.#outcome = { reason: closed.reason as Closed['reason'], ...(error && { error }) }
    this.#isDelivered = closed.delivered
    forget(this.#id)
    this.#hold.release()
    // All that was acknowledged has been settled: the rest never will be.
    const unsent =
      native ?? new RdmaError('ERR_RDMA_CLOSED', "the connection was closed before the peer's device had the message")
    this.#sends.fail(unsent)
    this.#over.resolve(this.#outcome)
  }
}

function reasonOf(value: unknown): Error | undefined {
  if (value === undefined || value === null) return undefined
  if (value instanceof Error || types.isNativeError(value)) return value
  return new RdmaError('ERR_RDMA_DESTROYED', 'the connection was destroyed with what is no Error', { cause: value })
}
