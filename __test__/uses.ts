// What may be called when: every method in every state answers, with a value or a typed error, as often as it is called; and
// ends may be called from within every callback. Reliability §F.5 #43.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { inspect } from 'node:util'
import { allocate, connect, RdmaError, type Connection } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { join, serve, until, type Pair } from './_peers.js'

/** How a connection comes into a state. */
const states: Record<string, (pair: Pair) => Promise<void>> = {
  open: () => Promise.resolve(),
  ended: ({ client }) => client.end(),
  'peer ended': async ({ client, accepted }) => {
    await accepted.end()
    expectNull(await client.receive())
  },
  'both ended': async ({ client, accepted }) => {
    await Promise.all([client.end(), accepted.end()])
  },
  closed: ({ client }) => client.close(),
  'peer closed': async ({ client, accepted }) => {
    await accepted.close()
    await client.closed
  },
  destroyed: ({ client }) => {
    client.destroy()
    return Promise.resolve()
  },
  'destroyed with an error': ({ client }) => {
    client.destroy(new Error('by the test'))
    return Promise.resolve()
  },
  failed: async ({ client, accepted }) => {
    accepted.destroy()
    await client.closed
  },
}

function expectNull(value: unknown): void {
  if (value !== null) throw new Error(`${inspect(value)} came where nothing should`)
}

/** Every method, with what it gives where it may fulfil. */
const uses: Record<string, (connection: Connection) => unknown> = {
  peer: (connection) => connection.peer,
  device: (connection) => connection.device,
  handshake: (connection) => connection.handshake,
  stats: (connection) => connection.stats(),
  inspect: (connection) => inspect(connection),
  ref: (connection) => connection.unref().ref(),
  send: (connection) => connection.send(Buffer.from('late')),
  'send nothing': (connection) => connection.send(new Uint8Array(0)),
  end: (connection) => connection.end(),
  'aborted receive': (connection) => connection.receive({ signal: AbortSignal.abort() }),
  readable: (connection) => connection.readable.locked,
  writable: (connection) => connection.writable.locked,
  close: (connection) => connection.close(),
  receive: (connection) => connection.receive(),
  iterate: (connection) => connection[Symbol.asyncIterator]().next(),
  dispose: (connection) => connection[Symbol.asyncDispose](),
  'send a batch': (connection) => connection.sendBatch([Buffer.from('late'), Buffer.from('too late')]),
  'post a batch': (connection) => connection.batch().send(Buffer.from('late')).post(),
  'receive a batch': (connection) => connection.receiveBatch(),
  'receive an immediate': (connection) => connection.receiveImmediate(),
  publish: async (connection) => connection.publish('late', await allocate(8), { access: 'read' }),
  remote: (connection) => connection.remote('never'),
  unpublish: (connection) => connection.unpublish('never'),
  destroy: (connection) => {
    connection.destroy(new Error('again'))
  },
  closed: (connection) => connection.closed,
  toDuplex: (connection) => connection.toDuplex().on('error', () => undefined).destroyed,
}

/** The codes of what is refused for the state that a connection is in. */
const EXPECTED: Record<string, Record<string, string>> = {
  open: { send: 'ok', end: 'ok', close: 'ok', receive: 'ok' },
  ended: { send: 'ERR_RDMA_ENDED', end: 'ok', close: 'ok', receive: 'ok' },
  'peer ended': { send: 'ok', end: 'ok', close: 'ok', receive: 'ok' },
  'both ended': { send: 'ERR_RDMA_ENDED', end: 'ok', close: 'ok', receive: 'ok' },
  closed: { send: 'ERR_RDMA_CLOSED', end: 'ERR_RDMA_CLOSED', close: 'ok', receive: 'ok' },
  'peer closed': { send: 'ERR_RDMA_CLOSED', end: 'ERR_RDMA_CLOSED', close: 'ok', receive: 'ok' },
  destroyed: { send: 'ERR_RDMA_DESTROYED', end: 'ERR_RDMA_DESTROYED', close: 'ok', receive: 'ERR_RDMA_DESTROYED' },
  'destroyed with an error': { send: 'ERR_RDMA_DESTROYED', close: 'ok', receive: 'ERR_RDMA_DESTROYED' },
  // close() fulfils: nothing had been sent that has not arrived.
  failed: { send: 'ERR_RDMA_PEER_LOST', end: 'ERR_RDMA_PEER_LOST', close: 'ok', receive: 'ERR_RDMA_PEER_LOST' },
}

