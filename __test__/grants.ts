// What is published to a peer: names, rights and ranges, and how it is taken back.

import type { ExecutionContext } from 'ava'
import { connect, allocate, type Connection, type Region, type RegionRight, type RemoteRegion } from 'secure-rdma'
import { deviceTest, everywhere, kindOf, testDevice, type Place } from './_device.js'
import { inGuest, memoryOf, rdmaResources } from './_guest.js'
import { join, serve, until } from './_peers.js'

const bytes = ({ buffer }: Region): Buffer => Buffer.from(buffer)

everywhere('a peer finds what is published by its name, also when it asks before', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place, { addressing: place.addressing }))
  const region = await allocate(1000)
  const early = client.remote('späte Ablage 📮')
  await accepted.publish('späte Ablage 📮', region.slice(100, 800), {
    access: ['read', 'write'],
    offset: 50,
    length: 700,
  })
  const remote = await early
  t.like(remote, { name: 'späte Ablage 📮', byteLength: 700, access: ['read', 'write'], revoked: false })
  await accepted.publish('second', region, { access: 'read' })
  t.like(await client.remote('second'), { byteLength: 1000, access: ['read'] })
  // The other way too.
  const own = await allocate(8)
  await client.publish('second', own, { access: 'atomic' })
  t.like(await accepted.remote('second'), { byteLength: 8, access: ['atomic'] })
  bytes(own).fill(7)
  await client.write(own, remote)
  await client.write(own, remote, { offset: 692 })
  t.is(bytes(region).indexOf(7), 150)
  t.is(bytes(region).lastIndexOf(7), 849)
  t.is(bytes(region).filter((byte) => byte === 7).length, 16)
  await client.close()
  await t.throwsAsync(client.remote('second'), { code: 'ERR_RDMA_CLOSED' })
})

deviceTest('names: one publication each, 1 to 255 bytes, and free again afterwards', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const region = await allocate(8)
  const wrong = { code: 'ERR_RDMA_REGION_NAME' } as const
  await accepted.publish('a', region, { access: 'read' })
  await t.throwsAsync(accepted.publish('a', region, { access: 'read' }), wrong)
  await t.throwsAsync(accepted.unpublish('b'), wrong)
  await t.throwsAsync(client.unpublish('a'), wrong, 'it is the peer that published it')
  for (const call of [
    () => accepted.publish('ü'.repeat(128), region, { access: 'read' }),
    () => client.remote('x'.repeat(256)),
    () => accepted.unpublish('x'.repeat(256)),
  ]) {
    await t.throwsAsync(call(), wrong)
  }
  await accepted.publish('x'.repeat(255), region, { access: 'read' })
  t.is((await client.remote('x'.repeat(255))).byteLength, 8)
  const first = await client.remote('a')
  await Promise.all([accepted.unpublish('a'), accepted.unpublish('a').catch(() => undefined)])
  t.true(first.revoked)
  await accepted.publish('a', region.slice(0, 4), { access: 'write' })
  const second = await client.remote('a')
  t.like(second, { byteLength: 4, revoked: false })
  t.true(first.revoked)
})

deviceTest('what cannot be published is refused by name', async (t, place) => {
  const { client } = await join(t, await serve(t, place))
  const region = await allocate(64)
  const access = 'read' as RegionRight
  const rows: [name: unknown, options: unknown, kind: typeof TypeError | typeof RangeError, says: string][] = [
    ['', { access }, TypeError, 'name'],
    [5, { access }, TypeError, 'name'],
    ['a\0b', { access }, TypeError, 'name'],
    ['a', undefined, TypeError, 'options'],
    ['a', {}, TypeError, 'options.access'],
    ['a', { access: [] }, TypeError, 'options.access'],
    ['a', { access: 'execute' }, TypeError, 'options.access'],
    ['a', { access: ['read', 5] }, TypeError, 'options.access[1]'],
    ['a', { access, offset: 65 }, RangeError, 'byteOffset'],
    ['a', { access, offset: -1 }, RangeError, 'options.offset'],
    ['a', { access, length: 0 }, RangeError, 'options.length'],
    ['a', { access, offset: 1, length: 64 }, RangeError, 'do not lie inside'],
    ['a', { access, until: 5 }, TypeError, 'options.until'],
  ]
  for (const [name, options, kind, says] of rows) {
    const publishing = client.publish(name as string, region, options as { access: RegionRight })
    const error = await t.throwsAsync(publishing, { instanceOf: kind }, says)
    t.true(error.message.includes(says), error.message)
  }
  await t.throwsAsync(client.publish('a', region, { access, offset: 64 }), { code: 'ERR_RDMA_REGION_BOUNDS' })
  for (const signal of [5, {}]) {
    await t.throwsAsync(client.remote('a', { signal: signal as AbortSignal }), { instanceOf: TypeError })
  }
})

