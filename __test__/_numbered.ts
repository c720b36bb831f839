// Messages that tell which one they are: what is lost, doubled, out of order or damaged shows on the first look.

import type { Connection } from 'secure-rdma'

const HEAD = 8

/** Sends that may wait for their acknowledgement. */
const IN_FLIGHT = 16

/** Message number `index`, of 8 to 8007 bytes: one segment, or two. */
export function numbered(index: number): Buffer {
  const message = Buffer.alloc(HEAD + ((index * 7919) % 8000), index & 0xff)
  message.writeUInt32LE(index, 0)
  message.writeUInt32LE(message.length, 4)
  return message
}

/** The number of a message; throws for what is not such a message. */
export function numberOf(message: Buffer | null): number {
  if (message === null) throw new Error('the messages ended')
  const index = message.readUInt32LE(0)
  if (!message.equals(numbered(index))) throw new Error(`message ${index} is damaged (${message.length} bytes)`)
  return index
}

/** Sends numbered messages until told to stop, then ends this direction; gives their number. */
export async function sendNumbered(connection: Connection, stop: AbortSignal): Promise<number> {
  let count = 0
  const flying = new Set<Promise<void>>()
  while (!stop.aborted) {
    const sent = connection.send(numbered(count++)).finally(() => flying.delete(sent))
    flying.add(sent)
    if (flying.size >= IN_FLIGHT) await Promise.race(flying)
  }
  await Promise.all(flying)
  await connection.end()
  return count
}

/** Receives numbered messages until the end; gives their number, and throws unless each comes when it is due. */
export async function receiveNumbered(connection: Connection): Promise<number> {
  let count = 0
  for await (const message of connection) {
    const index = numberOf(message)
    if (index !== count) throw new Error(`message ${index} came where ${count} was due`)
    count++
  }
  return count
}
