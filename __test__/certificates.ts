// Who a peer is: SPIFFE IDs, and a server whose certificates change while it runs. The matrix of all causes on both sides is
// in crates/session/tests.

import { X509Certificate } from 'node:crypto'
import test from 'ava'
import { connect, listen, RdmaError, type Peer } from 'secure-rdma'
import { Authority, type Identity } from './_authority.js'
import { fixture } from './_certificates.js'
import { deviceTest } from './_device.js'
import { join, serve, until } from './_peers.js'

const SERVER = 'spiffe://example.org/server'
const CLIENT = 'spiffe://example.org/ns/default/sa/client'

const serialOf = ({ cert }: Identity): string => new X509Certificate(cert).serialNumber

deviceTest('a SPIFFE ID takes the place of the name, and the server sees the client’s', async (t, place) => {
  const authority = await (await fixture()).authority()
  const { ca } = authority
  const asked: Peer[] = []
  const server = await authority.issue({ name: 'CN=a', uris: [SERVER], dns: [], ip: [] })
  const client = await authority.issue({ name: 'CN=b', uris: [CLIENT], dns: [], ip: [] })
  const served = await serve(t, place, {
    ca,
    ...server,
    authorize: (peer) => asked.push(peer) > 0 && peer.spiffeId === CLIENT,
  })
  const { authorize: _, ...toServer } = served.toServer
  const pair = await join(t, { ...served, toServer: { ...toServer, ca, ...client, peerIdentity: SERVER } })
  t.is(pair.client.peer.spiffeId, SERVER)
  t.is(pair.accepted.peer.spiffeId, CLIENT)
  t.deepEqual(
    asked.map(({ spiffeId }) => spiffeId),
    [CLIENT],
  )
  // By name it is not to be had.
  await t.throwsAsync(connect({ ...toServer, ca, ...client }), { code: 'ERR_RDMA_TLS_NAME' })
})

deviceTest('what is not the X.509-SVID of the wanted server is refused', async (t, place) => {
  const { client, ...given } = await fixture()
  const authority = await given.authority()
  const cases: [string, string[], RegExp][] = [
    ['another', ['spiffe://example.org/other'], /is for spiffe:\/\/example\.org\/other and not for spiffe:/],
    ['two URIs', [SERVER, 'https://example.org/'], /is no X\.509-SVID/],
    ['none', [], /is no X\.509-SVID/],
  ]
  for (const [name, uris, message] of cases) {
    const served = await serve(t, place, { ca: authority.ca, ...(await authority.issue({ uris })) })
    const error = await t.throwsAsync(
      connect({ ...served.toServer, ...client, peerIdentity: SERVER }),
      { instanceOf: RdmaError, code: 'ERR_RDMA_TLS_NAME', message },
      name,
    )
    t.is(error.phase, 'tls')
  }
})

deviceTest('a pinned key vouches for no SPIFFE ID', async (t, place) => {
  const authority = await (await fixture()).authority()
  const client = await authority.issue({ uris: [CLIENT] })
  const { publicKey } = new X509Certificate(client.cert)
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  const pins = Buffer.from(await crypto.subtle.digest('SHA-256', spki)).toString('base64')
  const served = await serve(t, place)
  const pinning = await listen({ host: place.server, ...place.options?.server, pins, ...(await authority.issue()) })
  t.teardown(() => pinning.close())
  const port = pinning.address()?.port ?? 0
  const toServer = { ...served.toServer, ...client, port }
  const pair = await join(t, { server: pinning, toServer })
  t.is(pair.accepted.peer.spiffeId, undefined)
  t.deepEqual(pair.accepted.peer.names?.uris, [CLIENT], 'what it claims is there to see')
})

deviceTest('a server changes its certificate and whom it trusts while it runs', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const before = await join(t, { server, toServer })
  const next = await Authority.make('CN=Next Authority')
  const [renewed, client] = [await next.issue({ name: 'CN=renewed' }), await next.issue({ name: 'CN=new client' })]
  const context = { ca: next.ca, ...renewed }
  server.setSecureContext(context)

  // Who comes with the old certificate is a stranger now; live connections are not touched.
  const old = await t.throwsAsync(connect({ ...toServer, ca: next.ca }), { code: 'ERR_RDMA_TLS_ALERT' })
  t.regex(old.message, /unknown_ca/)
  await t.throwsAsync(connect({ ...toServer, ...client }), { code: 'ERR_RDMA_TLS_UNTRUSTED' })
  const after = await join(t, { server, toServer: { ...toServer, ...client, ca: next.ca } })
  t.is(after.client.peer.names?.subject, 'CN=renewed')
  t.is(after.accepted.handshake.ownCertificate?.subject, 'CN=renewed')
  await before.client.send(Buffer.from('still here'))
  t.is(String(await before.accepted.receive()), 'still here')

  // A key is revoked: newcomers are refused, and the connection that is up is for its owner to destroy.
  server.setSecureContext({ ...context, crl: await next.revoke([client]) })
  const revoked = { ...toServer, ...client, ca: next.ca }
  const refused = await t.throwsAsync(connect(revoked), { code: 'ERR_RDMA_TLS_ALERT' })
  t.regex(refused.message, /certificate_revoked/)
  await after.client.send(Buffer.from('and here'))
  t.is(String(await after.accepted.receive()), 'and here')
  t.is(new X509Certificate(after.accepted.peer.certificates[0] ?? '').serialNumber, serialOf(client))
  await until('the server has counted', () => server.stats().failed === 3)
  const { failed, established, failures } = server.stats()
  t.is(established, 2)
  t.deepEqual(failures, { ERR_RDMA_TLS_UNTRUSTED: 1, ERR_RDMA_TLS_ALERT: 1, ERR_RDMA_TLS_REVOKED: 1 })
  t.is(failed, 3)
})

