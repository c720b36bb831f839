// Connections and servers by their promise face, on whichever device there is.

import { execFile, spawn } from 'node:child_process'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { inspect, promisify } from 'node:util'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { connect, listen, type Connection, type Peer, type RdmaError } from 'secure-rdma'
import { Authority } from './_authority.js'
import { fixture } from './_certificates.js'
import { addressingOf, deviceTest, everywhere, kindOf } from './_device.js'
import { connecting, join, listening, serve } from './_peers.js'

/** Bytes that tell where they belong. */
function pattern(length: number, seed: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 17 + (i >> 8)) & 0xff))
}

/** Waits until something is so, but not for ever. */
async function until(t: ExecutionContext, what: string, isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    if (isSo()) return
    await sleep(10)
  }
  t.fail(`never: ${what}`)
}

everywhere('messages of all sizes arrive both ways, whole and in order', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { addressing: place.addressing }))
  t.is(client.device.name, place.devices.client)
  t.is(accepted.device.name, place.devices.server)
  // The test build has a kind of its own.
  const kind: string = client.device.kind
  t.is(kind, kindOf(place, 'client'))
  t.true(client.handshake.addressing.startsWith(addressingOf(place, 'client')), client.handshake.addressing)
  const sizes = [0, 1, 7, 4095, 4096, 4097, 65_536, 100_000, 0, 1 << 20]
  const check = async (from: Connection, to: Connection): Promise<void> => {
    const sends = Promise.all(sizes.map((size, i) => from.send(pattern(size, i))))
    for (const [i, size] of sizes.entries()) {
      const message = await to.receive()
      t.true(message?.equals(pattern(size, i)), `message ${i} of ${size} bytes`)
    }
    await sends
  }
  await Promise.all([check(client, accepted), check(accepted, client)])
  await client.close()
  t.deepEqual(await client.closed, { reason: 'closed' })
  t.deepEqual(await accepted.closed, { reason: 'peerClosed' })
})

deviceTest('both sides know each other, and agree about how they came together', async (t, place) => {
  const { client, accepted, server } = await join(t, await serve(t, place))
  t.is(client.peer.names?.commonName, 'server.test')
  t.is(accepted.peer.names?.commonName, 'client.test')
  t.is(accepted.peer.address, place.client)
  t.true(accepted.peer.certificates[0] instanceof Buffer)
  t.regex(client.peer.spkiSha256 ?? '', /^[0-9a-f]{64}$/)
  const [ours, theirs] = [client.handshake, accepted.handshake]
  t.is(ours.role, 'client')
  t.is(theirs.role, 'server')
  t.is(ours.tlsVersion, 'TLSv1.3')
  t.is(ours.ownQpn, theirs.peerQpn)
  t.is(ours.peerQpn, theirs.ownQpn)
  t.is(ours.ownPsnFingerprint, theirs.peerPsnFingerprint)
  t.is(ours.peerPsnFingerprint, theirs.ownPsnFingerprint)
  t.not(ours.ownPsnFingerprint, ours.peerPsnFingerprint)
  t.is(ours.pathMtu, theirs.pathMtu)
  t.is(ours.secrets, undefined)
  t.is(server.connections, 1)
  t.like(server.stats(), { established: 1, failed: 0, pending: 0 })
  t.is(server.address()?.address, place.server)
})

deviceTest('what can be sent: bytes of any kind, copied before send returns', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const bytes = pattern(64, 3)
  const kinds = [
    bytes,
    new Uint8Array(bytes),
    new DataView(new Uint8Array(bytes).buffer),
    new Uint32Array(new Uint8Array(bytes).buffer),
    new Uint8Array(bytes).buffer,
    Object.assign(new Uint8Array(new SharedArrayBuffer(64)), bytes),
    new Uint8Array(Buffer.concat([Buffer.alloc(5), bytes, Buffer.alloc(5)]).buffer.slice(0)).subarray(0, 0),
  ]
  for (const kind of kinds.slice(0, -1)) {
    const sent = client.send(kind)
    if (kind instanceof Uint8Array) kind.fill(0)
    await sent
    if (kind === bytes) bytes.set(pattern(64, 3))
    t.deepEqual(await accepted.receive(), pattern(64, 3), kind.constructor.name)
  }
  const refused = ['text', 5, null, undefined, {}, [1, 2], new Blob([])] as never[]
  for (const bad of refused) await t.throwsAsync(client.send(bad), { instanceOf: TypeError }, inspect(bad))
  const detached = new Uint8Array(8)
  structuredClone(detached, { transfer: [detached.buffer] })
  await t.throwsAsync(client.send(detached), { instanceOf: TypeError, message: /detached/ })
  t.is(client.stats().messagesSent, kinds.length - 1)
})

