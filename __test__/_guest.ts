// What tests see of the guest, and do to it: capture packets, drop them, read the devices' counters.
// All of it is the whole guest's: tests that use it run one at a time.

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

/** The two ends of the guest's wire, each a device with an address of either family. */
export const ends = [
  { device: 'rxe0', interface: 'v0', IPv4: '10.8.0.1', IPv6: 'fd08::1' },
  { device: 'rxe1', interface: 'v1', IPv4: '10.8.0.2', IPv6: 'fd08::2' },
] as const

/** Whether this is the guest of tools/soft-roce, where tests may do as they please. */
export const inGuest = process.env['SECURE_RDMA_GUEST'] === '1'

/** Where the system's own commands are. `npm` and `npx` put node_modules/.bin first, and that has an `nft` of its own. */
const PATH = '/usr/sbin:/usr/bin:/sbin:/bin'

/** A command that tells something; its stdout. */
export function command(name: string, ...args: string[]): string {
  const env = { ...process.env, PATH }
  return execFileSync(name, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env })
}

/** A running tcpdump. */
export interface Capture {
  /** Ends it. The bytes of the pcap file, and nothing that it was to see is missing: a capture with gaps rejects. */
  stop(): Promise<Buffer>
}

/** How tcpdump says what it has seen. */
const counted =
  /(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel|^(\d+) packets? (captured|received by filter|dropped by kernel)/

/**
 * Captures what passes an interface, both ways, from the moment that this fulfils.
 *
 * Into the guest's memory: straight into a shared folder tcpdump falls behind. With a large buffer: with
 * `--immediate-mode` it would be tiny.
 */
export async function capture(network: string, filter: string): Promise<Capture> {
  const folder = mkdtempSync(join(tmpdir(), 'capture-'))
  const file = join(folder, 'pcap')
  const tcpdump = spawn('tcpdump', ['-Z', 'root', '-i', network, '-B', '65536', '-s', '0', '-w', file, filter], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const lines: string[] = []
  const exited = once(tcpdump, 'exit')
  const reader = createInterface(tcpdump.stderr)
  const listening = new Promise<void>((resolve, reject) => {
    reader.on('line', (line) => {
      lines.push(line)
      if (line.includes('listening on')) resolve()
    })
    tcpdump.once('error', reject)
    tcpdump.once('exit', () => {
      reject(new Error(`tcpdump ended: ${lines.join('; ')}`))
    })
  })
  await listening
  return {
    async stop() {
      try {
        await readToTheEnd(tcpdump, lines)
        tcpdump.kill('SIGINT')
        await exited
        const { captured, received, dropped } = numbers(lines.slice(-3))
        if (captured !== received || dropped !== 0) {
          throw new Error(`the capture has gaps: ${captured} of ${received} packets, ${dropped} dropped`)
        }
        return readFileSync(file)
      } finally {
        tcpdump.kill('SIGKILL')
        rmSync(folder, { recursive: true })
      }
    },
  }
}

/** A kill loses what tcpdump has not read yet, so it is asked until it has read all, twice in a row. */
async function readToTheEnd(tcpdump: ChildProcess, lines: string[]): Promise<void> {
  let last = -1
  for (let i = 0; i < 100; i++) {
    const before = lines.length
    tcpdump.kill('SIGUSR1')
    // The kernel hands its blocks over after a second at the latest.
    await sleep(600)
    if (lines.length === before) continue
    const { captured, received } = numbers(lines.slice(before))
    if (captured === received && captured === last) return
    last = captured
  }
  throw new Error(`tcpdump falls behind: ${lines.slice(-1).join()}`)
}

function numbers(lines: string[]): { captured: number; received: number; dropped: number } {
  const found: Record<string, number> = {}
  for (const line of lines) {
    const match = counted.exec(line.replace(/^tcpdump: /, ''))
    if (!match) continue
    if (match[1] !== undefined) {
      Object.assign(found, { captured: Number(match[1]), 'received by filter': Number(match[2]) })
      found['dropped by kernel'] = Number(match[3])
    } else if (match[5] !== undefined) found[match[5]] = Number(match[4])
  }
  return {
    captured: found['captured'] ?? NaN,
    received: found['received by filter'] ?? NaN,
    dropped: found['dropped by kernel'] ?? NaN,
  }
}

/** A rule of the packet filter that is in force. */
export interface Dropping {
  /** Packets that it has met so far. */
  packets(): number
  /** Lets packets pass again. A second time does nothing. */
  stop(): void
}

let tables = 0

/**
 * Drops what arrives and fits `match` (as in nft(8): `udp dport 4791`, `tcp dport 7471`, `iifname v0 udp dport 4791`).
 *
 * On the input hook: a drop on output is an error to rxe's own send, and it tries again at once.
 */
export function drop(...matches: string[]): Dropping {
  const table = `test${++tables}`
  const rules = matches.map((match) => `${match} counter drop`).join('\n')
  let isOver = false
  command('nft', `table inet ${table} {\n chain in {\n type filter hook input priority 0;\n${rules}\n }\n}`)
  return {
    packets: () => {
      const text = command('nft', 'list', 'table', 'inet', table)
      return [...text.matchAll(/counter packets (\d+)/g)].reduce((sum, [, packets]) => sum + Number(packets), 0)
    },
    stop: () => {
      if (isOver) return
      isOver = true
      command('nft', 'delete', 'table', 'inet', table)
    },
  }
}

/** The counters that rxe keeps for a device, since it exists. */
export function hardwareCounters(device: string): Readonly<Record<string, number>> {
  const folder = `/sys/class/infiniband/${device}/ports/1/hw_counters`
  const names = readdirSync(folder).filter((name) => name !== 'lifespan')
  return Object.fromEntries(names.map((name) => [name, Number(readFileSync(join(folder, name), 'utf8'))]))
}

/**
 * "Receiver not ready" so far, on all soft-RoCE devices: sent by responders that had no receive posted, and received by
 * requesters that had to wait for it. Outside of the guest there is none, and nothing that counts it.
 */
export function receiverNotReady(): number {
  if (!inGuest) return 0
  return readdirSync('/sys/class/infiniband')
    .map(hardwareCounters)
    .reduce((sum, counters) => sum + (counters['send_rnr_err'] ?? NaN) + (counters['rcvd_rnr_err'] ?? NaN), 0)
}

/** What processes have open on the devices: queue pairs, regions, protection domains and so on, by kind. */
export function rdmaResources(): Readonly<Record<string, number>> {
  const total: Record<string, number> = {}
  for (const line of JSON.parse(command('rdma', '-j', 'res')) as Record<string, number | string>[]) {
    for (const [kind, count] of Object.entries(line)) {
      if (typeof count === 'number' && kind !== 'ifindex') total[kind] = (total[kind] ?? 0) + count
    }
  }
  return total
}

/** A field of /proc/PID/status in bytes: `VmRSS`, `VmHWM`, `VmLck`, `VmPin`. */
export function memoryOf(pid: number | 'self', field: string): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const kibibytes = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1]
  if (kibibytes === undefined) throw new Error(`/proc/${pid}/status has no ${field}`)
  return Number(kibibytes) * 1024
}
