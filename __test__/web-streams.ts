// A connection as WHATWG streams: messages, backpressure, half-close, errors.

import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { CompressionStream, DecompressionStream, TransformStream } from 'node:stream/web'
import { RdmaError } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { join, serve } from './_peers.js'

async function read(stream: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

deviceTest(
  'messages go through as chunks, and when both directions have ended the connection closes',
  async (t, place) => {
    const { client, accepted } = await join(t, await serve(t, place))
    t.is(client.readable, client.readable)
    t.is(client.writable, client.writable)
    const writer = client.writable.getWriter()
    const messages = [Buffer.from('one'), Buffer.alloc(0), randomBytes(200_000), new Uint8Array([7]).buffer]
    const written = Promise.all([...messages.map((message) => writer.write(message)), writer.close()])
    const received: string[] = []
    for await (const chunk of accepted.readable) received.push(Buffer.from(chunk).toString('hex'))
    await written
    t.deepEqual(
      received,
      messages.map((message) => Buffer.from(message as Uint8Array).toString('hex')),
    )
    await Promise.all([accepted.writable.close(), read(client.readable)])
    for (const { reason } of await Promise.all([client.closed, accepted.closed]))
      t.regex(reason, /^(closed|peerClosed)$/)
  },
)

deviceTest('pipes through transforms, both ways at once', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const data = Buffer.alloc(4 << 20, randomBytes(1000))
  const source = new Blob([data]).stream().pipeThrough(new CompressionStream('gzip'))
  const echoed = accepted.readable.pipeTo(accepted.writable)
  const sent = source.pipeTo(client.writable)
  const back = client.readable.pipeThrough(new DecompressionStream('gzip'))
  t.true(data.equals(await read(back as AsyncIterable<Uint8Array>)))
  await Promise.all([echoed, sent])
})

deviceTest('a chunk that is longer than the peer takes goes in several messages', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { maxMessageSize: 1000 }))
  const writer = client.writable.getWriter()
  await writer.write(Buffer.alloc(2500))
  const lengths = [await accepted.receive(), await accepted.receive(), await accepted.receive()]
  t.deepEqual(
    lengths.map((message) => message?.length),
    [1000, 1000, 500],
  )
})

deviceTest('a reader that does not read makes ready wait, and reads no message ahead', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { receiveBufferSize: 65_536 }))
  const writer = client.writable.getWriter()
  const writing: Promise<void>[] = []
  let waits = false
  while (!waits && writing.length < 1000) {
    writing.push(writer.write(Buffer.alloc(32_768, writing.length)))
    waits = await Promise.race([writer.ready.then(() => false), sleep(300, true)])
  }
  t.true(waits && writing.length <= 2 * 8 + 2 * 2 + 4, `${writing.length} chunks of 32 KiB`)
  const all = read(accepted.readable)
  await Promise.all([...writing, writer.close()])
  t.is((await all).length, writing.length * 32_768)
})

deviceTest('a stream that was not read yet takes nothing from receive(), and one that was does', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const { readable, writable } = accepted
  await client.send(Buffer.from('first'))
  t.is(String(await accepted.receive()), 'first')
  await accepted.send(Buffer.from('sent'))
  await client.send(Buffer.from('second'))
  const reader = readable.getReader()
  t.is(Buffer.from((await reader.read()).value ?? []).toString(), 'second')
  const locked = { instanceOf: RdmaError, code: 'ERR_RDMA_LOCKED' }
  await t.throwsAsync(accepted.receive(), { ...locked, message: /readable has the connection/ })
  t.throws(() => accepted.toDuplex(), { ...locked, message: /readable/ })
  await accepted.send(Buffer.from('sent too'))
  await writable.getWriter().write(Buffer.from('written'))
  await t.throwsAsync(accepted.send(Buffer.from('no')), { ...locked, message: /writable has the connection/ })
  await t.throwsAsync(accepted.end(), locked)
  t.deepEqual([await client.receive(), await client.receive(), await client.receive()].map(String), [
    'sent',
    'sent too',
    'written',
  ])
})

deviceTest('cancelling, aborting, and leaving a loop destroy the connection', async (t, place) => {
  const served = await serve(t, place)
  const why = new Error('enough')

  const one = await join(t, served)
  await one.client.readable.cancel(why)
  t.deepEqual(await one.client.closed, { reason: 'destroyed', error: why })
  t.is((await one.accepted.closed).reason, 'error')

  const two = await join(t, served)
  await two.client.writable.abort('a word')
  t.like(await two.client.closed, { reason: 'destroyed' })
  t.is((await two.client.closed).error?.cause, 'a word')

  const three = await join(t, served)
  await three.accepted.send(Buffer.from('a'))
  for await (const chunk of three.client.readable) {
    t.is(String(Buffer.from(chunk)), 'a')
    break
  }
  t.is((await three.client.closed).reason, 'destroyed')

  const four = await join(t, served)
  const stop = new AbortController()
  const idle = new TransformStream<Uint8Array, Uint8Array>()
  const piped = idle.readable.pipeTo(four.client.writable, { signal: stop.signal })
  stop.abort(why)
  t.is(await t.throwsAsync(piped), why)
  t.is((await four.client.closed).error, why)
})

deviceTest('what ends the connection ends its streams, with its error', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const reading = client.readable.getReader()
  const writing = client.writable.getWriter()
  const pending = reading.read()
  const error = new Error('from outside')
  client.destroy(error)
  const read = await t.throwsAsync(pending, { instanceOf: RdmaError, code: 'ERR_RDMA_DESTROYED' })
  t.is(read.cause, error)
  await t.throwsAsync(reading.closed)
  t.is(await t.throwsAsync(writing.closed), error)
  const far = await t.throwsAsync(accepted.readable.getReader().read(), { instanceOf: RdmaError })
  t.is(far.code, 'ERR_RDMA_PEER_LOST')
  await t.throwsAsync(accepted.writable.getWriter().closed, { instanceOf: RdmaError })

  const silent = await join(t, await serve(t, place))
  const writer = silent.client.writable.getWriter()
  silent.client.destroy()
  await t.throwsAsync(writer.closed, { instanceOf: RdmaError, code: 'ERR_RDMA_DESTROYED' })
})

deviceTest('what is not bytes is refused by name, and ends the connection', async (t, place) => {
  const served = await serve(t, place)
  const raise = (): never => {
    throw new Error('a getter')
  }
  // What has a length as bytes have, but none that can be, is no different.
  const lengths = [{ byteLength: -1 }, { byteLength: '1' }, { byteLength: NaN }]
  for (const chunk of [
    'text',
    null,
    undefined,
    5,
    ...lengths,
    Object.defineProperty({}, 'byteLength', { get: raise }),
  ]) {
    const { client } = await join(t, served)
    const writer = client.writable.getWriter()
    writer.closed.catch(() => undefined)
    await t.throwsAsync(writer.write(chunk as Uint8Array), {
      instanceOf: TypeError,
      message: /^message must be a Buffer/,
    })
    t.is((await client.closed).reason, 'destroyed')
  }
})
