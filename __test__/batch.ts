// Lists that cross into native code once: batches of messages both ways, and of operations.

import { allocate, type RdmaError } from 'secure-rdma'
import { deviceTest, everywhere } from './_device.js'
import { inGuest } from './_guest.js'
import { join, serve, since } from './_peers.js'
import { bytesOf } from './_traffic.js'

everywhere('batches of messages arrive whole and in order, whatever their sizes', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const data = bytesOf('batches', 300_000)
  const sizes = [0, 1, 64, 64, 64, 0, 4095, 4096, 4097, 100_000, 64, 5]
  const messages = sizes.map((size, i) => data.subarray(i * 7, i * 7 + size))
  for (let round = 0; round < 3; round++) {
    const sending = client.sendBatch(messages)
    const received: Buffer[] = []
    while (received.length < sizes.length) received.push(...((await accepted.receiveBatch()) ?? []))
    await sending
    t.deepEqual(
      received.map(({ length }) => length),
      sizes,
    )
    for (const [i, message] of received.entries()) t.true(messages[i]?.equals(message), `message ${i}`)
  }
  t.is(client.stats().messagesSent, 3 * sizes.length)
  await client.end()
  t.is(await accepted.receiveBatch(), null)
  await accepted.close()
  t.is(await client.receiveBatch(), null)
})

deviceTest('a batch is copied before sendBatch() returns, and counts among other messages', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const bytes = Buffer.from('abcdefgh')
  const sends = [
    client.send(bytes.subarray(0, 1)),
    client.sendBatch([
      bytes.subarray(1, 2),
      new Uint16Array(bytes.buffer, bytes.byteOffset + 2, 1),
      new Uint8Array([0x65]),
    ]),
    client.sendBatch([]),
    client.send(bytes.subarray(5)),
  ]
  bytes.fill(0)
  await Promise.all(sends)
  t.is(String(await accepted.receive()), 'a')
  t.deepEqual((await accepted.receiveBatch({ limit: 2 }))?.map(String), ['b', 'cd'])
  const both = [accepted.receive(), accepted.receiveBatch({ limit: 1 })]
  t.is(String(await both[0]), 'e')
  t.deepEqual(((await both[1]) as Buffer[]).map(String), ['fgh'])
})

deviceTest('whoever transfers the memory of a batch takes nothing from those behind', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const waiting = [accepted.receiveBatch({ limit: 3 }), accepted.receive()]
  await client.sendBatch(Array.from({ length: 100 }, (_, index) => Buffer.alloc(100, index)))
  const taken = [await waiting[0], [await waiting[1]], await accepted.receiveBatch({ limit: 3 })].flat() as Buffer[]
  for (const { buffer } of taken) {
    try {
      structuredClone(buffer, { transfer: [buffer as ArrayBuffer] })
    } catch {
      // Node's own pool cannot be transferred, and what was transferred cannot be again.
    }
  }
  let next = taken.length
  while (next < 100) {
    const messages = (await accepted.receiveBatch({ limit: 7 })) ?? []
    for (const message of messages) t.true(message.equals(Buffer.alloc(100, next++)))
  }
})

deviceTest('what is refused of a batch is refused as a whole', async (t, place) => {
  const options = { maxMessageSize: 1000, sendBufferSize: 100_000, receiveBufferSize: 10_000 }
  const { client, accepted } = await join(t, await serve(t, place, options))
  const [small, large] = [Buffer.alloc(1000), Buffer.alloc(1001)]
  await t.throwsAsync(client.sendBatch([small, large]), { code: 'ERR_RDMA_MESSAGE_TOO_LARGE' })
  const many = Array.from({ length: 200 }, () => small)
  await t.throwsAsync(client.sendBatch(many), { code: 'ERR_RDMA_SEND_BUFFER_FULL' })
  for (const wrong of [undefined, 'hello', [5], [small, 'hello'], [[small]]]) {
    await t.throwsAsync(client.sendBatch(wrong as Buffer[]), { instanceOf: TypeError })
  }
  for (const limit of [0, 1.5, -1, 65_537]) {
    await t.throwsAsync(accepted.receiveBatch({ limit }), { instanceOf: RangeError })
  }
  await t.throwsAsync(accepted.receiveBatch({ limit: '5' as unknown as number }), { instanceOf: TypeError })
  t.is(client.stats().messagesSent, 0)
  await client.sendBatch([small, small])
  t.is((await accepted.receiveBatch({ limit: 2 }))?.[0]?.length, 1000)
})

deviceTest(
  'an aborted batch: its wait ends at once, and what arrives is in order and without gaps',
  async (t, place) => {
    const { client, accepted } = await join(t, await serve(t, place, { receiveBufferSize: 10_000 }))
    const reason = new Error('enough')
    const gone = await t.throwsAsync(client.sendBatch([Buffer.alloc(1)], { signal: AbortSignal.abort(reason) }))
    t.is(gone.cause, reason)
    const controller = new AbortController()
    // More than the peer has room for, so that some of it waits.
    const messages = Array.from({ length: 1000 }, (_, i) => Buffer.alloc(1000, i))
    const sending = client.sendBatch(messages, { signal: controller.signal })
    controller.abort(reason)
    const error = await t.throwsAsync(sending, { name: 'AbortError', message: /may still arrive/ })
    t.is(error.cause, reason)
    const after = client.send(Buffer.from('after'))
    let count = 0
    for (let message = await accepted.receive(); String(message) !== 'after'; message = await accepted.receive()) {
      if (!message?.equals(messages[count++] ?? Buffer.alloc(0))) t.fail(`message ${count} is wrong`)
    }
    await after
    t.true(count > 0 && count < 1000, `${count} were sent`)
    await t.throwsAsync(client.receiveBatch({ signal: AbortSignal.timeout(20) }), { name: 'AbortError' })
  },
)

