// A server on the tests' device, the options that reach it, and pairs of connected ends.

import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { connect, listen, type CommonOptions, type Connection, type ConnectOptions, type Server } from 'secure-rdma'
import { fixture } from './_certificates.js'
import type { Place } from './_device.js'

/** A server, and what it takes to connect to it. */
export interface Served {
  server: Server
  toServer: ConnectOptions & { host: string; localAddress: string }
}

/** Two ends of one connection. */
export interface Pair extends Served {
  client: Connection
  accepted: Connection
}

/** What a server in another process takes. */
export async function listening(place: Place): Promise<CommonOptions & { host: string }> {
  return { host: place.server, ...(await fixture()).server, ...place.options?.server }
}

/** What a client in another process takes. */
export async function connecting(
  place: Place,
  port: number,
): Promise<ConnectOptions & { host: string; localAddress: string }> {
  return { host: place.server, port, localAddress: place.client, ...(await fixture()).client, ...place.options?.client }
}

/** A server in this process, until the test is over. */
export async function serve(t: ExecutionContext, place: Place, options: CommonOptions = {}): Promise<Served> {
  const server = await listen({ ...(await listening(place)), ...options })
  t.teardown(() => server.close())
  const port = server.address()?.port ?? 0
  return { server, toServer: { ...(await connecting(place, port)), ...options } }
}

/** Connects to a server of this process. */
export async function join(t: ExecutionContext, { server, toServer }: Served): Promise<Pair> {
  const [client, accepted] = await Promise.all([connect(toServer), server.accept()])
  t.teardown(() => {
    client.destroy()
    accepted.destroy()
  })
  return { server, toServer, client, accepted }
}

/** Connects once and closes again: the devices are open then, and the runtime runs. What a census compares with. */
export async function warmUp(served: Served): Promise<void> {
  const [client, accepted] = await Promise.all([connect(served.toServer), served.server.accept()])
  await client.close()
  await accepted.closed
}

/** Waits for what comes by itself; gives up loudly. */
export async function until(what: string, condition: () => boolean, within = 10_000): Promise<void> {
  const began = performance.now()
  while (!condition()) {
    await sleep(5)
    if (performance.now() - began > within) throw new Error(`not within ${within} ms: ${what}`)
  }
}

/** A stretch of time, for logs. */
export function since(began: number): string {
  return `${((performance.now() - began) / 1000).toFixed(2)} s`
}
