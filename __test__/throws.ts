// A throw in every callback that a user can give: it goes where node's own would let it go, and the engine goes on. Each in a
// process of its own. Reliability §F.5 #44.

import type * as Diagnostics from 'node:diagnostics_channel'
import type * as Web from 'node:stream/web'
import type { ExecutionContext } from 'ava'
import type { CommonOptions, Connection } from 'secure-rdma'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { deviceTest, type Place } from './_device.js'
import { connecting, listening } from './_peers.js'

/** What a task is given. */
interface Given {
  server: CommonOptions & { host: string }
  client: CommonOptions & { host: string; localAddress: string }
}

/** What a task tells of what has happened in its process. */
interface Told {
  /** Messages of what came as `uncaughtException`. */
  uncaught: string[]
  /** Messages of what came as `unhandledRejection`. */
  unhandled: string[]
  /** What else there is to tell. */
  said: string[]
}

/** Where a callback is: it throws `new Error('thrown by …')`, and what it gives is told as `said`. */
type Case = (
  scope: Scope & Tools,
  pair: { one: Connection; other: Connection; server: Scope['kept']['server'] },
  given: Given,
) => Promise<string[]>

/** What cases find in the child beside its scope: they travel as text. */
interface Tools {
  thrower: (what: string) => () => never
  tick: (milliseconds: number) => Promise<void>
  load: (name: string) => unknown
}

/** In the child: makes a connection, runs the case, and proves that both sides still work. */
async function run(t: ExecutionContext, place: Place, body: Case): Promise<Told> {
  const child = Child.start(t)
  const given: Given = { server: await listening(place), client: await connecting(place, 1) }
  const told = await child.run(
    async (scope, { server, client, body }) => {
      const told: { uncaught: string[]; unhandled: string[]; said: string[] } = {
        uncaught: [],
        unhandled: [],
        said: [],
      }
      process.on('uncaughtException', (error) => void told.uncaught.push(error.message))
      process.on('unhandledRejection', (error) => void told.unhandled.push((error as Error).message))
      const { rdma } = scope
      const load = (name: string): unknown => process.getBuiltinModule(name as 'node:fs')
      const tools = {
        thrower: (what: string) => (): never => {
          throw new Error(`thrown by ${what}`)
        },
        tick: (milliseconds: number) => new Promise<void>((resolve) => void setTimeout(resolve, milliseconds)),
        load,
      }
      const listener = await rdma.listen(server)
      const port = listener.address()?.port ?? 0
      const join = async (): Promise<{ one: Connection; other: Connection; server: typeof listener }> => {
        const [one, other] = await Promise.all([rdma.connect({ ...client, port }), listener.accept()])
        return { one, other, server: listener }
      }
      const pair = await join()
      // eslint-disable-next-line @typescript-eslint/no-implied-eval -- it travelled as text
      const task = (new Function(`return ${body}`) as () => Case)()
      told.said = await task({ ...scope, ...tools }, pair, { server, client: { ...client, port } as never })
      // The engine goes on: with the connection that there was, unless the case has ended it, and with a new one.
      const pairs = [await join()]
      if ((await Promise.race([pair.one.closed, tools.tick(50)])) === undefined) pairs.push(pair)
      for (const { one, other } of pairs) {
        await one.send(Buffer.from('there'))
        await other.send(Buffer.from('back'))
        told.said.push(`${String(await other.receive())} ${String(await one.receive())}`)
        await one.close()
        await other.closed
      }
      await listener.close()
      await tools.tick(20)
      return told
    },
    { ...given, body: body.toString() },
  )
  child.release()
  t.deepEqual(await child.exited, { code: 0, signal: null })
  return told
}

const WELL = ['start', 'end', 'asyncStart', 'asyncEnd']
const BADLY = ['start', 'end', 'error', 'asyncStart', 'asyncEnd']

/** What a case must tell, in whatever order; `works` is added for each connection that still does. */
function throwTest(title: string, body: Case, expected: Partial<Told> & { lives?: boolean }): void {
  deviceTest(`a throw in ${title}`, async (t, place) => {
    const { lives = true, uncaught = [], unhandled = [], said = [] } = expected
    const told = await run(t, place, body)
    const works = Array.from({ length: lives ? 2 : 1 }, () => 'there back')
    told.uncaught.sort()
    told.unhandled.sort()
    t.deepEqual(told, {
      uncaught: [...uncaught].sort(),
      unhandled: [...unhandled].sort(),
      said: [...said, ...works],
    })
  })
}

