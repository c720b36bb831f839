import type { Duplex } from 'node:stream'
import type { ReadableStream, WritableStream } from 'node:stream/web'
import { inspect, type InspectOptions } from 'node:util'
import type { NativeClosed, NativeConnection, NativeError } from '#binding'
import { abortError, signalOf } from './abort.js'
import { createBatch, type Batch } from './batch.js'
import { Claim } from './claims.js'
import type { OperationOptions, WriteOptions } from './commands.js'
import type { Closed, ConnectionStats, MessageBytes, ReceiveBatchOptions, SignalOptions } from './connection-types.js'
import { DataPlane } from './data-plane.js'
import type { DuplexOptions } from './duplex.js'
import { Ending } from './ending.js'
import { forget, Hold, reassign } from './events.js'
import { Messages } from './messages.js'
import { look, OVER, type News } from './news.js'
import { Operations } from './operations.js'
import { Pack } from './pack.js'
import { toPeer, type Peer } from './peer.js'
import { toPublish } from './publishing.js'
import { Receiver } from './receiver.js'
import type { LocalBytes } from './region.js'
import { createRemote, type PublishOptions, type RemoteBytes, type RemoteRegion } from './remote.js'
import { toDevice, toHandshake, type ConnectionDevice, type Handshake } from './report.js'
import { Streams } from './streams.js'
import { isTraced, traced, tracedReceive, traces } from './tracing.js'
import { argumentTypeError, messageBytes, plainLength, text, whole } from './validate.js'

