// Cuts the way between two ends: RDMA's packets alone, or TCP's alone. In the guest by its packet filter; elsewhere, where
// there is none to be had without root, by what stands in the way: a relay of TCP, or a device that drops what arrives.

import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { ownsWire, type Place } from './_device.js'
import { drop, type Dropping } from './_guest.js'
import { softFaults } from './_soft-faults.js'

/**
 * Drops all of RDMA's packets that are longer than so many bytes, until `stop` or the end of the test. In a test build
 * those that arrive in this process, which is enough: what is not acknowledged has not arrived either.
 */
export function cut(t: ExecutionContext, longerThan = 0): Dropping {
  const dropping = ownsWire
    ? drop(longerThan > 0 ? `udp dport 4791 meta length > ${longerThan}` : 'udp dport 4791')
    : dropInDevice(longerThan)
  t.teardown(() => {
    dropping.stop()
  })
  return dropping
}

function dropInDevice(longerThan: number): Dropping {
  if (!softFaults) throw new Error('only a test build of the addon can be told to drop packets')
  const faults = softFaults
  const before = faults.softDropped()
  faults.softDrop(longerThan)
  return {
    packets: () => faults.softDropped() - before,
    stop: () => {
      faults.softPass()
    },
  }
}

/** A relay between a server and those who connect to it. */
export interface Relay {
  /** Where to connect to, at the server's address. */
  port: number
  /** What both sides of the first connection said, so far. */
  said(): { client: Buffer; server: Buffer }
  /** Lets nothing through any more, in either direction, and ends nothing. */
  cut(): void
}

/** Relays TCP connections. Both ends see the addresses that they would see without it, and another port. */
export async function relay(t: ExecutionContext, place: Place, port: number): Promise<Relay> {
  const sockets: Socket[] = []
  const said: { client: Buffer[]; server: Buffer[] }[] = []
  const pass = (from: Socket, to: Socket, heard: Buffer[]): void => {
    from.on('data', (bytes: Buffer) => {
      heard.push(bytes)
      to.write(bytes)
    })
    from.on('end', () => to.end())
    from.on('error', () => to.destroy())
    sockets.push(from)
  }
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const onward = connect({ host: place.server, port, localAddress: place.client, allowHalfOpen: true })
    const heard = { client: [], server: [] }
    said.push(heard)
    pass(client, onward, heard.client)
    pass(onward, client, heard.server)
  })
  server.listen(0, place.server)
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return {
    port: (server.address() as AddressInfo).port,
    said: () => {
      const [first] = said
      if (!first) throw new Error('nobody has connected')
      return { client: Buffer.concat(first.client), server: Buffer.concat(first.server) }
    },
    cut: () => {
      for (const socket of sockets) socket.pause()
    },
  }
}

/** In the child: listens with a queue for one connection. */
async function listenNarrowly(_scope: Scope, host: string): Promise<number> {
  const { createServer } = process.getBuiltinModule('node:net')
  const server = createServer().listen({ host, port: 0, backlog: 1 })
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('it does not listen')
  return address.port
}

/** A port at which TCP gets no answer at all: somebody listens, stands still, and has a full queue. */
export async function unanswered(t: ExecutionContext, place: Place): Promise<number> {
  const listener = Child.start(t)
  const port = await listener.run(listenNarrowly, place.server)
  listener.stop()
  const sockets: Socket[] = []
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  for (;;) {
    if (sockets.length > 8) throw new Error('the queue does not get full')
    const socket = connect({ host: place.server, port, localAddress: place.client }).on('error', () => undefined)
    sockets.push(socket)
    if ((await Promise.race([once(socket, 'connect'), sleep(500)])) === undefined) return port
  }
}