deviceTest('F.4 #33: rights are checked before anything is posted, and the connection lives', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const [theirs, own] = await Promise.all([allocate(64), allocate(64)])
  const operations: Record<RegionRight, (remote: RemoteRegion) => Promise<unknown>[]> = {
    read: (remote) => [client.read(remote, own)],
    write: (remote) => [client.write(own, remote), client.write(own, remote, { immediate: 1 })],
    atomic: (remote) => [client.fetchAndAdd(remote, 1n), client.compareAndSwap(remote, 0n, 1n)],
  }
  const rights = Object.keys(operations) as RegionRight[]
  for (let bits = 1; bits < 8; bits++) {
    const access = rights.filter((_, i) => bits & (1 << i))
    await accepted.publish(`rights ${bits}`, theirs, { access })
    const remote = await client.remote(`rights ${bits}`)
    t.deepEqual(remote.access, access)
    for (const right of rights) {
      for (const operation of operations[right](remote)) {
        if (access.includes(right)) await operation
        else await t.throwsAsync(operation, { code: 'ERR_RDMA_REGION_ACCESS' }, `${right} of ${access.join()}`)
      }
    }
  }
  await client.send(Buffer.from('alive'))
  t.is(String(await accepted.receive()), 'alive')
})

deviceTest('what was published to one connection is worth nothing on another', async (t, place) => {
  const served = await serve(t, place)
  const [one, two] = [await join(t, served), await join(t, served)]
  const [theirs, own] = await Promise.all([allocate(64), allocate(64)])
  await one.accepted.publish('inbox', theirs, { access: ['read', 'write', 'atomic'] })
  const inbox = await one.client.remote('inbox')
  const wrong = { code: 'ERR_RDMA_INVALID_ARGUMENT', message: /another connection/ } as const
  await t.throwsAsync(two.client.write(own, inbox), wrong)
  await t.throwsAsync(two.client.read(inbox, own), wrong)
  await t.throwsAsync(two.client.fetchAndAdd(inbox, 1n), wrong)
  await t.throwsAsync(two.client.batch().send(Buffer.from('x')).write(own, inbox).post(), wrong)
  await one.client.write(own, inbox)
  const waiting = two.client.remote('inbox', { signal: AbortSignal.timeout(200) })
  await t.throwsAsync(waiting, { name: 'AbortError' })
  await Promise.all([one.client.close(), two.client.close()])
  t.is(two.accepted.stats().messagesReceived, 0)
})

everywhere(
  'unpublish with 64 WRITEs in flight settles them, later ones are refused, the connection lives',
  async (t, place) => {
    const { client, accepted } = await join(t, await serve(t, place))
    // What is in flight must be over within 2 s, also in the emulated guest.
    const length = inGuest ? 8192 : 1 << 20
    const [theirs, own] = await Promise.all([allocate(length), allocate(length)])
    bytes(own).fill(1)
    for (let round = 0; round < 5; round++) {
      await accepted.publish('inbox', theirs, { access: 'write' })
      const inbox = await client.remote('inbox')
      await client.write(own.slice(0, 1), inbox)
      const writes = Array.from({ length: 64 }, () => client.write(own, inbox))
      const settling = Promise.allSettled(writes)
      await accepted.unpublish('inbox')
      t.true(inbox.revoked)
      const late = client.write(own, inbox)
      const settled = await settling
      const outcomes = settled.map((outcome) =>
        outcome.status === 'fulfilled' ? 'ok' : (outcome.reason as { code: string }).code,
      )
      t.deepEqual(
        [...new Set(outcomes)].filter((code) => code !== 'ok' && code !== 'ERR_RDMA_REGION_REVOKED'),
        [],
      )
      t.log(`${outcomes.filter((code) => code === 'ok').length} of 64 were carried out`)
      t.is(outcomes.lastIndexOf('ok') + 1, outcomes.filter((code) => code === 'ok').length, 'the first ones')
      await t.throwsAsync(late, { code: 'ERR_RDMA_REGION_REVOKED' })
      // Nothing comes after unpublish() has fulfilled.
      bytes(theirs).fill(0)
      await client.send(Buffer.from('alive'))
      t.is(String(await accepted.receive()), 'alive')
      t.is(bytes(theirs).indexOf(1), -1)
    }
    await client.close()
    t.deepEqual(await accepted.closed, { reason: 'peerClosed' })
  },
)

