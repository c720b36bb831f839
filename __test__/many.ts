// 64 clients of one server at once, in processes of their own. Each sends and receives what only it knows.

import { processTest } from './_device.js'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { receiverNotReady } from './_guest.js'
import { connectOptions, listenOptions, tasks } from './_processes.js'
import type { ConnectOptions } from 'secure-rdma'
import type * as Traffic from './_traffic.js'

const PROCESSES = 4
const CLIENTS = 64
const MESSAGES = 50

/** The emulated guest needs about this long for 64 handshakes at once, of which each waits for all. */
const TIMEOUT = 60_000

const traffic = require.resolve('./_traffic.js')

interface Plan {
  traffic: string
  count: number
  messages: number
}

/** Accepts `count` connections and serves them at once. The first message tells a client's name. */
async function serve({ kept }: Scope, { traffic, count, messages }: Plan): Promise<string[]> {
  const require = process.getBuiltinModule('node:module').createRequire(traffic)
  const { sendAll, receiveAll } = require(traffic) as typeof Traffic
  const serving: Promise<string>[] = []
  for await (const connection of kept.server) {
    const one = (async () => {
      const name = String(await connection.receive())
      await Promise.all([receiveAll(connection, `${name} up`, messages), sendAll(connection, `${name} down`, messages)])
      const { reason } = await connection.closed
      if (reason !== 'peerClosed') throw new Error(`${name} ended with ${reason}`)
      return name
    })()
    // Told below, also where it fails before all have come.
    one.catch(() => undefined)
    serving.push(one)
    if (serving.length === count) break
  }
  return Promise.all(serving)
}

interface Clients extends Plan {
  process: number
  options: ConnectOptions
}

/** Opens `count` connections at once, and uses them when all are up. How long that took, in milliseconds. */
async function use({ rdma }: Scope, { traffic, process: own, count, messages, options }: Clients): Promise<number> {
  const require = process.getBuiltinModule('node:module').createRequire(traffic)
  const { sendAll, receiveAll } = require(traffic) as typeof Traffic
  const began = performance.now()
  const connections = await Promise.all(Array.from({ length: count }, () => rdma.connect(options)))
  const up = performance.now() - began
  await Promise.all(
    connections.map(async (connection, i) => {
      const name = `client ${own}.${i}`
      await connection.send(Buffer.from(name))
      await Promise.all([receiveAll(connection, `${name} down`, messages), sendAll(connection, `${name} up`, messages)])
      await connection.close()
    }),
  )
  return up
}

processTest(`${CLIENTS} clients at the same time`, async (t, place) => {
  t.timeout(180_000)
  const refusals = receiverNotReady()
  const server = Child.start(t)
  const processes = Array.from({ length: PROCESSES }, () => Child.start(t))
  const options = { handshakeTimeout: TIMEOUT }
  const port = await server.run(tasks.listen, await listenOptions(place, options))
  const plan = { traffic, messages: MESSAGES }
  const toServer = await connectOptions(place, port, options)
  const began = performance.now()
  const using = processes.map((child, i) =>
    child.run(use, { ...plan, count: CLIENTS / PROCESSES, process: i, options: toServer }),
  )
  const [names, ...up] = await Promise.all([server.run(serve, { ...plan, count: CLIENTS }), ...using])
  t.is(new Set(names).size, CLIENTS)
  t.log(
    `all ${CLIENTS} were up after ${(Math.max(...up) / 1000).toFixed(2)} s, and done after ${((performance.now() - began) / 1000).toFixed(2)} s`,
  )
  const stats = await server.run(({ kept }) => kept.server.stats())
  t.like(stats, { established: CLIENTS, failed: 0, evicted: 0, pending: 0 })
  t.is(receiverNotReady(), refusals, 'nobody was sent to when it was not ready')
})
