// Aborts at every phase of connect, accept, send and receive: an AbortError, everything is given back, nothing is lost.

import { createServer, type AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { connect, type Connection, type ConnectOptions, type Server } from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { cutTest, deviceTest, processTest } from './_device.js'
import { numbered, numberOf } from './_numbered.js'
import { join, serve, since, warmUp } from './_peers.js'
import { cut, unanswered } from './_wire.js'

/** Aborts, and checks what comes of it: promptly, and with the reason as cause. */
async function aborts(
  t: ExecutionContext,
  begin: (signal: AbortSignal) => Promise<unknown>,
  when: () => Promise<unknown> = () => sleep(200),
): Promise<void> {
  const controller = new AbortController()
  const reason = new Error('changed my mind')
  const attempt = begin(controller.signal)
  attempt.catch(() => undefined)
  await when()
  const began = performance.now()
  controller.abort(reason)
  const error = await t.throwsAsync(attempt, { name: 'AbortError', code: 'ABORT_ERR' })
  t.is(error.cause, reason)
  t.true(performance.now() - began < 500, since(began))
}

async function nothingPends(server: Server): Promise<void> {
  while (server.stats().pending > 0) await sleep(10)
}

/** Connects, past connections that had come up just before the other side was aborted; one message crosses. */
async function assertServes(t: ExecutionContext, server: Server, toServer: ConnectOptions): Promise<void> {
  const client = await connect(toServer)
  let accepted = await server.accept()
  while (accepted.handshake.tlsPeer.port !== client.handshake.tlsLocal.port) {
    await accepted.closed
    accepted = await server.accept()
  }
  await client.send(Buffer.from('well'))
  t.is(String(await accepted.receive()), 'well')
  await client.close()
}

deviceTest('connect: aborted before it starts, in tls, and in authorize of either side', async (t, place) => {
  let asked = 0
  const authorize = (): Promise<boolean> => new Promise(() => asked++)
  const { server, toServer } = await serve(t, place)
  const stern = await serve(t, place, { authorize })
  await warmUp({ server, toServer })
  const before = await census()

  const signal = AbortSignal.abort('too late')
  const error = await t.throwsAsync(connect({ ...toServer, signal }), { name: 'AbortError' })
  t.is(error.cause, 'too late')
  t.is(server.stats().tcpAccepted, 1, 'nobody was called')

  const mute = createServer((socket) => socket.on('error', () => undefined).resume()).listen(0, place.server)
  await new Promise((resolve) => mute.once('listening', resolve))
  const { port } = mute.address() as AddressInfo
  await aborts(t, (signal) => connect({ ...toServer, port, signal }))
  await new Promise((resolve) => mute.close(resolve))

  await aborts(
    t,
    (signal) => connect({ ...toServer, authorize, signal }),
    async () => {
      while (asked === 0) await sleep(10)
    },
  )
  await nothingPends(server)

  // The server asks; the client is in its exchange meanwhile, and its queue pair in INIT.
  asked = 0
  const { authorize: _, ...toStern } = stern.toServer
  await aborts(
    t,
    (signal) => connect({ ...toStern, signal }),
    async () => {
      while (asked === 0) await sleep(10)
      await sleep(100)
    },
  )
  // Who authorizes is not interrupted: the deadline ends it, or the server.
  await stern.server.close()
  await assertAsBefore(t, { ...before, 'fd socket': (before['fd socket'] ?? 0) - 1 })
  await assertServes(t, server, toServer)
})

processTest('connect: aborted while TCP is not answered', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  await warmUp({ server, toServer })
  const port = await unanswered(t, place)
  const before = await census()
  await aborts(t, (signal) => connect({ ...toServer, port, signal }))
  await assertAsBefore(t, before)
  await assertServes(t, server, toServer)
})

cutTest('connect: aborted while the path is not proven', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  await warmUp({ server, toServer })
  const before = await census()
  const dropping = cut(t)
  await aborts(
    t,
    (signal) => connect({ ...toServer, signal }),
    async () => {
      while (dropping.packets() === 0) await sleep(20)
    },
  )
  await nothingPends(server)
  dropping.stop()
  await assertAsBefore(t, before)
  await assertServes(t, server, toServer)
})

/** Numbers that look random and are the same each time: xorshift32. */
function* random(seed: number): Generator<number, never> {
  for (let x = seed; ;) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    yield (x >>> 0) / 2 ** 32
  }
}

