// Two processes with a connection between them: a server's at one end of the wire, a client's at the other.

import type { ExecutionContext } from 'ava'
import type { CommonOptions, ConnectionDevice, ConnectOptions, Handshake, ListenOptions } from 'secure-rdma'
import { Child, type ChildOptions } from './_child.js'
import type { Scope } from './_child-main.js'
import { fixture } from './_certificates.js'

/** Two IP addresses at the ends of the wire. */
export interface Addresses {
  readonly server: string
  readonly client: string
  /** The command that a process at this end is started with, where it needs one. */
  readonly enter?: { readonly server?: readonly string[]; readonly client?: readonly string[] }
  /** What else a server and a client need there. */
  readonly options?: { readonly server?: CommonOptions; readonly client?: CommonOptions }
}

/** What both ends of a connection say of it. */
export interface Told {
  device: ConnectionDevice
  handshake: Handshake
  /** The starting PSNs, with `exposeSecrets`. */
  secrets: Handshake['secrets']
}

/** Two processes. In each, `kept.connection` is its end of the connection; in the server's, `kept.server` listens. */
export interface Processes {
  server: Child
  client: Child
  /** The server's TCP port. */
  port: number
  told: { server: Told; client: Told }
}

/** What differs from the defaults. */
export interface Wanted {
  options?: CommonOptions
  serverOptions?: CommonOptions
  clientOptions?: CommonOptions
  /** How both processes are started. */
  child?: ChildOptions
  /** Gives the TCP port that the client connects to, where that is not the server's own. */
  through?: (port: number) => Promise<number>
}

// Tasks for Child.run. They travel as source text, so they are functions and not methods.

async function listen({ rdma, kept }: Scope, options: ListenOptions): Promise<number> {
  kept.server = await rdma.listen(options)
  return kept.server.address()?.port ?? 0
}

async function accept({ kept }: Scope): Promise<void> {
  kept.connection = await kept.server.accept()
}

async function connect({ rdma, kept }: Scope, options: ConnectOptions): Promise<void> {
  kept.connection = await rdma.connect(options)
}

function tell({ kept: { connection } }: Scope): Told {
  const { device, handshake } = connection
  return { device, handshake, secrets: handshake.secrets }
}

async function close({ kept }: Scope): Promise<string> {
  await kept.connection.close()
  return (await kept.connection.closed).reason
}

export const tasks = { listen, accept, connect, tell, close } as const

/** The options of a server at its end of the wire, with a good certificate. */
export async function listenOptions(place: Addresses, options?: CommonOptions): Promise<ListenOptions> {
  return { host: place.server, ...(await fixture()).server, ...place.options?.server, ...options }
}

/** The options of a client at the other end. */
export async function connectOptions(place: Addresses, port: number, options?: CommonOptions): Promise<ConnectOptions> {
  const here = { host: place.server, port, localAddress: place.client }
  return { ...here, ...(await fixture()).client, ...place.options?.client, ...options }
}

/** Starts two processes and connects them. */
export async function connected(t: ExecutionContext, place: Addresses, wanted: Wanted = {}): Promise<Processes> {
  const { options, serverOptions, clientOptions, child, through } = wanted
  const [server, client] = [place.enter?.server, place.enter?.client].map((through) =>
    Child.start(t, { ...child, through }),
  ) as [Child, Child]
  const port = await server.run(tasks.listen, await listenOptions(place, { ...options, ...serverOptions }))
  const toServer = await connectOptions(place, through ? await through(port) : port, { ...options, ...clientOptions })
  await Promise.all([server.run(tasks.accept), client.run(tasks.connect, toServer)])
  const [serverTold, clientTold] = await Promise.all([server.run(tasks.tell), client.run(tasks.tell)])
  return { server, client, port, told: { server: serverTold, client: clientTold } }
}

/** Closes from the client's side; both ends must call it an orderly close. */
export async function closed(t: ExecutionContext, { server, client }: Processes): Promise<void> {
  const ended = server.run(async ({ kept }) => (await kept.connection.closed).reason)
  t.is(await client.run(tasks.close), 'closed')
  t.is(await ended, 'peerClosed')
}
