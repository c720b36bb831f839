// @ts-check
// The server of one measurement: node server.mjs TRANSPORT TASK FOLDER. It tells its port, and whenever it is asked how
// much has arrived, by the channel to its parent.

import { listen as listenRdma } from 'secure-rdma'
import { BULK, PLACES, SMALL } from './loads.mjs'
import { identity, listen, resident } from './streams.mjs'

const [transport = '', task = '', folder = ''] = process.argv.slice(2)

/** What has arrived: bytes for `bulk`, messages for `messages`. */
let arrived = 0

const place = PLACES[transport]
const port = place ? await rdma(place) : await stream(transport === 'tls' ? 'tls' : 'net')

process.on('message', () => process.send?.({ arrived, at: performance.now(), resident: resident() }))
process.on('disconnect', () => process.exit())
process.send?.({ port })

/** @param {'net' | 'tls'} kind */
function stream(kind) {
  return listen(kind, folder, (socket) => {
    if (task === 'ping') {
      socket.on('data', (bytes) => socket.write(bytes))
    } else if (task === 'messages') {
      receipts(socket)
    } else {
      socket.on('data', (bytes) => (arrived += bytes.length))
    }
  })
}

/**
 * Answers each message with a byte. A stream's `write` tells when the kernel has the bytes; `send` of secure-rdma tells
 * when the peer has the message, and what is in flight until then is what is compared.
 * @param {import('node:net').Socket} socket
 */
function receipts(socket) {
  const answers = Buffer.alloc(1024)
  let partial = 0
  socket.on('data', (bytes) => {
    partial += bytes.length
    const whole = Math.floor(partial / SMALL)
    partial -= whole * SMALL
    arrived += whole
    if (whole > 0) socket.write(answers.subarray(0, whole))
  })
}

/** @param {{ server: string, device?: string }} place */
async function rdma({ server: host, device }) {
  const server = await listenRdma({ host, port: 0, device, ...identity(folder, 'server') })
  void serve(server)
  return server.address().port
}

/** @param {import('secure-rdma').Server} server */
async function serve(server) {
  for await (const connection of server) void take(connection).catch(() => connection.destroy())
}

/** @param {import('secure-rdma').Connection} connection */
async function take(connection) {
  if (task === 'write') {
    const { allocate } = await import('secure-rdma')
    await connection.publish('target', await allocate(BULK), { access: 'write' })
    await connection.closed
  } else if (task === 'batch') {
    for (let batch; (batch = await connection.receiveBatch()) !== null;) arrived += batch.length
  } else if (task === 'ping') {
    // The client may be gone before the last answer.
    for await (const message of connection) connection.send(message).catch(() => {})
  } else if (task === 'bulk') {
    for await (const message of connection) arrived += message.length
  } else {
    for await (const _ of connection) arrived += 1
  }
}