deviceTest('connect: 120 aborts at random times leave nothing, and the server well', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  await warmUp({ server, toServer })
  const before = await census()
  const totals: number[] = []
  for (let i = 0; i < 3; i++) {
    const { client } = await join(t, { server, toServer })
    totals.push(client.handshake.total)
    await client.close()
  }
  // As long as an honest connect takes, at the least.
  const longest = Math.min(...totals)
  const began = performance.now()
  const accepted: Connection[] = []
  const accepting = (async () => {
    for await (const connection of server) accepted.push(connection)
  })()
  const outcomes = { aborted: 0, connected: 0 }
  const numbers = random(20_251_123)
  for (let round = 0; round < 120; round++) {
    const controller = new AbortController()
    const attempt = connect({ ...toServer, signal: controller.signal })
    attempt.catch(() => undefined)
    await sleep(numbers.next().value * longest)
    controller.abort()
    try {
      const client = await attempt
      client.destroy()
      outcomes.connected++
    } catch (error) {
      t.is((error as Error).name, 'AbortError', String(error))
      outcomes.aborted++
    }
  }
  await nothingPends(server)
  await Promise.all(accepted.map(({ closed }) => closed))
  t.log(JSON.stringify(outcomes), `in ${since(began)};`, `${accepted.length} came up on the server's side`)
  t.true(outcomes.aborted >= 60, 'many were aborted')
  t.is(server.connections, 0)
  await assertAsBefore(t, before, 10_000)
  const client = await connect(toServer)
  await client.close()
  await server.close()
  await accepting
})

deviceTest('accept: an aborted wait takes no connection, wherever it stands', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const controllers = Array.from({ length: 6 }, () => new AbortController())
  const waits = controllers.map(({ signal }) => server.accept({ signal }))
  for (const wait of waits) wait.catch(() => undefined)
  controllers[0]?.abort()
  controllers[3]?.abort()
  const clients = await Promise.all(Array.from({ length: 3 }, () => connect(toServer)))
  const accepted = await Promise.all([waits[1], waits[2], waits[4]])
  controllers[5]?.abort()
  for (const at of [0, 3, 5]) await t.throwsAsync(waits[at] as Promise<unknown>, { name: 'AbortError' })
  const ports = (all: (Connection | undefined)[], end: 'tlsLocal' | 'tlsPeer'): unknown[] =>
    all.map((connection) => connection?.handshake[end].port).sort()
  t.deepEqual(ports(accepted, 'tlsPeer'), ports(clients, 'tlsLocal'))
  for (const client of clients) await client.close()
  await assertServes(t, server, toServer)
})

deviceTest('send and receive: aborts at random times lose and double nothing', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { receiveBufferSize: 100_000 }))
  const numbers = random(4791)
  const count = 400
  const received: number[] = []
  let abortedReceives = 0
  const receiving = (async () => {
    for (;;) {
      const signal = AbortSignal.timeout(1 + Math.floor(numbers.next().value * 4))
      try {
        const message = await accepted.receive({ signal })
        if (message === null) return
        received.push(numberOf(message))
        // Sends wait, and are withdrawn.
        if (received.length % 30 === 0) await sleep(150)
      } catch (error) {
        t.is((error as Error).name, 'AbortError')
        abortedReceives++
      }
    }
  })()
  const withdrawn = new Set<number>()
  const begun = new Set<number>()
  const sends: Promise<void>[] = []
  for (let i = 0; i < count; i++) {
    const signal = i % 3 === 0 ? AbortSignal.timeout(Math.floor(numbers.next().value * 20)) : undefined
    const send = client.send(numbered(i), { signal }).catch((error: unknown) => {
      t.is((error as Error).name, 'AbortError')
      const isWithdrawn = (error as Error).message.includes('was not sent')
      if (isWithdrawn) withdrawn.add(i)
      else begun.add(i)
    })
    sends.push(send)
    if (i % 8 === 0) await sleep(1)
    // Receives wait, and are aborted.
    if (i % 100 === 99) await Promise.all([...sends, sleep(400)])
  }
  await Promise.all(sends)
  await client.end()
  await receiving
  t.log(`${abortedReceives} receives aborted; of ${count} sends ${withdrawn.size} withdrawn, ${begun.size} begun`)
  t.true(abortedReceives > 0 && withdrawn.size > 0)
  const expected = Array.from({ length: count }, (_, i) => i).filter((i) => !withdrawn.has(i))
  t.deepEqual(received, expected, 'what was not withdrawn arrives, once and in order')
  await client.close()
})