deviceTest('the memory of a long received message cannot be transferred, as it says; a copy can', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const sends = [client.send(Buffer.alloc(16 * 1024 - 1)), client.send(Buffer.alloc(16 * 1024))]
  const [short, long] = [await accepted.receive(), await accepted.receive()]
  await Promise.all(sends)
  // Node 20 copies what it cannot transfer, and leaves the original; later versions refuse.
  const isGone = (message: Uint8Array | null | undefined): boolean => {
    try {
      structuredClone(message, { transfer: [message?.buffer as ArrayBuffer] })
    } catch (error) {
      t.is((error as DOMException).name, 'DataCloneError')
    }
    return message?.length === 0
  }
  t.deepEqual([short, long, new Uint8Array(long ?? [])].map(isGone), [true, false, true])
})

deviceTest('a received message is a Buffer of its own', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  for (const size of [3, 100_000]) {
    const [first, second] = [pattern(size, 1), pattern(size, 2)]
    const sends = [client.send(first), client.send(second)]
    const [one, two] = [await accepted.receive(), await accepted.receive()]
    await Promise.all(sends)
    t.true(Buffer.isBuffer(one) && Buffer.isBuffer(two))
    t.is(one?.byteOffset, 0)
    t.is(one?.buffer.byteLength, size)
    one?.fill(0)
    t.true(two?.equals(second))
  }
})

deviceTest('end() ends one direction only', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  void client.send(Buffer.from('last'))
  await client.end()
  t.is(String(await accepted.receive()), 'last')
  t.is(await accepted.receive(), null)
  t.is(await accepted.receive(), null)
  await t.throwsAsync(client.send(Buffer.from('more')), { code: 'ERR_RDMA_ENDED' })
  await accepted.send(Buffer.from('still open'))
  t.is(String(await client.receive()), 'still open')
  await accepted.close()
  t.is(await client.receive(), null)
})

deviceTest('an orderly close delivers what was sent, then iteration ends', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  for (let i = 0; i < 50; i++) void client.send(pattern(1000, i))
  const closing = client.close()
  const lengths: number[] = []
  for await (const message of accepted) lengths.push(message.length)
  t.is(lengths.length, 50)
  await closing
  await client.close()
  t.is(await accepted.receive(), null)
  await t.throwsAsync(accepted.send(Buffer.from('late')), { name: 'RdmaError', code: 'ERR_RDMA_CLOSED' })
})

deviceTest('leaving a loop closes nothing and loses nothing', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  await Promise.all([1, 2, 3].map((i) => client.send(pattern(10, i))))
  for await (const message of accepted) {
    t.true(message.equals(pattern(10, 1)))
    break
  }
  t.true((await accepted.receive())?.equals(pattern(10, 2)))
  for await (const message of accepted) {
    t.true(message.equals(pattern(10, 3)))
    break
  }
  await client.send(Buffer.from('open'))
  t.is(String(await accepted.receive()), 'open')
})

deviceTest('an aborted receive loses no message', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const controller = new AbortController()
  const reason = new Error('changed my mind')
  const aborted = accepted.receive({ signal: controller.signal })
  const next = accepted.receive()
  controller.abort(reason)
  const error = await t.throwsAsync(aborted, { name: 'AbortError', code: 'ABORT_ERR' })
  t.is(error.cause, reason)
  await client.send(Buffer.from('one'))
  t.is(String(await next), 'one')
  await t.throwsAsync(accepted.receive({ signal: AbortSignal.abort() }), { name: 'AbortError' })
})

