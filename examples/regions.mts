import { readFileSync as file } from 'node:fs'
import { allocate, connect, listen } from 'secure-rdma'
const [role = 'client', host = '127.0.0.1'] = process.argv.slice(2)
const tls = { ca: file('ca.pem'), cert: file(`${role}.pem`), key: file(`${role}.key`) }
const region = await allocate(4096)
if (role === 'server') {
  const server = await listen({ host, port: 7471, ...tls })
  const connection = await server.accept()
  await connection.publish('inbox', region, { access: ['read', 'write', 'atomic'] })
  const immediate = await connection.receiveImmediate()
  console.log(String(Buffer.from(region.buffer, 8, 5)), 'was written here, with', immediate)
  await connection.closed
  await server.close()
} else {
  const connection = await connect({ host, port: 7471, ...tls })
  const inbox = await connection.remote('inbox')
  Buffer.from(region.buffer).write('hello')
  await connection.write(region.slice(0, 5), inbox, { offset: 8, immediate: 7 })
  const before = await connection.fetchAndAdd(inbox, 5n)
  await connection.read(inbox.slice(0, 13), region.slice(0, 13))
  const [after] = new BigUint64Array(region.buffer)
  console.log(String(Buffer.from(region.buffer, 8, 5)), 'was read there, and', before, 'became', after)
  await connection.close()
}
