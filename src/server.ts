import { channel } from 'node:diagnostics_channel'
import { isIPv6 } from 'node:net'
import { constants } from 'node:os'
import { inspect, type InspectOptions } from 'node:util'
import type { Listening, NativeConnection, NativeServer } from '#binding'
import { abortError, onAbort, signalOf } from './abort.js'
import { Authorizer } from './authorize.js'
import type { SignalOptions } from './connection-types.js'
import { createConnection, type Connection } from './connection.js'
import { RdmaError, type RdmaErrorCode } from './errors.js'
import { environment, forget, Hold, reassign, register } from './events.js'
import { toRdmaError, unwrapMade } from './native.js'
import { checkListen, toNative } from './check-options.js'
import type { ListenOptions } from './options.js'
import { checkSecureContext, type SecureContextOptions } from './secure-context.js'
import { isTraced, traced, traces } from './tracing.js'
import { defer, PromiseQueue } from './waiting.js'

const accepted = channel('secure-rdma:server:accepted')
const handshakeFailed = channel('secure-rdma:server:handshake-failed')

/** Where a server listens, as `address()` of node:net tells it. */
export interface ServerAddress {
  readonly address: string
  readonly family: 'IPv4' | 'IPv6'
  readonly port: number
}

/** Counters of a server, since it began. */
export interface ServerStats {
  /** TCP connections taken. */
  readonly tcpAccepted: number
  /** Handshakes that are under way. */
  readonly pending: number
  /** Connections that came up. */
  readonly established: number
  /** Handshakes that failed, evicted ones included. */
  readonly failed: number
  /** Handshakes that gave way to newcomers. */
  readonly evicted: number
  /** Times that accepting paused for want of descriptors or memory. */
  readonly paused: number
  /** Handshakes that failed, by the code of their error; their sum is `failed`. A code that never came is not there. */
  readonly failures: Readonly<Partial<Record<RdmaErrorCode, number>>>
}

/** What the constructor wants to see, so that nobody else constructs. */
const key = Symbol('secure-rdma')

/** The options of `listen` that matter afterwards. */
type Kept = Pick<ListenOptions, 'authorize' | 'requestCert'>

let createServer: (native: NativeServer, id: number, kept: Kept) => Server

/**
 * Listens for connections; made by {@link listen}.
 *
 * A handshake that fails, whatever the reason, neither rejects `accept()` nor ends the iteration: otherwise anybody
 * with a bad certificate could stop the server. It is counted in `stats()`, and told through `node:diagnostics_channel`
 * as `secure-rdma:server:handshake-failed` with `{ server, error, peer: { address, port } }`; what `authorize` threw is
 * the error's `cause`.
 * `secure-rdma:server:accepted` tells `{ server, connection }`. Calls of `accept()` are told as a `TracingChannel`,
 * `secure-rdma:accept`, with an {@link AcceptTrace}.
 */
export class Server implements AsyncDisposable {
  readonly #native: NativeServer
  readonly #id: number
  readonly #authorizer: Authorizer
  readonly #requestCert: boolean
  readonly #hold: Hold
  readonly #over = defer<undefined>()
  readonly #accepts = new PromiseQueue<Connection | null>()
  /** The id under which the next connection's news will come. */
  #next: number
  #isClosed = false

  /** Fulfils when the server is closed and its port is free. Never rejects. */
  // A property of its own on purpose: see Connection.
  readonly closed: Promise<void> = this.#over.promise

  private constructor(shown: symbol, native: NativeServer, id: number, kept: Kept) {
    if (shown !== key) throw new TypeError('Illegal constructor: listen() makes servers')
    this.#native = native
    this.#hold = new Hold()
    this.#id = id
    this.#authorizer = new Authorizer(kept.authorize)
    this.#requestCert = kept.requestCert ?? true
    this.#next = reserve()
    reassign(id, {
      news: () => {
        this.#news()
      },
    })
    this.#news()
  }

