// Memory of regions: what is refused as one, and that nothing that JavaScript does can take it from under RDMA. Reliability
// §C and §F.5 #41, #42, #43, #45, #46, #47, #50, #51.
//
// SECURE_RDMA_REGION_ROUNDS: how many random orders, 100 by default, and a tenth as many workers; `npm run soak` does 5,000.
// SECURE_RDMA_SEED: which orders; otherwise others each time.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { inspect, types } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import { allocate, Region, RegionSlice, RemoteRegion } from 'secure-rdma'
import { Child } from './_child.js'
import { deviceTest, rxeTest, testDevice, type Place } from './_device.js'
import { memoryOf } from './_guest.js'
import { connecting, join, listening, serve } from './_peers.js'
import { PLANNED, type Plan } from './_regions.js'
import { versions } from './_versions.js'

const ROUNDS = Number(process.env['SECURE_RDMA_REGION_ROUNDS'] ?? 100)
const SEED = Number(process.env['SECURE_RDMA_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

test('a region is zeroed memory of its own, whole and in slices', async (t) => {
  const region = await allocate(10_001)
  t.is(region.byteLength, 10_001)
  t.is(region.buffer, region.buffer)
  t.is(region.buffer.byteLength, 10_001)
  t.true(types.isArrayBuffer(region.buffer))
  t.true(new Uint8Array(region.buffer).every((byte) => byte === 0))
  const slice = region.slice(1000, 500)
  t.like(slice, { byteOffset: 1000, byteLength: 500, region, buffer: region.buffer })
  t.like(slice.slice(100), { byteOffset: 1100, byteLength: 400 })
  t.like(region.slice(10_001), { byteOffset: 10_001, byteLength: 0 })
  t.like(region.slice(), { byteOffset: 0, byteLength: 10_001 })
  t.is(inspect(region), 'Region { byteLength: 10001, closed: false }')
  region.close()
  region.close()
  region[Symbol.dispose]()
  t.true(region.closed)
  new Uint8Array(region.buffer).fill(1)
  t.is(new Uint8Array(region.buffer)[10_000], 1, 'its memory outlives it')
})

test('lengths and bounds that cannot be are refused by name', async (t) => {
  const TYPE = { instanceOf: TypeError, code: 'ERR_INVALID_ARG_TYPE' }
  const RANGE = { instanceOf: RangeError, code: 'ERR_OUT_OF_RANGE' }
  const lengths: [unknown, typeof TYPE | typeof RANGE][] = [
    [undefined, TYPE],
    ['1', TYPE],
    [1n, TYPE],
    [0, RANGE],
    [-1, RANGE],
    [1.5, RANGE],
    [NaN, RANGE],
    [Infinity, RANGE],
    [2 ** 53, RANGE],
  ]
  for (const [length, expected] of lengths) {
    await t.throwsAsync(allocate(length as number), expected, String(length))
  }
  const region = await allocate(100)
  const bounds: [unknown, unknown, typeof TYPE | typeof RANGE][] = [
    [101, undefined, RANGE],
    [-1, undefined, RANGE],
    [0.5, undefined, RANGE],
    [0, 101, RANGE],
    [100, 1, RANGE],
    [1, 100, RANGE],
    [1, 2 ** 53 - 1, RANGE],
    ['0', 1, TYPE],
    [0, '1', TYPE],
    [0, null, TYPE],
  ]
  for (const [offset, length, expected] of bounds) {
    const of = inspect([offset, length])
    t.throws(() => region.slice(offset as number, length as number), expected, of)
    t.throws(() => region.slice(0, 100).slice(offset as number, length as number), expected, of)
  }
  for (const kind of [Region, RegionSlice, RemoteRegion]) {
    t.throws(() => Reflect.construct(kind, [Symbol('secure-rdma'), {}, 1]) as unknown, {
      message: /^Illegal constructor/,
    })
  }
})

test('F.5 #50: a region that the system has no memory for is refused', async (t) => {
  const child = Child.start(t, { through: ['sh', '-c', 'ulimit -v 4000000 && exec "$0" "$@"'] })
  const told = await child.run(async ({ rdma }) => {
    const code = (error: unknown): unknown => (error as { code: unknown }).code
    const codes = []
    for (let i = 0; i < 3; i++) codes.push(await rdma.allocate(3_900_000_000).catch(code))
    const small = await rdma.allocate(4096)
    return { codes, length: small.buffer.byteLength }
  })
  t.deepEqual(told, { codes: Array(3).fill('ERR_RDMA_NO_MEMORY'), length: 4096 })
})

deviceTest('F.5 #42: memory of others is not registered, and refused by what it is', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const own = await allocate(64)
  await accepted.publish('inbox', own, { access: ['read', 'write'] })
  const inbox = await client.remote('inbox')
  const detached = new ArrayBuffer(64)
  const view = new Uint8Array(detached)
  structuredClone(detached, { transfer: [detached] })
  const Resizable = ArrayBuffer as new (length: number, options: { maxByteLength: number }) => ArrayBuffer
  const foreign: [name: string, memory: unknown, says: RegExp][] = [
    ['a pooled Buffer', Buffer.from('hello'), /a pool that Node keeps/],
    ['a Buffer', Buffer.alloc(64), /an ArrayBuffer of Node's/],
    ['an ArrayBuffer', new ArrayBuffer(64), /an ArrayBuffer of Node's/],
    ['a detached ArrayBuffer', detached, /taken away/],
    ['a view of it', view, /taken away/],
    ['a resizable ArrayBuffer', new Resizable(64, { maxByteLength: 128 }), /resizable/],
    ['a view of it', new DataView(new Resizable(64, { maxByteLength: 128 })), /resizable/],
    ['a SharedArrayBuffer', new SharedArrayBuffer(64), /SharedArrayBuffer/],
    ['a view of it', new BigInt64Array(new SharedArrayBuffer(64)), /SharedArrayBuffer/],
    ['memory of WebAssembly', wasmMemory(), /an ArrayBuffer of Node's/],
    ['text', 'hello', /must be a Region/],
    ['nothing', undefined, /must be a Region/],
    ['a remote region', inbox, /must be a Region/],
  ]
  for (const [name, memory, says] of foreign) {
    const publishing = client.publish('mine', memory as Region, { access: 'read' })
    const error = await t.throwsAsync(publishing, { instanceOf: TypeError }, name)
    t.regex(error.message, says, name)
    t.regex(error.message, /must be a Region|allocate\(\) a region and copy/, `${name}: the remedy`)
    const reading = client.read(inbox, memory as Region)
    t.regex((await t.throwsAsync(reading, { instanceOf: TypeError }, name)).message, says)
  }
  // The control: what is ours is taken, as a whole, in part, and as a view.
  for (const memory of [own, own.slice(8), new Uint16Array(own.buffer, 8), own.buffer]) {
    await client.publish('mine', memory as Region, { access: 'read' })
    await client.unpublish('mine')
  }
})

deviceTest('F.5 #43: a closed region ends nothing that is in flight, and begins nothing', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [theirs, own] = await Promise.all([allocate(1 << 20), allocate(1 << 20)])
  await accepted.publish('inbox', theirs, { access: ['read', 'write'] })
  const inbox = await client.remote('inbox')
  new Uint8Array(own.buffer).fill(5)
  await client.write(own.slice(0, 1), inbox)
  const writing = client.write(own, inbox)
  own.close()
  theirs.close()
  const late = { code: 'ERR_RDMA_REGION_CLOSED' } as const
  await t.throwsAsync(client.write(own, inbox), late)
  await t.throwsAsync(client.read(inbox, own.slice(5, 10)), late)
  await t.throwsAsync(accepted.publish('again', theirs, { access: 'read' }), late)
  await t.throwsAsync(client.batch().send(Buffer.from('not sent')).write(own, inbox).post(), late)
  await writing
  t.true(new Uint8Array(theirs.buffer).every((byte) => byte === 5))
  // What was published stays so.
  const other = await allocate(1 << 20)
  await client.read(inbox, other)
  t.true(new Uint8Array(other.buffer).every((byte) => byte === 5))
  t.is(client.stats().messagesSent, 0)
})

/** Memory of WebAssembly, which our types do not know. */
function wasmMemory(): unknown {
  const { Memory } = Reflect.get(globalThis, 'WebAssembly') as { Memory: new (of: object) => { buffer: unknown } }
  return new Memory({ initial: 1 }).buffer
}

async function carriedOut(
  t: ExecutionContext,
  place: Place,
  node: string,
  plan: Pick<Plan, 'task' | 'seed' | 'rounds'>,
): Promise<Record<string, number>> {
  // Others keep the machine busy, and in the guest every instruction is translated.
  const handshakeTimeout = 60_000
  const server = { ...(await listening(place)), handshakeTimeout }
  const whole: Plan = { ...plan, server, client: { ...(await connecting(place, 1)), handshakeTimeout } }
  const script = require.resolve('./_regions.js')
  const child = spawn(node, ['--expose-gc', script, JSON.stringify(whole)], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  let told = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    told += text
  })
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  t.deepEqual({ code, signal }, { code: PLANNED, signal: null }, `SECURE_RDMA_SEED=${plan.seed}, ${plan.task}`)
  return JSON.parse(told) as Record<string, number>
}

for (const [major, node] of versions()) {
  if (!existsSync(node) && process.env['SECURE_RDMA_NODES'] === undefined) {
    test.skip(`[no Node ${major}: node tools/node-versions.mjs fetches it] F.5 #41 to #47`, () => undefined)
    continue
  }
  deviceTest(
    `F.5 #41, #42: Node ${major}: ${ROUNDS} random orders of what JavaScript can do to memory in flight`,
    async (t, place) => {
      t.timeout(240_000 + ROUNDS * 1000)
      const counts = await carriedOut(t, place, node, { task: 'orders', seed: SEED, rounds: ROUNDS })
      t.log(JSON.stringify(counts))
      t.true((counts['ok'] ?? 0) > ROUNDS, 'most operations are carried out')
      t.true((counts['gc'] ?? 0) > 0 && (counts['transfer'] ?? 0) > 0)
    },
  )

  const workers = Math.max(10, ROUNDS / 10)
  deviceTest(
    `F.5 #45, #47: Node ${major}: ${workers} workers that end with regions in flight, and with bytes elsewhere`,
    async (t, place) => {
      t.timeout(240_000 + workers * 10_000)
      const counts = await carriedOut(t, place, node, { task: 'workers', seed: SEED, rounds: workers })
      t.log(JSON.stringify(counts))
      t.is(counts['workers'], workers)
      // The control: what can be moved was. Node 20 copies, and has no transfer().
      t.is(counts['moved'], major === '20' ? 0 : workers)
    },
  )

  deviceTest(
    `F.5 #46: Node ${major}: processes that exit with regions in flight keep their exit status`,
    async (t, place) => {
      const exits = Math.max(4, ROUNDS / 20)
      t.timeout(240_000 + exits * 10_000)
      const flying: number[] = []
      for (let i = 0; i < exits; i++) {
        const counts = await carriedOut(t, place, node, { task: 'exit', seed: 7 * i, rounds: 1 })
        flying.push(counts['flying'] ?? 0)
      }
      // Some come so early that nothing is posted yet; in memory an operation is over at once.
      if (testDevice !== 'fake') t.true(Math.max(...flying) > 0, 'operations are in flight at exits')
      t.log(`${exits} exits with ${Math.min(...flying)} to ${Math.max(...flying)} operations in flight`)
    },
  )
}

/** Only a test build of the addon can say that Node takes no external buffers. */
const testBuild: typeof deviceTest = (title, implementation) => {
  if (testDevice === 'fake') deviceTest(title, implementation)
}

testBuild('F.5 #51: where Node takes no external buffers there are no regions, and it is said', async (t) => {
  const child = Child.start(t, { env: { SECURE_RDMA_TEST_NO_EXTERNAL_BUFFERS: '1' } })
  const allocating = child.run(({ rdma }) => rdma.allocate(100).then(() => undefined))
  await t.throwsAsync(allocating, { code: 'ERR_RDMA_NO_EXTERNAL_BUFFERS', message: /Electron/ })
})

rxeTest(
  'F.5 #50: memory that may not be pinned is refused by name, and nothing of it stays registered',
  async (t, place) => {
    const child = Child.start(t, {
      through: ['sh', '-c', 'ulimit -l 8192 && exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock "$0" "$@"'],
    })
    const given = { server: await listening(place), client: await connecting(place, 1) }
    const told = await child.run(async ({ rdma }, { server, client }) => {
      const listener = await rdma.listen(server)
      const port = listener.address()?.port ?? 0
      const [one, other] = await Promise.all([rdma.connect({ ...client, port }), listener.accept()])
      const inbox = await rdma.allocate(4096)
      await other.publish('inbox', inbox, { access: ['read', 'write'] })
      const remote = await one.remote('inbox')
      const large = await rdma.allocate(64 << 20)
      const code = (error: unknown): unknown => (error as { code: unknown }).code
      const codes = [
        await other.publish('large', large, { access: 'read' }).catch(code),
        await one.write(large.slice(0, 8), remote).catch(code),
        await one.write(inbox, remote).catch(code),
      ]
      await one.close()
      await listener.close()
      return codes
    }, given)
    t.deepEqual(told, ['ERR_RDMA_MEMLOCK', 'ERR_RDMA_MEMLOCK', undefined])
    t.true(memoryOf(child.pid, 'VmPin') < 8 << 20)
  },
)