/** Messages that a batch holds at the most, unless it is told otherwise. */
const BATCH = 256

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
  readonly #plane: DataPlane
  readonly #operations: Operations
  readonly #receiver: Receiver
  readonly #ending = new Ending()
  /** Which stream has the messages that go. Nobody else may then. */
  readonly #writing = new Claim()
  readonly #streams: Streams
  #peer: Peer | undefined
  #device: ConnectionDevice | undefined
  #handshake: Handshake | undefined

  /** Fulfils when the connection is over, and tells how it ended. Never rejects. */
  // A property of its own on purpose: a promise cannot be cloned, and so no structuredClone makes a lifeless copy.
  readonly closed: Promise<Closed> = this.#ending.closed

  private constructor(shown: symbol, native: NativeConnection, id: number) {
    if (shown !== key) throw new TypeError('Illegal constructor: connect() and server.accept() make connections')
    this.#native = native
    const failure = (error: NativeError): Error => this.#ending.failure(error)
    this.#plane = new DataPlane(native, (result) => this.#ending.unwrap(result), failure)
    this.#operations = new Operations(this, this.#plane)
    this.#receiver = new Receiver(native, failure)
    const parts = { plane: this.#plane, receiver: this.#receiver, ending: this.#ending, writing: this.#writing }
    this.#streams = new Streams(this, parts)
    this.#hold = new Hold()
    this.#id = id
    reassign(id, {
      bring: (news) => {
        this.#receiver.add(news)
      },
      news: (news) => {
        if (news) this.#tell(news)
        else this.#news()
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
   * of sends may be in flight; they arrive in the order of the calls. An empty message is a message too. Short ones of one
   * turn of JavaScript go together, the last at its end; where turns send but one, it goes out at once.
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
  // Not `async`, as what follows it is: each layer would cost a short message as much as all the rest.
  send(message: MessageBytes, options?: SignalOptions): Promise<void> {
    try {
      const known = plainLength(message)
      const bytes = known < 0 ? messageBytes(message) : (message as Uint8Array)
      const length = known < 0 ? bytes.length : known
      const signal = signalOf(options)
      if (isTraced(traces.send)) {
        const trace = { connection: this, byteLength: length }
        return traced(traces.send, trace, async () => this.#send(bytes, length, signal))
      }
      return this.#send(bytes, length, signal)
    } catch (error) {
      return rejected(error)
    }
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
  receive(options?: SignalOptions): Promise<Buffer | null> {
    try {
      const signal = signalOf(options)
      if (isTraced(traces.receive)) return tracedReceive(this, () => this.#receiver.receive(signal))
      return this.#receiver.receive(signal)
    } catch (error) {
      return rejected(error)
    }
  }

  /**
   * Sends many messages: they cross into native code once, and are posted as one list. Otherwise as {@link send}; fulfils
   * when the peer's device has all of them. What is refused is refused as a whole.
   *
   * @param messages the bytes of each, which are copied before this returns
   * @throws {RdmaError} as {@link send}
   * @throws {TypeError} for anything that is not bytes
   */
  async sendBatch(messages: readonly MessageBytes[], options?: SignalOptions): Promise<void> {
    const signal = signalOf(options)
    if (!Array.isArray(messages)) throw argumentTypeError('messages', 'an array', messages)
    this.#writing.refuse('sendBatch()')
    if (signal?.aborted) throw abortError(signal)
    const pack = Pack.take()
    for (const message of messages) {
      const known = plainLength(message)
      const bytes = known < 0 ? messageBytes(message) : (message as Uint8Array)
      pack.add(bytes, known < 0 ? bytes.length : known)
    }
    await this.#plane.sendMany(pack, signal)
  }

  /**
   * The messages that are there, at least one, or `null` when none will come: waits as {@link receive} does, and then takes
   * what else has arrived. Short ones share memory: copy what you keep for long.
   *
   * @throws {RdmaError} as {@link receive}
   */
  async receiveBatch(options: ReceiveBatchOptions = {}): Promise<Buffer[] | null> {
    const signal = signalOf(options)
    const limit = options.limit === undefined ? BATCH : whole(1, 65_536)(options.limit, 'options.limit')
    return this.#receiver.batch(limit, signal)
  }

  /** All messages until the end. Leaving the loop closes nothing: another loop, or `receive()`, goes on from there. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Buffer, undefined, undefined> {
    return new Messages(() => this.receive())
  }

  /**
   * Grants the peer of this connection, and nobody else, rights to a range of a region. The peer finds it by its name, by
   * {@link remote}. Address and key go to it over TLS; **they are in clear in every packet that uses them** ({@link connect}).
   *
   * It lasts until {@link unpublish} or the end of the connection, also where the region is closed before. However many
   * connections a region is published on, its memory is pinned once, where the device has memory windows.
   *
   * @param name 1 to 255 bytes of UTF-8; one publication has it at a time
   * @param local a region, a slice of one, or a view of one's buffer
   * @throws {RdmaError} `ERR_RDMA_REGION_NAME` where the name is taken, `ERR_RDMA_REGION_CLOSED`, `ERR_RDMA_REGION_LIMIT`
   * (1024 on a connection), `ERR_RDMA_MEMLOCK`, `ERR_RDMA_RESOURCE`, `ERR_RDMA_DEVICE_UNSUPPORTED`, `ERR_RDMA_ENDED`, or
   * why the connection is over
   * @throws {TypeError | RangeError} for an argument that cannot be: memory of others cannot be published
   */
  async publish(name: string, local: LocalBytes, options: PublishOptions): Promise<void> {
    const given = text(name, 'name')
    const { range, access } = toPublish(local, options)
    await this.#plane.publish(given, range, access)
  }

  /**
   * Takes back what is published under a name. The peer's library settles what would use it with
   * `ERR_RDMA_REGION_REVOKED`, waits for what is in flight, and confirms; then this fulfils, and the name is free. A peer
   * that does not confirm within 2 s loses its connection (`ERR_RDMA_PEER_VIOLATION`).
   *
   * @throws {RdmaError} `ERR_RDMA_REGION_NAME` where nothing is published so; why the connection is over
   */
  async unpublish(name: string): Promise<void> {
    await this.#plane.unpublish(text(name, 'name'))
  }

  /**
   * What the peer publishes under a name; waits until it does.
   *
   * @throws {RdmaError} `ERR_RDMA_REGION_NAME` for a name that none can have; why the connection is over
   */
  async remote(name: string, options?: SignalOptions): Promise<RemoteRegion> {
    const signal = signalOf(options)
    const given = text(name, 'name')
    return createRemote(await this.#plane.seek(given, signal), given)
  }

  /**
   * RDMA WRITE: copies local bytes to the begin of `remote`, or to `offset` bytes behind. The peer's application is not
   * told, unless by an `immediate`. Any number of operations may be in flight; they are carried out, and complete, in the order
   * of the calls, messages among them. Fulfils when the peer's device has the bytes.
   *
   * Do not change the local bytes before: any mixture of old and new may arrive. Bytes that are no region's are copied
   * before this returns, into a region for this WRITE alone: that is good for what is rare.
   *
   * The first use of a region on a connection registers it, off the event loop; what is asked for meanwhile waits its turn.
   * An aborted operation that has begun runs on, and the memory is held until its end.
   *
   * @param local a region, a slice of one or a view of one's buffer, or several: they follow each other in `remote`
   * @throws {RdmaError} `ERR_RDMA_REGION_ACCESS` where it is not published for this, `ERR_RDMA_REGION_REVOKED`,
   * `ERR_RDMA_REGION_CLOSED`, `ERR_RDMA_OPERATION_LIMIT`, `ERR_RDMA_INVALID_ARGUMENT` for what was published to another
   * connection, `ERR_RDMA_MEMLOCK`, `ERR_RDMA_ENDED`, or why the connection is over
   * @throws {TypeError | RangeError} for an argument that cannot be, and for bytes that do not fit into `remote`
   */
  async write(
    local: LocalBytes | readonly LocalBytes[] | MessageBytes,
    remote: RemoteBytes,
    options: WriteOptions & SignalOptions = {},
  ): Promise<void> {
    await this.#operations.post('write', remote, options, (list, rest) => list.write(local, remote, rest))
  }

  /**
   * RDMA READ: bytes from `remote` on fill local memory. What is there before this fulfils is undefined.
   *
   * @param local a region, a slice of one or a view of one's buffer, or several, which are filled one after the other; at
   * least 1 byte in all
   * @throws {RdmaError} as {@link write}
   * @throws {TypeError | RangeError} for an argument that cannot be, and where `remote` has fewer bytes
   */
  async read(
    remote: RemoteBytes,
    local: LocalBytes | readonly LocalBytes[],
    options: OperationOptions & SignalOptions = {},
  ): Promise<void> {
    await this.#operations.post('read', remote, options, (list, rest) => list.read(remote, local, rest))
  }

  /**
   * Stores `desired` in 8 bytes of the peer's if they hold `expected`, in one atomic step among all RDMA atomics of the peer's
   * device, and gives what they held before. The bytes are an unsigned integer in the order of the peer's processor.
   *
   * @param remote the first 8 bytes of it, or those from `offset` on
   * @throws {RdmaError} `ERR_RDMA_REGION_ALIGNMENT` where they do not lie at a multiple of 8, and as {@link write}
   * @throws {TypeError | RangeError} for an argument that cannot be
   */
  async compareAndSwap(
    remote: RemoteBytes,
    expected: bigint,
    desired: bigint,
    options: OperationOptions & SignalOptions = {},
  ): Promise<bigint> {
    return this.#operations.atomic('compareAndSwap', remote, options, (list, rest) => {
      list.compareAndSwap(remote, expected, desired, rest)
    })
  }

  /**
   * Adds to 8 bytes of the peer's, modulo 2^64, and gives what they held before; otherwise as {@link compareAndSwap}.
   *
   * @param addend −2^63 to 2^64 − 1
   */
  async fetchAndAdd(
    remote: RemoteBytes,
    addend: bigint,
    options: OperationOptions & SignalOptions = {},
  ): Promise<bigint> {
    return this.#operations.atomic('fetchAndAdd', remote, options, (list, rest) => {
      list.fetchAndAdd(remote, addend, rest)
    })
  }

  /** An empty list of messages and operations, to be filled and posted as one: see {@link Batch}. */
  batch(): Batch {
    return createBatch((commands, signal) => {
      if (commands.hasMessages) this.#writing.refuse('send() of a batch')
      return this.#operations.batch(commands, signal)
    })
  }

  /**
   * The next immediate that a WRITE of the peer's brings, or `null` when none will come. The bytes of that WRITE and of all
   * earlier ones are there then. Immediates that nobody takes make the peer wait, as unread messages do.
   *
   * @throws {RdmaError} why the connection failed
   */
  async receiveImmediate(options?: SignalOptions): Promise<number | null> {
    const signal = signalOf(options)
    if (signal?.aborted) throw abortError(signal)
    return this.#plane.receiveImmediate(signal)
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
    return this.#plane.end(signal)
  }

  /**
   * Closes in order: what was sent arrives, then the peer is told. Fulfils when that has happened. Where the connection
   * is over already, it fulfils at once if all that was sent had arrived, or if this side had destroyed it.
   *
   * @throws {RdmaError} when it fails or is destroyed meanwhile; `ERR_RDMA_CLOSE_TIMEOUT` after `closeTimeout`;
   * `ERR_RDMA_CLOSED` when the peer closed it before everything had arrived
   */
  async close(): Promise<void> {
    const wasOver = this.#ending.outcome !== undefined
    if (!wasOver) {
      this.#plane.last(() => {
        this.#native.close()
        this.#news()
      })
    }
    this.#ending.requireClosed(await this.closed, wasOver)
  }

  /**
   * Ends the connection at once. What was not acknowledged may be lost; whoever waits is told, with `error` as cause. What is
   * no Error becomes the `cause` of one, `ERR_RDMA_DESTROYED`: an end must not fail for want of a reason.
   */
  destroy(error?: Error): void {
    if (this.#ending.outcome) return
    this.#plane.flush()
    this.#native.destroy()
    // What had failed before has a cause of its own.
    if (this.#native.closed()?.reason === 'destroyed') this.#ending.destroyedWith(error)
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
    return this.#streams.duplex(options)
  }

  /**
   * Messages as a WHATWG stream, one chunk each; always the same one. Once it has been read from, `receive()` and iteration
   * are refused with `ERR_RDMA_LOCKED`. Nothing is read ahead. It closes when the peer has ended its direction; cancelling
   * it, and so leaving a `for await` over it early, destroys the connection. When both this and {@link writable} have come
   * to their ends, the connection is closed.
   */
  get readable(): ReadableStream<Uint8Array> {
    return this.#streams.web.readable
  }

  /**
   * A WHATWG stream whose chunks are sent, one message each; those that are longer than the peer takes, in several. Always
   * the same one. Once it has been written to, `send()` and `end()` are refused with `ERR_RDMA_LOCKED`. `ready` waits while
   * the peer does not read. Closing it ends this side's direction; aborting it, or writing what is not bytes, destroys the
   * connection.
   */
  get writable(): WritableStream<MessageBytes> {
    return this.#streams.web.writable
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
    this.#plane.flush()
    const stats = this.#native.stats()
    const { ready, readyBytes } = this.#receiver
    return { ...stats, messagesReady: stats.messagesReady + ready, bytesReady: stats.bytesReady + readyBytes }
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
      state: this.#ending.outcome?.reason ?? 'open',
    }
    return `Connection ${inspect(shown, { ...options, depth })}`
  }

  #send(bytes: Uint8Array, length: number, signal: AbortSignal | undefined): Promise<void> {
    if (signal?.aborted) throw abortError(signal)
    this.#writing.refuse('send()')
    return this.#plane.send(bytes, length, signal)
  }

  #news(): void {
    const news = look(this.#native)
    this.#receiver.add(news)
    this.#tell(news)
  }

  /** What has arrived before the end is given out before the end is told: both are of one moment. */
  #tell(news: News): void {
    this.#plane.news(news)
    this.#receiver.serve()
    if ((news.flags & OVER) === 0 || this.#ending.outcome) return
    const closed = this.#native.closed()
    if (closed) this.#finish(closed)
  }

  #finish(closed: NativeClosed): void {
    const unsent = this.#ending.come(closed)
    forget(this.#id)
    this.#hold.release()
    // All that was acknowledged has been settled: the rest never will be.
    this.#plane.fail(unsent)
    this.#ending.tell()
  }
}

function rejected(error: unknown): Promise<never> {
  return Promise.reject(error)
}
