// The demo's client: connects, streams one file, compares the server's answer with what it sent.

import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { basename } from 'node:path'
import { connect, type Connection } from 'secure-rdma'
import { describe, field, memory, print, rate, time } from './print.js'
import {
  CHUNK,
  IN_FLIGHT,
  child,
  decode,
  encode,
  options,
  resultOf,
  tell,
  type Receipt,
  type Task,
} from './protocol.js'

child(async (task: Task) => {
  print(`process ${process.pid} connects from ${task.client} to ${task.server} port ${task.port}`)
  const connection = await connect({
    ...options('client', task),
    host: task.server,
    port: task.port,
    localAddress: task.client,
  })
  print(...describe(connection))

  const began = performance.now()
  await connection.send(encode({ name: basename(task.file), bytes: task.size }))
  const sha256 = await sendFile(connection, task)
  await connection.end()
  const receipt = decode(await connection.receive()) as Receipt
  const duration = performance.now() - began
  const { messagesSent, segmentsSent, waitsForCredit } = connection.stats()
  print(
    field('sent', `${task.size} bytes in ${time(duration)}, ${rate(task.size, duration)}, until the receipt was here`),
    field('', `${messagesSent} messages, ${segmentsSent} segments, ${waitsForCredit} waits for credit`),
    field('SHA-256', sha256),
    field('memory', `${memory()} at the peak`),
  )
  if (receipt.sha256 !== sha256 || receipt.bytes !== task.size) {
    throw new Error(`the receipt says ${receipt.bytes} bytes with SHA-256 ${receipt.sha256}: that is not what was sent`)
  }
  await connection.close()
  tell({ result: resultOf(connection, task.size, sha256) })
})

/** Streams the file. Gives the SHA-256 of what was sent. */
async function sendFile(connection: Connection, { file, size }: Task): Promise<string> {
  const hash = createHash('sha256')
  const sends: Promise<void>[] = []
  for await (const chunk of contents(file, size)) {
    // send() copies before it returns: the buffer is free again.
    const send = connection.send(chunk)
    send.catch(() => undefined) // it is awaited below, perhaps after another one has failed
    sends.push(send)
    hash.update(chunk)
    // As many as may be in flight are: wait for the oldest. It comes when the server reads.
    if (sends.length === IN_FLIGHT) await sends.shift()
  }
  await Promise.all(sends)
  return hash.digest('hex')
}

/** The first `size` bytes of a file that begins again at its end. Each chunk is good until the next one is asked for. */
async function* contents(file: string, size: number): AsyncGenerator<Buffer, void, undefined> {
  const handle = await open(file)
  try {
    const { size: length } = await handle.stat()
    // A small file stands in the buffer several times, or its messages would be small, too.
    const copies = Math.max(1, Math.floor(CHUNK / length))
    const buffer = copies > 1 ? Buffer.alloc(copies * length, await handle.readFile()) : Buffer.allocUnsafe(CHUNK)
    let position = 0
    for (let left = size; left > 0;) {
      let ready = Math.min(buffer.length, left)
      if (copies === 1) {
        const { bytesRead } = await handle.read(buffer, 0, ready, position)
        if (bytesRead === 0 && position === 0) throw new Error(`${file} is empty`)
        position = bytesRead === 0 ? 0 : position + bytesRead
        ready = bytesRead
      }
      left -= ready
      if (ready > 0) yield buffer.subarray(0, ready)
    }
  } finally {
    await handle.close()
  }
}
