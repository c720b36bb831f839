import { addAbortSignal, Duplex } from 'node:stream'
import { checkSignal } from './abort.js'
import { isOrderly, StreamSender, type StreamPort } from './stream-port.js'
import { flag, members, messageBytes, whole, type Checks } from './validate.js'

/** What {@link Connection.toDuplex} takes: options of `stream.Duplex`, by their names there. */
export interface DuplexOptions {
  /**
   * Keeps messages as they are: one chunk is one message, both ways, empty ones too, and the marks count messages. Default
   * false: a stream of bytes, which are cut into messages as it suits.
   */
  objectMode?: boolean | undefined
  /**
   * Bytes (or messages) that are read ahead, and as many that may be written before `write()` gives false. Default 65536
   * read ahead and 262144 written, or 16 messages each.
   */
  highWaterMark?: number | undefined
  /** `highWaterMark` of reading. */
  readableHighWaterMark?: number | undefined
  /** `highWaterMark` of writing. As much again may be under way to the peer. */
  writableHighWaterMark?: number | undefined
  /** Whether writing goes on when the peer has ended its direction. Default true. */
  allowHalfOpen?: boolean | undefined
  /** Destroys stream and connection when it is aborted. */
  signal?: AbortSignal | undefined
}

interface Normal extends Omit<Required<DuplexOptions>, 'signal'> {
  signal: AbortSignal | undefined
}

const MOST = 2 ** 40
const table: Checks<Normal> = {
  objectMode: flag,
  highWaterMark: whole(0, MOST),
  readableHighWaterMark: whole(0, MOST),
  writableHighWaterMark: whole(0, MOST),
  allowHalfOpen: flag,
  signal: checkSignal as Checks<Normal>['signal'],
}

/** The longest message that a stream of bytes is cut into. Longer ones gain nothing, and are read in one piece. */
const PIECE = 262_144

/** Checked here, so that nothing of the connection is taken for a stream that cannot be. @internal */
export function checkDuplex(options: unknown): DuplexOptions {
  return members<Normal>(options, 'options', table)
}

/** A connection as a stream. @internal */
export class ConnectionDuplex extends Duplex {
  readonly #port: StreamPort
  readonly #sender: StreamSender
  readonly #piece: number
  readonly #keepsMessages: boolean
  #isReading = false
  /** Whether more was asked for since the last message. */
  #isWanted = false

  constructor(port: StreamPort, options: DuplexOptions) {
    const { objectMode = false, highWaterMark, allowHalfOpen = true, signal } = options
    const readable = options.readableHighWaterMark ?? highWaterMark ?? (objectMode ? 16 : 65_536)
    const writable = options.writableHighWaterMark ?? highWaterMark ?? (objectMode ? 16 : 262_144)
    super({
      objectMode,
      allowHalfOpen,
      readableHighWaterMark: readable,
      writableHighWaterMark: writable,
    })
    this.#port = port
    this.#keepsMessages = objectMode
    this.#piece = Math.min(PIECE, port.maxMessage)
    const weigh = objectMode ? () => 1 : (message: Uint8Array) => message.length
    this.#sender = new StreamSender(port, writable, weigh, (error) => {
      this.destroy(error)
    })
    if (objectMode) Object.defineProperty(this, '_writev', { value: null })
    void port.closed.then(({ reason, error }) => {
      // After an orderly end there may be something to read.
      if (reason === 'destroyed' || reason === 'error') this.destroy(error)
    })
    // Last: one that is aborted by now destroys at once what has to be whole for it.
    if (signal) addAbortSignal(signal, this)
  }

  override _read(): void {
    this.#isWanted = true
    if (!this.#isReading) void this.#readOn()
  }

  override _write(chunk: unknown, _: BufferEncoding, done: (error?: Error | null) => void): void {
    settle(this.#send(chunk), done)
  }

  /** Small chunks that have gathered go in one message. */
  override _writev(chunks: { chunk: unknown }[], done: (error?: Error | null) => void): void {
    settle(this.#sendAll(chunks.map(({ chunk }) => messageBytes(chunk))), done)
  }

  override _final(done: (error?: Error | null) => void): void {
    settle(this.#end(), done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (error === null && this.readableEnded && this.writableFinished) {
      settle(this.#port.close(), done)
      return
    }
    this.#port.destroy(error ?? undefined)
    done(error)
  }

  async #readOn(): Promise<void> {
    this.#isReading = true
    try {
      while (this.#isWanted && !this.destroyed) {
        const message = await this.#port.receive()
        if (message === null) {
          this.#give(null)
          return
        }
        // In a stream of bytes an empty one is nothing.
        if (message.length === 0 && !this.#keepsMessages) continue
        this.#isWanted = false
        if (this.#give(message)) this.#isWanted = true
      }
    } catch (error) {
      this.destroy(error as Error)
    } finally {
      this.#isReading = false
    }
  }

  /** Gives a chunk to whoever listens. What a listener throws is uncaught, as with a socket, and harms no one here. */
  #give(chunk: Uint8Array | null): boolean {
    try {
      return this.push(chunk)
    } catch (error) {
      process.nextTick(() => {
        throw error
      })
      return this.readableLength < this.readableHighWaterMark
    }
  }

  async #send(chunk: unknown): Promise<void> {
    const bytes = messageBytes(chunk)
    if (this.#keepsMessages) await this.#sender.send(bytes)
    else await this.#sendAll([bytes])
  }

  async #sendAll(chunks: readonly Uint8Array[]): Promise<void> {
    for (const piece of pieces(chunks, this.#piece)) await this.#sender.send(piece)
  }

  async #end(): Promise<void> {
    await this.#sender.flush()
    try {
      await this.#port.end()
    } catch (error) {
      // All has arrived, and the end of the connection has told the peer what the end of a direction would have.
      if (!isOrderly(this.#port.outcome())) throw error
    }
  }
}

/** Cuts bytes into pieces that are as long as can be. Chunks are joined only where one does not fill a piece. */
function* pieces(chunks: readonly Uint8Array[], length: number): Generator<Uint8Array> {
  let gathered: Uint8Array[] = []
  let missing = length
  for (const chunk of chunks) {
    let rest = chunk
    while (rest.length > 0) {
      const part = rest.subarray(0, missing)
      rest = rest.subarray(part.length)
      gathered.push(part)
      missing -= part.length
      if (missing > 0) continue
      yield joined(gathered)
      gathered = []
      missing = length
    }
  }
  if (gathered.length > 0) yield joined(gathered)
}

function joined(parts: Uint8Array[]): Uint8Array {
  const [first] = parts
  return parts.length === 1 && first ? first : Buffer.concat(parts)
}

/** Calls back in a tick of its own: what a listener throws is uncaught then, and no rejection. */
function settle(work: Promise<void>, done: (error?: Error | null) => void): void {
  work.then(
    () => {
      process.nextTick(done)
    },
    (error: unknown) => {
      process.nextTick(done, error)
    },
  )
}