deviceTest('an aborted send is taken back when nothing of it was sent', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  // More than credits and the peer's receive buffer take, so that the last one waits.
  const big = 64
  const sends = Array.from({ length: big }, (_, i) => client.send(pattern(100_000, i)))
  const controller = new AbortController()
  const last = client.send(Buffer.from('withdrawn'), { signal: controller.signal })
  await until(t, 'it waits for credit', () => client.stats().waitsForCredit > 0)
  controller.abort()
  await t.throwsAsync(last, { name: 'AbortError', message: /was not sent/ })
  const after = client.send(Buffer.from('after'))
  for (let i = 0; i < big; i++) t.true((await accepted.receive())?.equals(pattern(100_000, i)), `message ${i}`)
  t.is(String(await accepted.receive()), 'after')
  await Promise.all([...sends, after])
})

deviceTest('an aborted accept loses no connection; closing the server ends waits and iterations', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  const controller = new AbortController()
  const aborted = server.accept({ signal: controller.signal })
  controller.abort()
  await t.throwsAsync(aborted, { name: 'AbortError' })
  const client = await connect(toServer)
  const accepted = await server.accept()
  const accepting = server.accept()
  const iterating = (async () => {
    let count = 0
    for await (const connection of server) {
      connection.destroy()
      count++
    }
    return count
  })()
  await sleep(20)
  await server.close()
  await t.throwsAsync(accepting, { name: 'RdmaError', code: 'ERR_RDMA_SERVER_CLOSED' })
  t.is(await iterating, 0)
  await t.throwsAsync(server.accept(), { code: 'ERR_RDMA_SERVER_CLOSED' })
  t.is(server.address(), null)
  await server.closed
  // Connections stay.
  await client.send(Buffer.from('alive'))
  t.is(String(await accepted.receive()), 'alive')
  await client.close()
})

deviceTest('an aborted connect leaves nothing behind', async (t, place) => {
  const { server, toServer } = await serve(t, place)
  for (const delay of [0, 1, 3, 10, 30]) {
    const signal = AbortSignal.timeout(delay)
    const outcome = await connect({ ...toServer, signal }).catch((error: unknown) => error)
    if (outcome instanceof Error) t.is(outcome.name, 'AbortError')
    else (outcome as Connection).destroy()
  }
  await until(t, 'the server has no handshake left', () => server.stats().pending === 0)
  // Those that came up before the abort reached the server are there, and over.
  const accepting = server.accept()
  const client = await connect(toServer)
  let accepted = await accepting
  while (accepted.handshake.tlsPeer.port !== client.handshake.tlsLocal.port) accepted = await server.accept()
  await client.send(Buffer.from('well'))
  t.is(String(await accepted.receive()), 'well')
  client.destroy()
})

deviceTest('destroy tells everybody who waits, with the given error as cause', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const why = new Error('no longer wanted')
  const waits = [client.receive(), client.receive()]
  client.destroy(why)
  for (const wait of waits) {
    const error = await t.throwsAsync(wait, { name: 'RdmaError', code: 'ERR_RDMA_DESTROYED' })
    t.is(error.cause, why)
  }
  t.deepEqual(await client.closed, { reason: 'destroyed', error: why })
  await t.throwsAsync(client.send(Buffer.from('x')), { code: 'ERR_RDMA_DESTROYED' })
  await t.notThrowsAsync(client.close())
  client.destroy()
  const closed = await accepted.closed
  t.is(closed.reason, 'error')
  await t.throwsAsync(accepted.receive(), { name: 'RdmaError' })
})

deviceTest('messages that are too large, and more than fits, are refused at once by name', async (t, place) => {
  const served = await serve(t, place, { maxMessageSize: 1000, sendBufferSize: 5000, receiveBufferSize: 1000 })
  const { client, accepted } = await join(t, served)
  await t.throwsAsync(client.send(pattern(1001, 0)), { code: 'ERR_RDMA_MESSAGE_TOO_LARGE', message: /1000/ })
  const outcomes: Promise<unknown>[] = []
  for (let i = 0; i < 200; i++) outcomes.push(client.send(pattern(1000, i)).catch((error: unknown) => error))
  const early = await Promise.race([
    sleep(1000),
    Promise.any(
      outcomes.map(async (o) => {
        const error = await o
        if (error instanceof Error) return error
        throw new Error('sent')
      }),
    ),
  ])
  t.is((early as RdmaError).code, 'ERR_RDMA_SEND_BUFFER_FULL')
  const reading = (async () => {
    let count = 0
    for await (const message of accepted) if (message.length === 1000) count++
    return count
  })()
  const refused = (await Promise.all(outcomes)).filter((error) => error instanceof Error).length
  await client.close()
  t.is(await reading, 200 - refused)
})

