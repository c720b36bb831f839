// Faults of the peer's process: killed, stopped, or cut off from TCP. What survives is told in time, and holds nothing.

import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecutionContext } from 'ava'
import type { Connection, RdmaError } from 'secure-rdma'
import { assertAsBefore, census, type Census } from './_census.js'
import { Child } from './_child.js'
import type { Scope } from './_child-main.js'
import { ownsWire, processTest, type Place } from './_device.js'
import { drop } from './_guest.js'
import { receiveNumbered, sendNumbered } from './_numbered.js'
import { serve, since, warmUp, type Served } from './_peers.js'
import { tasks } from './_processes.js'
import { relay } from './_wire.js'

/** A server here and a client in a process of its own. */
interface Meeting extends Served {
  before: Census
  child: Child
  accepted: Connection
}

/** `through` gives the port that the client connects to, where that is not the server's own. */
async function meet(
  t: ExecutionContext,
  place: Place,
  through = (port: number): Promise<number> => Promise.resolve(port),
): Promise<Meeting> {
  const served = await serve(t, place)
  await warmUp(served)
  const before = await census()
  const child = Child.start(t)
  const toServer = { ...served.toServer, port: await through(served.toServer.port) }
  const [accepted] = await Promise.all([served.server.accept(), child.run(tasks.connect, toServer)])
  return { ...served, before, child, accepted }
}

/** Everything is given back, and the next client is served. */
async function assertWell(t: ExecutionContext, { before, child, accepted, ...served }: Meeting): Promise<void> {
  child.kill()
  await child.exited
  await assertAsBefore(t, before)
  t.is(served.server.connections, 0)
  await warmUp(served)
  t.is((await accepted.closed).reason, 'error')
}

/** In the child: sends without end. */
function flood({ kept: { connection }, sendNumbered }: Scope): void {
  sendNumbered(connection, new AbortController().signal).catch(() => undefined)
}

/** In the child: how its end of the connection ended. */
async function ending({ kept }: Scope): Promise<string> {
  const { reason, error } = await kept.connection.closed
  return `${reason} ${(error as RdmaError | undefined)?.code ?? ''}`
}

/** In the child: sends and receives for a while. */
async function exchange(
  { kept: { connection }, sendNumbered, receiveNumbered }: Scope,
  milliseconds: number,
): Promise<[number, number]> {
  const sent = sendNumbered(connection, AbortSignal.timeout(milliseconds))
  return Promise.all([sent, receiveNumbered(connection)])
}

/** What had arrived is given out; then `receive()` rejects. */
async function receiveUntilItFails(connection: Connection): Promise<Error> {
  for (;;) {
    const outcome = await connection.receive().catch((error: unknown) => error as Error)
    if (outcome instanceof Error) return outcome
    if (outcome === null) throw new Error('the messages ended as if all were well')
  }
}

/** Does `fault`; whatever is pending on the connection settles within the time, with the code. */
async function endsWithin(
  t: ExecutionContext,
  { accepted }: Meeting,
  { within, code, fault }: { within: number; code: RegExp; fault: () => void },
): Promise<void> {
  const receiving = receiveUntilItFails(accepted)
  // More than the peer takes: some of it is still unacknowledged when the fault comes.
  const sending = Promise.all(Array.from({ length: 64 }, () => accepted.send(Buffer.alloc(100_000))))
  sending.catch(() => undefined)
  await sleep(500)
  const began = performance.now()
  fault()
  const { error } = await accepted.closed
  const [received, sent] = await Promise.allSettled([receiving, sending])
  const took = performance.now() - began
  t.log(`after ${since(began)}: ${(error as RdmaError | undefined)?.code} ${error?.message}`)
  t.true(took < within, `${took} ms`)
  t.regex((error as RdmaError | undefined)?.code ?? '', code)
  t.deepEqual([received.status, sent.status], ['fulfilled', 'rejected'])
}

processTest('kill -9 of an idle peer is noticed within a second', async (t, place) => {
  const meeting = await meet(t, place)
  const { accepted, child } = meeting
  const receiving = accepted.receive()
  receiving.catch(() => undefined)
  // Positive control: an idle connection stays.
  await sleep(2500)
  const began = performance.now()
  child.kill()
  await t.throwsAsync(receiving, { code: 'ERR_RDMA_PEER_LOST' })
  t.log(`after ${since(began)}`)
  t.true(performance.now() - began < 1000)
  await assertWell(t, meeting)
})

processTest('kill -9 of a peer in mid-transfer settles all that is pending within a second', async (t, place) => {
  const meeting = await meet(t, place)
  const { accepted, child } = meeting
  await child.run(flood)
  for (let i = 0; i < 20; i++) await accepted.receive()
  const options = {
    within: 1000,
    code: /^ERR_RDMA_(PEER_LOST|PATH)$/,
    fault: () => {
      child.kill()
    },
  }
  await endsWithin(t, meeting, options)
  await assertWell(t, meeting)
})

processTest('a peer that is stopped for 10 s is lost within 5 s, and knows when it goes on', async (t, place) => {
  const meeting = await meet(t, place)
  const { child } = meeting
  const ended = child.run(ending)
  ended.catch(() => undefined)
  const stopped = performance.now()
  await endsWithin(t, meeting, {
    within: 5000,
    code: /^ERR_RDMA_PEER_LOST$/,
    fault: () => {
      child.stop()
    },
  })
  // Its queue pair is its own until it runs again; ours is gone.
  await sleep(10_000 - (performance.now() - stopped))
  child.cont()
  const began = performance.now()
  t.regex(await ended, /^error ERR_RDMA_(PEER_LOST|PATH)/)
  t.log(`the other side, ${since(began)} after SIGCONT: ${await ended}`)
  t.true(performance.now() - began < 5000)
  await assertWell(t, meeting)
})

processTest('a peer that is stopped for 1 s goes on, and nothing is lost', async (t, place) => {
  const { accepted, child } = await meet(t, place)
  const stop = new AbortController()
  const here = Promise.all([sendNumbered(accepted, stop.signal), receiveNumbered(accepted)])
  const there = child.run(exchange, 5000)
  await sleep(1500)
  child.stop()
  await sleep(1000)
  child.cont()
  await sleep(1000)
  stop.abort()
  const [[sent, received], [sentThere, receivedThere]] = await Promise.all([here, there])
  t.log(`${sent} and ${sentThere} messages`)
  t.deepEqual([received, receivedThere], [sentThere, sent])
  t.true(sent > 50 && sentThere > 50)
  await accepted.close()
})

processTest('a cut of TCP alone ends both sides within 5 s', async (t, place) => {
  let cut = (): void => undefined
  const meeting = await meet(t, place, async (port) => {
    if (ownsWire) {
      cut = () => {
        const dropping = drop(`tcp dport ${port}`, `tcp sport ${port}`)
        t.teardown(() => {
          dropping.stop()
        })
      }
      return port
    }
    const between = await relay(t, place, port)
    cut = () => {
      between.cut()
    }
    return between.port
  })
  const ended = meeting.child.run(ending)
  const began = performance.now()
  const fault = (): void => {
    cut()
  }
  await endsWithin(t, meeting, { within: 5000, code: /^ERR_RDMA_PEER_LOST$/, fault })
  t.regex(await ended, /^error ERR_RDMA_(PEER_LOST|PATH)/)
  t.log(`the other side: ${await ended} after ${since(began)}, half a second of which before the cut`)
  t.true(performance.now() - began < 5500)
})
