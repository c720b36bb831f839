// How the demo writes.

import type { Connection } from 'secure-rdma'

const WIDTH = 96
/** What the parent puts before a child's lines: "server │ ". */
const PREFIX = 9
const LABEL = 14
const TIME = 10

/** Writes lines in one piece, so that those of another process cannot get between them. */
export function print(...lines: string[]): void {
  process.stdout.write(lines.map((line) => `${line}\n`).join(''))
}

/** A label and a text beside it. */
export function field(label: string, text: string): string {
  return `${label.padEnd(LABEL)}${text}`
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const line = lines.pop()
    if (line === undefined) lines.push(word)
    else if (line.length + 1 + word.length > width) lines.push(line, word)
    else lines.push(`${line} ${word}`)
  }
  return lines
}

/** "98.9 MB (94.3 MiB)" */
export function size(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB (${(bytes / 2 ** 20).toFixed(1)} MiB)`
}

/** "1.23 s", "45.6 ms" */
export function time(milliseconds: number): string {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`
  return `${milliseconds.toFixed(milliseconds >= 100 ? 0 : milliseconds >= 10 ? 1 : 2)} ms`
}

export function rate(bytes: number, milliseconds: number): string {
  return `${(bytes / 1000 / milliseconds).toFixed(1)} MB/s`
}

/** QPNs and PSNs have 24 bits. */
export function hex(number: number): string {
  return `0x${number.toString(16).padStart(6, '0')}`
}

/** The peak of this process' memory. */
export function memory(): string {
  return `${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`
}

/** What happened while the connection came up, a line for each step with the time that it took. */
export function describe({ handshake, device }: Connection): string[] {
  const { secrets, tlsLocal, tlsPeer, udpPort } = handshake
  const ownPsn = secrets ? `${hex(secrets.ownPsn)}, A SECRET` : `fingerprint ${handshake.ownPsnFingerprint}`
  const peerPsn = secrets ? `${hex(secrets.peerPsn)}, A SECRET` : `fingerprint ${handshake.peerPsnFingerprint}`
  const meanings: Record<string, string[]> = {
    tcp: [`${tlsLocal.address} port ${tlsLocal.port}, peer ${tlsPeer.address} port ${tlsPeer.port}`],
    tls: [
      `${handshake.tlsVersion}, ${handshake.keyExchange}, ${handshake.cipherSuite}`,
      `own certificate "${handshake.ownCertificate?.subject}"`,
      `peer's certificate "${handshake.peerCertificate?.subject}", verified`,
    ],
    authorize: ['no function given: every verified peer may come in'],
    device: [
      `${device.name}, port ${device.port}: ${device.reason}`,
      `own GID ${device.gid}, index ${device.gidIndex}`,
    ],
    'RESET→INIT': [`own QPN ${hex(handshake.ownQpn)}`],
    offer: [`peer's QPN ${hex(handshake.peerQpn)}, GID ${handshake.peerGid}; path MTU ${handshake.pathMtu}`],
    resolve: [`addressing ${handshake.addressing}${udpPort ? `, UDP port ${udpPort}` : ''}`],
    'INIT→RTR': [`receives from the peer's PSN on: ${peerPsn}`],
    ready: ['both sides can receive'],
    'RTR→RTS': [`sends from the own PSN on: ${ownPsn}`],
    path: [`proven by ${handshake.pathMtu} bytes each way`],
  }
  const steps = handshake.steps.flatMap(({ name, duration }) => {
    const lines = (meanings[name] ?? ['']).flatMap((text) => wrap(text, WIDTH - PREFIX - TIME - LABEL))
    return lines.map((line, index) => {
      return index === 0 ? step(time(duration), name, line) : step('', '', line)
    })
  })
  return [...steps, step(time(handshake.total), 'connected', '')]
}

function step(duration: string, name: string, text: string): string {
  return `${duration.padStart(TIME - 2)}  ${name.padEnd(LABEL)}${text}`.trimEnd()
}
