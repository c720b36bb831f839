// A process whose address space is full: what cannot be had is told by name, nothing is half made, and all goes on. Reliability
// §F.5 #50; for memory that may not be pinned see memlock.ts.

import type { CommonOptions } from 'secure-rdma'
import { Child } from './_child.js'
import type * as Census from './_census.js'
import type { Scope } from './_child-main.js'
import { softTest } from './_device.js'
import { connecting, listening } from './_peers.js'

const MiB = 1 << 20

/** What is left to the process beside what it has. Enough for threads and for Node, and less than the pool wants. */
const MARGIN = 512 * MiB

/** A pool of which each connection wants 2 GiB; both ends take from it. */
const GREEDY = { credits: 2048, pool: { bufferSize: MiB, receiveBuffers: 4096 } }

interface Given {
  server: CommonOptions & { host: string }
  client: CommonOptions & { host: string; localAddress: string }
  greedy: typeof GREEDY
  margin: number
  census: string
}

interface Told {
  /** Codes of the errors of both sides, under the limit. */
  client: string
  server: string
  message: string
  left: string[]
  /** Whether a connection that wants little comes up under the limit, and the greedy one without it. */
  small: string
  again: string
}

/** A task for Child.run: it travels as source text. */
async function fill({ rdma }: Scope, { server, client, greedy, margin, census: file }: Given): Promise<Told> {
  const load = process.getBuiltinModule.bind(process)
  const { census, difference } = load('node:module').createRequire(file)(file) as typeof Census
  const { readFileSync } = load('node:fs')
  const { execFileSync } = load('node:child_process')
  const limit = (bytes: string): void => {
    execFileSync('prlimit', [`--pid=${process.pid}`, `--as=${bytes}:`])
  }
  const echo = async (
    options: Parameters<typeof rdma.connect>[0],
    listener: Awaited<ReturnType<typeof rdma.listen>>,
  ) => {
    const [one, other] = await Promise.all([rdma.connect(options), listener.accept()])
    await one.send(Buffer.alloc(100_000, 7))
    const message = await other.receive()
    await one.close()
    await other.closed
    return message?.equals(Buffer.alloc(100_000, 7)) === true ? 'works' : 'damaged'
  }
  const portOf = (listener: Awaited<ReturnType<typeof rdma.listen>>): number => listener.address()?.port ?? 0
  const modest = await rdma.listen(server)
  const wanting = await rdma.listen({ ...server, ...greedy })
  const [toModest, toWanting] = [modest, wanting].map((listener) => ({ ...client, port: portOf(listener) }))
  if (!toModest || !toWanting) throw new Error('there are two')
  await echo(toModest, modest)
  const before = await census()

  const [, kib] = /^VmSize:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
  limit(String(Number(kib) * 1024 + margin))
  const codeOf = (error: unknown): { code: string; message: string } => error as { code: string; message: string }
  const mine = await rdma.connect({ ...toModest, ...greedy }).then(() => ({ code: 'none', message: '' }), codeOf)
  await rdma.connect(toWanting).catch(() => undefined)
  while (wanting.stats().failed === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  const small = await echo(toModest, modest)
  limit('unlimited')
  // What the server has made for the client that gave up goes with it.
  let left = difference(before, await census())
  for (let tries = 0; tries < 10 && left.length > 0; tries++) left = difference(before, await census())
  const again = await echo({ ...toWanting, ...greedy }, wanting)
  const told = { client: mine.code, message: mine.message, server: Object.keys(wanting.stats().failures).join() }
  await Promise.all([modest.close(), wanting.close()])
  return { ...told, left, small, again }
}

softTest('memory for buffers that cannot be had is refused by name, and nothing is left of it', async (t, place) => {
  const child = Child.start(t)
  const given = { server: await listening(place), client: await connecting(place, 1) }
  const census = require.resolve('./_census.js')
  const told = await child.run(fill, { ...given, greedy: GREEDY, margin: MARGIN, census })
  t.log(told.message)
  t.like(told, { client: 'ERR_RDMA_NO_MEMORY', server: 'ERR_RDMA_NO_MEMORY', small: 'works', again: 'works' })
  t.deepEqual(told.left, [])
  child.release()
  t.deepEqual(await child.exited, { code: 0, signal: null })
})
