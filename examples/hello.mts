import { readFileSync as file } from 'node:fs'
import { connect, listen } from 'secure-rdma'
const [role = 'client', host = '127.0.0.1'] = process.argv.slice(2)
const tls = { ca: file('ca.pem'), cert: file(`${role}.pem`), key: file(`${role}.key`) }
if (role === 'server') {
  const server = await listen({ host, port: 7471, ...tls })
  const connection = await server.accept()
  for await (const message of connection) await connection.send(message)
  await server.close()
} else {
  const connection = await connect({ host, port: 7471, ...tls })
  await connection.send(Buffer.from('hello'))
  console.log(String(await connection.receive()), 'came back over', connection.device.name)
  await connection.close()
}
