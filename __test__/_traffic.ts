// Traffic that checks itself: both ends work out from a seed what is sent, and the receiver compares every byte.

import { createCipheriv, createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import type { Connection } from 'secure-rdma'

/** The longest message, 64 KiB. */
const LONGEST = 1 << 16

/** From how many bytes the messages are cut. */
const BLOCK = 1 << 17

/** Sends that may wait for their acknowledgement. */
const IN_FLIGHT = 128

/** Bytes of a message that a file is cut into. */
const PIECE = 1 << 18

/** Bytes that look random and follow from a text. */
export function bytesOf(seed: string, length: number): Buffer {
  const key = createHash('sha256').update(seed).digest()
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

/** One direction's messages, 0 B to 64 KiB, their lengths log-uniform: as many below 256 B as above. */
export class Messages {
  readonly #block: Buffer
  readonly #random: Buffer

  constructor(seed: string, count: number) {
    this.#block = bytesOf(`${seed} content`, BLOCK + LONGEST)
    this.#random = bytesOf(`${seed} numbers`, count * 8)
  }

  /** Message number `index`. */
  at(index: number): Buffer {
    const [size, place] = [0, 4].map((at) => this.#random.readUInt32LE(index * 8 + at) / 2 ** 32) as [number, number]
    const length = Math.floor((LONGEST + 2) ** size) - 1
    const begin = Math.floor(place * BLOCK)
    return this.#block.subarray(begin, begin + length)
  }
}

/** What one end saw of a transfer. */
export interface Transferred {
  messages: number
  bytes: number
  shortest: number
  longest: number
  milliseconds: number
}

/** Sends `count` messages that follow from `seed`, many at once. */
export async function sendAll(connection: Connection, seed: string, count: number): Promise<void> {
  const messages = new Messages(seed, count)
  const sends: Promise<void>[] = []
  for (let i = 0; i < count; i++) {
    if (i >= IN_FLIGHT) await sends[i - IN_FLIGHT]
    const send = connection.send(messages.at(i))
    // It is awaited below; until then it must not count as unhandled.
    send.catch(() => undefined)
    sends.push(send)
  }
  await Promise.all(sends)
}

/** Receives `count` messages and compares each with what follows from `seed`. */
export async function receiveAll(connection: Connection, seed: string, count: number): Promise<Transferred> {
  const began = performance.now()
  const messages = new Messages(seed, count)
  const seen = { bytes: 0, shortest: Infinity, longest: 0 }
  for (let i = 0; i < count; i++) {
    const message = await connection.receive()
    const wanted = messages.at(i)
    if (!message?.equals(wanted)) {
      throw new Error(`message ${i} of "${seed}" is wrong: ${message?.length ?? 'no'} bytes for ${wanted.length}`)
    }
    seen.bytes += message.length
    seen.shortest = Math.min(seen.shortest, message.length)
    seen.longest = Math.max(seen.longest, message.length)
  }
  return { messages: count, ...seen, milliseconds: performance.now() - began }
}

/** Sends a file, then ends this direction. The SHA-256 of what was read. */
export async function sendFile(connection: Connection, path: string): Promise<string> {
  const hash = createHash('sha256')
  const file = await open(path)
  const sends: Promise<void>[] = []
  try {
    for (;;) {
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(PIECE), 0, PIECE)
      if (bytesRead === 0) break
      const piece = buffer.subarray(0, bytesRead)
      hash.update(piece)
      sends.push(connection.send(piece))
      if (sends.length > 8) await sends.shift()
    }
    await Promise.all(sends)
  } finally {
    await file.close()
  }
  await connection.end()
  return hash.digest('hex')
}

/** Receives until the peer ends its direction: bytes, and their SHA-256. */
export async function receiveFile(connection: Connection): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0
  for await (const piece of connection) {
    hash.update(piece)
    bytes += piece.length
  }
  return { bytes, sha256: hash.digest('hex') }
}
