// @ts-check
// The client of one measurement: node client.mjs TRANSPORT TASK FOLDER PORT SECONDS. It tells its parent when it begins,
// when it ends, and what it has found.

import { connect as connectRdma } from 'secure-rdma'
import { BULK, BULK_IN_FLIGHT, PLACES, SMALL, SMALL_IN_FLIGHT } from './loads.mjs'
import { connect, identity, resident } from './streams.mjs'

const CONNECTING = 4

const [transport = '', task = '', folder = '', portText, secondsText] = process.argv.slice(2)
const port = Number(portText)
const seconds = Number(secondsText)
const own = identity(folder, 'client')

const { server: host = '', client: localAddress, device } = PLACES[transport] ?? {}

const openRdma = () => connectRdma({ host, port, localAddress, device, ...own })
const openStream = () => connect(transport === 'tls' ? 'tls' : 'net', folder, port)

/** Warms up, then measures. @param {(until: number) => Promise<Found>} work */
async function measure(work) {
  await work(performance.now() + seconds * 300)
  await tell({ begins: true })
  const found = await work(performance.now() + seconds * 1000)
  await tell({ ends: true, ...found })
}

/** Tells the parent. @param {object} news */
function tell(news) {
  return new Promise((resolve) => process.send?.(news, resolve))
}

/**
 * `count` things in `time` milliseconds, or the milliseconds that one took: in the middle, and the longest of 99 %.
 * @typedef {{ count?: number, time?: number, median?: number, p99?: number }} Found
 */

/** Keeps `most` of `one` in flight. @param {number} most @param {() => Promise<unknown>} one */
function flood(most, one) {
  return async (/** @type {number} */ until) => {
    const begun = performance.now()
    let count = 0
    const lane = async () => {
      while (performance.now() < until) {
        await one()
        count += 1
      }
    }
    await Promise.all(Array.from({ length: most }, lane))
    return { count, time: performance.now() - begun }
  }
}

/** One at a time, each timed. @param {() => Promise<unknown>} one */
function pings(one) {
  return async (/** @type {number} */ until) => {
    /** @type {number[]} */
    const times = []
    for (let now = performance.now(); now < until;) {
      await one()
      const after = performance.now()
      times.push(after - now)
      now = after
    }
    times.sort((one, other) => one - other)
    return { median: times[times.length >> 1] ?? NaN, p99: times[Math.floor(times.length * 0.99)] ?? NaN }
  }
}

/** Connections that do nothing: the first ones pay for what all share. */
const FIRST = 50
const IDLE = 200

/** @type {Record<string, () => Promise<void>>} */
const RDMA = {
  async idle() {
    /** @type {import('secure-rdma').Connection[]} */
    const all = []
    const open = async (/** @type {number} */ count) => {
      while (all.length < count) {
        const connection = await openRdma()
        await connection.send(new Uint8Array(SMALL))
        all.push(connection)
      }
      await new Promise((resolve) => setTimeout(resolve, 1000))
    }
    await open(FIRST)
    const before = resident()
    await tell({ begins: true })
    await open(FIRST + IDLE)
    await tell({ ends: true, count: (resident() - before) / IDLE, time: IDLE })
    for (const connection of all) connection.destroy()
  },
  async write() {
    const { allocate } = await import('secure-rdma')
    const connection = await openRdma()
    await tell({ device: connection.device.name, pathMtu: connection.handshake.pathMtu })
    const region = await allocate(BULK)
    const target = await connection.remote('target')
    await measure(flood(BULK_IN_FLIGHT, () => connection.write(region, target)))
    connection.destroy()
  },
  async bulk() {
    const connection = await openRdma()
    const bytes = new Uint8Array(BULK)
    await measure(flood(BULK_IN_FLIGHT, () => connection.send(bytes)))
    connection.destroy()
  },
  async ping() {
    const connection = await openRdma()
    const bytes = new Uint8Array(SMALL)
    await measure(
      pings(async () => {
        connection.send(bytes).catch(() => {})
        await connection.receive()
      }),
    )
    connection.destroy()
  },
  async messages() {
    const connection = await openRdma()
    const bytes = new Uint8Array(SMALL)
    await measure(flood(SMALL_IN_FLIGHT, () => connection.send(bytes)))
    connection.destroy()
  },
  async batch() {
    const connection = await openRdma()
    const messages = Array.from({ length: SMALL_IN_FLIGHT / 2 }, () => new Uint8Array(SMALL))
    // One crosses while the other is on its way.
    await measure(flood(2, () => connection.sendBatch(messages)))
    connection.destroy()
  },
  async connects() {
    await measure(
      flood(CONNECTING, async () => {
        const connection = await openRdma()
        connection.destroy()
      }),
    )
  },
}

/** @type {Record<string, () => Promise<void>>} */
const STREAM = {
  async bulk() {
    const socket = await openStream()
    const bytes = new Uint8Array(BULK)
    await measure(flood(BULK_IN_FLIGHT, () => written(socket, bytes)))
    socket.destroy()
  },
  async ping() {
    const socket = await openStream()
    const bytes = new Uint8Array(SMALL)
    let missing = 0
    let came = () => {}
    socket.on('data', (chunk) => {
      missing -= chunk.length
      if (missing === 0) came()
    })
    await measure(
      pings(
        () =>
          new Promise((resolve) => {
            came = /** @type {() => void} */ (resolve)
            missing = SMALL
            socket.write(bytes)
          }),
      ),
    )
    socket.destroy()
  },
  async messages() {
    const socket = await openStream()
    const bytes = new Uint8Array(SMALL)
    /** @type {(() => void)[]} */
    let waiting = []
    socket.on('data', ({ length }) => {
      const answered = waiting.slice(0, length)
      waiting = waiting.slice(length)
      for (const resolve of answered) resolve()
    })
    const send = () =>
      new Promise((resolve) => {
        waiting.push(/** @type {() => void} */ (resolve))
        socket.write(bytes)
      })
    await measure(flood(SMALL_IN_FLIGHT, send))
    socket.destroy()
  },
  async connects() {
    let group = 'none'
    await measure(
      flood(CONNECTING, async () => {
        const socket = await openStream()
        socket.destroy()
      }),
    )
    const socket = /** @type {import('node:tls').TLSSocket} */ (await openStream())
    if (transport === 'tls') {
      const key = /** @type {{ name?: string, type?: string }} */ (socket.getEphemeralKeyInfo() ?? {})
      group = key.name ?? key.type ?? 'unknown'
    }
    await tell({ group })
    socket.destroy()
  },
}

/** @param {import('node:net').Socket} socket @param {Uint8Array} bytes */
function written(socket, bytes) {
  return new Promise((resolve, reject) => {
    socket.write(bytes, (error) => (error ? reject(error) : resolve(undefined)))
  })
}

await (transport in PLACES ? RDMA : STREAM)[task]?.()
process.disconnect?.()
