// Messages that are sent within one turn of JavaScript cross together, and short ones come together: nobody may notice.

import { setTimeout as sleep } from 'node:timers/promises'
import { allocate, RdmaError } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { join, serve, until } from './_peers.js'

/** Bytes that tell where they belong. */
const patterned = (length: number): Buffer => Buffer.alloc(length).map((_, index) => (length + index) & 255) as Buffer

deviceTest('messages of one turn arrive in the order of the calls, whatever their lengths', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const lengths = Array.from({ length: 700 }, (_, index) => [0, 1, 64, 65, 4096, 4097, 20_000][index % 7] ?? 0)
  const before = client.stats()
  const sends = lengths.map(async (length) => client.send(patterned(length)))
  const after = client.stats()
  t.is(after.messagesSent - before.messagesSent, lengths.length, 'all have been handed over')
  sends.push(client.end())
  for (const length of lengths) t.true((await accepted.receive())?.equals(patterned(length)), `${length} bytes`)
  t.is(await accepted.receive(), null)
  await Promise.all(sends)
})

deviceTest('what is refused of a turn is refused alone', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { maxMessageSize: 1000 }))
  const outcomes = await Promise.all(
    [10, 1000, 1001, 0, 2000, 64].map(async (length) =>
      client.send(patterned(length)).then(
        () => 'sent',
        (error: unknown) => (error as RdmaError).code,
      ),
    ),
  )
  const refused = 'ERR_RDMA_MESSAGE_TOO_LARGE'
  t.deepEqual(outcomes, ['sent', 'sent', refused, 'sent', refused, 'sent'])
  for (const length of [10, 1000, 0, 64]) t.is((await accepted.receive())?.length, length)
})

deviceTest('the bytes are copied before send() returns', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const bytes = Buffer.alloc(64)
  const sends = Array.from({ length: 20 }, async (_, index) => client.send(bytes.fill(index)))
  bytes.fill(255)
  for (let index = 0; index < 20; index++) t.is((await accepted.receive())?.[63], index)
  await Promise.all(sends)
})

deviceTest('an end within the turn reaches those who have sent in it', async (t, place) => {
  const served = await serve(t, place)
  const one = await join(t, served)
  const sends = Array.from({ length: 5 }, async () => one.client.send(Buffer.alloc(64)))
  one.client.destroy()
  for (const outcome of await Promise.allSettled(sends)) {
    t.true(outcome.status === 'fulfilled' || outcome.reason instanceof RdmaError)
  }
  const other = await join(t, served)
  const closing = Array.from({ length: 5 }, async () => other.client.send(Buffer.alloc(64)))
  await Promise.all([...closing, other.client.close()])
})

deviceTest(
  'received messages share no memory, and one by one or in batches they keep their order',
  async (t, place) => {
    const { client, accepted } = await join(t, await serve(t, place))
    const sends = Array.from({ length: 100 }, async (_, index) => client.send(Buffer.alloc(10, index)))
    await Promise.all(sends)
    const first = await accepted.receive()
    const second = await accepted.receive()
    t.not(first?.buffer, second?.buffer)
    // A device acknowledges a message before this side has been told of it.
    await until('all have come', () => accepted.stats().messagesReady === 98)
    t.is(accepted.stats().bytesReady, 980)
    const rest: Buffer[] = []
    while (rest.length < 98) rest.push(...((await accepted.receiveBatch({ limit: 30 })) ?? []))
    t.deepEqual(
      [first, second, ...rest].map((message) => message?.[0]),
      sends.map((_, index) => index),
    )
  },
)

deviceTest('messages that come while nobody takes them are counted, and keep their order', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  let sent = 0
  let taken = 0
  const expect = (messages: readonly (Buffer | null)[] | null): void => {
    for (const message of messages ?? [null]) t.is(message?.[0], taken++ & 255)
  }
  for (const takeSome of [
    async () => {
      expect([await accepted.receive()])
    },
    async () => {
      expect(await accepted.receiveBatch({ limit: 3 }))
    },
  ]) {
    // To whoever has taken all, messages come with the news.
    const first = accepted.receive()
    for (let burst = 0; burst < 5; burst++) {
      const lengths = [10, 10, 10, burst % 2 === 0 ? 20_000 : 10, 10, 10]
      await Promise.all(lengths.map(async (length) => client.send(Buffer.alloc(length, sent++))))
      if (burst === 0) expect([await first])
      else if (burst === 2) await takeSome()
      await until('all have come', () => accepted.stats().messagesReady === sent - taken)
    }
    // At the most one of three long ones has been taken.
    t.true(accepted.stats().bytesReady > 20_000 + (sent - taken) * 10)
    while (taken < sent) await takeSome()
    t.is(accepted.stats().messagesReady, 0)
  }
})

deviceTest('whoever stops taking messages is given a few more, and then makes the peer wait', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { receiveBufferSize: 10_000 }))
  const first = accepted.receive()
  // Burst after burst, so that each could come with news of its own.
  let arrived = 0
  const sends: Promise<unknown>[] = []
  for (let burst = 0; burst < 200; burst++) {
    for (let index = 0; index < 40; index++) {
      sends.push(client.send(Buffer.alloc(100, burst)).then(() => arrived++))
    }
    await sleep(1)
  }
  t.is((await first)?.length, 100)
  await sleep(300)
  // What the receive buffer, its 16 segments and two crossings can hold.
  t.true(arrived < 1200, `${arrived} of ${sends.length}`)
  for (let index = 1; index < sends.length; index++) {
    const message = await accepted.receive()
    if (message?.[0] !== Math.floor(index / 40)) t.fail(`message ${index}`)
  }
  await Promise.all(sends)
})

deviceTest('operations of the turn keep their place among the messages, and their outcomes', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [theirs, own] = [await allocate(4096), await allocate(4096)]
  await accepted.publish('inbox', theirs, { access: ['read', 'write', 'atomic'] })
  const inbox = await client.remote('inbox')
  // Registered before, so that nothing waits for that.
  await client.write(own.slice(0, 8), inbox)
  for (let turn = 0; turn < 5; turn++) {
    const sends = ['a', 'b', 'c'].map(async (text) => client.send(Buffer.from(text)))
    const add = client.fetchAndAdd(inbox, 1n)
    sends.push(client.send(Buffer.from('d')))
    const write = client.write(own.slice(8, 8), inbox, { offset: 8, immediate: turn })
    sends.push(client.send(Buffer.from('e')))
    const batch = client.batch().send(Buffer.from('f')).fetchAndAdd(inbox, 0n).post()
    sends.push(client.send(Buffer.from('g')))
    t.is(await add, BigInt(turn))
    t.deepEqual(await batch, [undefined, BigInt(turn + 1)])
    await Promise.all([...sends, write])
    for (const text of 'abcdefg') t.is(String(await accepted.receive()), text)
    t.is(await accepted.receiveImmediate(), turn)
  }
})
