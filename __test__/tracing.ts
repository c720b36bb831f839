// What subscribers of node:diagnostics_channel are told, and what it costs where there are none.

import { subscribe, tracingChannel, unsubscribe } from 'node:diagnostics_channel'
import { inspect } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { allocate, connect, listen } from 'secure-rdma'
import { fixture } from './_certificates.js'
import { deviceTest } from './_device.js'
import { join, listening, serve, until } from './_peers.js'

interface Told {
  event: string
  trace: Record<string, unknown>
}

/** Everything that is told on a channel while the test runs. */
function listenTo(t: ExecutionContext, name: string): Told[] {
  const told: Told[] = []
  const note =
    (event: string) =>
    (trace: object): void => {
      told.push({ event, trace: { ...trace } })
    }
  const handlers = {
    start: note('start'),
    end: note('end'),
    asyncStart: note('asyncStart'),
    asyncEnd: note('asyncEnd'),
    error: note('error'),
  }
  const channel = tracingChannel(name)
  channel.subscribe(handlers)
  t.teardown(() => {
    channel.unsubscribe(handlers)
  })
  return told
}

const events = (told: Told[]): string[] => told.map(({ event }) => event)
const WELL = ['start', 'end', 'asyncStart', 'asyncEnd']
const BADLY = ['start', 'end', 'error', 'asyncStart', 'asyncEnd']

deviceTest('connect and accept are traced', async (t, place) => {
  const [connects, accepts] = [listenTo(t, 'secure-rdma:connect'), listenTo(t, 'secure-rdma:accept')]
  const served = await serve(t, place)
  const { server, client, accepted, toServer } = await join(t, served)
  t.deepEqual([events(connects), events(accepts)], [WELL, WELL])
  t.deepEqual(connects[0]?.trace, { host: toServer.host, port: toServer.port })
  t.is(connects[3]?.trace['result'], client)
  t.deepEqual(accepts[0]?.trace, { server })
  t.is(accepts[3]?.trace['result'], accepted)

  await server.close()
  accepts.length = 0
  await t.throwsAsync(server.accept())
  for await (const _ of server) t.fail()
  // The iteration has ended without an error, and `accept` has found no connection.
  t.deepEqual(events(accepts), [...WELL, ...WELL])
  t.is(accepts[2]?.trace['result'], null)
})

test('a connect that fails is traced with its error, and without what it was given', async (t) => {
  const told = listenTo(t, 'secure-rdma:connect')
  const { client } = await fixture()
  const error = await t.throwsAsync(connect({ host: '127.0.0.1', port: 1, ...client }))
  t.deepEqual(events(told), BADLY)
  t.is(told[2]?.trace['error'], error)
  t.deepEqual(Object.keys(told[4]?.trace ?? {}).sort(), ['error', 'host', 'port'])
  t.false(inspect(told, { depth: 9, showHidden: true, getters: true }).includes(client.key.slice(40, 60)))
  // What is wrong with the arguments is a mistake of the program, and not traced.
  await t.throwsAsync(connect({} as never))
  t.is(told.length, 5)
})

deviceTest('send and receive are traced, with lengths and without bytes', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [sends, receives] = [listenTo(t, 'secure-rdma:send'), listenTo(t, 'secure-rdma:receive')]
  const secret = Buffer.from('the message itself')
  await Promise.all([client.send(secret), accepted.receive()])
  t.deepEqual([events(sends), events(receives)], [WELL, WELL])
  t.deepEqual(sends[0]?.trace, { connection: client, byteLength: secret.length })
  t.deepEqual([receives[0]?.trace['byteLength'], receives[3]?.trace['byteLength']], [undefined, secret.length])
  t.is(receives[0]?.trace['connection'], accepted)
  t.deepEqual(sends[3]?.trace, { connection: client, byteLength: secret.length, result: undefined })
  t.deepEqual(receives[3]?.trace, { connection: accepted, byteLength: secret.length, result: undefined })

  await client.end()
  t.is(await accepted.receive(), null)
  t.is(receives.at(-1)?.trace['byteLength'], null)
  sends.length = receives.length = 0
  const refused = await t.throwsAsync(client.send(secret))
  t.deepEqual(events(sends), BADLY)
  t.is(sends[2]?.trace['error'], refused)
  const aborted = await t.throwsAsync(accepted.receive({ signal: AbortSignal.abort() }))
  t.deepEqual(events(receives), BADLY)
  t.is(receives[2]?.trace['error'], aborted)
})

