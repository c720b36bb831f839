// Clients that stop, or die, at each step of the handshake; and peers that are killed there. The other side frees all.

import { connect as connectTcp, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'
import type { ExecutionContext } from 'ava'
import { connect, type ConnectOptions, type RdmaError } from 'secure-rdma'
import { assertAsBefore, census } from './_census.js'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { cutTest, deviceTest, processTest, type Place } from './_device.js'
import { connecting, listening, serve, since, warmUp, type Served } from './_peers.js'
import { tasks } from './_processes.js'
import { cut } from './_wire.js'

type Where = Served['toServer']

/** What node:tls takes to be let in. */
function tlsOptions({ ca, cert, key }: Where): ConnectionOptions {
  return { ca, cert, key, ALPNProtocols: ['secure-rdma/1'], minVersion: 'TLSv1.3' } as ConnectionOptions
}

async function tcp({ host, port, localAddress }: Where): Promise<Socket> {
  const socket = connectTcp({ host, port, localAddress })
  socket.on('error', () => undefined)
  await new Promise((resolve) => socket.once('connect', resolve))
  return socket
}

/** The first bytes that a good client sends. */
function clientHello(where: Where): Promise<Buffer> {
  return new Promise((resolve) => {
    const socket = new Duplex({ read: () => undefined, write: resolve })
    connectTls({ socket, host: where.host, ...tlsOptions(where) }).on('error', () => undefined)
  })
}

/** Comes as far as TLS does; `then` is called with the TLS connection. */
async function overTls(where: Where, event: 'secureConnect' | 'data', write?: Buffer): Promise<Socket> {
  const socket = await tcp(where)
  const secure = connectTls({ socket, host: where.host, ...tlsOptions(where) })
  secure.on('error', () => undefined)
  await new Promise((resolve) => secure.once(event, resolve))
  if (write) secure.write(write)
  return socket
}

/** Each comes so far, and no further. What is written after TLS is no offer, or not all of one. */
const steps: Record<string, (where: Where) => Promise<Socket>> = {
  'TCP, and nothing': tcp,
  async 'half a ClientHello'(where) {
    const socket = await tcp(where)
    socket.write((await clientHello(where)).subarray(0, 100))
    return socket
  },
  async 'a ClientHello'(where) {
    const socket = await tcp(where)
    socket.write(await clientHello(where))
    await new Promise((resolve) => socket.once('data', resolve))
    return socket
  },
  'TLS, and nothing': (where) => overTls(where, 'secureConnect'),
  'the offer of the server, and nothing': (where) => overTls(where, 'data'),
  'half a frame': (where) => overTls(where, 'data', Buffer.from([0, 0, 1, 0, 0x82, 1])),
}

deviceTest('clients that stall at any step are given up, and hold nobody up meanwhile', async (t, place) => {
  const served = await serve(t, place, { handshakeTimeout: 8000 })
  await warmUp(served)
  const before = await census()
  const began = performance.now()
  const sockets = await Promise.all(Object.values(steps).map((step) => step(served.toServer)))
  t.is(served.server.stats().pending, sockets.length)
  await warmUp(served)
  t.is(served.server.stats().pending, sockets.length, 'an honest one came and went while they stalled')
  while (served.server.stats().pending > 0) await sleep(50)
  t.log(`${sockets.length} were given up after ${since(began)}`)
  t.true(performance.now() - began < 8000 + 2000)
  for (const socket of sockets) socket.destroy()
  t.is(served.server.stats().failed, sockets.length)
  await assertAsBefore(t, before)
})

for (const [name, step] of Object.entries(steps)) {
  deviceTest(`a client that dies after ${name} is noticed at once`, async (t, place) => {
    const served = await serve(t, place)
    await warmUp(served)
    const before = await census()
    for (const [at, end] of (['destroy', 'resetAndDestroy'] as const).entries()) {
      const socket = await step(served.toServer)
      const began = performance.now()
      socket[end]()
      while (served.server.stats().failed === at || served.server.stats().pending > 0) await sleep(5)
      t.true(performance.now() - began < 2000, `${end}: ${since(began)}`)
    }
    t.is(served.server.stats().failed, 2)
    await assertAsBefore(t, before)
    await warmUp(served)
  })
}

/** In the child: connects, and dies when TLS is done. */
async function dieAfterTls({ rdma }: Scope, options: ConnectOptions): Promise<void> {
  const authorize = (): boolean => process.kill(process.pid, 'SIGKILL')
  await rdma.connect({ ...options, authorize })
}

/** In the child: begins to connect. */
function beginToConnect({ rdma }: Scope, options: ConnectOptions): void {
  rdma.connect(options).catch(() => undefined)
}

/** What the server is left with is nothing, soon, and it serves the next. */
async function assertServes(t: ExecutionContext, served: Served, since: number): Promise<void> {
  while (served.server.stats().pending > 0) await sleep(10)
  const took = performance.now() - since
  t.log(`the server noticed after ${Math.round(took)} ms`)
  t.true(took < 5000)
  await warmUp(served)
}

processTest('a client that is killed on its way leaves nothing in the server', async (t, place) => {
  let asked = (): void => undefined
  const authorize = async (): Promise<boolean> => {
    asked()
    await sleep(delay)
    return true
  }
  let delay = 0
  const served = await serve(t, place)
  const patient = await serve(t, place, { authorize })
  await warmUp(served)
  await warmUp(patient)
  const before = await census()

  const afterTls = Child.start(t)
  await t.throwsAsync(afterTls.run(dieAfterTls, served.toServer))
  await assertServes(t, served, performance.now())

  // The client has sent its offer, the server has not read it.
  delay = 500
  const offered = Child.start(t)
  const question = new Promise<void>((resolve) => (asked = resolve))
  const { authorize: _, ...toPatient } = patient.toServer
  await offered.run(beginToConnect, toPatient)
  await question
  offered.kill()
  await offered.exited
  await assertServes(t, patient, performance.now())

  // And anywhere.
  for (let round = 0; round < 4; round++) {
    const child = Child.start(t)
    await child.run(beginToConnect, served.toServer)
    await sleep(round * 150)
    child.kill()
    await child.exited
    await assertServes(t, served, performance.now())
  }
  await assertAsBefore(t, before)
})

cutTest('a client that is killed before the path is proven leaves nothing in the server', async (t, place) => {
  const served = await serve(t, place)
  await warmUp(served)
  const before = await census()
  // Both are in RTS.
  const dropping = cut(t)
  const proving = Child.start(t)
  await proving.run(beginToConnect, served.toServer)
  while (dropping.packets() === 0) await sleep(50)
  proving.kill()
  dropping.stop()
  await assertServes(t, served, performance.now())
  await assertAsBefore(t, before)
})

/** Starts a server in a process of its own. */
async function start(t: ExecutionContext, place: Place): Promise<{ child: Child; toServer: ConnectOptions }> {
  const child = Child.start(t)
  const port = await child.run(tasks.listen, await listening(place))
  return { child, toServer: await connecting(place, port) }
}

async function failsSoon(
  t: ExecutionContext,
  attempt: Promise<unknown>,
  killed: Promise<unknown>,
  step: string,
): Promise<void> {
  attempt.catch(() => undefined)
  await killed
  const began = performance.now()
  const error = await t.throwsAsync<RdmaError>(attempt, { name: 'RdmaError' })
  t.log(`${step}: ${error.code} (${error.phase}) ${since(began)} after the kill: ${error.message}`)
  t.true(performance.now() - began < 1000)
}

processTest('a server that is killed on its way fails connect at once', async (t, place) => {
  await warmUp(await serve(t, place))
  const options = await listening(place)
  const before = await census()

  const silent = await start(t, place)
  silent.child.stop()
  const attempt = connect(silent.toServer)
  await sleep(1000)
  silent.child.kill()
  await failsSoon(t, attempt, silent.child.exited, 'TLS')

  const judging = Child.start(t)
  const port = await judging.run(async ({ rdma, kept }: Scope, options) => {
    const authorize = (): boolean => process.kill(process.pid, 'SIGKILL')
    kept.server = await rdma.listen({ ...options, authorize })
    return kept.server.address()?.port ?? 0
  }, options)
  await failsSoon(t, connect(await connecting(place, port)), judging.exited, 'authorize')
  await assertAsBefore(t, before)
})

cutTest('a server that is killed before the path is proven fails connect at once', async (t, place) => {
  await warmUp(await serve(t, place))
  const before = await census()
  const proving = await start(t, place)
  const dropping = cut(t)
  const unproven = connect(proving.toServer)
  while (dropping.packets() === 0) await sleep(50)
  proving.child.kill()
  await failsSoon(t, unproven, proving.child.exited, 'path')
  dropping.stop()
  await assertAsBefore(t, before)
})
