// Transfers between two processes that check themselves: messages of all sizes both ways at once, and a file.

import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { Scope } from './_child-main.js'
import type { Processes } from './_processes.js'
import type * as Traffic from './_traffic.js'

/** The module with the traffic, for the children. */
const traffic = require.resolve('./_traffic.js')

interface Exchange {
  traffic: string
  own: string
  peer: string
  count: number
}

/** Sends and receives at once. */
async function exchange({ kept }: Scope, { traffic, own, peer, count }: Exchange): Promise<Traffic.Transferred> {
  const require = process.getBuiltinModule('node:module').createRequire(traffic)
  const { sendAll, receiveAll } = require(traffic) as typeof Traffic
  const { connection } = kept
  const [received] = await Promise.all([receiveAll(connection, peer, count), sendAll(connection, own, count)])
  return received
}

async function sendsFile({ kept }: Scope, { traffic, file }: { traffic: string; file: string }): Promise<string> {
  const require = process.getBuiltinModule('node:module').createRequire(traffic)
  const { sendFile } = require(traffic) as typeof Traffic
  return sendFile(kept.connection, file)
}

async function receivesFile({ kept }: Scope, traffic: string): Promise<{ bytes: number; sha256: string }> {
  const require = process.getBuiltinModule('node:module').createRequire(traffic)
  const { receiveFile } = require(traffic) as typeof Traffic
  return receiveFile(kept.connection)
}

function rate(bytes: number, milliseconds: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB in ${(milliseconds / 1000).toFixed(2)} s`
}

/** Sends `count` messages of 0 B to 64 KiB each way at once; every byte is compared. */
export async function messagesBothWays(
  t: ExecutionContext,
  { server, client }: Processes,
  count: number,
): Promise<Traffic.Transferred[]> {
  const seed = process.env['SECURE_RDMA_SEED'] ?? randomBytes(6).toString('hex')
  t.log(`SECURE_RDMA_SEED=${seed}`)
  const [down, up] = [`${seed} server`, `${seed} client`]
  const received = await Promise.all([
    server.run(exchange, { traffic, own: down, peer: up, count }),
    client.run(exchange, { traffic, own: up, peer: down, count }),
  ])
  for (const [i, { bytes, shortest, longest, milliseconds }] of received.entries()) {
    t.log(
      `${['server', 'client'][i]} received ${count} messages, ${shortest} to ${longest} B, ${rate(bytes, milliseconds)}`,
    )
  }
  const stats = await Promise.all([server, client].map((end) => end.run(({ kept }) => kept.connection.stats())))
  for (const [i, { messagesSent, messagesReceived, bytesSent, bytesReceived, waitsForCredit }] of stats.entries()) {
    t.deepEqual([messagesSent, messagesReceived, bytesReceived], [count, count, received[i]?.bytes ?? 0])
    t.is(bytesSent, received[1 - i]?.bytes ?? 0)
    t.log(`${['server', 'client'][i]} waited ${waitsForCredit} times for credit`)
  }
  return received
}

/** Sends a file of so many random bytes from the server to the client, which compares the SHA-256. */
export async function fileFromServer(t: ExecutionContext, { server, client }: Processes, size: number): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'transfer-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  const file = join(folder, 'file')
  writeFileSync(file, randomBytes(size))
  const began = performance.now()
  const [sent, received] = await Promise.all([
    server.run(sendsFile, { traffic, file }),
    client.run(receivesFile, traffic),
  ])
  t.log(`file: ${rate(received.bytes, performance.now() - began)}, sha256 ${received.sha256}`)
  t.deepEqual(received, { bytes: size, sha256: sent })
}