deviceTest('authorize decides before a queue pair exists; a refusal ends no iteration', async (t, place) => {
  const asked: Peer[] = []
  const answers = [
    () => false,
    () => Promise.resolve('yes' as never),
    () => {
      throw new Error('internal reason')
    },
    () => Promise.reject(new Error('later')),
    () => sleep(5).then(() => true),
  ]
  const server = await listen({
    ...(await listening(place)),
    authorize: (peer) => {
      asked.push(peer)
      return answers[asked.length - 1]?.() ?? false
    },
  })
  t.teardown(() => server.close())
  const told: RdmaError[] = []
  const listener = (message: unknown): void => {
    const failure = message as { server: unknown; error: RdmaError }
    if (failure.server === server) told.push(failure.error)
  }
  subscribe('secure-rdma:server:handshake-failed', listener)
  t.teardown(() => unsubscribe('secure-rdma:server:handshake-failed', listener))
  const accepting = server.accept()
  const options = await connecting(place, server.address()?.port ?? 0)
  for (let i = 0; i < answers.length - 1; i++) {
    const error = await t.throwsAsync(connect(options), { name: 'RdmaError' })
    t.false(inspect(error).includes('internal reason'), 'the peer is not told why')
  }
  const client = await connect(options)
  const accepted = await accepting
  await until(t, 'all refusals were told', () => told.length === 4)
  for (const error of told) t.is(error.code, 'ERR_RDMA_UNAUTHORIZED')
  t.regex(told[2]?.message ?? '', /internal reason/)
  t.like(server.stats(), { established: 1, failed: 4 })
  t.is(asked[0]?.names?.commonName, 'client.test')
  client.destroy()
  accepted.destroy()
})

deviceTest('certificates: a revoked one, and one of another authority, are refused by name', async (t, place) => {
  const { client, ...given } = await fixture()
  const authority = await given.authority()
  const other = await Authority.make('CN=Other Authority')
  const stranger = { ca: client.ca, ...(await other.issue()) }
  const { server, toServer } = await serve(t, place, { crl: await authority.revoke([client]) })
  const codes: string[] = []
  const listener = (message: unknown): void => {
    const failure = message as { server: unknown; error: RdmaError }
    if (failure.server === server) codes.push(failure.error.code)
  }
  subscribe('secure-rdma:server:handshake-failed', listener)
  t.teardown(() => unsubscribe('secure-rdma:server:handshake-failed', listener))
  const base = { ...toServer, crl: undefined }
  await t.throwsAsync(connect(base), { code: 'ERR_RDMA_TLS_ALERT', message: /revoked/i })
  await t.throwsAsync(connect({ ...base, ...stranger }), { code: 'ERR_RDMA_TLS_ALERT' })
  await t.throwsAsync(connect({ ...base, ca: other.ca }), { code: 'ERR_RDMA_TLS_UNTRUSTED' })
  await t.throwsAsync(connect({ ...base, servername: 'elsewhere.test' }), { code: 'ERR_RDMA_TLS_NAME' })
  await until(t, 'all failures were told', () => codes.length === 4)
  t.deepEqual(codes.slice(0, 2), ['ERR_RDMA_TLS_REVOKED', 'ERR_RDMA_TLS_UNTRUSTED'])
})

