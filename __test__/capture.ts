// What the wire shows of a connection: the PSNs of the exchange, no connection manager, and nothing of the offers.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execFile, spawn } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { ExecutionContext } from 'ava'
import type { Scope } from './_child-main.js'
import { betweenProcesses, rxeTest, type Place } from './_device.js'
import { offerIn, type DecodedOffer } from './_offer.js'
import { capture, ends } from './_guest.js'
import { packetsOf, packetsOfPcapng, roceOf, SEND_ONLY_WITH_IMMEDIATE, streamOf, type RocePacket } from './_pcap.js'
import { closed, connected, type Processes, type Told, type Wanted } from './_processes.js'
import { decrypt } from './_tls13.js'
import { relay, type Relay } from './_wire.js'

/** The QPN of the connection manager's packets. */
const CM = 1

/** What can be seen of a connection from outside. */
interface Seen {
  roce: RocePacket[]
  /** What both sides said over TCP. */
  tcp: { client: Buffer; server: Buffer }
}

interface Captured extends Omit<Seen, 'roce'> {
  /** By who sent them. */
  roce: { server: RocePacket[]; client: RocePacket[] }
  told: { server: Told; client: Told }
  keyLog: string
}

async function echo({ kept: { connection } }: Scope): Promise<void> {
  for await (const message of connection) await connection.send(message)
}

async function ask({ kept: { connection } }: Scope): Promise<void> {
  for (let i = 0; i < 20; i++) {
    await connection.send(Buffer.alloc(i * 1000, i))
    if ((await connection.receive())?.length !== i * 1000) throw new Error(`message ${i} came back otherwise`)
  }
}

