// An unprivileged user, whose memory that devices may pin is limited: how far the usual limit goes, and what a lower
// one says. The embedded device pins nothing.

import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { ConnectOptions } from 'secure-rdma'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { rxeTest, softTest, type Place } from './_device.js'
import { memoryOf } from './_guest.js'
import { connected, connectOptions, listenOptions, tasks } from './_processes.js'

/** What most distributions allow, in KiB, as `ulimit -l` takes it. */
const USUAL = 8192

const CLIENTS = 64

/** The emulated guest needs a while for 64 handshakes at once. */
const handshakeTimeout = 60_000

/** Lets other users pass to a file. Only in the guest, whose files are a copy that is thrown away. */
function letPass(file: string): void {
  for (let folder = dirname(file); folder !== '/'; folder = dirname(folder)) {
    const { mode } = statSync(folder)
    if ((mode & 1) === 0) chmodSync(folder, mode | 1)
  }
}

/** A peer process of the user nobody, who may pin `limit` KiB. */
function unprivileged(t: ExecutionContext, limit: number): Child {
  for (const file of [__filename, process.execPath]) letPass(file)
  const folder = mkdtempSync(join(tmpdir(), 'user-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  chmodSync(folder, 0o755)
  const node = join(folder, 'node')
  const user = 'setpriv --reuid=nobody --regid=nogroup --clear-groups'
  writeFileSync(node, `#!/bin/sh\nulimit -l ${limit}\nexec ${user} '${process.execPath}' "$@"\n`, { mode: 0o755 })
  return Child.start(t, { node, env: { HOME: folder } })
}

/** Who a process is, and what it may pin. */
async function who(t: ExecutionContext, child: Child, limit: number): Promise<void> {
  const { uid, status, limits } = await child.run(() => {
    const { readFileSync } = process.getBuiltinModule('node:fs')
    const [status, limits] = ['status', 'limits'].map((name) => readFileSync(`/proc/self/${name}`, 'utf8'))
    return { uid: process.getuid?.(), status, limits }
  })
  t.true(uid !== undefined && uid !== 0)
  t.regex(status ?? '', /^CapEff:\s+0+$/m, 'it has no privilege at all')
  t.regex(limits ?? '', new RegExp(`^Max locked memory +${limit * 1024} +${limit * 1024} `, 'm'))
}

async function echo({ kept }: Scope): Promise<void> {
  for await (const connection of kept.server) {
    const serving = async (): Promise<void> => {
      for await (const message of connection) await connection.send(message)
    }
    // It ends when the client is killed, at the end of the test.
    serving().catch(() => undefined)
  }
}

interface Clients {
  options: ConnectOptions
  count: number
}

/** Opens connections at once, and uses each. */
async function open({ rdma, numbered }: Scope, { options, count }: Clients): Promise<number> {
  const connections = await Promise.all(Array.from({ length: count }, () => rdma.connect(options)))
  const echoed = await Promise.all(
    connections.map(async (connection, i) => {
      await connection.send(numbered(i))
      return (await connection.receive())?.equals(numbered(i))
    }),
  )
  return echoed.filter(Boolean).length
}

const kib = (bytes: number): number => Math.round(bytes / 1024)

rxeTest(`${CLIENTS} connections at the defaults, of users who may pin ${USUAL} KiB`, async (t, place) => {
  t.timeout(120_000)
  const [server, client] = [unprivileged(t, USUAL), unprivileged(t, USUAL)]
  for (const child of [server, client]) await who(t, child, USUAL)
  const port = await server.run(tasks.listen, await listenOptions(place, { handshakeTimeout }))
  server.run(echo).catch(() => undefined)

  const options = await connectOptions(place, port, { handshakeTimeout })
  t.is(await client.run(open, { options, count: 1 }), 1)
  const one = memoryOf(client.pid, 'VmPin')
  t.is(await client.run(open, { options, count: CLIENTS - 1 }), CLIENTS - 1)
  for (const [name, { pid }] of Object.entries({ server, client })) {
    const [pinned, locked] = [memoryOf(pid, 'VmPin'), memoryOf(pid, 'VmLck')]
    t.log(`${name}: ${kib(pinned)} KiB pinned, ${kib(locked)} KiB locked for ${CLIENTS} connections`)
    t.true(pinned > 0, 'the control: registered memory is pinned')
    t.true(pinned <= USUAL * 1024)
  }
  const each = (memoryOf(client.pid, 'VmPin') - one) / (CLIENTS - 1)
  t.log(`the first connection pins ${kib(one)} KiB, each other one ${kib(each)} KiB on average`)
})

/** Fails to connect with a sentence that a user can act on. */
async function refused(t: ExecutionContext, place: Place, limit: number): Promise<void> {
  const server = Child.start(t)
  const client = unprivileged(t, limit)
  await who(t, client, limit)
  const port = await server.run(tasks.listen, await listenOptions(place))
  const error = await t.throwsAsync(client.run(tasks.connect, await connectOptions(place, port)), {
    code: 'ERR_RDMA_MEMLOCK',
  })
  t.log(error.message)
  t.regex(error.message, /needs \d+ KiB of locked memory/, 'what was wanted')
  t.true(error.message.includes(`RLIMIT_MEMLOCK is ${limit} KiB`), 'the limit')
  t.regex(error.message, /ulimit -l.*limits\.conf.*LimitMEMLOCK/, 'the remedy')
  t.is(memoryOf(client.pid, 'VmPin'), 0, 'nothing stays pinned')
}

rxeTest('a limit of 64 KiB is named, with the need and the remedy', (t, place) => refused(t, place, 64))

rxeTest("a server's limit of 64 KiB fails its handshakes, and it lives on", async (t, place) => {
  const server = unprivileged(t, 64)
  const port = await server.run(tasks.listen, await listenOptions(place))
  const client = Child.start(t)
  const options = await connectOptions(place, port)
  const error = await t.throwsAsync(client.run(tasks.connect, options))
  t.log(error.message)
  await t.throwsAsync(client.run(tasks.connect, options))
  t.like(await server.run(({ kept }) => kept.server.stats()), { failed: 2, established: 0, pending: 0 })
})

softTest('on soft no memory is locked or pinned, so that no limit matters', async (t, place) => {
  const through = ['sh', '-c', 'ulimit -l 0 && exec "$0" "$@"']
  const { server, client } = await connected(t, { ...place, enter: { server: through, client: through } })
  const echoing = server.run(async ({ kept: { connection } }) => {
    for await (const message of connection) await connection.send(message)
  })
  await client.run(async ({ kept: { connection } }) => {
    await connection.send(Buffer.alloc(1 << 20, 7))
    const message = await connection.receive()
    if (!message?.equals(Buffer.alloc(1 << 20, 7))) throw new Error('it came back otherwise')
  })
  for (const child of [server, client]) {
    const limits = await child.run(() => process.getBuiltinModule('node:fs').readFileSync('/proc/self/limits', 'utf8'))
    t.regex(limits, /^Max locked memory +0 +0 /m)
    for (const field of ['VmLck', 'VmPin']) t.is(memoryOf(child.pid, field), 0, field)
  }
  t.is(await client.run(tasks.close), 'closed')
  await echoing
})
