// Reads captures as tcpdump and the embedded device write them: what RoCE v2's packets say, and what a TCP connection
// carried.

/** A UDP or TCP packet. */
export interface Packet {
  source: string
  destination: string
  protocol: 'UDP' | 'TCP'
  sourcePort: number
  destinationPort: number
  /** TCP's sequence number; 0 for UDP. */
  sequence: number
  synchronises: boolean
  payload: Buffer
}

const MAGIC = [0xa1b2c3d4, 0xa1b23c4d]
const ETHERNET = 1

/** All UDP and TCP packets of a pcap file (little-endian, Ethernet), in the order of capture. */
export function packetsOf(pcap: Buffer): Packet[] {
  if (!MAGIC.includes(pcap.readUInt32LE(0)) || pcap.readUInt32LE(20) !== ETHERNET) throw new Error('not such a capture')
  const packets: Packet[] = []
  for (let at = 24; at < pcap.length;) {
    const [kept, whole] = [pcap.readUInt32LE(at + 8), pcap.readUInt32LE(at + 12)]
    if (kept !== whole) throw new Error(`a packet was cut from ${whole} to ${kept} bytes`)
    const packet = ofEthernet(pcap.subarray(at + 16, at + 16 + kept))
    if (packet) packets.push(packet)
    at += 16 + kept
  }
  return packets
}

const SECTION_HEADER = 0x0a0d0d0a
const INTERFACE_DESCRIPTION = 1
const ENHANCED_PACKET = 6
const BYTE_ORDER = 0x1a2b3c4d
/** LINKTYPE_RAW: a packet begins with its IP header. */
const RAW = 101

/** All UDP and TCP packets of a pcapng file (little-endian, LINKTYPE_RAW), in the order of capture. */
export function packetsOfPcapng(pcapng: Buffer): Packet[] {
  if (pcapng.readUInt32LE(0) !== SECTION_HEADER || pcapng.readUInt32LE(8) !== BYTE_ORDER) {
    throw new Error('not such a capture')
  }
  const packets: Packet[] = []
  for (let at = 0; at < pcapng.length;) {
    const [type, length] = [pcapng.readUInt32LE(at), pcapng.readUInt32LE(at + 4)]
    if (pcapng.readUInt32LE(at + length - 4) !== length) throw new Error(`the block at ${at} has two lengths`)
    if (type === INTERFACE_DESCRIPTION && pcapng.readUInt16LE(at + 8) !== RAW) throw new Error('not raw IP')
    if (type === ENHANCED_PACKET) {
      const [kept, whole] = [pcapng.readUInt32LE(at + 20), pcapng.readUInt32LE(at + 24)]
      if (kept !== whole) throw new Error(`a packet was cut from ${whole} to ${kept} bytes`)
      const ip = pcapng.subarray(at + 28, at + 28 + kept)
      const packet = ip.readUInt8(0) >> 4 === 4 ? ofIpv4(ip) : ofIpv6(ip)
      if (packet) packets.push(packet)
    }
    at += length
  }
  return packets
}

function ofEthernet(frame: Buffer): Packet | undefined {
  const type = frame.readUInt16BE(12)
  if (type === 0x0800) return ofIpv4(frame.subarray(14))
  if (type === 0x86dd) return ofIpv6(frame.subarray(14))
  return undefined
}

function ofIpv4(ip: Buffer): Packet | undefined {
  if ((ip.readUInt16BE(6) & 0x3fff) !== 0) throw new Error('a fragment')
  const [source, destination] = [12, 16].map((at) => ip.subarray(at, at + 4).join('.')) as [string, string]
  const header = (ip.readUInt8(0) & 0xf) * 4
  return ofTransport(source, destination, ip.readUInt8(9), ip.subarray(header, ip.readUInt16BE(2)))
}

function ofIpv6(ip: Buffer): Packet | undefined {
  const address = (at: number): string => {
    const groups = Array.from({ length: 8 }, (_, i) => ip.readUInt16BE(at + 2 * i).toString(16))
    return groups.join(':')
  }
  return ofTransport(address(8), address(24), ip.readUInt8(6), ip.subarray(40, 40 + ip.readUInt16BE(4)))
}

