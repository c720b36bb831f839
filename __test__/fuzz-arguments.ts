// Random types and values into everything that the package exports: it fulfils, or throws TypeError, RangeError, AbortError
// or RdmaError; it never crashes, and never hangs. Reliability §F.6, target 10.
//
// SECURE_RDMA_FUZZ_SECONDS: how long, 5 by default; `npm run soak` does 60.
// SECURE_RDMA_FUZZ_SEED: which run; otherwise another one each time. It is told at the start.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join as path } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Duplex } from 'node:stream'
import { inspect, types } from 'node:util'
import * as rdma from 'secure-rdma'
import type { Batch, Connection, Region, RegionSlice, RemoteRegion, RemoteSlice, Server } from 'secure-rdma'
import { fixture } from './_certificates.js'
import { deviceTest, type Place } from './_device.js'
import { Random, UserError } from './_random.js'
import { connecting, listening } from './_peers.js'

const SECONDS = Number(process.env['SECURE_RDMA_FUZZ_SECONDS'] ?? 5)
const SEED = Number(process.env['SECURE_RDMA_FUZZ_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

/** How long a call may take when everything that it could wait for has been ended. */
const HANG = 20_000

/** Calls between two beginnings afresh. */
const EPISODE = 150

/** Seconds that it may take longer until everything has been called. */
const LONGER = 100

/** Of these some calls get past their arguments, and some do not. */
const BOTH = ['connect', 'listen', 'connection.send', 'server.setSecureContext', 'connection.toDuplex']

/** What a call came to. */
type Outcome = 'passed' | 'refused'

/** One thing to call: its name, and how, with random arguments. */
type Target = [name: string, call: (world: World, random: Random) => unknown]

const some = <T>(random: Random, list: readonly T[]): T | undefined => list[random.below(list.length)]

/** Everything that is there to be used in an episode. */
class World {
  readonly connections: Connection[] = []
  readonly servers: Server[] = []
  readonly streams: Duplex[] = []
  readonly regions: (Region | RegionSlice)[] = []
  readonly remotes: (RemoteRegion | RemoteSlice)[] = []
  readonly batches: Batch[] = []
  readonly connectOptions: Record<string, unknown>
  readonly listenOptions: Record<string, unknown>
  readonly context: Record<string, unknown>
  /** Where files may be made. */
  readonly folder: string

  constructor(given: Pick<World, 'connectOptions' | 'listenOptions' | 'context' | 'folder'>) {
    this.connectOptions = given.connectOptions
    this.listenOptions = given.listenOptions
    this.context = given.context
    this.folder = given.folder
  }

  /** Keeps what a call has given. */
  keep(value: unknown): void {
    if (value instanceof rdma.Connection) this.connections.push(value)
    else if (value instanceof rdma.Server) this.servers.push(value)
    else if (value instanceof rdma.Region || value instanceof rdma.RegionSlice) this.regions.push(value)
    else if (value instanceof rdma.RemoteRegion || value instanceof rdma.RemoteSlice) this.remotes.push(value)
    else if (value instanceof rdma.Batch) this.batches.push(value)
    else if (value instanceof Duplex) this.streams.push(value.on('error', () => undefined))
  }

  async end(): Promise<void> {
    for (const stream of this.streams) stream.destroy()
    for (const connection of this.connections) connection.destroy()
    await Promise.all(this.servers.map((server) => server.close()))
    await Promise.all(this.connections.map(({ closed }) => closed))
  }
}

/** Good options, of which at the most two are replaced, and some are added. */
function mutated(world: World, random: Random, good: Record<string, unknown>): unknown {
  const options: Record<string, unknown> = { ...good }
  const names = [...Object.keys(good), ...OPTIONS]
  for (let changes = random.below(3); changes > 0; changes--) {
    const name = some(random, names) ?? 'host'
    options[name] = random.chance(0.5) ? plausible(world, random, name) : anythingFor(random, name)
  }
  return options
}

const OPTIONS = [
  ...['device', 'devicePort', 'gidIndex', 'rdmaAddress', 'addressing', 'captureFile', 'allowedPeerAddresses'],
  ...['maxPathMtu', 'maxMessageSize', 'sendBufferSize', 'receiveBufferSize', 'credits', 'pool', 'pathProbeInterval'],
  ...['pathTimeout', 'queuePair', 'exposeSecrets', 'pins', 'crl', 'authorize', 'keyLogFile', 'handshakeTimeout'],
  ...['closeTimeout', 'keepAliveInterval', 'keepAliveMisses', 'servername', 'peerIdentity', 'signal', 'backlog'],
  ...['requestCert', 'maxPendingHandshakes', 'maxUnaccepted', 'nonsense'],
]

/** A value of the right kind, which may still not fit. */
function plausible(world: World, random: Random, name: string): unknown {
  const values: Record<string, readonly unknown[]> = {
    host: ['127.0.0.1', '127.0.0.2', '::1', 'localhost', '0.0.0.0', 'fe80::1%lo', '256.1.1.1'],
    port: [0, 1, 65_535, world.servers[0]?.address()?.port],
    localAddress: ['127.0.0.1', '::1', '192.0.2.1'],
    device: ['fake0', 'fake1', 'soft', 'nothing0'],
    rdmaAddress: ['127.0.0.1', '127.0.0.2', '::1'],
    addressing: ['hybrid', 'verbs'],
    captureFile: [path(world.folder, `${random.below(1e9)}.pcapng`), path(world.folder, 'no/where')],
    keyLogFile: [path(world.folder, 'keys'), path(world.folder, 'no/where')],
    allowedPeerAddresses: ['127.0.0.1', ['::1', '127.0.0.1'], []],
    maxPathMtu: [256, 512, 1024, 2048, 4096],
    maxMessageSize: [1, 100, 65_536],
    sendBufferSize: [1, 1000, 1 << 20],
    receiveBufferSize: [1, 1000, 1 << 20],
    credits: [4, 5, 64],
    pool: [{}, { bufferSize: 8192 }, { receiveBuffers: 64, sendBuffers: 1 }],
    queuePair: [{}, { timeout: 14, retryCount: 0 }, { rnrRetry: 7, minRnrTimer: 31, pkeyIndex: 1 }],
    authorize: [() => true, () => false, () => Promise.resolve(true), () => Promise.reject(new UserError('no'))],
    servername: ['localhost', 'peer.test', '127.0.0.1', '*', 'a'.repeat(300)],
    peerIdentity: ['spiffe://example.org/server'],
    pins: ['0'.repeat(64), ['A'.repeat(43) + '=']],
    crl: [],
    ca: [world.context['ca'], [world.context['ca'], world.context['ca']], Buffer.from(String(world.context['ca']))],
    signal: [random.signal()],
  }
  const list = values[name]
  if (list) return some(random, list)
  return random.chance(0.5) ? random.below(4000) : random.chance(0.5)
}

/** Anything at all; but no text where a file would be made of it. */
function anythingFor(random: Random, name: string): unknown {
  const value = random.anything()
  return name.endsWith('File') && typeof value === 'string' ? random.below(10) : value
}

/** Arguments of which most are anything. */
const args = (random: Random): unknown[] => Array.from({ length: random.below(4) }, () => random.anything())

const message = (random: Random): unknown => (random.chance(0.6) ? random.bytes() : random.anything())

const waits = (random: Random): unknown => {
  if (random.chance(0.3)) return random.anything()
  return random.chance(0.5) ? undefined : { signal: random.signal() }
}

type Any = (...values: unknown[]) => unknown

const methodOf = (thing: object, name: PropertyKey): Any => Reflect.get(thing, name) as Any

/** Calls a method of a connection, with arguments that are made for it. */
function onConnection(name: keyof Connection, make: (random: Random) => unknown[]): Target {
  return [
    `connection.${String(name)}`,
    (world, random) => {
      const connection = some(random, world.connections)
      if (!connection) return undefined
      return Reflect.apply(methodOf(connection, name), connection, make(random))
    },
  ]
}

/** Memory that there is, or anything. */
function local(world: World, random: Random): unknown {
  if (random.chance(0.1)) return random.anything()
  if (random.chance(0.2)) return Array.from({ length: random.below(4) }, () => some(random, world.regions))
  return random.chance(0.1) ? random.bytes() : some(random, world.regions)
}

const remote = (world: World, random: Random): unknown =>
  random.chance(0.1) ? random.anything() : some(random, world.remotes)

const integer = (random: Random): unknown =>
  random.chance(0.2) ? random.anything() : BigInt(random.below(1000)) << BigInt(random.below(70))

function operationOptions(random: Random): unknown {
  if (random.chance(0.5)) return undefined
  if (random.chance(0.1)) return random.anything()
  const options: Record<string, unknown> = {}
  if (random.chance(0.5)) options['offset'] = random.chance(0.7) ? random.below(100) : random.anything()
  if (random.chance(0.3)) options['fence'] = random.chance(0.7) ? random.chance(0.5) : random.anything()
  if (random.chance(0.3)) options['immediate'] = random.chance(0.7) ? random.below(2 ** 32) : random.anything()
  if (random.chance(0.3)) options['signal'] = random.signal()
  return options
}

const publishOptions = (random: Random): unknown => {
  if (random.chance(0.1)) return random.anything()
  const access = random.chance(0.1) ? random.anything() : ['read', 'write', 'atomic'].filter(() => random.chance(0.8))
  return random.chance(0.5) ? { access } : { access, offset: random.below(200), length: random.below(200) }
}

const named = (random: Random): unknown => (random.chance(0.1) ? random.anything() : `name ${random.below(5)}`)

/** What operations are given, by the methods that a connection and a batch have for them. */
const operations: Record<string, (world: World, random: Random) => unknown[]> = {
  write: (world, random) => [local(world, random), remote(world, random), operationOptions(random)],
  read: (world, random) => [remote(world, random), local(world, random), operationOptions(random)],
  compareAndSwap: (world, random) => [
    remote(world, random),
    integer(random),
    integer(random),
    operationOptions(random),
  ],
  fetchAndAdd: (world, random) => [remote(world, random), integer(random), operationOptions(random)],
}

/** Calls one of the operations, or another method, of something that there is of these. */
function onSome(
  owner: string,
  name: PropertyKey,
  of: (world: World) => readonly object[],
  make: (world: World, random: Random) => unknown[],
): Target {
  return [
    `${owner}.${String(name)}`,
    (world, random) => {
      const thing = some(random, of(world))
      return thing && Reflect.apply(methodOf(thing, name), thing, make(world, random))
    },
  ]
}

const range = (_: World, random: Random): unknown[] =>
  random.chance(0.2) ? args(random) : [random.below(300), random.chance(0.5) ? undefined : random.below(300)]

const dataPlane: Target[] = [
  ['allocate', (_, random) => call(rdma.allocate)(random.chance(0.8) ? 1 + random.below(10_000) : random.anything())],
  ...Object.entries(operations).flatMap(([name, make]) => [
    onSome('connection', name, ({ connections }) => connections, make),
    onSome('batch', name, ({ batches }) => batches, make),
  ]),
  onSome(
    'batch',
    'send',
    ({ batches }) => batches,
    (_, random) => [message(random)],
  ),
  onSome(
    'batch',
    'post',
    ({ batches }) => batches,
    (_, random) => [waits(random)],
  ),
  onSome(
    'connection',
    'batch',
    ({ connections }) => connections,
    (_, random) => args(random),
  ),
  onSome(
    'connection',
    'publish',
    ({ connections }) => connections,
    (world, random) => [named(random), local(world, random), publishOptions(random)],
  ),
  onSome(
    'connection',
    'remote',
    ({ connections }) => connections,
    (_, random) => [named(random), waits(random)],
  ),
  onSome(
    'connection',
    'unpublish',
    ({ connections }) => connections,
    (_, random) => [named(random)],
  ),
  onSome(
    'connection',
    'receiveImmediate',
    ({ connections }) => connections,
    (_, random) => [waits(random)],
  ),
  onSome(
    'connection',
    'sendBatch',
    ({ connections }) => connections,
    (_, random) => [
      random.chance(0.8) ? Array.from({ length: random.below(9) }, () => message(random)) : random.anything(),
      waits(random),
    ],
  ),
  onSome(
    'connection',
    'receiveBatch',
    ({ connections }) => connections,
    (_, random) => [random.chance(0.5) ? { limit: random.below(100) } : random.anything()],
  ),
  onSome('region', 'slice', ({ regions }) => regions, range),
  onSome('remote', 'slice', ({ remotes }) => remotes, range),
  ['new Region', (_, random) => construct(rdma.Region, random)],
  ['new RegionSlice', (_, random) => construct(rdma.RegionSlice, random)],
  ['new RemoteRegion', (_, random) => construct(rdma.RemoteRegion, random)],
  ['new RemoteSlice', (_, random) => construct(rdma.RemoteSlice, random)],
  ['new Batch', (_, random) => construct(rdma.Batch, random)],
  [
    'region.close',
    (world, random) => {
      const region = some(random, world.regions)
      if (region instanceof rdma.Region && random.chance(0.2)) region.close()
    },
  ],
]

function onServer(name: keyof Server, make: (random: Random, world: World) => unknown[]): Target {
  return [
    `server.${String(name)}`,
    (world, random) => {
      const server = some(random, world.servers)
      if (!server) return undefined
      return Reflect.apply(methodOf(server, name), server, make(random, world))
    },
  ]
}

const duplexOptions = (random: Random): unknown => {
  if (random.chance(0.4)) return random.anything()
  const options: Record<string, unknown> = {}
  for (const name of ['objectMode', 'highWaterMark', 'readableHighWaterMark', 'allowHalfOpen', 'signal', 'encoding']) {
    if (random.chance(0.3)) options[name] = random.chance(0.5) ? random.below(100) : random.anything()
  }
  return options
}

const call = (value: unknown): Any => value as Any

const construct = (what: unknown, random: Random): unknown => Reflect.construct(what as Any, args(random)) as unknown

const statsOf = (connection: Connection | undefined, random: Random): unknown =>
  connection && Reflect.apply(methodOf(connection.device, 'stats'), connection.device, args(random))

const targets: Target[] = [
  ...dataPlane,
  ['connect', (world, random) => call(rdma.connect)(mutated(world, random, world.connectOptions))],
  ['connect with anything', (_, random) => call(rdma.connect)(...args(random))],
  ['listen', (world, random) => call(rdma.listen)(mutated(world, random, world.listenOptions))],
  ['listen with anything', (_, random) => call(rdma.listen)(...args(random))],
  ['devices', (_, random) => call(rdma.devices)(...args(random))],
  [
    'deviceStats',
    (_, random) =>
      call(rdma.deviceStats)(
        random.chance(0.6) ? some(random, ['fake0', 'fake1', 'soft', 'nothing0']) : random.anything(),
        random.chance(0.5) ? undefined : random.chance(0.5) ? { port: random.below(3) } : random.anything(),
      ),
  ],
  ['new RdmaError', (_, random) => construct(rdma.RdmaError, random)],
  ['new Connection', (_, random) => construct(rdma.Connection, random)],
  ['new Server', (_, random) => construct(rdma.Server, random)],
  onConnection('send', (random) => [message(random), waits(random)]),
  onConnection('send', (random) => [message(random)]),
  onConnection('receive', (random) => [waits(random)]),
  onConnection(Symbol.asyncIterator, args),
  onConnection(Symbol.asyncDispose, args),
  onConnection('stats', args),
  onConnection('ref', args),
  onConnection('unref', args),
  onConnection('toDuplex', (random) => [duplexOptions(random)]),
  [
    'connection, its properties',
    (world, random) => {
      const connection = some(random, world.connections)
      const names = ['peer', 'device', 'handshake', 'readable', 'writable', 'closed'] as const
      return connection?.[some(random, names) ?? 'peer']
    },
  ],
  ['connection.device.stats', (world, random) => statsOf(some(random, world.connections), random)],
  [
    'connection.readable',
    async (world, random) => {
      const readable = some(random, world.connections)?.readable
      if (!readable || readable.locked) return
      const reader = readable.getReader()
      reader.closed.catch(() => undefined)
      await reader.read().finally(() => {
        reader.releaseLock()
      })
    },
  ],
  [
    'connection.writable',
    async (world, random) => {
      const writable = some(random, world.connections)?.writable
      if (!writable || writable.locked) return
      const writer = writable.getWriter()
      for (const promise of [writer.closed, writer.ready]) promise.catch(() => undefined)
      await writer.write(message(random) as Uint8Array).finally(() => {
        writer.releaseLock()
      })
    },
  ],
  [
    'duplex.write',
    (world, random) => {
      const stream = some(random, world.streams)
      if (!stream) return undefined
      return stream.writableNeedDrain ? (stream.read() as unknown) : stream.write(message(random))
    },
  ],
  [
    'inspect',
    (world, random) => {
      const things = [...world.connections, ...world.servers]
      const thing = some(random, things) as unknown as Record<symbol, Any> | undefined
      return thing?.[inspect.custom]?.(...args(random), {})
    },
  ],
  onServer('accept', (random) => [waits(random)]),
  onServer(Symbol.asyncIterator, args),
  onServer('address', args),
  onServer('stats', args),
  onServer('ref', args),
  onServer('unref', args),
  onServer('setSecureContext', (random, world) => [
    random.chance(0.6) ? mutated(world, random, world.context) : random.anything(),
  ]),
]

/** What ends something: rarer, or there is nothing to call. */
const endings: Target[] = [
  onConnection('end', (random) => [waits(random)]),
  onConnection('close', args),
  onConnection('destroy', args),
  onServer('close', args),
  onServer(Symbol.asyncDispose, args),
]

/** What V8 says where code of ours has stumbled over a value, instead of refusing it by name. */
const STUMBLED = /^Cannot (read|set|destructure)|is not (a function|iterable|defined)|call stack|Invalid array length/

/** Whether it was refused as a mistake in the arguments; throws for what must not be thrown. */
function judge(name: string, error: unknown): Outcome {
  if (error instanceof rdma.RdmaError) return 'passed'
  if (error instanceof UserError) return 'passed'
  const isCheck = error instanceof TypeError || error instanceof RangeError
  if (isCheck && !STUMBLED.test(error.message)) return 'refused'
  if (error instanceof Error && error.name === 'AbortError') return 'passed'
  // What a signal or a stream was given by the caller comes back as it is.
  throw new Error(`${name} threw ${inspect(error)}`, { cause: error })
}

async function begin(place: Place, folder: string): Promise<World> {
  const { server, client } = await fixture()
  const good = { ...(await listening(place)), closeTimeout: 500 }
  const listener = await rdma.listen(good)
  const port = listener.address()?.port ?? 0
  const toListener = await connecting(place, port)
  // What random options lead to must not wait long for what does not come.
  const quick = { handshakeTimeout: 500, closeTimeout: 500 }
  const [connectOptions, listenOptions] = [
    { ...toListener, ...quick },
    { ...good, ...quick },
  ]
  const world = new World({ connectOptions, listenOptions, context: { ...server, ca: client.ca }, folder })
  world.keep(listener)
  for (const length of [8, 64, 100, 100_000]) {
    const region = await rdma.allocate(length)
    for (const memory of [region, region.slice(length / 2)]) world.keep(memory)
  }
  for (let i = 0; i < 3; i++) {
    for (const connection of await Promise.all([rdma.connect(toListener), listener.accept()])) world.keep(connection)
  }
  for (const [i, connection] of world.connections.entries()) {
    world.keep(connection.batch())
    const region = world.regions[i]
    const other = world.connections[i ^ 1]
    if (!region || !other) continue
    await other.publish('at first', region, { access: ['read', 'write', 'atomic'] })
    world.keep(await connection.remote('at first'))
  }
  return world
}

deviceTest(`${SECONDS} s of random arguments`, async (t, place) => {
  t.timeout((SECONDS + LONGER) * 1000 + 120_000)
  t.log(`seed ${SEED}`)
  const random = new Random(SEED)
  const folder = mkdtempSync(path(tmpdir(), 'secure-rdma-fuzz-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true })
  })
  const counts: Record<string, Record<Outcome, number>> = {}
  const wrong: unknown[] = []
  const began = performance.now()
  let calls = 0
  // Each of them does something of its own, unless only its arguments can be wrong.
  const idle = (): string[] => targets.map(([name]) => name).filter((name) => !counts[name])
  const oneSided = (): string[] => BOTH.filter((name) => !counts[name]?.passed || !counts[name].refused)
  // A busy machine needs longer than the seconds that were asked for until all have had their turn.
  const goesOn = (): boolean => {
    const seconds = (performance.now() - began) / 1000
    return seconds < SECONDS || (seconds < SECONDS + LONGER && idle().length + oneSided().length > 0)
  }
  while (goesOn() && wrong.length === 0) {
    const world = await begin(place, folder)
    const open = new Map<Promise<void>, string>()
    for (let i = 0; i < EPISODE; i++, calls++) {
      const target = some(random, random.chance(0.02) ? endings : targets) ?? targets[0]
      if (!target) break
      const [name, use] = target
      const count = (counts[name] ??= { passed: 0, refused: 0 })
      // A call that waits for what does not come has got past its arguments as well.
      const made = (async () => {
        const given = use(world, random)
        // Only what is a promise is waited for: an error may have been given a `then`.
        world.keep(types.isPromise(given) ? await given : given)
      })()
      const settled: Promise<void> = made.then(
        () => {
          count.passed++
        },
        (error: unknown) => {
          try {
            count[judge(name, error)]++
          } catch (other) {
            wrong.push(other)
          }
        },
      )
      open.set(settled, name)
      void settled.then(() => open.delete(settled))
      if (i % 10 === 0) await sleep(0)
    }
    await Promise.race([Promise.all(open.keys()), sleep(50)])
    // What came up meanwhile is ended too, and with it everything that a call could wait for.
    const stop = new AbortController()
    const ended = (async () => {
      while (open.size > 0 && !stop.signal.aborted) {
        await world.end()
        await sleep(5)
      }
      await world.end()
    })()
    const late = sleep(HANG, true, { signal: stop.signal }).catch(() => false)
    const hung = await Promise.race([ended.then(() => false), late])
    stop.abort()
    if (hung) wrong.push(new Error(`nothing came of ${[...new Set(open.values())].join(', ')} within ${HANG} ms`))
  }
  for (const error of wrong) t.log(error)
  t.is(wrong.length, 0, `run it again with SECURE_RDMA_FUZZ_SEED=${SEED}`)
  const sum = (outcome: Outcome): number => Object.values(counts).reduce((sum, count) => sum + count[outcome], 0)
  const share = sum('passed') / (sum('passed') + sum('refused'))
  t.log(`${calls} calls, ${Math.round(share * 100)} % past their arguments`)
  t.log(inspect(counts, { breakLength: 100, compact: 1 }))
  t.true(share >= 0.3, `${share}`)
  t.deepEqual(idle(), [])
  t.deepEqual(oneSided(), [])
})

deviceTest('the control: what must not be thrown is seen', (t) => {
  t.throws(() => judge('a call', new Error('other')), { message: /^a call threw Error: other/ })
  t.throws(() => judge('a call', 'text'))
  t.throws(() => judge('a call', new TypeError("Cannot read properties of undefined (reading 'a')")))
  t.is(judge('a call', new RangeError()), 'refused')
})

/** Names of what is exported, to see that none is forgotten when one is added. */
deviceTest('every export and every method has its turn', (t) => {
  const called = [...targets, ...endings].map(([name]) => name).join(' ')
  const names: string[] = Object.keys(rdma)
  for (const owner of [rdma.Connection, rdma.Server, rdma.Batch]) {
    for (const name of Reflect.ownKeys(owner.prototype)) {
      if (name !== 'constructor' && name !== inspect.custom) names.push(String(name))
    }
  }
  const properties = ['length', 'peer', 'device', 'handshake', 'closed', 'connections']
  for (const name of names) t.true(called.includes(name) || properties.includes(name), name)
})
