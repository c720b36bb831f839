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

/** Streams the file, again from its start where more is wanted than it has. Gives the SHA-256 of what was sent. */
async function sendFile(connection: Connection, { file, size }: Task): Promise<string> {
  const hash = createHash('sha256')
  const handle = await open(file)
  try {
    const buffer = Buffer.allocUnsafe(CHUNK)
    const sends: Promise<void>[] = []
    let position = 0
    for (let left = size; left > 0;) {
      const { bytesRead } = await handle.read(buffer, 0, Math.min(CHUNK, left), position)
      if (bytesRead === 0) {
        if (position === 0) throw new Error(`${file} is empty`)
        position = 0
        continue
      }
      position += bytesRead
      left -= bytesRead
      const chunk = buffer.subarray(0, bytesRead)
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
  } finally {
    await handle.close()
  }
}
