// A connection as a node stream: bytes and messages, backpressure, half-close, errors.

import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { Readable, Transform, Writable, type Duplex } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { createGunzip, createGzip } from 'node:zlib'
import type { ExecutionContext } from 'ava'
import { RdmaError, type DuplexOptions } from 'secure-rdma'
import { deviceTest, type Place } from './_device.js'
import { join, serve, type Pair } from './_peers.js'

const MiB = 1 << 20

interface Streams extends Pair {
  /** The client's stream, and the server's. */
  here: Duplex
  there: Duplex
}

async function streams(
  t: ExecutionContext,
  place: Place,
  options: DuplexOptions = {},
  connection: Parameters<typeof serve>[2] = {},
): Promise<Streams> {
  const pair = await join(t, await serve(t, place, connection))
  const [here, there] = [pair.client.toDuplex(options), pair.accepted.toDuplex(options)]
  // When the test is over the connections are destroyed, and their streams tell it.
  t.teardown(() => {
    for (const stream of [here, there]) stream.on('error', () => undefined)
  })
  return { ...pair, here, there }
}

/** Data that comes in chunks of all lengths, and its hash. */
function source(bytes: number): { stream: Readable; digest: () => string } {
  const block = randomBytes(256 * 1024)
  const hash = createHash('sha256')
  function* chunks(): Generator<Buffer> {
    for (let left = bytes, length = 1; left > 0; length = (length * 7 + 13) % block.length || 1) {
      const chunk = block.subarray(0, Math.min(length, left))
      left -= chunk.length
      hash.update(chunk)
      yield chunk
    }
  }
  return { stream: Readable.from(chunks(), { objectMode: false }), digest: () => hash.digest('hex') }
}

function hashed(): { stream: Writable; digest: () => string; bytes: () => number } {
  const hash = createHash('sha256')
  let bytes = 0
  const stream = new Writable({
    write(chunk: Buffer, _, done) {
      hash.update(chunk)
      bytes += chunk.length
      done()
    },
  })
  return { stream, digest: () => hash.digest('hex'), bytes: () => bytes }
}