deviceTest('the end rejects a batch that waits, and ends a wait for one', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { receiveBufferSize: 10_000 }))
  const sending = client.sendBatch(Array.from({ length: 100 }, () => Buffer.alloc(1000)))
  const waiting = client.receiveBatch()
  accepted.destroy(new Error('by the test'))
  for (const promise of [sending, waiting]) {
    t.regex((await t.throwsAsync<RdmaError>(promise)).code, /^ERR_RDMA_PEER/)
  }
})

everywhere('a batch of everything: in order, and with what the atomics found', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [theirs, own] = await Promise.all([allocate(256), allocate(256)])
  await accepted.publish('inbox', theirs, { access: ['read', 'write', 'atomic'] })
  const inbox = await client.remote('inbox')
  new Uint8Array(own.buffer, 0, 64).fill(3)
  const batch = client.batch()
  t.deepEqual(await batch.post(), [])
  batch
    .write(own.slice(0, 64), inbox, { offset: 64 })
    .send(Buffer.from('between'))
    .fetchAndAdd(inbox, 5n)
    .fetchAndAdd(inbox, 6n)
    .compareAndSwap(inbox, 11n, 1n << 63n)
    .read(inbox, own.slice(128, 128), { fence: true })
    .write([own.slice(0, 8), Buffer.alloc(8, 4)], inbox, { immediate: 9, fence: true })
  t.is(batch.length, 7)
  const outcomes = await batch.post()
  t.deepEqual(outcomes, [undefined, undefined, 0n, 5n, 11n, undefined, undefined])
  t.is(batch.length, 0)
  t.is(await accepted.receiveImmediate(), 9)
  t.is(String(await accepted.receive()), 'between')
  const read = Buffer.from(own.buffer, 128)
  t.is(read.readBigUInt64LE(), 1n << 63n)
  t.deepEqual([...read.subarray(64)], Array(64).fill(3))
  t.deepEqual([...Buffer.from(theirs.buffer, 0, 16)], [...Array<number>(8).fill(3), ...Array<number>(8).fill(4)])
  // It may be filled again.
  t.deepEqual(await batch.fetchAndAdd(inbox, 0n, { offset: 16 }).post(), [0n])
})

deviceTest('a wrong entry is refused when it is added, and the batch is as it was', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [theirs, own] = await Promise.all([allocate(64), allocate(64)])
  await accepted.publish('inbox', theirs, { access: ['write', 'atomic'] })
  const inbox = await client.remote('inbox')
  const batch = client.batch().fetchAndAdd(inbox, 1n)
  t.throws(() => batch.write(own, inbox, { offset: 1 }), { instanceOf: RangeError })
  t.throws(() => batch.write([own.slice(0, 8), 5 as never], inbox), { instanceOf: TypeError })
  t.throws(() => batch.send('hello' as never), { instanceOf: TypeError })
  t.throws(() => batch.fetchAndAdd(inbox, 1 as never), { instanceOf: TypeError })
  t.throws(() => batch.compareAndSwap(inbox, 1n, 2n ** 64n), { instanceOf: RangeError })
  await t.throwsAsync(batch.post({ signal: 5 as never }), { instanceOf: TypeError })
  t.deepEqual(await batch.fetchAndAdd(inbox, 1n).post(), [0n, 1n])
  // What native code refuses, it refuses as a whole.
  await t.throwsAsync(batch.fetchAndAdd(inbox, 1n).read(inbox, own).post(), { code: 'ERR_RDMA_REGION_ACCESS' })
  t.is(new BigUint64Array(theirs.buffer)[0], 2n)
})

deviceTest('entries that fail alone fail the batch, when all of it is over', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  // What is in flight must be over within 2 s, also in the emulated guest.
  const length = inGuest ? 8192 : 1 << 20
  const [theirs, own] = await Promise.all([allocate(length), allocate(length)])
  await accepted.publish('inbox', theirs, { access: 'write' })
  const inbox = await client.remote('inbox')
  await client.write(own, inbox)
  const batch = client.batch()
  for (let i = 0; i < 64; i++) batch.write(own, inbox)
  const posting = batch.send(Buffer.from('behind')).post()
  await accepted.unpublish('inbox')
  const outcome = await posting.catch((error: unknown) => (error as RdmaError).code)
  t.true(Array.isArray(outcome) || outcome === 'ERR_RDMA_REGION_REVOKED', String(outcome))
  t.is(String(await accepted.receive()), 'behind')
  t.is(client.stats().operationsPending, 0)
})

everywhere('100,000 messages of 64 bytes in batches of 64', async (t, place) => {
  const total = inGuest ? 10_000 : 100_000
  const { client, accepted } = await join(t, await serve(t, place))
  const began = performance.now()
  const sending = (async () => {
    const messages = Array.from({ length: 64 }, () => Buffer.alloc(64, 1))
    for (let sent = 0; sent < total; sent += 64) {
      for (const [i, message] of messages.entries()) message.writeUInt32LE(sent + i)
      await client.sendBatch(messages.slice(0, Math.min(64, total - sent)))
    }
    await client.end()
  })()
  let count = 0
  for (let batch = await accepted.receiveBatch(); batch; batch = await accepted.receiveBatch()) {
    for (const message of batch)
      if (message.readUInt32LE() !== count++ || message.length !== 64) t.fail(`message ${count}`)
  }
  await sending
  t.is(count, total)
  t.log(`${count} in ${since(began)}`)
})
