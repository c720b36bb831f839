// The embedded device: how it is chosen and named, what it leaves, and its captures.

import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs'
import { networkInterfaces, tmpdir } from 'node:os'
import { join as path } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { connect, devices, type CommonOptions } from 'secure-rdma'
import { collectGarbage } from './_census.js'
import { places, rxeTest, softTest, testDevice, type Place } from './_device.js'
import { numbered, receiveNumbered } from './_numbered.js'
import { packetsOfPcapng, roceOf } from './_pcap.js'
import { join, serve, warmUp } from './_peers.js'

/** A path in a folder of its own. */
function file(t: ExecutionContext, name: string): string {
  const folder = mkdtempSync(path(tmpdir(), 'soft-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  return path(folder, name)
}

softTest('it is the last in the list, and has the addresses of this host', async (t, place) => {
  const soft = (await devices()).at(-1)
  t.like(soft, { name: 'soft', kind: 'soft', unusable: undefined })
  const [port, ...more] = soft?.ports ?? []
  t.is(more.length, 0)
  t.like(port, { number: 1, active: true, linkLayer: 'ethernet', lid: 0 })
  const own = Object.values(networkInterfaces()).flatMap((all) => all?.map(({ address }) => address) ?? [])
  t.true(own.includes(place.server))
  const gids = port?.gids.map(({ gid }) => gid.replace(/^::ffff:(?=.*\.)/, '')) ?? []
  t.deepEqual([...new Set(gids)].sort(), [...new Set(own)].sort())
  t.deepEqual([...new Set(port?.addresses)].sort(), [...new Set(own)].sort())
  for (const { kind, interface: name, mtu } of port?.gids ?? []) {
    t.is(kind, 'RoCE v2')
    const width = Number(readFileSync(`/sys/class/net/${name}/mtu`, 'utf8'))
    t.true(mtu !== undefined && mtu <= width)
  }
})

softTest('it takes loopback unasked, and what names it, and says why', async (t, place) => {
  const mapped = (address: string): string => (address.includes(':') ? address : `::ffff:${address}`)
  for (const [options, reason] of [
    [{}, `the connection is on loopback (${place.client})`],
    [{ device: 'soft' }, `its GID is the local address of the TLS connection, ${place.client}`],
    [{ rdmaAddress: place.client }, `the connection is on loopback (${place.client})`],
  ] as const) {
    const { server, toServer } = await serve(t, place)
    const { client, accepted } = await join(t, { server, toServer: { ...toServer, ...options } })
    t.like(client.device, { name: 'soft', kind: 'soft', port: 1, gid: mapped(place.client), reason })
    t.is(accepted.device.gid, mapped(place.server))
    t.is(client.handshake.peerGid, mapped(place.server))
    await client.close()
  }
})

softTest('another address than the one of TLS has to be allowed, as on any device', async (t, place) => {
  const client = '127.0.0.5'
  const lenient = await serve(t, place, { rdmaAddress: '127.0.0.3', allowedPeerAddresses: client })
  const toLenient = { ...lenient.toServer, rdmaAddress: client }
  await t.throwsAsync(connect(toLenient), { code: 'ERR_RDMA_OFFER', message: /127\.0\.0\.3.*allowedPeerAddresses/ })
  const strict = await serve(t, place, { rdmaAddress: '127.0.0.3' })
  const toStrict = { ...strict.toServer, rdmaAddress: client, allowedPeerAddresses: '127.0.0.3' }
  const refused = { code: 'ERR_RDMA_PEER_REFUSED', message: /127\.0\.0\.5.*allowedPeerAddresses/ }
  await t.throwsAsync(connect(toStrict), refused)
  const allowed = await serve(t, place, { rdmaAddress: '127.0.0.3', allowedPeerAddresses: '127.0.0.4' })
  const joined = await join(t, {
    server: allowed.server,
    toServer: { ...allowed.toServer, rdmaAddress: '127.0.0.4', allowedPeerAddresses: '127.0.0.3' },
  })
  t.is(joined.client.device.gid, '::ffff:127.0.0.4')
  t.is(joined.client.handshake.peerGid, '::ffff:127.0.0.3')
  await joined.client.close()
  for (const { server } of [lenient, strict]) await server.close()
})

const elsewhere = Object.values(networkInterfaces())
  .flatMap((all) => all ?? [])
  .find(({ internal, family }) => !internal && family === 'IPv4')?.address
const elsewheres = testDevice === 'soft' && elsewhere !== undefined ? test.serial : test.skip

elsewheres(`[${testDevice ?? 'no device'}] beyond loopback it is taken where there is no other device`, async (t) => {
  const others = (await devices()).filter(({ kind }) => kind !== 'soft')
  const address = elsewhere ?? ''
  const [ipv4] = places
  const place = { ...ipv4, server: address, client: address } as Place
  const served = await serve(t, place)
  const toServer = { ...served.toServer, servername: 'localhost' }
  if (others.length > 0) {
    await t.throwsAsync(connect(toServer), { code: 'ERR_RDMA_NO_MATCHING_DEVICE', message: /"soft"/ })
    return
  }
  const { client, accepted } = await join(t, { ...served, toServer })
  t.is(client.device.reason, 'there is no RDMA device on this host')
  t.is(client.device.gid, `::ffff:${address}`)
  await client.send(numbered(5))
  t.true((await accepted.receive())?.equals(numbered(5)))
  await client.close()
})

softTest('who asks for what is not there is told of it', async (t, place) => {
  const { toServer } = await serve(t, place)
  const refused = async (options: CommonOptions, code: string, message: RegExp): Promise<void> => {
    await t.throwsAsync(connect({ ...toServer, ...options }), { code, message })
  }
  await refused({ device: 'mlx5_0' }, 'ERR_RDMA_DEVICE_NOT_FOUND', /"mlx5_0"; .*soft/)
  await refused({ device: 'soft', devicePort: 2 }, 'ERR_RDMA_NO_MATCHING_DEVICE', /port 2.*soft port 1/)
  await refused({ rdmaAddress: '203.0.113.7' }, 'ERR_RDMA_NO_MATCHING_DEVICE', /203\.0\.113\.7/)
})

/** Names of threads, and what descriptors are, of the embedded device. */
function ofDevice(): { threads: string[]; sockets: number } {
  const threads = readdirSync('/proc/self/task').map((task) => {
    try {
      return readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim()
    } catch {
      return ''
    }
  })
  const udp = ['udp', 'udp6'].flatMap((name) => readFileSync(`/proc/self/net/${name}`, 'utf8').split('\n'))
  const inodes = new Set(udp.map((line) => line.trim().split(/\s+/)[9]))
  const links = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return statSync(`/proc/self/fd/${fd}`)
    } catch {
      return undefined
    }
  })
  return {
    threads: threads.filter((name) => name === 'rdma soft'),
    sockets: links.filter((stat) => stat?.isSocket() === true && inodes.has(String(stat.ino))).length,
  }
}