throwTest(
  'authorize of a server refuses the peer, and is the cause of what is told',
  async ({ rdma, thrower, load }, _, { server, client }) => {
    const { subscribe } = load('node:diagnostics_channel') as typeof Diagnostics
    const causes: string[] = []
    subscribe('secure-rdma:server:handshake-failed', (message) => {
      causes.push(((message as { error: Error }).error.cause as Error).message)
    })
    const codes: string[] = []
    const kinds = [thrower('authorize'), () => Promise.reject(new Error('thrown by authorize'))]
    for (const authorize of kinds) {
      const strict = await rdma.listen({ ...server, authorize })
      const port = strict.address()?.port ?? 0
      await rdma.connect({ ...client, port }).catch((error: unknown) => codes.push((error as { code: string }).code))
      while (causes.length < codes.length) await new Promise((resolve) => void setTimeout(resolve, 5))
      await strict.close()
    }
    return [...codes, ...causes]
  },
  {
    said: ['ERR_RDMA_PEER_REFUSED', 'ERR_RDMA_PEER_REFUSED', 'thrown by authorize', 'thrown by authorize'],
  },
)

throwTest(
  'authorize of a client is the cause of its error',
  async ({ rdma, thrower }, _, { client }) => {
    const said: string[] = []
    const kinds = [thrower('authorize'), () => Promise.reject(new Error('thrown by authorize'))]
    for (const authorize of kinds) {
      const options = { ...client, authorize } as unknown as Parameters<typeof rdma.connect>[0]
      await rdma.connect(options).catch((error: unknown) => {
        const { code, cause } = error as { code: string; cause: Error }
        said.push(`${code} ${cause.message}`)
      })
    }
    return said
  },
  { said: ['ERR_RDMA_UNAUTHORIZED thrown by authorize', 'ERR_RDMA_UNAUTHORIZED thrown by authorize'] },
)

throwTest(
  'a subscriber of each channel is uncaught, as node lets them be',
  async ({ rdma, thrower, tick, load }, { server }, { client }) => {
    const { subscribe, unsubscribe } = load('node:diagnostics_channel') as typeof Diagnostics
    const channels = [
      'secure-rdma:server:accepted',
      'secure-rdma:server:handshake-failed',
      'secure-rdma:client:connected',
      'secure-rdma:client:connect-failed',
      ...['connect', 'accept'].flatMap((name) =>
        ['start', 'end', 'asyncStart', 'asyncEnd', 'error'].map((event) => `tracing:secure-rdma:${name}:${event}`),
      ),
    ]
    const throwers = channels.map((channel) => [channel, thrower(channel)] as const)
    for (const [channel, throwing] of throwers) subscribe(channel, throwing)
    const options = client as unknown as Parameters<typeof rdma.connect>[0]
    const [one, other] = await Promise.all([rdma.connect(options), server.accept()])
    const { key: _, cert: __, ...anonymous } = options
    const told: unknown[] = []
    const last = (message: unknown): void => void told.push(message)
    subscribe('secure-rdma:server:handshake-failed', last)
    await rdma.connect(anonymous).catch(() => undefined)
    // The server tells last: it judges when the client is through. What is uncaught comes a tick later.
    while (told.length === 0) await tick(5)
    await tick(5)
    unsubscribe('secure-rdma:server:handshake-failed', last)
    for (const [channel, throwing] of throwers) unsubscribe(channel, throwing)
    one.destroy()
    await other.closed
    return []
  },
  {
    // A connection that comes up on both sides, and one that fails.
    uncaught: [
      ...['server:accepted', 'server:handshake-failed', 'client:connected', 'client:connect-failed'],
      ...['connect', 'accept'].flatMap((name) => WELL.map((event) => `tracing:${name}:${event}`)),
      ...BADLY.map((event) => `tracing:connect:${event}`),
    ].map((name) => `thrown by ${name.replace(/^(tracing:)?/, '$1secure-rdma:')}`),
  },
)