deviceTest('a bad secure context is refused, and the server goes on as it was', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const { server: good, client, ...given } = await fixture()
  const authority = await given.authority()
  const unusable = { code: 'ERR_RDMA_TLS_CONFIG', instanceOf: RdmaError }
  t.throws(() => {
    server.setSecureContext({ ...good, key: client.key })
  }, unusable)
  t.throws(() => {
    server.setSecureContext({ ...good, ca: 'nothing' })
  }, unusable)
  t.throws(() => {
    server.setSecureContext({ ...good, crl: Buffer.from([1]) })
  }, unusable)
  const mistakes: object[] = [
    { ...good, key: undefined },
    { ca: good.ca },
    { cert: good.cert, key: good.key },
    { ...good, requestCert: false },
    { ...good, keyLogFile: '/tmp/keys' },
    { ...good, authorize: () => true },
    { ...good, passphrase: 'a' },
    { ...good, crl: 5 },
    { cert: good.cert, key: good.key, pins: ['abc'] },
    { cert: good.cert, key: good.key, crl: await authority.revoke([]) },
  ]
  for (const mistake of mistakes) {
    const error = t.throws(() => {
      server.setSecureContext(mistake)
    })
    t.true(error instanceof TypeError, String(error))
    t.false(error.message.includes(good.key.slice(40, 60)))
  }
  await join(t, { server, toServer })
  t.deepEqual(server.stats().failures, {})
})

deviceTest('that clients must show a certificate is no part of the secure context', async (t, place) => {
  const { server: identity, client } = await fixture()
  const { cert, key, ca } = identity
  const server = await listen({ host: place.server, ...place.options?.server, cert, key, requestCert: false })
  t.teardown(() => server.close())
  const toServer = {
    host: place.server,
    port: server.address()?.port ?? 0,
    localAddress: place.client,
    ...place.options?.client,
    ca: client.ca,
  }
  t.throws(
    () => {
      server.setSecureContext({ ca, cert, key })
    },
    { message: /options\.ca has no effect with requestCert: false/ },
  )
  server.setSecureContext({ cert, key })
  const { accepted } = await join(t, { server, toServer })
  t.is(accepted.peer.names, undefined)
  await server.close()
  t.throws(
    () => {
      server.setSecureContext({ cert, key })
    },
    { code: 'ERR_RDMA_SERVER_CLOSED' },
  )
})

test('identities that cannot be are refused by name', async (t) => {
  const { client } = await fixture()
  const call = (options: object): Promise<unknown> => connect({ host: '127.0.0.1', port: 1, ...client, ...options })
  const bad = ['', 'a', 'spiffe://a', 'spiffe://a/', 'spiffe://A/b', 'SPIFFE://a/b', 'spiffe://a/b?c', 'spiffe://a:1/b']
  const long = ['spiffe://a/../b', 'spiffe://a//b', 'spiffe://a/%62', `spiffe://a/${'b'.repeat(2048)}`, 5]
  for (const peerIdentity of [...bad, ...long]) {
    await t.throwsAsync(call({ peerIdentity }), { name: 'TypeError', message: /^options\.peerIdentity must/ })
  }
  // As many characters as can be, and all kinds of them, get as far as TCP.
  const good = ['spiffe://a/b', 'spiffe://a-b_c.9/A.b/...', `spiffe://a/${'b'.repeat(2048 - 11)}`]
  for (const peerIdentity of good) await t.throwsAsync(call({ peerIdentity }), { code: 'ERR_RDMA_TCP' })
  const both = { peerIdentity: SERVER, servername: 'a' }
  await t.throwsAsync(call(both), { name: 'TypeError', message: /two identities/ })
  const pinned = { peerIdentity: SERVER, ca: undefined, pins: 'a'.repeat(64) }
  await t.throwsAsync(call(pinned), { name: 'TypeError', message: /needs options\.ca/ })
  await t.throwsAsync(listen({ ...client, peerIdentity: SERVER } as never), {
    name: 'TypeError',
    message: /authorize sees peer\.spiffeId/,
  })
})