const nothing = { threads: [], sockets: 0 }

/** Asserts that the device is closed, at the latest after two seconds: what was there before may be on its way out. */
async function assertClosed(t: ExecutionContext): Promise<void> {
  for (let tries = 0; tries < 100 && ofDevice().threads.length + ofDevice().sockets > 0; tries++) await sleep(20)
  t.deepEqual(ofDevice(), nothing)
}

softTest('nobody uses it: it has no thread and no socket; many use it: it has one thread', async (t, place) => {
  await assertClosed(t)
  const served = await serve(t, place)
  t.deepEqual(ofDevice(), nothing, 'a server that nobody has connected to')
  const pairs = [await join(t, served)]
  const { threads, sockets } = ofDevice()
  t.is(threads.length, 1)
  // Of each address family one that receives and one that sends, and one more for each of the two addresses.
  t.true(sockets >= 3 && sockets <= 6, `${sockets} sockets`)
  pairs.push(await join(t, served), await join(t, served))
  t.deepEqual(ofDevice(), { threads, sockets }, 'more connections take no more')
  for (const { client } of pairs) await client.close()
  await served.server.close()
  collectGarbage()
  await assertClosed(t)
})

softTest('a capture is for its owner alone, shows all connections, and there is one', async (t, place) => {
  await assertClosed(t)
  const captureFile = file(t, 'packets.pcapng')
  const served = await serve(t, place, { captureFile })
  const pairs = [await join(t, served), await join(t, served)]
  for (const { client, accepted } of pairs) {
    const receiving = receiveNumbered(accepted)
    for (let i = 0; i < 200; i++) await client.send(numbered(i))
    await client.end()
    t.is(await receiving, 200)
  }
  const other = file(t, 'other.pcapng')
  const refused = connect({ ...served.toServer, captureFile: other })
  await t.throwsAsync(refused, {
    instanceOf: TypeError,
    message: /soft cannot capture to .*other.*packets/,
  })
  // Who says nothing is captured nevertheless: the file is the device's.
  await warmUp({ ...served, toServer: { ...served.toServer, captureFile: undefined } })
  for (const { client } of pairs) await client.close()

  t.is(statSync(captureFile).mode & 0o777, 0o600)
  const packets = roceOf(packetsOfPcapng(readFileSync(captureFile)), 'any')
  for (const { client, accepted } of pairs) {
    for (const { ownQpn } of [client.handshake, accepted.handshake]) {
      const toIt = packets.filter(({ destinationQpn }) => destinationQpn === ownQpn)
      t.true(toIt.length > 200, `${toIt.length} packets to a queue pair`)
    }
  }
  const acknowledgements = packets.filter(({ opcode }) => opcode === 0x11)
  const notReady = acknowledgements.filter(({ syndrome }) => syndrome >> 5 === 1)
  t.log(`${packets.length} packets, ${acknowledgements.length} of them acknowledgements`)
  t.true(acknowledgements.length > 100, 'the control: acknowledgements are seen')
  t.is(notReady.length, 0, 'nobody was sent to when it was not ready')
})

softTest('a capture that cannot be made fails the connection', async (t, place) => {
  await assertClosed(t)
  const { toServer } = await serve(t, place)
  const captureFile = '/proc/no/such/folder'
  const refused = connect({ ...toServer, captureFile })
  await t.throwsAsync(refused, { instanceOf: TypeError, message: /soft cannot capture to .*No such file/ })
})

rxeTest('a capture of a device whose packets do not pass here is refused', async (t, place) => {
  const { toServer } = await serve(t, place)
  const captureFile = file(t, 'packets.pcapng')
  await t.throwsAsync(connect({ ...toServer, captureFile }), {
    code: 'ERR_RDMA_DEVICE_UNSUPPORTED',
    message: /^rxe1 cannot capture/,
  })
})