/** `ok`, or the code of the typed error; anything else fails the test. */
async function outcome(use: () => unknown): Promise<string> {
  try {
    await use()
    return 'ok'
  } catch (error) {
    if (error instanceof RdmaError) return error.code
    if (error instanceof Error && error.name === 'AbortError') return 'ABORT_ERR'
    throw error
  }
}

for (const [state, enter] of Object.entries(states)) {
  deviceTest(`${state}: every method answers, twice`, async (t, place) => {
    const pair = await join(t, await serve(t, place))
    await enter(pair)
    const outcomes: Record<string, string> = {}
    for (const [name, use] of Object.entries(uses)) {
      // The second call of each sees what the first has done.
      outcomes[name] = await outcome(() => use(pair.client))
      const again = await outcome(() => use(pair.client))
      if (name !== 'send' && name !== 'toDuplex') t.is(again, outcomes[name], `${name} again`)
    }
    t.log(state, JSON.stringify(outcomes))
    t.like(outcomes, EXPECTED[state] ?? {})
    t.true(pair.server.connections <= 1)
  })
}

deviceTest('a server answers before and after its end, as often as it is asked', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const waiting = server.accept()
  const closing = server.close()
  t.is(await outcome(() => waiting), 'ERR_RDMA_SERVER_CLOSED')
  await Promise.all([closing, server.close(), server[Symbol.asyncDispose](), server.closed])
  t.is(server.address(), null)
  t.is(server.connections, 0)
  t.is(server.stats().pending, 0)
  t.is(server.unref().ref(), server)
  t.regex(inspect(server), /^Server \{/)
  for (let i = 0; i < 2; i++) {
    t.is(await outcome(() => server.accept()), 'ERR_RDMA_SERVER_CLOSED')
    t.deepEqual(await server[Symbol.asyncIterator]().next(), { done: true, value: undefined })
  }
  t.is(await outcome(() => connect(toServer)), 'ERR_RDMA_TCP')
})

deviceTest('who gives a signal that is aborted while it is looked at takes nothing from the next', async (t, place) => {
  const { client, accepted, server, toServer } = await join(t, await serve(t, place))
  const turning = (): AbortSignal => {
    const controller = new AbortController()
    let looks = 0
    return new Proxy(controller.signal, {
      get(signal, name) {
        if (name === 'aborted' && ++looks === 2) controller.abort()
        const value: unknown = Reflect.get(signal, name, signal)
        return typeof value === 'function' ? (value as () => unknown).bind(signal) : value
      },
    })
  }
  t.is(await outcome(() => client.receive({ signal: turning() })), 'ABORT_ERR')
  await accepted.send(Buffer.from('kept'))
  t.is(String(await client.receive()), 'kept')
  t.is(await outcome(() => accepted.send(Buffer.from('sent'), { signal: turning() })), 'ABORT_ERR')
  await accepted.send(Buffer.from('after'))
  const seen = [String(await client.receive())]
  if (seen[0] === 'sent') seen.push(String(await client.receive()))
  t.is(seen.at(-1), 'after')
  t.is(await outcome(() => server.accept({ signal: turning() })), 'ABORT_ERR')
  const next = await join(t, { server, toServer })
  t.not(next.accepted, accepted)
})