function ofTransport(source: string, destination: string, protocol: number, bytes: Buffer): Packet | undefined {
  const common = { source, destination, sourcePort: 0, destinationPort: 0 }
  if (protocol !== 6 && protocol !== 17) return undefined
  Object.assign(common, { sourcePort: bytes.readUInt16BE(0), destinationPort: bytes.readUInt16BE(2) })
  if (protocol === 17) {
    const payload = bytes.subarray(8, bytes.readUInt16BE(4))
    return { ...common, protocol: 'UDP', sequence: 0, synchronises: false, payload }
  }
  const payload = bytes.subarray((bytes.readUInt8(12) >> 4) * 4)
  const synchronises = (bytes.readUInt8(13) & 0x02) !== 0
  return { ...common, protocol: 'TCP', sequence: bytes.readUInt32BE(4), synchronises, payload }
}

/** What a RoCE v2 packet's base transport header says. */
export interface RocePacket {
  source: string
  destination: string
  opcode: number
  /** Whether it asks something of the destination, as SEND does; acknowledgements and responses do not. */
  isRequest: boolean
  destinationQpn: number
  psn: number
  /** What an acknowledgement says: ACK, RNR NAK or NAK in its upper three bits. Of other packets, the byte there. */
  syndrome: number
  /** Payload of a SEND Only with immediate, in bytes; of others, what follows the base transport header. */
  length: number
}

/** SEND Only with immediate, of the reliable connection. */
export const SEND_ONLY_WITH_IMMEDIATE = 0x05

const BASE_HEADER = 12
const IMMEDIATE = 4
const ICRC = 4

/** Reliable-connection opcodes that are answers: READ responses, acknowledgements. */
const isAnswer = (opcode: number): boolean => opcode >= 0x0d && opcode <= 0x12

/** The RoCE v2 packets among others: those to UDP port 4791, or to any port where nothing else was captured. */
export function roceOf(packets: readonly Packet[], port: 4791 | 'any' = 4791): RocePacket[] {
  const roce = packets.filter(
    ({ protocol, destinationPort }) => protocol === 'UDP' && (port === 'any' || destinationPort === port),
  )
  return roce.map(({ source, destination, payload }) => {
    const opcode = payload.readUInt8(0)
    const pad = (payload.readUInt8(1) >> 4) & 3
    const extended = opcode === SEND_ONLY_WITH_IMMEDIATE ? IMMEDIATE : 0
    return {
      source,
      destination,
      opcode,
      isRequest: !isAnswer(opcode),
      destinationQpn: payload.readUIntBE(5, 3),
      psn: payload.readUIntBE(9, 3),
      syndrome: payload.readUInt8(12),
      length: payload.length - BASE_HEADER - extended - pad - ICRC,
    }
  })
}

/** What one side of a TCP connection sent, in order and once; `port` is where it was sent from or to. */
export function streamOf(packets: readonly Packet[], direction: { from: number } | { to: number }): Buffer {
  const mine = packets.filter(
    ({ protocol, sourcePort, destinationPort }) =>
      protocol === 'TCP' && ('from' in direction ? sourcePort === direction.from : destinationPort === direction.to),
  )
  const first = mine.find(({ synchronises }) => synchronises)
  if (!first) throw new Error('the begin of the TCP connection is not there')
  const place = ({ sequence }: Packet): number => (sequence - first.sequence - 1) >>> 0
  const data = mine.filter(({ payload }) => payload.length > 0).sort((a, b) => place(a) - place(b))
  let stream = Buffer.alloc(0)
  for (const packet of data) {
    const overlap = stream.length - place(packet)
    if (overlap < 0) throw new Error(`${-overlap} bytes of the TCP connection are not there`)
    stream = Buffer.concat([stream, packet.payload.subarray(overlap)])
  }
  return stream
}