deviceTest('nothing secret shows in inspect or JSON, even where it was asked for', async (t, place) => {
  const { client, accepted, server } = await join(t, await serve(t, place, { exposeSecrets: true }))
  const secrets = client.handshake.secrets
  t.is(secrets?.ownPsn, accepted.handshake.secrets?.peerPsn)
  t.is(secrets?.peerPsn, accepted.handshake.secrets?.ownPsn)
  const shown = [client, accepted, server, client.handshake, client.peer, client.device, client.stats()].map(
    (value) => inspect(value, { depth: 10, getters: true, showHidden: true }) + JSON.stringify(value),
  )
  for (const text of shown) {
    t.false(/psn"?:|rkey|PRIVATE KEY|secrets/i.test(text), text)
    t.false(new RegExp(`\\b(${secrets?.ownPsn}|${secrets?.peerPsn})\\b`).test(text), text)
  }
  t.regex(inspect(client), /^Connection \{.*CN=server\.test/s)
  t.true(shown.join('').includes(client.handshake.ownPsnFingerprint), 'the control: fingerprints do show')
})

deviceTest('connections and servers cannot be cloned or transferred', async (t, place) => {
  const { client, server } = await join(t, await serve(t, place))
  for (const value of [client, server]) {
    // Not an Error to ava: it comes from Node's own realm.
    const error = t.throws(() => structuredClone(value), { any: true }) as DOMException
    t.is(error.name, 'DataCloneError')
    t.throws(() => structuredClone(value, { transfer: [value as never] }), { any: true })
  }
})

deviceTest('Symbol.asyncDispose closes', async (t, place) => {
  const { client, accepted, server } = await join(t, await serve(t, place))
  await client[Symbol.asyncDispose]()
  t.is((await client.closed).reason, 'closed')
  t.is((await accepted.closed).reason, 'peerClosed')
  await server[Symbol.asyncDispose]()
  t.is(server.address(), null)
})

const programs = {
  'closed everything': 'await client.close(); await accepted.closed; await server.close(); last()',
  'destroyed everything': 'client.destroy(); accepted.destroy(); await server.close(); last()',
  'let go of everything by unref()':
    'client.unref(); accepted.unref(); server.unref(); client.receive().catch(() => {}); last()',
  'called process.exit in flight':
    'for (let i = 0; i < 500; i++) client.send(Buffer.alloc(20000)).catch(() => {}); last(); process.exit(0)',
}

/** How long a Node takes that does nothing: in an emulated guest seconds. */
async function bareNode(): Promise<number> {
  const began = performance.now()
  await promisify(execFile)(process.execPath, ['-e', '0'])
  return performance.now() - began
}

/** Runs a program that calls `last()` when it has nothing left to do; tells how long it was there after that. */
async function lastsAfter(t: ExecutionContext, script: string): Promise<number> {
  const child = spawn(process.execPath, ['-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: 60_000,
    killSignal: 'SIGKILL',
  })
  const closed = once(child, 'close')
  let called = NaN
  child.stdout.on('data', () => (called = performance.now()))
  const [status, signal] = (await closed) as [number | null, string | null]
  t.deepEqual([status, signal], [0, null])
  return performance.now() - called
}

for (const [what, program] of Object.entries(programs)) {
  deviceTest(`a program that has ${what} ends within a second`, async (t, place) => {
    const server = await listening(place)
    const client = await connecting(place, 1)
    const script = `
      const { connect, listen } = require('secure-rdma')
      const last = () => require('node:fs').writeSync(1, 'last')
      async function main() {
        const server = await listen(${JSON.stringify(server)})
        const { port } = server.address()
        const [client, accepted] = await Promise.all([connect({ ...${JSON.stringify(client)}, port }), server.accept()])
        await client.send(Buffer.from('x'))
        ${program}
      }
      main()`
    const [bare, took] = [await bareNode(), await lastsAfter(t, script)]
    t.log(`${took.toFixed()} ms; a Node that does nothing takes ${bare.toFixed()} ms`)
    // That one's end is in it too.
    t.true(took < 1000 + bare, `${took} ms`)
  })
}

deviceTest('a program with something open keeps running', async (t, place) => {
  const options = await listening(place)
  const script = `
    const { listen } = require('secure-rdma')
    listen(${JSON.stringify(options)}).then((server) => setTimeout(() => { console.log('alive'); server.close() }, 300).unref())`
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', script])
  t.is(stdout, 'alive\n')
})
