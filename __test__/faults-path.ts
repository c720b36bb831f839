// Faults of the path: RDMA's packets are lost where TCP's are not, from the start, later, or for a while.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { connect, type Connection, type RdmaError, type Server } from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { cutTest, ownsWire } from './_device.js'
import { receiveNumbered, sendNumbered } from './_numbered.js'
import { join, serve, since, warmUp, type Served } from './_peers.js'
import { cut } from './_wire.js'

/** A handshake that failed, as a server tells it. */
interface Failure {
  server: Server
  error: RdmaError
  peer: { address: string; port: number }
}

function failures(t: ExecutionContext): Failure[] {
  const told: Failure[] = []
  const listener = (message: unknown): void => void told.push(message as Failure)
  subscribe('secure-rdma:server:handshake-failed', listener)
  t.teardown(() => unsubscribe('secure-rdma:server:handshake-failed', listener))
  return told
}

/** Connecting fails while longer packets are dropped, both sides say why, and all is well when they pass again. */
async function failsWhile(t: ExecutionContext, { server, toServer }: Served, longerThan = 0): Promise<void> {
  await warmUp({ server, toServer })
  const told = failures(t)
  const before = await census()
  const accepting = server.accept()
  const dropping = cut(t, longerThan)

  // The embedded device has the port of RoCE v2 only where it was free.
  const port = ownsWire ? 'port 4791' : 'UDP port '
  const names = [toServer.host, toServer.localAddress, port, '4096']
  const began = performance.now()
  const error = await t.throwsAsync<RdmaError>(connect(toServer), { code: 'ERR_RDMA_PATH' })
  t.log(`the client, after ${since(began)}: ${error.message}`)
  t.true(dropping.packets() > 0, 'the filter has met packets')
  t.is(error.phase, 'path')
  for (const name of names) t.true(error.message.includes(name), `the client's error names ${name}`)

  while (told.length === 0) await sleep(20)
  const [failure] = told
  t.log(`the server, after ${since(began)}: ${failure?.error.code} ${failure?.error.message}`)
  t.like(failure, { server, error: { code: 'ERR_RDMA_PATH' }, peer: { address: toServer.localAddress } })
  for (const name of names) t.true(failure?.error.message.includes(name), `the server's error names ${name}`)
  t.is(server.stats().failed, 1)
  await assertAsBefore(t, before)

  // accept() has not rejected: it still waits, and gets the next one.
  dropping.stop()
  const [client, accepted] = await Promise.all([connect(toServer), accepting])
  await client.send(Buffer.from('through'))
  t.is(String(await accepted.receive()), 'through')
  await client.close()
}

cutTest('UDP that is dropped from the start fails connect and not accept', async (t, place) => {
  await failsWhile(t, await serve(t, place))
})

cutTest('a path for small packets only fails connect, unless a smaller path MTU is asked for', async (t, place) => {
  const served = await serve(t, place)
  await failsWhile(t, served, 1500)
  const dropping = cut(t, 1500)
  const client = await connect({ ...served.toServer, maxPathMtu: 1024 })
  t.is(client.handshake.pathMtu, 1024)
  t.is(dropping.packets(), 0)
  await client.close()
})

/** How long it took until a connection was over, and how it ended. */
async function ending(connection: Connection, began: number): Promise<{ after: number; code: string }> {
  const { reason, error } = await connection.closed
  return { after: performance.now() - began, code: `${reason} ${(error as RdmaError | undefined)?.code ?? ''}` }
}

cutTest('a cut while both sides only wait ends both within 5 s', async (t, place) => {
  const served = await serve(t, place)
  await warmUp(served)
  const before = await census()
  const { client, accepted } = await join(t, served)
  const receives = [client.receive(), accepted.receive()]
  for (const receive of receives) receive.catch(() => undefined)
  // Positive control: nothing ends by itself, and the idle path is proven all the while.
  await sleep(2500)
  t.true(client.stats().pathProbes > 0 && accepted.stats().pathProbes > 0)

  const began = performance.now()
  const dropping = cut(t)
  const ends = await Promise.all([ending(client, began), ending(accepted, began)])
  for (const [name, { after, code }] of Object.entries({ client: ends[0], server: ends[1] })) {
    t.log(`the ${name}'s connection ended after ${(after / 1000).toFixed(2)} s: ${code}`)
    t.true(after < 5000, `the ${name} noticed within 5 s`)
    t.regex(code, /^error ERR_RDMA_(PATH|PEER_LOST)$/)
  }
  t.true(
    ends.some(({ code }) => code === 'error ERR_RDMA_PATH'),
    'one side says that it was the path',
  )
  for (const receive of receives) await t.throwsAsync(receive, { name: 'RdmaError' })
  t.true(dropping.packets() > 0)
  await assertAsBefore(t, before)
})

cutTest('a blackhole of 2 s under load loses nothing', async (t, place) => {
  const served = await serve(t, place)
  const { client, accepted } = await join(t, served)
  const stop = new AbortController()
  const received = [receiveNumbered(client), receiveNumbered(accepted)]
  const sent = [sendNumbered(accepted, stop.signal), sendNumbered(client, stop.signal)]
  await sleep(1000)
  const dropping = cut(t)
  await sleep(200)
  const before = accepted.stats().messagesReceived
  await sleep(1800)
  const after = accepted.stats().messagesReceived
  dropping.stop()
  t.is(after, before, 'nothing got through meanwhile')
  const began = performance.now()
  while (accepted.stats().messagesReceived === after) await sleep(10)
  t.log(`the first message after the blackhole came ${since(began)} later`)
  await sleep(1000)
  stop.abort()
  const counts = await Promise.all(sent)
  t.log(`${counts.join(' and ')} messages`)
  t.deepEqual(await Promise.all(received), counts)
  t.true(counts.every((count) => count > 50))
  await client.close()
})