throwTest(
  'a continuation of every promise is an unhandled rejection',
  async ({ thrower, tick }, { one, other }) => {
    void other.receive().then(thrower('receive'))
    void one.send(Buffer.from('a')).then(thrower('send'))
    await tick(50)
    void one.end().then(thrower('end'))
    void other.receive().then(thrower('the end of messages'))
    await tick(50)
    void other.close().then(thrower('close'))
    void other.closed.then(thrower('closed'))
    await Promise.all([one.closed, other.closed])
    await tick(20)
    return []
  },
  {
    lives: false,
    unhandled: ['receive', 'send', 'end', 'the end of messages', 'closed', 'close'].map((name) => `thrown by ${name}`),
  },
)

throwTest(
  'a listener of a signal is uncaught, and the wait is over all the same',
  async ({ thrower, tick }, { one }) => {
    const stop = new AbortController()
    stop.signal.addEventListener('abort', thrower('a listener'))
    const waiting = one.receive({ signal: stop.signal })
    stop.abort()
    const said = await waiting.catch((error: unknown) => [(error as Error).name])
    await tick(20)
    return said as string[]
  },
  { said: ['AbortError'], uncaught: ['thrown by a listener'] },
)

throwTest(
  'the events of a stream is uncaught',
  async ({ thrower, tick }, { one, other }) => {
    const stream = one.toDuplex()
    stream.once('data', thrower('data'))
    const far = other.toDuplex()
    far.once('close', thrower('close'))
    far.write('a')
    await tick(100)
    const said = [String(stream.destroyed)]
    stream.on('end', thrower('end'))
    stream.resume()
    stream.once('finish', thrower('finish'))
    far.end()
    far.resume()
    stream.end()
    await Promise.all([one.closed, other.closed])
    await tick(20)
    return said
  },
  {
    lives: false,
    said: ['false'],
    uncaught: ['data', 'end', 'finish', 'close'].map((name) => `thrown by ${name}`),
  },
)

throwTest(
  'a getter of options and of messages rejects, and nothing has begun',
  async ({ rdma, thrower }, { one, server }, { client }) => {
    const said: string[] = []
    const note = (error: Error): void => void said.push(error.message)
    const evil = (object: object, name: string): never =>
      Object.defineProperty(object, name, { get: thrower(name), enumerable: true }) as never
    await rdma.connect(evil({ ...client }, 'port')).catch(note)
    await rdma.listen(evil({}, 'host')).catch(note)
    await one.send(Buffer.from('a'), evil({}, 'signal')).catch(note)
    await one.receive(evil({}, 'signal')).catch(note)
    await server.accept(evil({}, 'signal')).catch(note)
    const views = new DataView(new ArrayBuffer(4))
    for (const name of ['buffer', 'byteOffset', 'byteLength']) evil(views, name)
    await one.send(views).catch(note)
    try {
      one.toDuplex(evil({}, 'objectMode'))
    } catch (error) {
      note(error as Error)
    }
    return said
  },
  { said: ['port', 'host', 'signal', 'signal', 'signal', 'buffer', 'objectMode'].map((name) => `thrown by ${name}`) },
)

throwTest(
  'what only looks like a signal rejects, and nothing is left behind',
  async ({ thrower }, { one, other }) => {
    const said: string[] = []
    const signal = {
      aborted: false,
      addEventListener: thrower('addEventListener'),
      removeEventListener: () => undefined,
    }
    await one.receive({ signal: signal as never }).catch((error: unknown) => void said.push((error as Error).message))
    // What it would have waited for goes to the next one.
    await other.send(Buffer.from('a'))
    return [...said, String(await one.receive())]
  },
  { said: ['thrown by addEventListener', 'a'] },
)

throwTest(
  'a WHATWG sink or source destroys the connection with it',
  async ({ thrower, load }, { one, other }) => {
    const { WritableStream } = load('node:stream/web') as typeof Web
    await other.send(Buffer.from('a'))
    const piping = one.readable.pipeTo(new WritableStream({ write: thrower('write') }))
    const said = await piping.catch((error: unknown) => [(error as Error).message])
    const { reason, error } = await one.closed
    return [...(said as string[]), `${reason} ${error?.message ?? ''}`]
  },
  { lives: false, said: ['thrown by write', 'destroyed thrown by write'] },
)