deviceTest('operations are traced, with lengths and the name of the region, and without bytes', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  await accepted.publish('inbox', await allocate(4096), { access: ['read', 'write', 'atomic'] })
  const [inbox, own] = [await client.remote('inbox'), await allocate(4096)]
  const told = listenTo(t, 'secure-rdma:operation')
  const secret = Buffer.from('the bytes themselves')
  const rows = [
    [() => client.write(secret, inbox), { operation: 'write', region: 'inbox', byteLength: secret.length }],
    [() => client.read(inbox, own), { operation: 'read', region: 'inbox', byteLength: 4096 }],
    [() => client.fetchAndAdd(inbox, 1n), { operation: 'fetchAndAdd', region: 'inbox', byteLength: 8 }],
    [() => client.compareAndSwap(inbox, 0n, 1n), { operation: 'compareAndSwap', region: 'inbox', byteLength: 8 }],
    [() => client.batch().write(secret, inbox).read(inbox, own).post(), { operation: 'batch' }],
  ] as const
  for (const [work, trace] of rows) {
    told.length = 0
    await work()
    t.deepEqual(events(told), WELL, trace.operation)
    t.deepEqual(told[0]?.trace, { connection: client, ...trace })
    t.deepEqual(told.at(-1)?.trace, { connection: client, ...trace, result: undefined })
  }

  await accepted.unpublish('inbox')
  told.length = 0
  const revoked = await t.throwsAsync(client.write(secret, inbox), { code: 'ERR_RDMA_REGION_REVOKED' })
  t.deepEqual(events(told), BADLY)
  t.is(told[2]?.trace['error'], revoked)
})

deviceTest('the channels of servers and clients tell what came up, and what did not', async (t, place) => {
  const told: Record<string, unknown[]> = {}
  const names = ['server:accepted', 'server:handshake-failed', 'client:connected', 'client:connect-failed']
  for (const name of names) {
    const note = (message: unknown): void => void (told[name] ??= []).push(message)
    subscribe(`secure-rdma:${name}`, note)
    t.teardown(() => unsubscribe(`secure-rdma:${name}`, note))
  }
  const served = await serve(t, place)
  const { server, client, accepted, toServer } = await join(t, served)
  const { cert: _, key: __, ...anonymous } = toServer
  const error = await t.throwsAsync(connect(anonymous))
  // The server tells its side when it knows, which may be after the client does.
  await until('the server has told', () => told['server:handshake-failed'] !== undefined)
  t.deepEqual(told['server:accepted'], [{ server, connection: accepted }])
  t.deepEqual(told['client:connected'], [{ connection: client }])
  const { host, port } = toServer
  t.deepEqual(told['client:connect-failed'], [{ host, port, error }])
  const [failure] = told['server:handshake-failed'] as [{ error: Error; peer: object }]
  t.like(failure, { server, error: { code: 'ERR_RDMA_TLS_NO_CERTIFICATE' }, peer: { address: place.client } })
})

deviceTest('where nobody subscribes nothing is made for tracing', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const names = ['connect', 'accept', 'send', 'receive', 'operation'] as const
  t.true(names.every((name) => !tracingChannel(`secure-rdma:${name}`).hasSubscribers))
  // tracePromise is what makes a trace; nobody may call it.
  const prototype = Object.getPrototypeOf(tracingChannel('secure-rdma:send')) as { tracePromise: unknown }
  const real = prototype.tracePromise
  let calls = 0
  prototype.tracePromise = function (this: unknown, ...values: unknown[]): unknown {
    calls++
    return Reflect.apply(real as (...values: unknown[]) => unknown, this, values)
  }
  t.teardown(() => {
    prototype.tracePromise = real
  })
  await accepted.publish('inbox', await allocate(8), { access: 'write' })
  const inbox = await client.remote('inbox')
  await Promise.all([client.send(Buffer.from('a')), accepted.receive(), client.write(Buffer.from('a'), inbox)])
  t.is(calls, 0)
  listenTo(t, 'secure-rdma:send')
  await client.send(Buffer.from('b'))
  t.is(calls, 1, 'the control')
})

deviceTest('a server counts failed handshakes by their code', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  t.deepEqual(server.stats().failures, {})
  const { cert: _, key: __, ...anonymous } = toServer
  for (let i = 0; i < 3; i++) await t.throwsAsync(connect(anonymous))
  const stranger = await listen({ ...(await listening(place)), authorize: () => false })
  t.teardown(() => stranger.close())
  await t.throwsAsync(connect({ ...toServer, port: stranger.address()?.port ?? 0 }))
  await until('the servers have counted', () => server.stats().failed === 3 && stranger.stats().failed === 1)
  t.deepEqual(server.stats().failures, { ERR_RDMA_TLS_NO_CERTIFICATE: 3 })
  t.deepEqual(stranger.stats().failures, { ERR_RDMA_UNAUTHORIZED: 1 })
})
