import { ReadableStream, WritableStream } from 'node:stream/web'
import { types } from 'node:util'
import { RdmaError } from './errors.js'
import { isOrderly, StreamSender, type StreamPort } from './stream-port.js'
import type { MessageBytes } from './connection-types.js'
import { messageBytes } from './validate.js'

/** Bytes that may be written before `ready` has to be awaited, and as many that may be under way to the peer. */
const WINDOW = 262_144

/** Both directions of one connection as WHATWG streams. @internal */
export class WebStreams {
  readonly #port: StreamPort
  #readable: ReadableStream<Uint8Array> | undefined
  #writable: WritableStream<MessageBytes> | undefined
  #hasRead = false
  #hasWritten = false

  constructor(port: StreamPort) {
    this.#port = port
  }

  get readable(): ReadableStream<Uint8Array> {
    const source = {
      pull: async (controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> => {
        this.#port.claimReading()
        const message = await this.#port.receive()
        if (message) controller.enqueue(message)
        else {
          controller.close()
          this.#hasRead = true
          this.#closeAfterBoth()
        }
      },
      cancel: (reason: unknown): void => {
        this.#port.destroy(asError(reason, 'the readable stream was cancelled'))
      },
    }
    // Nothing is read ahead: who stops reading leaves the next message to the next reader.
    return (this.#readable ??= new ReadableStream(source, { highWaterMark: 0 }))
  }

  get writable(): WritableStream<MessageBytes> {
    return (this.#writable ??= this.#makeWritable())
  }

  #makeWritable(): WritableStream<MessageBytes> {
    const port = this.#port
    const weigh = (message: Uint8Array): number => message.length
    const sender = new StreamSender(port, WINDOW, weigh, (error) => {
      port.destroy(error)
    })
    const sink = {
      start: (controller: WritableStreamDefaultController): void => {
        void port.closed.then(({ reason, error }) => {
          if (reason !== 'destroyed' && reason !== 'error') return
          controller.error(error ?? new RdmaError('ERR_RDMA_DESTROYED', 'the connection was destroyed'))
        })
      },
      write: async (chunk: MessageBytes): Promise<void> => {
        port.claimWriting()
        try {
          const bytes = messageBytes(chunk)
          let from = 0
          do {
            await sender.send(bytes.subarray(from, from + port.maxMessage))
            from += port.maxMessage
          } while (from < bytes.length)
        } catch (error) {
          // The stream is of no use any more, and the peer must not wait for what will not come.
          port.destroy(error as Error)
          throw error
        }
      },
      close: async (): Promise<void> => {
        port.claimWriting()
        await sender.flush()
        try {
          await port.end()
        } catch (error) {
          if (!isOrderly(port.outcome())) throw error
        }
        this.#hasWritten = true
        this.#closeAfterBoth()
      },
      abort: (reason: unknown): void => {
        port.destroy(asError(reason, 'the writable stream was aborted'))
      },
    }
    // What is not bytes is for `write` to refuse, which tells what it wants: what fails here would reach nobody.
    const size = (chunk: unknown): number =>
      ArrayBuffer.isView(chunk) || types.isAnyArrayBuffer(chunk) ? chunk.byteLength : 0
    return new WritableStream(sink, { highWaterMark: WINDOW, size })
  }

  /** Two streams that have both come to their ends leave a connection that nobody would close. */
  #closeAfterBoth(): void {
    if (!this.#hasRead || !this.#hasWritten) return
    // What it would reject with, `closed` tells.
    this.#port.close().catch(() => undefined)
  }
}

function asError(reason: unknown, message: string): Error {
  return reason instanceof Error ? reason : new RdmaError('ERR_RDMA_DESTROYED', message, { cause: reason })
}
