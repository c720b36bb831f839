// Ends of workers and processes with RDMA in flight, many times, on every version of Node that is there: no crash, no
// hang, and the other side is told. threads.ts has each kind of end once.
//
// SECURE_RDMA_TEARDOWN_ROUNDS: how many for each version; `npm run soak` does more.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import type { Connection, RdmaError, Server } from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { Child } from './_child.js'
import { deviceTest } from './_device.js'
import { connecting, listening, serve, since, warmUp } from './_peers.js'
import { PLANNED, type Plan } from './_teardown.js'
import { versionTest } from './_versions.js'

const ROUNDS = Number(process.env['SECURE_RDMA_TEARDOWN_ROUNDS'] ?? 10)

/** Rounds in one process: all but the last end a worker, the last ends the process. */
const PER_PROCESS = 5

/** How long a process may take, loading Node and its workers included. */
const HANG = 60_000

const script = require.resolve('./_teardown.js')

/** How accepted connections ended, by reason and code. */
type Ends = Record<string, number>

/** Accepts, and sends and reads on every connection until it ends. */
async function serveAll(server: Server, ends: Ends): Promise<void> {
  const handle = async (connection: Connection): Promise<void> => {
    const flooding = (async () => {
      for (;;) await Promise.all([connection.send(Buffer.alloc(100)), connection.send(Buffer.alloc(20_000))])
    })()
    const reading = (async () => {
      for await (const message of connection) if (message.length === 0) throw new Error('an empty message')
    })()
    await Promise.allSettled([flooding, reading])
    const { reason, error } = await connection.closed
    const end = `${reason} ${(error as RdmaError | undefined)?.code ?? ''}`
    ends[end] = (ends[end] ?? 0) + 1
  }
  for await (const connection of server) void handle(connection)
}

async function runPlan(t: ExecutionContext, node: string, plan: Plan): Promise<number> {
  const began = performance.now()
  const child = spawn(node, [script, JSON.stringify(plan)], { stdio: ['ignore', 'inherit', 'inherit'] })
  const timer = setTimeout(() => {
    child.kill('SIGKILL')
  }, HANG)
  const [code, signal] = (await once(child, 'exit')) as [number | null, string | null]
  clearTimeout(timer)
  t.deepEqual({ code, signal }, { code: PLANNED, signal: null }, `it crashed or hung: ${JSON.stringify(plan.rounds)}`)
  return performance.now() - began
}

versionTest(`${ROUNDS} ends of workers and processes in flight`, async (t, place, node) => {
  t.timeout(ROUNDS * HANG)
  const { server, toServer } = await serve(t, place)
  await warmUp({ server, toServer })
  const before = await census()
  const ends: Ends = {}
  const serving = serveAll(server, ends)
  const options = await connecting(place, toServer.port)
  const began = performance.now()
  let longest = 0
  for (let done = 0; done < ROUNDS; done += PER_PROCESS) {
    const rounds = Array.from({ length: Math.min(PER_PROCESS, ROUNDS - done) }, (_, i) => {
      // Spread over the first moments of a transfer; every fourth ends on its way up.
      const number = done + i
      const from = number % 4 === 3 ? ('begin' as const) : ('up' as const)
      return { from, after: (number * 37) % (from === 'up' ? 120 : 900) }
    })
    longest = Math.max(longest, await runPlan(t, node, { options, rounds }))
  }
  t.log(`${ROUNDS} rounds in ${since(began)}; a process took ${Math.round(longest)} ms at the most`)
  // Every connection that came up, but for the first one, was accepted and told of its end.
  const told = (): number => Object.values(ends).reduce((sum, count) => sum + count, 0)
  const over = (): boolean => server.stats().pending === 0 && told() === server.stats().established - 1
  const idle = performance.now()
  while (!over() && performance.now() - idle < 5000) await sleep(10)
  t.true(over(), `${told()} of ${server.stats().established - 1} were told within 5 s`)
  t.is(server.connections, 0)
  t.log(JSON.stringify(ends), JSON.stringify(server.stats()))
  const known = ['error ERR_RDMA_PEER_LOST', 'error ERR_RDMA_PATH']
  t.deepEqual(
    Object.keys(ends).filter((end) => !known.includes(end)),
    [],
  )
  t.true(told() >= ROUNDS / 2)
  await assertAsBefore(t, before)
  await warmUpOf(server, toServer)
  await server.close()
  await serving
})

/** The server still serves: its iteration takes the connection, and ends it with the client. */
async function warmUpOf(server: Server, toServer: Parameters<typeof warmUp>[0]['toServer']): Promise<void> {
  const { connect } = await import('secure-rdma')
  const client = await connect(toServer)
  await client.receive()
  client.destroy()
  while (server.connections > 0) await sleep(10)
}

deviceTest('a program that has closed everything is gone within a second', async (t, place) => {
  const child = Child.start(t)
  const [server, client] = [await listening(place), await connecting(place, 1)]
  await child.run(
    async ({ rdma }, { server, client }) => {
      const listener = await rdma.listen(server)
      const port = listener.address()?.port ?? 0
      const [one, other] = await Promise.all([rdma.connect({ ...client, port }), listener.accept()])
      await one.send(Buffer.from('x'))
      await other.receive()
      await one.close()
      await other.closed
      await listener.close()
    },
    { server, client },
  )
  const began = performance.now()
  child.release()
  const exit = await child.exited
  t.log(`gone after ${since(began)}`)
  t.deepEqual(exit, { code: 0, signal: null })
  t.true(performance.now() - began < 1000)
})
