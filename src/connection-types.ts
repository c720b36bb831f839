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
  /** WRITEs, READs and atomics that were posted. */
  readonly operationsPosted: number
  /** Whole messages that arrived. */
  readonly messagesReceived: number
  /** Their bytes. */
  readonly bytesReceived: number
  /** Segments posted, messages and credits alike. */
  readonly segmentsSent: number
  /** Bytes that wait to be posted. */
  readonly bytesQueued: number
  /** Operations that wait to be posted, or whose outcome has not been taken yet. */
  readonly operationsPending: number
  /** Work requests that are posted and not yet complete. */
  readonly workInFlight: number
  /** Messages that wait to be read. */
  readonly messagesReady: number
  /** Their bytes. */
  readonly bytesReady: number
  /** Immediates that wait to be read. */
  readonly immediatesReady: number
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

/** What {@link Connection.receiveBatch} takes. */
export interface ReceiveBatchOptions extends SignalOptions {
  /** Messages at the most, 1 to 65536. Default 256. */
  limit?: number | undefined
}

/** What a message can be given as. Text is not taken: its encoding is yours to choose. */
export type MessageBytes = ArrayBufferView | ArrayBufferLike