/** A connection from begin to end, all of whose packets are captured. */
async function captured(t: ExecutionContext, place: Place): Promise<Captured> {
  const folder = mkdtempSync(join(tmpdir(), 'keys-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  const keyLogFile = join(folder, 'keys')
  const { addressing, wire } = place
  const wanted = { options: { addressing, exposeSecrets: true }, clientOptions: { keyLogFile } }
  const { told, roce, tcp } = await (wire === undefined
    ? capturedByDevice(t, place, wanted, join(folder, 'packets'))
    : capturedOnWire(t, place, wanted, wire))
  const from = (address: string): RocePacket[] => roce.filter(({ source }) => source === plain(address))
  t.log(`${roce.length} RoCE v2 packets, ${tcp.client.length} and ${tcp.server.length} bytes of TCP`)
  return {
    roce: divided(roce, told, from, place),
    tcp,
    told,
    keyLog: readFileSync(keyLogFile, 'utf8'),
  }
}

/** By who sent them: by addresses, or where both have the same, by the queue pair that they go to. */
function divided(
  roce: RocePacket[],
  told: Captured['told'],
  from: (address: string) => RocePacket[],
  place: Place,
): Captured['roce'] {
  if (place.server !== place.client) return { server: from(place.server), client: from(place.client) }
  const to = (qpn: number): RocePacket[] => roce.filter(({ destinationQpn }) => destinationQpn === qpn)
  const { server, client } = told
  return { server: to(client.handshake.ownQpn), client: to(server.handshake.ownQpn) }
}

async function talk(t: ExecutionContext, processes: Processes): Promise<void> {
  const { server, client } = processes
  const echoing = server.run(echo)
  await client.run(ask)
  await closed(t, processes)
  await echoing
}

type Talked = Seen & Pick<Captured, 'told'>

/** By the kernel, on the interface between both. */
async function capturedOnWire(t: ExecutionContext, place: Place, wanted: Wanted, wire: string): Promise<Talked> {
  const running = await capture(wire, 'tcp or udp port 4791')
  const processes = await connected(t, place, wanted)
  const { port, told } = processes
  await talk(t, processes)
  const packets = packetsOf(await running.stop())
  const tcp = { client: streamOf(packets, { to: port }), server: streamOf(packets, { from: port }) }
  return { roce: roceOf(packets), tcp, told }
}

/** By the server's device, and by a relay of TCP: without root, on any machine. */
async function capturedByDevice(t: ExecutionContext, place: Place, wanted: Wanted, file: string): Promise<Talked> {
  let between: Relay | undefined
  const processes = await connected(t, place, {
    ...wanted,
    serverOptions: { captureFile: file },
    through: async (port) => {
      between = await relay(t, place, port)
      return between.port
    },
  })
  const { server, told } = processes
  await talk(t, processes)
  // The file is whole when the device is closed.
  await server.run(({ kept }) => kept.server.close())
  server.release()
  await server.exited
  const tcp = between?.said() ?? { client: Buffer.alloc(0), server: Buffer.alloc(0) }
  return { roce: roceOf(packetsOfPcapng(readFileSync(file)), 'any'), tcp, told }
}

/** An address as the parser writes it: all eight groups. */
function plain(address: string): string {
  const [head = '', tail] = address.split('::')
  if (tail === undefined) return address
  const [left, right] = [head.split(':'), tail.split(':')]
  return [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right].join(':')
}

/** The first request is of the own PSN, to the peer's queue pair, and fills a packet: it is the proof of path. */
function assertFirstRequest(t: ExecutionContext, sent: RocePacket[], { handshake, secrets }: Told): void {
  const first = sent.find(({ isRequest }) => isRequest)
  if (!first || !secrets) throw new Error('there is neither request nor secret')
  t.is(first.psn, secrets.ownPsn)
  t.is(first.destinationQpn, handshake.peerQpn)
  t.is(first.opcode, SEND_ONLY_WITH_IMMEDIATE)
  t.is(first.length, handshake.pathMtu)
  t.is(handshake.pathMtu, 4096)
  t.log(`${handshake.role}: first request has PSN ${first.psn}, goes to QPN ${first.destinationQpn}, ${first.length} B`)
}

/** Bytes of an offer that nothing else has: whole, its QPN and PSN, and what binds it to the TLS session. */
function identifying({ bytes, binding, numbers }: DecodedOffer): Buffer[] {
  return [bytes, binding, numbers]
}

betweenProcesses('the wire carries the PSNs of the exchange, and nothing of the offers in clear', async (t, place) => {
  const { roce, tcp, told, keyLog } = await captured(t, place)

  assertFirstRequest(t, roce.server, told.server)
  assertFirstRequest(t, roce.client, told.client)
  t.is(told.server.secrets?.ownPsn, told.client.secrets?.peerPsn)
  t.is(told.client.secrets?.ownPsn, told.server.secrets?.peerPsn)
  for (const sent of [roce.server, roce.client]) {
    t.is(sent.filter(({ destinationQpn }) => destinationQpn === CM).length, 0, 'no packet of the connection manager')
  }

  const { client, server } = tcp
  const secret = decrypt(client, server, keyLog)
  for (const [sender, side] of [
    ['client', told.client],
    ['server', told.server],
  ] as const) {
    const offer = offerIn(secret[sender])
    t.true(offer.psn === side.secrets?.ownPsn, 'the decrypted offer is the one of this exchange')
    t.is(offer.qpn, side.handshake.ownQpn)
    for (const bytes of identifying(offer)) {
      t.true(secret[sender].includes(bytes), 'the control: decrypted, they are there')
      for (const stream of [client, server]) t.false(stream.includes(bytes), `${bytes.length} B of the offer in clear`)
    }
  }
  t.true(client.includes('secure-rdma/1'), 'the control: what TLS leaves in clear is found')
})

rxeTest('the connection manager is seen where it runs', async (t) => {
  const running = await capture(ends[0].interface, 'udp port 4791')
  const listener = spawn('rping', ['-s', '-a', ends[0].IPv4, '-C', '2'], { stdio: 'ignore' })
  const ended = new Promise((resolve) => listener.once('exit', resolve))
  await sleep(1000)
  await promisify(execFile)('rping', ['-c', '-I', ends[1].IPv4, '-a', ends[0].IPv4, '-C', '2'], { timeout: 20_000 })
  await ended
  const roce = roceOf(packetsOf(await running.stop()))
  for (const { IPv4 } of ends) {
    const cm = roce.filter(({ source, destinationQpn }) => source === IPv4 && destinationQpn === CM)
    t.true(cm.length > 0, `packets of the connection manager from ${IPv4}`)
    t.log(`${cm.length} packets of the connection manager from ${IPv4}`)
  }
})
