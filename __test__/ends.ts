// Ends: twice, in the middle, at once from both sides, and what is done after. Every promise settles, and as it should.
// What connection.ts shows already (an orderly close, end(), destroy(), break) is not shown again.

import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { connect, type Connection, type RdmaError } from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { deviceTest, type DeviceTest } from './_device.js'
import { numbered, numberOf, receiveNumbered, sendNumbered } from './_numbered.js'
import { join, serve, warmUp } from './_peers.js'

/** A test at whose end every rejection has been handled, and everything is given back. */
function endTest(title: string, implementation: DeviceTest): void {
  deviceTest(title, async (t, place) => {
    const unhandled: unknown[] = []
    const listener = (reason: unknown): void => void unhandled.push(reason)
    process.on('unhandledRejection', listener)
    try {
      await implementation(t, place)
      // They are told when the microtasks are done.
      await sleep(20)
    } finally {
      process.off('unhandledRejection', listener)
    }
    t.deepEqual(unhandled, [])
  })
}

async function reasons(...connections: Connection[]): Promise<string[]> {
  return Promise.all(connections.map(async ({ closed }) => (await closed).reason))
}

endTest('close() twice, and from both sides at once, is one orderly close', async (t, place) => {
  const served = await serve(t, place)
  await warmUp(served)
  const before = await census()
  const { client, accepted } = await join(t, served)
  await Promise.all([client.send(numbered(1)), accepted.send(numbered(2))])
  await Promise.all([client.close(), client.close(), accepted.close(), accepted.close()])
  // Who is told of the other's close before its own has been said was closed by the peer.
  for (const reason of await reasons(client, accepted)) t.regex(reason, /^(closed|peerClosed)$/)
  await Promise.all([client.close(), accepted.close()])
  t.is(numberOf(await client.receive()), 2)
  t.is(numberOf(await accepted.receive()), 1)
  t.is(await client.receive(), null)
  t.is(await accepted.receive(), null)
  await assertAsBefore(t, before)
})

endTest('destroy() takes anything as its reason', async (t, place) => {
  const served = await serve(t, place)
  for (const reason of ['text', Symbol('a'), 5, {}, Object.create(null) as object]) {
    const { client } = await join(t, served)
    client.destroy(reason as Error)
    const { error } = await client.closed
    t.like(error, { name: 'RdmaError', code: 'ERR_RDMA_DESTROYED' })
    t.is(error?.cause, reason)
  }
  const { client } = await join(t, served)
  client.destroy(null as never)
  t.deepEqual(await client.closed, { reason: 'destroyed' })
})

endTest('close() during sends lets them arrive', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const count = 100
  const sends = Array.from({ length: count }, (_, i) => client.send(numbered(i)))
  const reading = receiveNumbered(accepted)
  const closing = client.close()
  // Where all has arrived by now, it is over already.
  const late = await t.throwsAsync<RdmaError>(client.send(numbered(0)))
  t.regex(late.code, /^ERR_RDMA_(ENDED|CLOSED)$/)
  await Promise.all([...sends, closing])
  t.deepEqual(await reasons(client, accepted), ['closed', 'peerClosed'])
  t.is(await reading, count)
})

endTest('of two that close at once, none claims that more has arrived than has', async (t, place) => {
  const served = await serve(t, place)
  const outcomes: string[] = []
  for (let round = 0; round < 20; round++) {
    const { client, accepted } = await join(t, served)
    const count = 5 + round * 3
    const ends = [client, accepted].map(async (connection, at) => {
      const sends = Promise.allSettled(Array.from({ length: count }, (_, i) => connection.send(numbered(i))))
      const peer = receiveNumbered(at === 0 ? accepted : client)
      const isWhole = await connection.close().then(
        () => true,
        (error: unknown) => (error as { code: unknown }).code,
      )
      const acknowledged = (await sends).filter(({ status }) => status === 'fulfilled').length
      const { reason } = await connection.closed
      // What came behind the peer's close was refused, and not sent.
      const sent = connection.stats().messagesSent
      return { reason, isWhole, sent, acknowledged, arrived: await peer }
    })
    for (const { reason, isWhole, sent, acknowledged, arrived } of await Promise.all(ends)) {
      outcomes.push(reason)
      t.true(arrived >= acknowledged, 'what was acknowledged can be read')
      t.is(
        isWhole,
        acknowledged === sent ? true : 'ERR_RDMA_CLOSED',
        'close() fulfils if all that was sent has arrived',
      )
      if (reason === 'closed') t.is(acknowledged, count, 'closed: all of it has arrived')
      else t.is(reason, 'peerClosed')
    }
  }
  t.log(`${outcomes.filter((reason) => reason === 'closed').length} of ${outcomes.length} closed first`)
})

