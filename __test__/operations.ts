// WRITEs, READs and atomics by their promise face: bytes, order, many in flight, aborts, and what is refused.

import type { ExecutionContext } from 'ava'
import { inspect } from 'node:util'
import { allocate, type Region, type RegionRight, type RemoteRegion } from 'secure-rdma'
import { deviceTest, everywhere, type Place } from './_device.js'
import { join, serve, type Pair } from './_peers.js'
import { bytesOf } from './_traffic.js'

/** Two ends, and memory of the server's that the client may use. */
interface Granted extends Pair {
  theirs: Region
  inbox: RemoteRegion
  own: Region
}

const ALL: RegionRight[] = ['read', 'write', 'atomic']

async function granted(t: ExecutionContext, place: Place, bytes: number, access = ALL): Promise<Granted> {
  // A path as slow as the emulated guest's may be busy with one work request for long.
  const pair = await join(t, await serve(t, place, { pathTimeout: 30_000, closeTimeout: 30_000 }))
  const [theirs, own] = await Promise.all([allocate(bytes), allocate(bytes)])
  await pair.accepted.publish('inbox', theirs, { access })
  return { ...pair, theirs, own, inbox: await pair.client.remote('inbox') }
}

const view = ({ buffer }: Region): Buffer => Buffer.from(buffer)

everywhere('WRITE and READ of every border length, and nothing beside them changes', async (t, place) => {
  const { client, theirs, own, inbox } = await granted(t, place, 70_000)
  const data = bytesOf('border lengths', 70_000)
  for (const length of [0, 1, 7, 64, 255, 1023, 1024, 1025, 4095, 4096, 4097, 65_535, 65_536, 69_000]) {
    const offset = length % 97
    view(theirs).fill(0xee)
    view(own).set(data)
    await client.write(own.slice(5, length), inbox, { offset })
    const written = Buffer.alloc(70_000, 0xee)
    data.copy(written, offset, 5, 5 + length)
    t.true(view(theirs).equals(written), `a WRITE of ${length} bytes`)
    if (length === 0) continue
    view(own).fill(0x11)
    await client.read(inbox.slice(offset), own.slice(100, length))
    const read = Buffer.alloc(70_000, 0x11)
    data.copy(read, 100, 5, 5 + length)
    t.true(view(own).equals(read), `a READ of ${length} bytes`)
  }
  await client.close()
})

deviceTest('an operation longer than a work request: 9 MiB each way', async (t, place) => {
  const bytes = 9 * 2 ** 20 + 3
  const { client, theirs, own, inbox } = await granted(t, place, bytes)
  const data = bytesOf('long', bytes)
  view(own).set(data)
  await client.write(own, inbox)
  t.true(view(theirs).equals(data))
  view(own).fill(0)
  await client.read(inbox, own)
  t.true(view(own).equals(data))
})

everywhere('atomics tell what was there, and add and swap 64 bits', async (t, place) => {
  const { client, theirs, inbox } = await granted(t, place, 64)
  const words = new BigUint64Array(theirs.buffer)
  const most = 2n ** 64n - 1n
  t.is(await client.fetchAndAdd(inbox, 5n), 0n)
  t.is(await client.fetchAndAdd(inbox, -7n), 5n)
  t.is(words[0], most - 1n)
  t.is(await client.compareAndSwap(inbox, 1n, 2n), most - 1n, 'it was not swapped')
  t.is(words[0], most - 1n)
  t.is(await client.compareAndSwap(inbox, most - 1n, 0xfff8_0000_0000_0001n), most - 1n)
  t.is(words[0], 0xfff8_0000_0000_0001n, 'every bit of it, though as a double it would be none')
  t.is(await client.fetchAndAdd(inbox, most, { offset: 56 }), 0n)
  t.is(await client.fetchAndAdd(inbox.slice(56), 1n, { fence: true }), most)
  t.is(words[7], 0n)
  const sums = await Promise.all(Array.from({ length: 200 }, () => client.fetchAndAdd(inbox, 1n, { offset: 8 })))
  t.deepEqual(
    sums,
    Array.from({ length: 200 }, (_, i) => BigInt(i)),
    'in the order of the calls',
  )
  t.is(words[1], 200n)
})