/** In the guest as many and as much as a server has; elsewhere, where nothing is pinned, fewer. */
const [CONNECTIONS, SHARED] = testDevice === 'rxe' ? [64, 256 << 20] : [16, 32 << 20]

deviceTest(
  `${SHARED >> 20} MiB published on ${CONNECTIONS} connections are registered and pinned once`,
  async (t, place) => {
    t.timeout(240_000)
    const served = await serve(t, place, { handshakeTimeout: 60_000 })
    const region = await allocate(SHARED)
    const own = await allocate(8)
    const pairs = await pairsOf(t, place, served, CONNECTIONS)
    const [first, ...others] = pairs
    if (!first) throw new Error('no connection')
    const before = pinned()
    const publish = async ({ client, accepted }: Ends, i: number): Promise<void> => {
      await accepted.publish('shared', region, { access: ['read', 'write'] })
      const remote = await client.remote('shared')
      t.is(remote.byteLength, SHARED)
      await client.write(own, remote, { offset: 8 * i })
    }
    await publish(first, 0)
    const one = pinned()
    await Promise.all(others.map((pair, i) => publish(pair, i + 1)))
    const all = pinned()
    t.log({ before, one, all })
    if (inGuest) {
      // The embedded device pins nothing, and the kernel knows nothing of its regions.
      const kinds = [kindOf(place, 'server'), kindOf(place, 'client')]
      const shared = kinds[0] === 'verbs' ? SHARED : 0
      t.true(one.bytes - before.bytes >= shared, 'the control: the first one pins it')
      t.true(one.bytes - before.bytes < shared + (1 << 20))
      const registered = kinds.filter((kind) => kind === 'verbs').length
      t.is(one.regions - before.regions, registered, "the shared one, and the clients' own")
      t.true(all.bytes - one.bytes < 1 << 20, 'the others pin nothing')
      t.is(all.regions, one.regions)
    }
    region.close()
    const last = pairs.at(-1)
    if (last) await last.client.read(await last.client.remote('shared'), own)
    await Promise.all(pairs.map(({ client }) => client.close()))
    await Promise.all(pairs.map(({ accepted }) => accepted.closed))
    if (inGuest) {
      await until('the region is unpinned', () => pinned().bytes <= before.bytes)
      // The clients' own is open; those that each connection had are gone with it.
      t.true(pinned().regions <= before.regions + 1)
    }
  },
)

type Ends = Pick<Awaited<ReturnType<typeof join>>, 'client' | 'accepted'>

/** Connections, as many at once as the emulated guest can take. */
async function pairsOf(
  t: ExecutionContext,
  place: Place,
  { server, toServer }: Awaited<ReturnType<typeof serve>>,
  count: number,
): Promise<Ends[]> {
  const accepting = (async () => {
    const accepted: Connection[] = []
    while (accepted.length < count) accepted.push(await server.accept())
    return accepted
  })()
  const clients = await Promise.all(Array.from({ length: count }, () => connect(toServer)))
  const accepted = await accepting
  t.teardown(() => {
    for (const connection of [...clients, ...accepted]) connection.destroy()
  })
  const byQpn = new Map(accepted.map((connection) => [`${connection.handshake.ownQpn}`, connection]))
  return clients.map((client) => {
    const other = byQpn.get(`${client.handshake.peerQpn}`)
    if (!other) throw new Error(`${place.name}: nobody has the client's peer QPN`)
    return { client, accepted: other }
  })
}

function pinned(): { bytes: number; regions: number } {
  return { bytes: memoryOf('self', 'VmPin'), regions: inGuest ? (rdmaResources()['mr'] ?? 0) : 0 }
}
