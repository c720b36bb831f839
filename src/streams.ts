// The streams of a connection: what they use of it, and which of them has it.

import type { Duplex } from 'node:stream'
import { locked, type Claim } from './claims.js'
import type { Connection } from './connection.js'
import type { DataPlane } from './data-plane.js'
import { checkDuplex, ConnectionDuplex, type DuplexOptions } from './duplex.js'
import type { Ending } from './ending.js'
import type { Receiver } from './receiver.js'
import type { StreamPort } from './stream-port.js'
import { WebStreams } from './web-streams.js'

/** What streams use behind the face of a connection. @internal */
export interface Streamed {
  readonly plane: DataPlane
  readonly receiver: Receiver
  readonly ending: Ending
  /** Which stream has the messages that go. */
  readonly writing: Claim
}

/** Makes the streams of one connection. @internal */
export class Streams {
  readonly #connection: Connection
  readonly #parts: Streamed
  #web: WebStreams | undefined

  constructor(connection: Connection, parts: Streamed) {
    this.#connection = connection
    this.#parts = parts
  }

  /** A stream of Node's, which has both directions from now on. */
  duplex(options: DuplexOptions): Duplex {
    const checked = checkDuplex(options)
    const { receiver, writing } = this.#parts
    if (receiver.isAwaited) throw locked('toDuplex()', 'receive() calls wait for messages')
    receiver.claim.refuse('toDuplex()')
    writing.refuse('toDuplex()')
    receiver.claim.take('toDuplex()')
    writing.take('toDuplex()')
    return new ConnectionDuplex(this.#port('toDuplex()', 'toDuplex()'), checked)
  }

  /** The WHATWG streams, each of which claims its direction when it is first used. */
  get web(): WebStreams {
    return (this.#web ??= new WebStreams(this.#port('readable', 'writable')))
  }

  #port(reader: string, writer: string): StreamPort {
    const connection = this.#connection
    const { plane, receiver, ending, writing } = this.#parts
    return {
      claimReading: () => {
        receiver.claim.take(reader)
      },
      claimWriting: () => {
        writing.take(writer)
      },
      receive: () => receiver.next(),
      post: (message) => plane.sendNow(message),
      end: async () => plane.end(),
      close: () => connection.close(),
      destroy: (error) => {
        connection.destroy(error)
      },
      outcome: () => ending.outcome,
      closed: connection.closed,
      maxMessage: connection.handshake.peerTerms.maxMessageSize,
    }
  }
}