deviceTest('gather and scatter lists, of slices, of views and of whole regions', async (t, place) => {
  const { client, theirs, own, inbox } = await granted(t, place, 100_000)
  const data = bytesOf('gather', 100_000)
  view(own).set(data)
  const second = await allocate(300)
  view(second).fill(0x55)
  const slices = Array.from({ length: 40 }, (_, i) => own.slice(i * 1001, i % 7 === 0 ? 0 : 501 + i))
  await client.write([...slices, second, new Uint16Array(own.buffer, 2000, 100)], inbox, { offset: 10 })
  const parts = slices.map(({ byteOffset, byteLength }) => data.subarray(byteOffset, byteOffset + byteLength))
  const all = Buffer.concat([...parts, view(second), data.subarray(2000, 2200)])
  t.true(
    view(theirs)
      .subarray(10, 10 + all.length)
      .equals(all),
  )
  view(own).fill(0)
  await client.read(inbox, [own.slice(90_000, 10), own.slice(0, 1), own.slice(50_000, all.length)], { fence: true })
  t.true(
    view(own)
      .subarray(50_000, 50_000 + all.length - 1)
      .equals(all.subarray(1)),
  )
})

deviceTest('bytes that are no region are copied before write() returns', async (t, place) => {
  const { client, theirs, inbox } = await granted(t, place, 1000)
  const bytes = Buffer.alloc(300, 7)
  const shared = new Uint8Array(new SharedArrayBuffer(8)).fill(3)
  const writing = Promise.all([
    client.write(bytes, inbox),
    client.write([bytes.subarray(0, 10), shared], inbox, { offset: 500 }),
    client.write(new Uint8Array(0), inbox),
  ])
  bytes.fill(0)
  shared.fill(0)
  await writing
  t.deepEqual([...view(theirs).subarray(0, 302)], [...Buffer.alloc(300, 7), 0, 0])
  t.deepEqual([...view(theirs).subarray(500, 519)], [...Buffer.alloc(10, 7), ...Buffer.alloc(8, 3), 0])
})

everywhere('immediates come in order, after their bytes, and make a sender wait like messages', async (t, place) => {
  const pair = await join(t, await serve(t, place, { receiveBufferSize: 4096 }))
  const { client, accepted } = pair
  const [theirs, own] = await Promise.all([allocate(4096), allocate(4096)])
  await accepted.publish('inbox', theirs, { access: 'write' })
  const inbox = await client.remote('inbox')
  const count = 500
  const writes = Promise.all(
    Array.from({ length: count }, (_, i) => {
      new DataView(own.buffer).setUint32((8 * i) % 4000, i)
      return client.write(own.slice((8 * i) % 4000, 8), inbox, { offset: (8 * i) % 4000, immediate: 0xffff_ffff - i })
    }),
  ).catch((error: unknown) => error)
  for (let i = 0; i < count; i++) {
    if ((await accepted.receiveImmediate()) !== 0xffff_ffff - i) t.fail(`immediate ${i}`)
  }
  t.is(await writes.then(() => 'done'), 'done')
  t.is(accepted.stats().immediatesReady, 0)
  t.is(client.stats().operationsPosted, count)
  t.is(client.stats().operationsPending, 0)
  const last = accepted.receiveImmediate()
  await client.close()
  t.is(await last, null)
})

everywhere('messages and operations arrive and complete in the order of the calls', async (t, place) => {
  const { client, accepted, theirs, own, inbox } = await granted(t, place, 1000)
  const done: number[][] = [[], [], []]
  const note = (i: number) => (): void => {
    done[i % 3]?.push(i)
  }
  const started: Promise<void>[] = []
  for (let i = 0; i < 300; i++) {
    // The first WRITE registers its region: what is asked for meanwhile waits its turn.
    if (i % 3 === 0) started.push(client.write(own.slice(0, 100), inbox).then(note(i)))
    else if (i % 3 === 1) started.push(client.send(Buffer.from(String(i))).then(note(i)))
    else started.push(client.fetchAndAdd(inbox, 1n, { offset: 200 }).then(note(i)))
  }
  await Promise.all(started)
  for (const [kind, ids] of done.entries()) {
    t.deepEqual(
      ids,
      Array.from({ length: 100 }, (_, i) => 3 * i + kind),
    )
  }
  for (let i = 1; i < 300; i += 3) t.is(String(await accepted.receive()), String(i))
  t.is(new BigUint64Array(theirs.buffer)[25], 100n)
})