  static {
    createServer = (native, id, kept) => new this(key, native, id, kept)
  }

  /**
   * The next connection, up and proven. Many may wait; they are served in the order of the calls. An aborted wait loses
   * no connection: the next call gets it.
   *
   * @throws {RdmaError} `ERR_RDMA_SERVER_CLOSED`
   */
  async accept(options?: SignalOptions): Promise<Connection> {
    const connection = await this.#accept(signalOf(options))
    if (connection) return connection
    throw closed('it accepts no more connections')
  }

  /** All connections until the server is closed. Leaving the loop closes nothing. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Connection, undefined, undefined> {
    let connection = await this.#accept(undefined)
    while (connection) {
      yield connection
      connection = await this.#accept(undefined)
    }
    return undefined
  }

  /** Where it listens, with the port that the system chose; `null` when it is closed. */
  address(): ServerAddress | null {
    const native = this.#isClosed ? null : this.#native.address()
    return native && { ...native, family: isIPv6(native.address) ? 'IPv6' : 'IPv4' }
  }

  /** Connections that were accepted here and are still open. */
  get connections(): number {
    return this.#native.connections()
  }

  /**
   * Stops listening. Connections that were accepted stay open; handshakes that are under way, and connections that
   * nobody accepted, are ended. Waiting `accept()` calls reject, iterations end. Fulfils when the port is free.
   */
  async close(): Promise<void> {
    this.#shut()
    return this.closed
  }

