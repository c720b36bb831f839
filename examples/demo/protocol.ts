// What the demo's processes say to each other: over pipes to their parent, and over RDMA.

import { RdmaError, type CommonOptions, type Connection } from 'secure-rdma'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { hex } from './print.js'

/** What the parent tells a child to do: its only argument, as JSON. */
export interface Task {
  /** The folder with the certificates. */
  readonly certificates: string
  /** The server's IP address. */
  readonly server: string
  /** The client's. */
  readonly client: string
  /** The server's TCP port; 0 where it is not known yet. */
  readonly port: number
  /** The file to send. */
  readonly file: string
  /** How many bytes to send: more than the file has repeat it. */
  readonly size: number
  readonly showSecrets: boolean
}

/** What a child tells the parent when it is done. The parent compares what both tell. */
export interface Result {
  /** As it may be shown: a fingerprint, unless secrets are wanted. */
  readonly ownPsn: string
  readonly peerPsn: string
  readonly ownQpn: number
  readonly peerQpn: number
  readonly bytes: number
  readonly sha256: string
}

/** What a child sends to the parent. */
export type News = { readonly listening: number } | { readonly result: Result }

/** The client's first message over RDMA. What follows is the content, then the end. */
export interface Header {
  readonly name: string
  readonly bytes: number
}

/** The server's answer over RDMA. */
export interface Receipt {
  readonly bytes: number
  readonly sha256: string
}

/** Bytes of one message. Its segments are of the pool's buffer size. */
export const CHUNK = 1 << 20
/** Messages that are on their way at once. With CHUNK it bounds the memory that a transfer takes. */
export const IN_FLIGHT = 4

/** What both sides pass to the library. */
export function options(role: 'server' | 'client', task: Task): CommonOptions {
  const pem = (name: string): Buffer => readFileSync(join(task.certificates, name))
  return {
    ca: pem('ca.pem'),
    cert: pem(`${role}.pem`),
    key: pem(`${role}.key`),
    exposeSecrets: task.showSecrets,
    // Larger buffers than the defaults: few connections, much data.
    pool: { bufferSize: 65536, receiveBuffers: 256, sendBuffers: 64 },
    credits: 64,
    receiveBufferSize: IN_FLIGHT * CHUNK,
  }
}

export function task(): Task {
  return JSON.parse(process.argv[2] ?? '') as Task
}

/** Tells the parent. */
export function tell(news: News): void {
  process.send?.(news)
}

export function encode(value: Header | Receipt): Buffer {
  return Buffer.from(JSON.stringify(value))
}

/**
 * What `encode` made. The path between is not authenticated, so a program that acts on what it gets checks it first;
 * this one prints and compares.
 */
export function decode(message: Buffer | null): unknown {
  if (!message) throw new Error('the peer has ended before it was its turn')
  return JSON.parse(message.toString())
}

/** What to tell the parent of a connection that has done its work. */
export function resultOf({ handshake }: Connection, bytes: number, sha256: string): Result {
  const { secrets, ownPsnFingerprint, peerPsnFingerprint, ownQpn, peerQpn } = handshake
  return {
    ownPsn: secrets ? hex(secrets.ownPsn) : `fingerprint ${ownPsnFingerprint}`,
    peerPsn: secrets ? hex(secrets.peerPsn) : `fingerprint ${peerPsnFingerprint}`,
    ownQpn,
    peerQpn,
    bytes,
    sha256,
  }
}

/** What a child does: errors end it with a line and exit status 1, and the parent's death ends it, too. */
export function child(main: (task: Task) => Promise<void>): void {
  const orphaned = (): never => process.exit(1)
  process.once('disconnect', orphaned)
  main(task()).then(
    () => {
      process.off('disconnect', orphaned)
      process.disconnect()
    },
    (error: unknown) => {
      console.error(error instanceof RdmaError ? `${error.code}: ${error.message}` : error)
      process.exit(1)
    },
  )
}