deviceTest('a message behind a first WRITE finds its bytes, and so do end and close', async (t, place) => {
  const { client, accepted, theirs, own, inbox } = await granted(t, place, 8 << 20)
  view(own).fill(9)
  const writing = client.write(own, inbox)
  const sending = client.send(Buffer.from('written'))
  const ending = client.end()
  const closing = client.close()
  t.is(String(await accepted.receive()), 'written')
  t.is(view(theirs).indexOf(0), -1)
  await Promise.all([writing, sending, ending, closing])
  t.is(await accepted.receive(), null)
})

deviceTest('aborted operations: before, while they wait, and when they have begun', async (t, place) => {
  const { client, theirs, own, inbox } = await granted(t, place, 1 << 20)
  const reason = new Error('enough')
  const aborted = { name: 'AbortError', code: 'ABORT_ERR' } as const
  const early = await t.throwsAsync(client.write(own, inbox, { signal: AbortSignal.abort(reason) }), aborted)
  t.is(early.cause, reason)
  await client.write(own, inbox)
  const controller = new AbortController()
  view(own).fill(1)
  // Begun, or waiting behind: the wait ends at once, and the bytes are whole or not there.
  const writes = Array.from({ length: 64 }, (_, i) =>
    client.write(own.slice(i * 16_384, 16_384), inbox, { offset: i * 16_384, signal: controller.signal }),
  )
  const read = client.read(inbox, own, { signal: controller.signal })
  const add = client.fetchAndAdd(inbox, 0n, { signal: controller.signal })
  controller.abort(reason)
  const settled = await Promise.allSettled([...writes, read, add])
  for (const outcome of settled) {
    if (outcome.status === 'fulfilled') continue
    const error = outcome.reason as Error & { code?: string }
    t.like(error, aborted)
    t.is(error.cause, reason)
    t.regex(error.message, /nothing of it was carried out|may still be carried out/)
  }
  // What a device has carried out by then is no more to be aborted: in-memory ones and rxe do so while it is posted.
  t.log(`${settled.filter(({ status }) => status === 'rejected').length} of ${settled.length} were aborted`)
  const before = await client.fetchAndAdd(inbox, 0n, { fence: true })
  t.true(before === 0n || before === 0x0101_0101_0101_0101n)
  for (let i = 0; i < 64; i++) {
    const part = view(theirs).subarray(i * 16_384, (i + 1) * 16_384)
    t.true(
      part.every((byte) => byte === part[0]),
      `part ${i} is whole`,
    )
  }
  t.is(client.stats().operationsPending, 0)
  const waiting = new AbortController()
  const immediate = client.receiveImmediate({ signal: waiting.signal })
  const seeking = client.remote('never', { signal: waiting.signal })
  waiting.abort(reason)
  for (const wait of [immediate, seeking]) t.is((await t.throwsAsync(wait, aborted)).cause, reason)
  await client.close()
})

deviceTest(
  'F.4 #39: operations without end are refused in time, by name, and the connection lives',
  async (t, place) => {
    const { client, own, inbox } = await granted(t, place, 64)
    const many = client.batch()
    for (let i = 0; i < 16_384; i++) many.write(own, inbox)
    t.is((await many.post()).length, 16_384)
    for (let i = 0; i < 16_385; i++) many.write(own, inbox)
    await t.throwsAsync(many.post(), { code: 'ERR_RDMA_OPERATION_LIMIT' })
    t.like(client.stats(), { operationsPosted: 16_384, operationsPending: 0 })
    await client.write(own, inbox)
  },
)