/** Ends `connection` from within a callback, in each way there is. */
const ends: Record<string, (connection: Connection) => unknown> = {
  destroy: (connection) => {
    connection.destroy()
  },
  close: (connection) => connection.close(),
  end: (connection) => connection.end(),
}

for (const [name, end] of Object.entries(ends)) {
  deviceTest(`${name}() may be called from within every callback`, async (t, place) => {
    const served = await serve(t, place)
    const given: unknown[] = []
    const again = (connection: Connection): void => {
      // Never awaited in the callback: what comes of it is looked at afterwards.
      for (let i = 0; i < 2; i++) given.push(Promise.resolve(end(connection)).catch((error: unknown) => error))
    }

    // Who hears of the end before the acknowledgement cannot know that it arrived.
    const say = (connection: Connection, text: string): Promise<void> =>
      connection.send(Buffer.from(text)).catch((error: unknown) => {
        if (!(error instanceof RdmaError)) throw error
      })

    // What a promise gives: in its continuation, and in that of the end.
    const one = await join(t, served)
    const received = one.client.receive().then(
      (message) => {
        again(one.client)
        return message
      },
      () => null,
    )
    await say(one.accepted, 'a')
    t.is(String(await received), 'a')
    one.client.destroy()
    await one.client.closed.then(() => {
      again(one.client)
    })

    // An acknowledgement, an abort, and the events of a stream.
    const two = await join(t, served)
    await two.client.send(Buffer.from('b')).then(() => {
      again(two.client)
    })
    const three = await join(t, served)
    const stop = new AbortController()
    stop.signal.addEventListener('abort', () => {
      again(three.client)
    })
    const waiting = three.client.receive({ signal: stop.signal })
    stop.abort()
    // The abort is the wait's end, unless the connection's came first.
    t.regex(await waiting.then(String, (error: unknown) => (error as Error).name), /^(AbortError|RdmaError|null)$/)
    const four = await join(t, served)
    const stream = four.client.toDuplex().on('error', () => undefined)
    stream.on('data', () => {
      again(four.client)
    })
    const data = once(stream, 'data')
    await say(four.accepted, 'c')
    await data

    // What is told of servers and clients, while they are being handed out.
    const told = new Set<Connection>()
    const tell = (message: unknown): void => {
      const { connection } = message as { connection: Connection }
      told.add(connection)
      again(connection)
    }
    const channels = ['secure-rdma:server:accepted', 'secure-rdma:client:connected']
    for (const channel of channels) subscribe(channel, tell)
    const five = await join(t, served)
    for (const channel of channels) unsubscribe(channel, tell)
    t.is(told.size, 2)

    const outcomes = await Promise.all(given)
    for (const error of outcomes) t.true(error === undefined || error instanceof RdmaError, inspect(error))
    for (const { client, accepted } of [one, two, three, four, five]) {
      client.destroy()
      accepted.destroy()
    }
    await until('all are over', () => served.server.connections === 0)
    const { client } = await join(t, served)
    await client.close()
  })
}

deviceTest('a server may be closed from within authorize, and from within what is told', async (t, place) => {
  const one = await serve(t, place)
  const authorize = async (): Promise<boolean> => {
    await two.server.close()
    return true
  }
  const two = await serve(t, place, { authorize })
  const { authorize: _, ...toServer } = two.toServer
  await t.throwsAsync(connect(toServer), { instanceOf: RdmaError })
  t.is(await outcome(() => two.server.accept()), 'ERR_RDMA_SERVER_CLOSED')

  const closing: Promise<void>[] = []
  const close = (): void => void closing.push(one.server.close())
  subscribe('secure-rdma:server:accepted', close)
  t.teardown(() => unsubscribe('secure-rdma:server:accepted', close))
  const { client, accepted } = await join(t, one)
  await Promise.all(closing)
  t.is(closing.length, 1)
  await client.send(Buffer.from('it lives'))
  t.is(String(await accepted.receive()), 'it lives')
})