endTest('close() with a peer that does not read ends by its deadline, and says so', async (t, place) => {
  const served = await serve(t, place, { receiveBufferSize: 10_000, closeTimeout: 1500 })
  const { client, accepted } = await join(t, served)
  const sends = Promise.allSettled(Array.from({ length: 200 }, (_, i) => client.send(numbered(i))))
  const began = performance.now()
  await t.throwsAsync(client.close(), { name: 'RdmaError', code: 'ERR_RDMA_CLOSE_TIMEOUT' })
  const took = performance.now() - began
  t.true(took > 1400 && took < 4000, `${took} ms`)
  const settled = (await sends).map(({ status }) => status)
  t.true(settled.includes('fulfilled'), 'what had arrived was acknowledged')
  t.is(settled.at(-1), 'rejected')
  t.is(settled.indexOf('rejected'), settled.lastIndexOf('fulfilled') + 1, 'in order')
  const { reason } = await accepted.closed
  t.is(reason, 'error')
  // What had arrived is still there, then the error.
  let index = 0
  const drained = (async () => {
    for await (const message of accepted) t.is(numberOf(message), index++)
  })()
  await t.throwsAsync(drained, { name: 'RdmaError' })
  t.true(index > 0)
})

endTest('destroy() twice, after close(), and after the end', async (t, place) => {
  const served = await serve(t, place)
  const [first, second] = [await join(t, served), await join(t, served)]
  const why = new Error('first')
  first.client.destroy(why)
  first.client.destroy(new Error('second'))
  t.deepEqual(await first.client.closed, { reason: 'destroyed', error: why })
  await first.client.close()
  first.accepted.destroy()
  first.accepted.destroy()

  const sends = Array.from({ length: 100 }, () => second.client.send(Buffer.alloc(50_000)))
  const settled = Promise.allSettled(sends)
  const closing = second.client.close()
  closing.catch(() => undefined)
  second.client.destroy()
  await t.throwsAsync(closing, { name: 'RdmaError', code: 'ERR_RDMA_DESTROYED' })
  t.is((await second.client.closed).reason, 'destroyed')
  t.is((await settled).at(-1)?.status, 'rejected')
  t.is((await second.accepted.closed).reason, 'error')
})

/** What a method gives after the end: the code of its error, `null`, or nothing. */
async function outcome(begin: () => Promise<unknown>): Promise<unknown> {
  try {
    return await begin()
  } catch (error) {
    return (error as { code: unknown }).code
  }
}

const operations: Record<string, (connection: Connection) => Promise<unknown>> = {
  send: (connection) => connection.send(numbered(1)),
  receive: (connection) => connection.receive(),
  end: (connection) => connection.end(),
  close: (connection) => connection.close(),
  iterate: async (connection) => {
    for await (const _ of connection) return 'a message'
    return null
  },
}

async function after(connection: Connection): Promise<unknown> {
  const entries = Object.entries(operations).map(async ([name, begin]) => [
    name,
    await outcome(() => begin(connection)),
  ])
  return Object.fromEntries((await Promise.all(entries)) as [string, unknown][])
}

endTest('every operation after the end says which end it was', async (t, place) => {
  const served = await serve(t, place)
  const [closed, destroyed] = [await join(t, served), await join(t, served)]
  await closed.client.close()
  await closed.accepted.closed
  const orderly = { send: 'ERR_RDMA_CLOSED', receive: null, end: 'ERR_RDMA_CLOSED', close: undefined, iterate: null }
  t.deepEqual(await after(closed.client), orderly)
  t.deepEqual(await after(closed.accepted), orderly)

  destroyed.client.destroy()
  await destroyed.accepted.closed
  const all = (code: string): unknown => ({ send: code, receive: code, end: code, close: undefined, iterate: code })
  t.deepEqual(await after(destroyed.client), all('ERR_RDMA_DESTROYED'))
  t.deepEqual(await after(destroyed.accepted), all('ERR_RDMA_PEER_LOST'))
  // What only looks goes on working.
  for (const { client } of [closed, destroyed]) {
    t.is(client.ref().unref(), client)
    t.is(client.peer.names?.commonName, 'server.test')
    // What was posted last is flushed in the device's own time.
    for (let tries = 0; tries < 100 && client.stats().workInFlight > 0; tries++) await sleep(10)
    t.is(client.stats().workInFlight, 0)
  }
})

endTest('half-closed on both sides: all arrives, and it still wants closing', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const stop = AbortSignal.timeout(300)
  const both = [sendNumbered(client, stop), sendNumbered(accepted, stop)]
  const received = await Promise.all([receiveNumbered(accepted), receiveNumbered(client)])
  t.deepEqual(received, await Promise.all(both))
  await Promise.all([client.end(), accepted.end()])
  t.is(await Promise.race([client.closed, accepted.closed, sleep(1500, 'open')]), 'open')
  await client.close()
  t.deepEqual(await reasons(client, accepted), ['closed', 'peerClosed'])
})

endTest('nobody needs to listen: rejections of a dead connection reach only who asked', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  accepted.destroy()
  t.is((await client.closed).reason, 'error')
  await t.throwsAsync(client.receive(), { code: 'ERR_RDMA_PEER_LOST' })
})

endTest('connections that nobody accepted end with their server; those that were accepted do not', async (t, place) => {
  const served = await serve(t, place)
  const { client, accepted } = await join(t, served)
  const waiting = await connect(served.toServer)
  await served.server.close()
  await served.server.close()
  t.is((await waiting.closed).reason, 'error')
  await client.send(numbered(7))
  t.is(numberOf(await accepted.receive()), 7)
  await assertAlive(t, client, accepted)
})

async function assertAlive(t: ExecutionContext, client: Connection, accepted: Connection): Promise<void> {
  await accepted.send(numbered(8))
  t.is(numberOf(await client.receive()), 8)
  await client.close()
  t.deepEqual(await reasons(client, accepted), ['closed', 'peerClosed'])
}
