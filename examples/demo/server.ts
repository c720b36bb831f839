// The demo's server: takes one connection, receives one file, answers with its size and SHA-256.

import { createHash } from 'node:crypto'
import { subscribe } from 'node:diagnostics_channel'
import { listen } from 'secure-rdma'
import { describe, field, memory, print, rate, size, time } from './print.js'
import { child, decode, encode, options, resultOf, tell, type Header, type Task } from './protocol.js'

child(async (task: Task) => {
  const failed = new Promise<never>((_resolve, reject) => {
    subscribe('secure-rdma:server:handshake-failed', (news) => {
      reject((news as { error: Error }).error)
    })
  })
  const server = await listen({ ...options('server', task), host: task.server })
  const port = server.address()?.port ?? 0
  print(`process ${process.pid} listens on ${task.server} port ${port}`)
  tell({ listening: port })

  // One client comes. A real server does not end when a handshake fails.
  const connection = await Promise.race([server.accept(), failed])
  await server.close()
  print(...describe(connection))

  const { name, bytes } = decode(await connection.receive()) as Header
  print(`receives ${JSON.stringify(name)}, ${size(bytes)}`)
  const began = performance.now()
  const hash = createHash('sha256')
  let received = 0
  let quarter = 1
  for await (const message of connection) {
    hash.update(message)
    received += message.length
    while (quarter < 4 && received >= (bytes * quarter) / 4) {
      print(field(`  ${25 * quarter} %`, rate(received, performance.now() - began)))
      quarter++
    }
  }
  const duration = performance.now() - began
  const sha256 = hash.digest('hex')
  print(
    field('received', `${received} bytes in ${time(duration)}, ${rate(received, duration)}`),
    field('SHA-256', sha256),
    field('memory', `${memory()} at the peak`),
  )

  await connection.send(encode({ bytes: received, sha256 }))
  const { reason, error } = await connection.closed
  if (reason !== 'peerClosed') throw error ?? new Error(`the connection ended with ${reason}`)
  tell({ result: resultOf(connection, received, sha256) })
})