  /**
   * Changes who the server is and whom it trusts: for certificates that are renewed, keys that are revoked. It takes effect
   * at once and as a whole, for TCP connections that are accepted from now on. Handshakes that are under way, and
   * connections that are up, go on with what they began with: destroy those that should not.
   *
   * `options` replace `ca`, `pins`, `cert`, `key` and `crl` of {@link listen}, all five; `requestCert`, `authorize` and
   * `keyLogFile` stay.
   *
   * @throws {RdmaError} `ERR_RDMA_TLS_CONFIG` for certificates that cannot be used; `ERR_RDMA_SERVER_CLOSED`. The server
   * then goes on as it was
   * @throws {TypeError} for an option that is unknown, missing or cannot be; so too
   */
  setSecureContext(options: SecureContextOptions): void {
    const context = checkSecureContext(options, this.#requestCert)
    if (this.#isClosed) throw closed('its secure context cannot change')
    const error = this.#native.setSecureContext(context)
    if (error) throw toRdmaError(error)
  }

  /** Keeps the program running while the server listens. That is the default. */
  ref(): this {
    this.#hold.ref()
    return this
  }

  /** Lets the program end although the server listens. */
  unref(): this {
    this.#hold.unref()
    return this
  }

  /** Counters. */
  stats(): ServerStats {
    return this.#native.stats()
  }

  /** The same as {@link close}. */
  async [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Shows what is known of the server. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    if (depth < 0) return '[Server]'
    const shown = { address: this.address(), connections: this.connections, stats: this.stats() }
    return `Server ${inspect(shown, { ...options, depth })}`
  }

  async #accept(signal: AbortSignal | undefined): Promise<Connection | null> {
    if (!isTraced(traces.accept)) return this.#take(signal)
    return traced(traces.accept, { server: this }, () => this.#take(signal))
  }

  async #take(signal: AbortSignal | undefined): Promise<Connection | null> {
    if (signal?.aborted) throw abortError(signal)
    if (this.#isClosed) return null
    const wait = this.#accepts.add(signal, undefined)
    this.#serve()
    return wait
  }

  #news(): void {
    this.#authorizer.answerAll(this.#native)
    // Asked first: behind it no handshake fails any more, and none is told of after the end.
    const isFree = this.#native.isFree()
    for (const { error, peer } of this.#native.takeFailures()) {
      const cause = this.#authorizer.causeOf(error, peer)
      handshakeFailed.publish({ server: this, error: toRdmaError(error, cause), peer })
    }
    if (!this.#isClosed) this.#serve()
    if (isFree) this.#finish()
  }

  /** Gives connections to those who wait for them. One that nobody waits for stays in native code. */
  #serve(): void {
    while (!this.#accepts.isEmpty) {
      const taken = this.#native.take(this.#next)
      if (taken === false) {
        this.#native.accept()
        return
      }
      if (taken === null) {
        this.#shut()
        return
      }
      const connection = createConnection(taken as NativeConnection, this.#next)
      this.#next = reserve()
      this.#accepts.resolve(connection)
      accepted.publish({ server: this, connection })
    }
  }

  /** No more connections, and who waits for one is told. The end comes as news, when the port is free. */
  #shut(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#native.close()
    forget(this.#next)
    while (!this.#accepts.isEmpty) this.#accepts.resolve(null)
  }

  #finish(): void {
    this.#hold.release()
    forget(this.#id)
    this.#over.resolve(undefined)
  }
}

function closed(what: string): RdmaError {
  return new RdmaError('ERR_RDMA_SERVER_CLOSED', `the server is closed: ${what}`)
}

/** An id for a connection that is yet to come. */
function reserve(): number {
  return register({ news: () => undefined })
}

/**
 * Listens for connections.
 *
 * @throws {RdmaError} `ERR_RDMA_TCP` when the address cannot be had, `ERR_RDMA_TLS_CONFIG` for certificates that cannot
 * be used
 * @throws {TypeError | RangeError} for an option that is unknown, missing or cannot be
 */
export async function listen(options: ListenOptions): Promise<Server> {
  const checked = checkListen(options)
  const { host, signal } = checked
  if (signal?.aborted) throw abortError(signal)
  const hold = new Hold()
  try {
    const server = await begin(checked, host ?? '::').catch((error: unknown) => {
      if (host === undefined && hasNoIPv6(error)) return begin(checked, '0.0.0.0')
      throw error
    })
    if (signal?.aborted) {
      // Between the last moment in which `begin` looked and this one.
      await server.close()
      throw abortError(signal)
    }
    const stop = onAbort(signal, () => void server.close())
    void server.closed.then(stop)
    return server
  } finally {
    hold.release()
  }
}

/** Whether it failed because this host has IPv6 turned off: node:net then listens on IPv4 alone, and so do we. */
function hasNoIPv6(error: unknown): boolean {
  const { EAFNOSUPPORT, EADDRNOTAVAIL } = constants.errno
  return error instanceof RdmaError && (error.errno === EAFNOSUPPORT || error.errno === EADDRNOTAVAIL)
}

function begin(options: ReturnType<typeof checkListen>, host: string): Promise<Server> {
  const { host: _host, port = 0, backlog, maxPendingHandshakes, maxUnaccepted, signal, ...rest } = options
  const limits = {
    ...(backlog !== undefined && { backlog }),
    ...(maxPendingHandshakes !== undefined && { maxPendingHandshakes }),
    ...(maxUnaccepted !== undefined && { maxUnaccepted }),
  }
  return new Promise((resolve, reject) => {
    // It may have happened between two attempts.
    if (signal?.aborted) throw abortError(signal)
    let listening: Listening | undefined
    const stop = onAbort(signal, (signal) => {
      listening?.cancel()
      forget(id)
      reject(abortError(signal))
    })
    const id = register({
      news() {
        const outcome = listening?.take() ?? null
        if (outcome === null) return
        stop()
        settle(() => {
          resolve(createServer(unwrapMade<NativeServer>(outcome), id, rest))
        })
      },
    })
    settle(() => {
      listening = unwrapMade<Listening>(environment.listen(id, { host, port, ...limits, options: toNative(rest) }))
    })

    function settle(step: () => void): void {
      try {
        step()
      } catch (error) {
        stop()
        forget(id)
        reject(error)
      }
    }
  })
}
