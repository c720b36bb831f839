// What teardown.ts runs in processes of their own: workers that are terminated, and a process that exits, with RDMA in
// flight. A script of its own, since it runs on several versions of Node.
//
// node _teardown.js JSON, with a Plan. Exit status 7 when all went as planned.

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { connect, type ConnectOptions } from 'secure-rdma'

/** How the process comes to its end: `process.exit` here. */
export const PLANNED = 7

/** What the process does. Each round ends so many milliseconds after its connection is up, or after it has begun. */
export interface Plan {
  options: ConnectOptions
  rounds: { after: number; from: 'begin' | 'up' }[]
}

/** Connects and sends both what fits into one segment and what does not, as fast as it goes, and reads. */
async function flood(options: ConnectOptions, up: () => void): Promise<void> {
  const connection = await connect(options)
  up()
  const reading = (async () => {
    for await (const message of connection) if (message.length === 0) throw new Error('an empty message')
  })()
  reading.catch(() => undefined)
  for (let i = 0; ; i++) {
    const size = i % 2 === 0 ? 100 : 20_000
    await Promise.all(Array.from({ length: 8 }, () => connection.send(Buffer.alloc(size, i))))
  }
}

/** A worker that is terminated. Without connection (the server may be gone) there is nothing to end. */
async function terminated(plan: Plan, { after, from }: Plan['rounds'][number]): Promise<void> {
  const worker = new Worker(__filename, { workerData: plan })
  worker.on('error', (error) => {
    console.error(error)
    process.exit(1)
  })
  await once(worker, from === 'up' ? 'message' : 'online')
  await sleep(after)
  await worker.terminate()
}

async function main(plan: Plan): Promise<void> {
  const last = plan.rounds.pop()
  for (const round of plan.rounds) await terminated(plan, round)
  const end = (): void => {
    setTimeout(() => process.exit(PLANNED), last?.after)
  }
  if (last?.from === 'begin') end()
  await flood(plan.options, last?.from === 'up' ? end : () => undefined)
}

const failed = (error: unknown): never => {
  console.error(error)
  process.exit(1)
}

if (!isMainThread) flood((workerData as Plan).options, () => parentPort?.postMessage('up')).catch(failed)
else if (require.main === module) main(JSON.parse(process.argv[2] ?? '') as Plan).catch(failed)