deviceTest('what cannot be is refused before anything crosses, and by its name', async (t, place) => {
  const { client, own, inbox } = await granted(t, place, 64)
  const write =
    (...args: unknown[]) =>
    (): unknown =>
      Reflect.apply(client.write.bind(client), client, args)
  const read =
    (...args: unknown[]) =>
    (): unknown =>
      Reflect.apply(client.read.bind(client), client, args)
  const swap =
    (...args: unknown[]) =>
    (): unknown =>
      Reflect.apply(client.compareAndSwap.bind(client), client, args)
  const add =
    (...args: unknown[]) =>
    (): unknown =>
      Reflect.apply(client.fetchAndAdd.bind(client), client, args)
  const rows: [name: string, call: () => unknown, kind: typeof TypeError | typeof RangeError, names: string][] = [
    ['no local', write(undefined, inbox), TypeError, 'local must be'],
    ['text', write('hello', inbox), TypeError, 'local must be'],
    ['no region in a list', write([own, 5], inbox), TypeError, 'local[1] must be'],
    ['no remote', write(own, undefined), TypeError, 'remote must be'],
    ['a local remote', write(own, own), TypeError, 'remote must be'],
    ['options', write(own, inbox, 5), TypeError, 'options must be'],
    ['an unknown option', write(own, inbox, { fenced: true }), TypeError, 'options.fenced'],
    ['an offset behind the end', write(own, inbox, { offset: 65 }), RangeError, 'byteOffset'],
    ['a negative offset', write(own, inbox, { offset: -1 }), RangeError, 'options.offset'],
    ['too many bytes', write(own, inbox, { offset: 1 }), RangeError, '64 bytes do not fit'],
    ['too many in a list', write([own, own.slice(0, 1)], inbox), RangeError, '65 bytes do not fit'],
    ['more than a slice', write(own, inbox.slice(0, 8)), RangeError, '64 bytes do not fit into the 8'],
    ['an immediate', write(own, inbox, { immediate: 2 ** 32 }), RangeError, 'options.immediate'],
    ['a fence', write(own, inbox, { fence: 1 }), TypeError, 'options.fence'],
    ['a signal', write(own, inbox, { signal: 5 }), TypeError, 'signal'],
    ['an immediate of a READ', read(inbox, own, { immediate: 1 }), TypeError, 'options.immediate'],
    ['a READ of nothing', read(inbox, own.slice(0, 0)), RangeError, '1 byte'],
    ['a READ into foreign memory', read(inbox, new Uint8Array(8)), TypeError, 'taken away'],
    ['a number', add(inbox, 5), TypeError, 'addend must be a bigint'],
    ['2^64', add(inbox, 2n ** 64n), RangeError, 'addend'],
    ['less than -2^63', add(inbox, -(2n ** 63n) - 1n), RangeError, 'addend'],
    ['a negative expectation', swap(inbox, -1n, 0n), RangeError, 'expected'],
    ['no desired', swap(inbox, 0n), TypeError, 'desired'],
    ['an atomic of 7 bytes', add(inbox, 1n, { offset: 57 }), RangeError, 'an atomic takes 8'],
  ]
  for (const [name, call, kind, names] of rows) {
    const error = await t.throwsAsync(call() as Promise<unknown>, { instanceOf: kind }, name)
    t.true(error.message.includes(names), `${name}: ${error.message}`)
  }
  await t.throwsAsync(client.fetchAndAdd(inbox, 1n, { offset: 4 }), { code: 'ERR_RDMA_REGION_ALIGNMENT' })
  t.is(client.stats().operationsPosted, 0)
  own.close()
  await t.throwsAsync(client.write(own, inbox), { code: 'ERR_RDMA_REGION_CLOSED' })
  await client.close()
  await t.throwsAsync(client.write(await allocate(8), inbox), { code: 'ERR_RDMA_CLOSED' })
})

deviceTest('the end of a connection settles what is in flight, each with its cause', async (t, place) => {
  const { client, accepted, own, inbox } = await granted(t, place, 1 << 20)
  await client.write(own, inbox)
  const operations = [
    ...Array.from({ length: 32 }, () => client.write(own, inbox)),
    client.read(inbox, own),
    client.batch().write(own, inbox).fetchAndAdd(inbox, 1n).post(),
    client.receiveImmediate(),
    client.remote('never'),
  ]
  accepted.destroy(new Error('on purpose'))
  const settled = await Promise.allSettled(operations)
  for (const [i, outcome] of settled.entries()) {
    if (outcome.status === 'fulfilled' && i < 34) continue
    const code: unknown = outcome.status === 'rejected' ? (outcome.reason as { code: unknown }).code : 'fulfilled'
    t.regex(String(code), /^ERR_RDMA_/, `operation ${i}`)
  }
  t.is((await client.closed).reason, 'error')
})

deviceTest('nothing secret is shown of regions and of what peers publish', async (t, place) => {
  const { client, own, inbox } = await granted(t, place, 64)
  const shown = inspect([own, own.slice(8), inbox, inbox.slice(8, 8), client.batch()], { depth: 5, showHidden: true })
  t.false(/rkey|address|0x[\da-f]{8}/i.test(shown), shown)
  t.regex(shown, /RemoteRegion \{\s+name: 'inbox',\s+byteLength: 64/)
})
