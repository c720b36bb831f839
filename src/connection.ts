import { inspect, type InspectOptions } from 'node:util'
import type { NativeClosed, NativeConnection, NativeError } from '#binding'
import { abortError, onAbort, signalOf } from './abort.js'
import { RdmaError } from './errors.js'
import { forget, Hold, reassign } from './events.js'
import { toRdmaError, unwrap } from './native.js'
import { toPeer, type Peer } from './peer.js'
import { toDevice, toHandshake, type ConnectionDevice, type Handshake } from './report.js'
import { messageBytes } from './validate.js'
import { defer, PromiseQueue, type Waiting } from './waiting.js'

/** How a connection ended. */
export interface Closed {
  /**
   * - `closed`: this side closed it, and everything that it sent has arrived;
   * - `peerClosed`: the peer closed it, and everything that it sent has arrived;
   * - `destroyed`: this side destroyed it;
   * - `error`: it failed.
   */
  readonly reason: 'closed' | 'peerClosed' | 'destroyed' | 'error'
  /** The cause, where it was not an orderly close. After `destroy(error)` it is that error. */
  readonly error?: Error
}

/** Numbers of a connection. */
export interface ConnectionStats {
  /** Messages given to `send`. */
  readonly messagesSent: number
  /** Their bytes. */
  readonly bytesSent: number
  /** Whole messages that arrived. */
  readonly messagesReceived: number
  /** Their bytes. */
  readonly bytesReceived: number
  /** Segments posted, messages and credits alike. */
  readonly segmentsSent: number
  /** Bytes that wait to be posted. */
  readonly bytesQueued: number
  /** Work requests that are posted and not yet complete. */
  readonly workInFlight: number
  /** Messages that wait to be read. */
  readonly messagesReady: number
  /** Their bytes. */
  readonly bytesReady: number
  /** Segments that this side may send now. */
  readonly creditsAvailable: number
  /** Segments that the peer may send now. */
  readonly creditsGranted: number
  /** How often sending stopped for lack of credit: the peer did not read. */
  readonly waitsForCredit: number
  /** How often sending stopped for lack of a send buffer: see `pool.sendBuffers`. */
  readonly waitsForBuffer: number
  /** Zero-length WRITEs that proved an idle path. */
  readonly pathProbes: number
}

/** What most methods that wait take as their last argument. */
export interface SignalOptions {
  /** Ends the wait with an `AbortError` whose `cause` is the signal's reason. */
  signal?: AbortSignal | undefined
}

/** What a message can be given as. Text is not taken: its encoding is yours to choose. */
export type MessageBytes = ArrayBufferView | ArrayBufferLike

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
  readonly #sends = new Map<number, Set<Waiting<void>>>()
  readonly #receives = new PromiseQueue<Buffer | null>()
  /** Messages given out since the event loop last had its turn. */
  #served = 0
  readonly #over = defer<Closed>()
  #outcome: Closed | undefined
  #destroyedWith: Error | undefined
  /** Whether everything that was sent had arrived at the end. */
  #isDelivered = false
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
   * `sendBufferSize`), `ERR_RDMA_ENDED`, `ERR_RDMA_CLOSED`, or why the connection failed
   * @throws {TypeError} for anything that is not bytes
   */
  async send(message: MessageBytes, options?: SignalOptions): Promise<void> {
    const bytes = messageBytes(message)
    const signal = signalOf(options)
    if (signal?.aborted) throw abortError(signal)
    const id = this.#unwrap(this.#native.send(bytes))
    return this.#acknowledged(id, signal)
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
   * @throws {RdmaError} why the connection failed, after all messages that had arrived
   */
  async receive(options?: SignalOptions): Promise<Buffer | null> {
    const signal = signalOf(options)
    if (signal?.aborted) throw abortError(signal)
    const wait = this.#receives.add(signal)
    this.#serve()
    return wait
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

  /** Ends the connection at once. What was not acknowledged may be lost; whoever waits is told, with `error` as cause. */
  destroy(error?: Error): void {
    if (this.#outcome) return
    this.#native.destroy()
    // What had failed before has a cause of its own.
    if (this.#native.closed()?.reason === 'destroyed') this.#destroyedWith = error
    this.#news()
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

  /** Throws what native code gave as an error, with what the user destroyed the connection with. */
  #unwrap<T>(result: T | NativeError): T {
    return unwrap(result, this.#destroyedWith)
  }

  /** Waits until the peer's device has everything up to `id`. */
  #acknowledged(id: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiting = {
        resolve: () => {
          stop()
          resolve()
        },
        reject: (error: Error) => {
          stop()
          reject(error)
        },
      }
      // Several may wait for one id: each call of end() waits for the same.
      const others = this.#sends.get(id)
      if (others) others.add(waiting)
      else this.#sends.set(id, new Set([waiting]))
      const stop = onAbort(signal, (signal) => {
        this.#forgetSend(id, waiting)
        const withdrawn = this.#native.withdraw(id)
        const what = withdrawn ? 'the message was not sent' : 'the message had been begun and may still arrive'
        reject(abortError(signal, `The send was aborted; ${what}`))
      })
      this.#settleSends()
    })
  }

  #forgetSend(id: number, waiting: Waiting<void>): void {
    const others = this.#sends.get(id)
    others?.delete(waiting)
    if (others?.size === 0) this.#sends.delete(id)
  }

  #news(): void {
    // Asked first: what has arrived before the end must be given out before the end is told.
    const closed = this.#outcome ? undefined : this.#native.closed()
    this.#settleSends()
    this.#serve()
    if (closed) this.#finish(closed)
  }

  #settleSends(): void {
    if (this.#sends.size === 0) return
    const sent = this.#native.sent()
    // Ids grow, and a Map keeps the order in which they came.
    for (const [id, send] of this.#sends) {
      if (id > sent) break
      this.#sends.delete(id)
      for (const waiting of send) waiting.resolve()
    }
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
    for (const send of this.#sends.values()) for (const waiting of send) waiting.reject(unsent)
    this.#sends.clear()
    this.#over.resolve(this.#outcome)
  }
}
