// A receiver that does not read, under a sender that does not wait: memory stays bounded, and nothing is lost.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import type { Scope } from './_child-main.js'
import { processTest, rxeTest, type Place } from './_device.js'
import { memoryOf, receiverNotReady } from './_guest.js'
import { closed, connected } from './_processes.js'

const MIB = 1 << 20

/** The defaults: what a connection may hold at the most for messages that nobody reads. */
const receiveBufferSize = MIB
const maxMessageSize = MIB
const credits = 16
const SEGMENT = 4096
const bound = receiveBufferSize + maxMessageSize + credits * SEGMENT

/** What V8 and the allocator may take besides. */
const ALLOWANCE = 4 * MIB

/** More than both sides may keep: it fills the send buffer, and an unbounded receiver would show. */
const LEAST = 16 * MIB + 4 * (bound + ALLOWANCE)

/** What the sender has done. */
interface Flood {
  attempts: number
  bytes: number
  /** Attempts that were refused at once. */
  refused: number[]
  codes: string[]
}

/** How the sender sends: messages of `size` bytes, or of 8 to 8007 bytes where it is 0. */
interface Plan {
  duration: number
  size: number
  /** Bytes that are tried at the least. */
  least: number
}

/** Sends for a while without waiting for any send; `kept.promises` are all of them. */
async function flood({ kept, numbered }: Scope, { duration, size, least }: Plan): Promise<Flood> {
  const told: Flood = { attempts: 0, bytes: 0, refused: [], codes: [] }
  const end = performance.now() + duration
  // A machine that is busy otherwise may need longer to fill all buffers.
  while (performance.now() < end || told.bytes < least) {
    for (let i = 0; i < (size === 0 ? 32 : 4); i++) {
      const attempt = told.attempts++
      const message = size === 0 ? numbered(attempt) : Buffer.alloc(size, attempt & 0xff)
      if (size > 0) message.writeUInt32LE(attempt)
      told.bytes += message.length
      const send = kept.connection.send(message).catch((error: unknown) => {
        const { code } = error as { code: string }
        told.refused.push(attempt)
        if (!told.codes.includes(code)) told.codes.push(code)
      })
      kept.promises.push(send)
    }
    // Others may run, but nothing is waited for.
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  return told
}

/** Reads `count` messages; their numbers. */
async function read({ kept, numberOf }: Scope, { count, size }: { count: number; size: number }): Promise<number[]> {
  const numbers: number[] = []
  while (numbers.length < count) {
    const message = await kept.connection.receive()
    const number = size === 0 ? numberOf(message) : (message?.readUInt32LE(0) ?? -1)
    if (size > 0 && !message?.subarray(4).equals(Buffer.alloc(size - 4, number & 0xff))) {
      throw new Error(`message ${number} is damaged (${message?.length} bytes)`)
    }
    numbers.push(number)
  }
  return numbers
}

const settled = async ({ kept }: Scope): Promise<number> => (await Promise.all(kept.promises)).length

/** The most memory that a process has at any time until `work` is over. */
async function mostMemory(pid: number, work: Promise<unknown>): Promise<number> {
  const samples: number[] = []
  const timer = setInterval(() => samples.push(memoryOf(pid, 'VmRSS')), 100)
  await work.finally(() => {
    clearInterval(timer)
  })
  return Math.max(...samples)
}

async function staysBounded(t: ExecutionContext, place: Place, duration: number, size = 0): Promise<void> {
  t.timeout(120_000)
  const refusals = receiverNotReady()
  const processes = await connected(t, place)
  const { server: receiver, client: sender } = processes

  // What the first messages ever make grow is not the flood's.
  const warmUp = receiver.run(read, { count: 200, size: 0 })
  await sender.run(async ({ kept, numbered }) => {
    for (let i = 0; i < 200; i++) await kept.connection.send(numbered(i))
  })
  await warmUp
  const before = memoryOf(receiver.pid, 'VmRSS')

  const flooding = sender.run(flood, { duration, size, least: LEAST })
  const most = await mostMemory(receiver.pid, flooding)
  const { attempts, bytes, refused, codes } = await flooding
  const { bytesReady, messagesReady } = await receiver.run(({ kept }) => kept.connection.stats())
  t.log(`${attempts} messages (${kib(bytes)}) were sent, ${refused.length} refused; ${messagesReady} wait to be read`)
  t.log(`the receiver grew by ${kib(most - before)} of ${kib(bound)} + ${kib(ALLOWANCE)}; ${kib(bytesReady)} wait`)
  t.deepEqual(codes, ['ERR_RDMA_SEND_BUFFER_FULL'])
  t.true(bytesReady >= receiveBufferSize / 2, 'the control: the receiver was full')
  t.true(most - before <= bound + ALLOWANCE)

  const isRefused = new Set(refused)
  const accepted = Array.from({ length: attempts }, (_, i) => i).filter((attempt) => !isRefused.has(attempt))
  t.deepEqual(await receiver.run(read, { count: accepted.length, size }), accepted)
  t.is(await sender.run(settled), attempts)
  await closed(t, processes)
  t.is(receiverNotReady(), refusals, 'nobody was sent to when it was not ready')
}

processTest('a receiver that is idle for 10 s stays within its memory, and loses nothing', (t, place) =>
  staysBounded(t, place, 10_000),
)

// One such message is not quite what may wait, so a second one comes whole.
processTest('so it does with messages of almost 1 MiB', (t, place) =>
  staysBounded(t, place, 3000, maxMessageSize - 100),
)

/** Sends to a program that has one receive posted at a time. */
async function overrun(t: ExecutionContext, { server, devices }: Place): Promise<void> {
  const args = ['--connection=RC', '--gid-index=1', '--rx-depth=1', '--iters=500', '--size=64', '--CPU-freq']
  const listener = spawn('ib_send_bw', [`--ib-dev=${devices.server}`, ...args], { stdio: 'ignore' })
  t.teardown(() => listener.kill())
  const ended = once(listener, 'exit')
  for (let tries = 1; ; tries++) {
    await sleep(500)
    const sender = spawn('ib_send_bw', [`--ib-dev=${devices.client}`, ...args, server], { stdio: 'ignore' })
    t.teardown(() => sender.kill())
    const [status] = (await once(sender, 'exit')) as [number | null]
    // The listener needs a moment to come up.
    if (status === 0) break
    if (tries === 20) throw new Error(`ib_send_bw ended with ${status}`)
  }
  t.deepEqual(await ended, [0, null])
}

rxeTest('the control: a receiver that is not ready shows in the counters', async (t, place) => {
  const before = receiverNotReady()
  // Sometimes it is quick enough with its one receive.
  for (let i = 0; i < 20 && receiverNotReady() === before; i++) await overrun(t, place)
  t.log(`${receiverNotReady() - before} times "receiver not ready", sent and received`)
  t.true(receiverNotReady() > before)
})

function kib(bytes: number): string {
  return `${Math.round(bytes / 1024)} KiB`
}
