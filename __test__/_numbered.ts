// Messages that tell which one they are: what is lost, doubled, out of order or damaged shows on the first look.

const HEAD = 8

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