async function read(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = []
  // Without it, node destroys what can still be written.
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

deviceTest('64 MiB go through a pipeline, and the connection closes behind them', async (t, place) => {
  const { client, accepted, here, there } = await streams(t, place)
  const from = source(64 * MiB)
  const to = hashed()
  there.end()
  await Promise.all([pipeline(from.stream, here), pipeline(there, to.stream), read(here)])
  t.is(to.bytes(), 64 * MiB)
  t.is(to.digest(), from.digest())
  const ends = (await Promise.all([client.closed, accepted.closed])).map(({ reason }) => reason)
  // Both close at once, and either may be first.
  t.true(
    ends.every((reason) => reason === 'closed' || reason === 'peerClosed'),
    ends.join(),
  )
})

deviceTest('both directions at once, through zlib', async (t, place) => {
  const { here, there } = await streams(t, place)
  const from = source(8 * MiB)
  const to = hashed()
  await Promise.all([
    pipeline(from.stream, createGzip({ level: 1 }), here, createGunzip(), to.stream),
    pipeline(there, there),
  ])
  t.is(to.bytes(), 8 * MiB)
  t.is(to.digest(), from.digest())
})

deviceTest('a stream of bytes joins small writes, cuts long ones, and takes text', async (t, place) => {
  const { client, here, there } = await streams(t, place, {}, { maxMessageSize: 5000 })
  const received = read(there)
  const long = randomBytes(64 * 1024 + 1)
  here.cork()
  for (let i = 0; i < 100; i++) here.write(`line ${i}\n`)
  here.uncork()
  here.write(new Uint8Array(0))
  here.write(long)
  here.end('ende', 'latin1')
  const lines = Array.from({ length: 100 }, (_, i) => `line ${i}\n`).join('')
  t.deepEqual(await received, Buffer.concat([Buffer.from(lines), long, Buffer.from('ende')]))
  const { messagesSent } = client.stats()
  t.true(messagesSent <= 100, `${messagesSent} messages`)
  t.true(messagesSent >= 14, 'none is longer than the peer takes')
  there.end()
})

deviceTest('objectMode keeps messages, empty ones too', async (t, place) => {
  const { here, there } = await streams(t, place, { objectMode: true })
  const messages = [Buffer.from('a'), Buffer.alloc(0), randomBytes(100_000), new Uint8Array([1, 2]), Buffer.from('b')]
  for (const message of messages) here.write(message)
  here.end()
  const received: Buffer[] = []
  for await (const message of there.iterator({ destroyOnReturn: false })) received.push(message as Buffer)
  t.deepEqual(
    received.map((message) => Buffer.from(message)),
    messages.map((message) => Buffer.from(message)),
  )
  there.end()
  // What is no message destroys the stream, as node's own streams do it.
  const second = await streams(t, place, { objectMode: true })
  const error = once(second.here, 'error')
  second.here.write('text')
  t.like((await error)[0], { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' })
  t.is((await second.client.closed).reason, 'destroyed')
})

deviceTest('each side ends its own direction', async (t, place) => {
  for (const first of ['here', 'there'] as const) {
    const pair = await streams(t, place)
    const [one, other] = first === 'here' ? [pair.here, pair.there] : [pair.there, pair.here]
    one.end('first')
    t.is(String(await read(other)), 'first')
    t.false(other.destroyed)
    t.false(other.writableEnded)
    other.write('still ')
    other.end('here')
    t.is(String(await read(one)), 'still here')
    await Promise.all([finished(one), finished(other)])
    await Promise.all([pair.client.closed, pair.accepted.closed])
  }
})

deviceTest('allowHalfOpen: false ends writing with reading', async (t, place) => {
  const { client, here, there } = await streams(t, place, { allowHalfOpen: false })
  here.end('one')
  t.is(String(await read(there)), 'one')
  await finished(there)
  here.resume()
  await finished(here)
  t.regex((await client.closed).reason, /^(closed|peerClosed)$/)
})

deviceTest('destroying either side with an error ends both, and tells why', async (t, place) => {
  for (const side of ['here', 'there'] as const) {
    const pair = await streams(t, place)
    const [one, other] = side === 'here' ? [pair.here, pair.there] : [pair.there, pair.here]
    const mine = side === 'here' ? pair.client : pair.accepted
    const error = new Error('enough')
    const ends = Promise.all([once(one, 'error'), once(other, 'error')])
    one.destroy(error)
    const [[own], [others]] = (await ends) as [[Error], [Error]]
    t.is(own, error)
    t.deepEqual(await mine.closed, { reason: 'destroyed', error })
    t.true(others instanceof RdmaError, String(others))
    t.true(one.destroyed && other.destroyed)
  }
})

deviceTest('an end of the connection is the end of its stream', async (t, place) => {
  const destroyed = await streams(t, place)
  const error = new Error('from outside')
  const told = once(destroyed.here, 'error')
  // There another error comes: the connection was lost.
  destroyed.there.on('error', () => undefined)
  destroyed.client.destroy(error)
  t.is((await told)[0], error)

  const closed = await streams(t, place)
  closed.here.write('all of it')
  await sleep(10)
  const reading = read(closed.there)
  await closed.client.close()
  t.is(String(await reading), 'all of it')
  // Nothing can be sent to where nobody is.
  const refused = once(closed.there, 'error')
  closed.there.write('late')
  t.is(((await refused)[0] as RdmaError).code, 'ERR_RDMA_CLOSED')
})

deviceTest('writing ends well after the peer has closed in order, if all had arrived', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const stream = client.toDuplex()
  stream.write('arrives')
  t.is(String(await accepted.receive()), 'arrives')
  await accepted.close()
  t.is((await client.closed).reason, 'peerClosed')
  t.is(String(await read(stream)), '')
  stream.end()
  await finished(stream)
  t.true(stream.writableFinished)
})

deviceTest(
  'an abort in the middle of a pipeline destroys the connection, with the signal as cause',
  async (t, place) => {
    const { client, accepted, here, there } = await streams(t, place)
    const stop = new AbortController()
    const from = source(1024 * MiB)
    there.on('error', () => undefined)
    let seen = 0
    there.on('data', (chunk: Buffer) => {
      seen += chunk.length
      if (seen > MiB && !stop.signal.aborted) stop.abort(new Error('seen enough'))
    })
    const error = await t.throwsAsync(pipeline(from.stream, here, { signal: stop.signal }), { name: 'AbortError' })
    t.is((error.cause as Error).message, 'seen enough')
    t.is((await client.closed).reason, 'destroyed')
    t.is((await accepted.closed).reason, 'error')
    t.true(there.destroyed)

    const own = await join(t, await serve(t, place))
    const another = new AbortController()
    const stream = own.client.toDuplex({ signal: another.signal })
    const told = once(stream, 'error')
    another.abort()
    t.is(((await told)[0] as Error).name, 'AbortError')
    t.is((await own.client.closed).reason, 'destroyed')

    // One that is aborted before is no different.
    const late = await join(t, await serve(t, place))
    const dead = late.client.toDuplex({ signal: AbortSignal.abort(new Error('before')) })
    const [why] = (await once(dead, 'error')) as [Error]
    t.like(why, { name: 'AbortError', code: 'ABORT_ERR' })
    t.is((why.cause as Error).message, 'before')
    const { reason, error: cause } = await late.client.closed
    t.deepEqual([reason, cause], ['destroyed', why])
  },
)

deviceTest('an error of the source or of the sink ends the connection', async (t, place) => {
  const one = await streams(t, place)
  one.there.on('error', () => undefined).resume()
  const broken = new Readable({ read: () => undefined })
  broken.push(randomBytes(1000))
  setImmediate(() => broken.destroy(new Error('source')))
  await t.throwsAsync(pipeline(broken, one.here), { message: 'source' })
  t.is((await one.client.closed).reason, 'destroyed')

  const two = await streams(t, place)
  two.here.on('error', () => undefined)
  const sink = new Writable({
    write(_chunk, _encoding, done) {
      done(new Error('sink'))
    },
  })
  two.here.write(randomBytes(1000))
  await t.throwsAsync(pipeline(two.there, sink), { message: 'sink' })
  t.is((await two.accepted.closed).reason, 'destroyed')
})

deviceTest('a slow reader makes the writer wait, and nothing grows', async (t, place) => {
  const marks = { readableHighWaterMark: 65_536, writableHighWaterMark: 131_072 }
  const { client, accepted, here, there } = await streams(t, place, marks, { receiveBufferSize: 262_144 })
  const block = Buffer.alloc(32_768, 7)
  let written = 0
  const writing = pipeline(
    // eslint-disable-next-line @typescript-eslint/require-await -- what pipeline takes as a source
    async function* () {
      for (; written < 1024; written++) yield block
    },
    here,
  )
  // Nobody reads: it comes to a standstill.
  for (let before = -1; before !== written;) {
    before = written
    await sleep(300)
  }
  const standing = written * block.length
  // What may be anywhere: written and under way on this side; received, and read ahead, on the other.
  t.true(standing > 65_536, `${standing} bytes`)
  t.true(standing <= 2 * 131_072 + 2 * 262_144 + 65_536 + 16 * 4096 + 3 * block.length, `${standing} bytes`)
  t.true(client.stats().bytesQueued <= 2 * 131_072, `${client.stats().bytesQueued} bytes queued`)
  t.true(accepted.stats().bytesReady <= 2 * 262_144, `${accepted.stats().bytesReady} bytes ready`)
  t.true(there.readableLength <= 65_536 + 262_144)
  // And then all of it comes.
  const slow = new Transform({
    transform(chunk: Buffer, _, done) {
      setImmediate(done, null, chunk)
    },
  })
  const to = hashed()
  await Promise.all([writing, pipeline(there, slow, to.stream)])
  t.is(to.bytes(), 1024 * block.length)
  there.end()
})

deviceTest('leaving a for await over the stream destroys the connection', async (t, place) => {
  const { accepted, here, there } = await streams(t, place)
  here.on('error', () => undefined)
  here.write('one')
  for await (const chunk of there) {
    t.is(String(chunk), 'one')
    break
  }
  t.is((await accepted.closed).reason, 'destroyed')
})

deviceTest('a stream waits for the send buffer, which others may have filled', async (t, place) => {
  const { here, there } = await streams(t, place, { writableHighWaterMark: 4 * MiB }, { sendBufferSize: 300_000 })
  const data = randomBytes(2 * MiB)
  const received = read(there)
  here.end(data)
  t.true(data.equals(await received))
  there.end()
})

deviceTest('who uses a connection as a stream reads and writes by it alone', async (t, place) => {
  const { client, here, there } = await streams(t, place)
  const locked = { instanceOf: RdmaError, code: 'ERR_RDMA_LOCKED', message: /toDuplex\(\)/ }
  await t.throwsAsync(client.receive(), locked)
  await t.throwsAsync(client.send(Buffer.from('a')), locked)
  await t.throwsAsync(client.end(), locked)
  await t.throwsAsync(client[Symbol.asyncIterator]().next(), locked)
  t.throws(() => client.toDuplex(), locked)
  await t.throwsAsync(client.readable.getReader().read(), locked)
  await t.throwsAsync(client.writable.getWriter().write(Buffer.from('a')), locked)
  // None of it has done anything to the stream.
  here.write('well')
  t.is(String((await once(there, 'data'))[0]), 'well')
})

deviceTest('a stream is not made where somebody waits for a message, nor with bad options', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const waiting = client.receive()
  t.throws(() => client.toDuplex(), { code: 'ERR_RDMA_LOCKED', message: /receive\(\) calls wait/ })
  await accepted.send(Buffer.from('mine'))
  t.is(String(await waiting), 'mine')
  for (const bad of [
    { highWaterMark: -1 },
    { highWaterMark: '1' },
    { hwm: 1 },
    { objectMode: 1 },
    { signal: {} },
    null,
  ]) {
    const error = t.throws(() => client.toDuplex(bad as DuplexOptions))
    t.true(error instanceof TypeError || error instanceof RangeError, String(error))
  }
  await accepted.send(Buffer.from('then'))
  const stream = client.toDuplex().on('error', () => undefined)
  t.is(String((await once(stream, 'data'))[0]), 'then')
})
