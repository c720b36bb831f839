import { tracingChannel, type TracingChannel } from 'node:diagnostics_channel'
import type { Connection } from './connection.js'
import type { Server } from './server.js'

/**
 * What subscribers of `tracing:secure-rdma:connect:*` see. `result` is there from `asyncStart` on where it succeeded,
 * `error` from `error` on where it failed, so with all of them; what is received, read or found by atomics is shown by none.
 */
export interface ConnectTrace {
  /** Where to: the server's name or address. */
  readonly host: string
  /** The server's TCP port. */
  readonly port: number
  /** The connection. */
  readonly result?: Connection
  /** Why there is none. */
  readonly error?: unknown
}

/** What subscribers of `tracing:secure-rdma:accept:*` see: one for each call of `accept()`, and each turn of an iteration. */
export interface AcceptTrace {
  /** The server. */
  readonly server: Server
  /** The connection; `null` at the end of an iteration. */
  readonly result?: Connection | null
  /** Why there is none: the wait was aborted, or the server is closed. */
  readonly error?: unknown
}

/**
 * What subscribers of `tracing:secure-rdma:send:*` see. The message itself they do not. Streams of a connection send and
 * receive without a trace: they tell of themselves.
 */
export interface SendTrace {
  /** The connection. */
  readonly connection: Connection
  /** The length of the message, in bytes. */
  readonly byteLength: number
  /** Why it was not sent. */
  readonly error?: unknown
}

/** What subscribers of `tracing:secure-rdma:receive:*` see. The message itself they do not: its length alone. */
export interface ReceiveTrace {
  /** The connection. */
  readonly connection: Connection
  /** The length of the message, in bytes, from `asyncStart` on; `null` where no more messages come. */
  byteLength?: number | null
  /** Why there is none. */
  readonly error?: unknown
}

/** What subscribers of `tracing:secure-rdma:operation:*` see. The bytes themselves they do not. */
export interface OperationTrace {
  /** The connection. */
  readonly connection: Connection
  /** What is done; a list of several is one. */
  readonly operation: 'write' | 'read' | 'compareAndSwap' | 'fetchAndAdd' | 'batch'
  /** The name of the peer's region; of a batch there may be several. */
  readonly region?: string
  /** How many bytes; of a batch this is not told. */
  readonly byteLength?: number
  /** Why it failed. */
  readonly error?: unknown
}

/** A channel of ours. */
type Channel = TracingChannel<unknown, object>

/** The channels. Where nobody subscribes, a call costs a look at whether somebody does. */
export const traces = {
  connect: tracingChannel('secure-rdma:connect'),
  accept: tracingChannel('secure-rdma:accept'),
  send: tracingChannel('secure-rdma:send'),
  receive: tracingChannel('secure-rdma:receive'),
  operation: tracingChannel('secure-rdma:operation'),
} satisfies Record<string, Channel>

/** Whether anybody listens to a channel. */
export function isTraced(channel: Channel): boolean {
  return channel.hasSubscribers
}

/** Runs `work` under a channel, with `trace` as what subscribers see. */
export function traced<T>(channel: Channel, trace: object, work: () => Promise<T>): Promise<T> {
  // Typed as unable to tell what it gives; it gives what `work` does.
  return channel.tracePromise<undefined, []>(work, trace)
}

/** The same, without what `work` gives: subscribers see no bytes of anybody's. */
export async function tracedWithoutResult<T>(channel: Channel, trace: object, work: () => Promise<T>): Promise<T> {
  let result: [T] | undefined
  await traced(channel, trace, async () => {
    result = [await work()]
  })
  // It is there, or `traced` has thrown.
  return (result as unknown as [T])[0]
}

/** The same for a `receive()`, with the length of what it gives. */
export function tracedReceive(connection: Connection, receive: () => Promise<Buffer | null>): Promise<Buffer | null> {
  const trace: ReceiveTrace = { connection }
  return tracedWithoutResult(traces.receive, trace, async () => {
    const message = await receive()
    trace.byteLength = message?.length ?? null
    return message
  })
}
