// Link-local addresses, which mean something on one interface only.

import { networkInterfaces } from 'node:os'
import { connect, listen } from 'secure-rdma'
import { fixture } from './_certificates.js'
import { rxeTest } from './_device.js'
import { ends } from './_guest.js'

/** The link-local address of an interface. */
function linkLocal(name: string): string {
  const found = networkInterfaces()[name]?.find(({ family, scopeid }) => family === 'IPv6' && scopeid !== 0)
  if (!found) throw new Error(`${name} has no link-local address`)
  return found.address
}

rxeTest('a link-local address is reached by its zone, and chooses the device of that interface', async (t) => {
  const [near, far] = [ends[1], ends[0]]
  const [own, peer] = [linkLocal(near.interface), linkLocal(far.interface)]
  for (const addressing of ['hybrid', 'verbs'] as const) {
    const server = await listen({ ...(await fixture()).server, addressing, host: `${peer}%${far.interface}` })
    t.teardown(() => server.close())
    const port = server.address()?.port ?? 0
    const from = { localAddress: own, servername: 'peer.test', addressing, ...(await fixture()).client }
    const [client, accepted] = await Promise.all([
      connect({ ...from, host: `${peer}%${near.interface}`, port }),
      server.accept(),
    ])
    t.deepEqual([client.device.name, accepted.device.name], [near.device, far.device], addressing)
    t.true(client.handshake.addressing.startsWith(addressing), client.handshake.addressing)
    await client.send(Buffer.from('over the link'))
    t.is(String(await accepted.receive()), 'over the link')
    await client.close()
    t.is((await accepted.closed).reason, 'peerClosed')
    await t.throwsAsync(connect({ ...from, host: peer, port }), { message: /needs its zone/ })
  }
})
