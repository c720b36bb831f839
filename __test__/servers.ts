// Servers at their edges: aborts between two steps, ports that are free again, and why a peer was refused.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { createServer } from 'node:net'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { connect, listen, type RdmaError, type Server } from 'secure-rdma'
import { fixture } from './_certificates.js'
import { deviceTest } from './_device.js'
import { join, serve } from './_peers.js'

const localhost = '127.0.0.1'

/** Below those that the system gives out: nobody has it by chance. */
const ownPort = 10_000 + (process.pid % 20_000)

/** Listens with node:net, and stops: fails where the port is not free. */
async function useAndFree(port: number): Promise<void> {
  const other = createServer()
  other.listen({ port, host: localhost, exclusive: true })
  await once(other, 'listening')
  other.close()
  await once(other, 'close')
}

test.serial('the port is free when close() fulfils', async (t) => {
  const { server: options } = await fixture()
  for (let round = 0; round < 200; round++) {
    const server = await listen({ host: localhost, port: ownPort, ...options })
    const closing = server.close()
    t.is(server.address(), null)
    await closing
    await useAndFree(ownPort)
  }
})

test.serial('the second close(), and closed, wait for the same', async (t) => {
  const { server: options } = await fixture()
  const server = await listen({ host: localhost, port: ownPort, ...options })
  const accepting = server.accept()
  void server.close()
  await t.throwsAsync(accepting, { code: 'ERR_RDMA_SERVER_CLOSED' })
  await Promise.all([server.close(), server.closed])
  await t.notThrowsAsync(useAndFree(ownPort))
})

/** A signal that is aborted right after it is no longer listened to for the first time. */
function abortedBetween(): AbortSignal {
  const controller = new AbortController()
  const { signal } = controller
  const remove = signal.removeEventListener.bind(signal)
  signal.removeEventListener = (...args: unknown[]) => {
    ;(remove as (...args: unknown[]) => void)(...args)
    controller.abort()
  }
  return signal
}

test.serial('an abort between two steps of listen is not missed', async (t) => {
  const { server: options } = await fixture()
  const listening = listen({ host: localhost, port: ownPort, ...options, signal: abortedBetween() })
  await t.throwsAsync(listening, { name: 'AbortError' })
  await useAndFree(ownPort)
  // And at any other moment: either it rejects, or the server closes.
  for (let steps = 0; steps < 30; steps++) {
    const controller = new AbortController()
    const listening = listen({ host: localhost, ...options, signal: controller.signal })
    for (let i = 0; i < steps; i++) await (i % 2 === 0 ? Promise.resolve() : new Promise(setImmediate))
    controller.abort()
    const outcome = await listening.catch((error: unknown) => error)
    if (outcome instanceof Error) t.is(outcome.name, 'AbortError')
    else await (outcome as Server).closed
  }
})

deviceTest('what authorize throws is the cause on its own side, and only of its own peer', async (t, place) => {
  const mine = new Error('not on Mondays')
  const { toServer } = await serve(t, place)
  const refused = connect({
    ...toServer,
    authorize: () => {
      throw mine
    },
  })
  t.is((await t.throwsAsync(refused, { code: 'ERR_RDMA_UNAUTHORIZED' })).cause, mine)
  const denied = await t.throwsAsync(connect({ ...toServer, authorize: () => false }), {
    code: 'ERR_RDMA_UNAUTHORIZED',
  })
  t.false('cause' in denied)

  const thrown = new Map<number, Error>()
  const served = await serve(t, place, {
    authorize: async ({ port }) => {
      const error = new Error(`no ${port}`)
      thrown.set(port, error)
      await sleep(port % 7)
      throw error
    },
  })
  const told: { error: RdmaError; peer: { port: number } }[] = []
  const listener = (message: unknown): void => {
    const failure = message as { server: unknown; error: RdmaError; peer: { port: number } }
    if (failure.server === served.server) told.push(failure)
  }
  subscribe('secure-rdma:server:handshake-failed', listener)
  t.teardown(() => unsubscribe('secure-rdma:server:handshake-failed', listener))
  const { authorize: _, ...options } = served.toServer
  await Promise.all(Array.from({ length: 8 }, () => t.throwsAsync(connect(options))))
  for (let i = 0; i < 200 && told.length < 8; i++) await sleep(10)
  t.is(told.length, 8)
  for (const { error, peer } of told) {
    t.is(error.code, 'ERR_RDMA_UNAUTHORIZED')
    t.is(error.cause, thrown.get(peer.port))
  }
})

deviceTest('failures that are counted before the end are told before the end', async (t, place) => {
  for (let round = 0; round < 10; round++) {
    const { server, toServer } = await serve(t, place)
    let told = 0
    let toldLate = 0
    let isOver = false
    const listener = (message: unknown): void => {
      if ((message as { server: unknown }).server !== server) return
      told++
      if (isOver) toldLate++
    }
    subscribe('secure-rdma:server:handshake-failed', listener)
    const clients = Array.from({ length: 5 }, () =>
      connect({ ...toServer, servername: 'elsewhere.test' }).catch(() => undefined),
    )
    await Promise.race(clients)
    await server.close()
    isOver = true
    t.is(told, server.stats().failed)
    await Promise.all(clients)
    t.is(toldLate, 0)
    unsubscribe('secure-rdma:server:handshake-failed', listener)
  }
})

deviceTest('close() of a server leaves its devices to connections that stay', async (t, place) => {
  const { server, client, accepted } = await join(t, await serve(t, place))
  await server.close()
  await client.send(Buffer.from('still'))
  t.is(String(await accepted.receive()), 'still')
})
