// What a peer process runs: see _child.ts.

import { runInThisContext } from 'node:vm'
import * as rdma from 'secure-rdma'
import * as messages from './_numbered.js'

/** What a task finds in the child. Tasks travel as source text, so it is all that they find, beside Node's globals. */
export type Scope = typeof messages & {
  rdma: typeof rdma
  /** What one task leaves for the next. */
  kept: {
    server: rdma.Server
    connection: rdma.Connection
    count: number
    promises: Promise<unknown>[]
  }
}

/** From the parent. */
export type Order = { id: number; source: string; argument: unknown } | 'release'

/** To the parent. */
export interface Answer {
  id: number
  value?: unknown
  error?: { name: string; message: string; code: string; stack: string }
}

const scope: Scope = { rdma, ...messages, kept: { count: 0, promises: [] } as unknown as Scope['kept'] }

function describe(error: unknown): Required<Answer>['error'] {
  const { name, message, code, stack } = error as Error & { code?: unknown }
  return { name, message, code: String(code), stack: String(stack) }
}

async function obey(source: string, argument: unknown): Promise<unknown> {
  const task = runInThisContext(`(${source})`) as (scope: Scope, argument: unknown) => unknown
  return await task(scope, argument)
}

// A child whose parent is gone has nothing to live for.
const orphaned = (): never => process.exit(0)
process.on('disconnect', orphaned)
process.on('message', (order: Order) => {
  if (order === 'release') {
    process.off('disconnect', orphaned)
    process.disconnect()
    return
  }
  const { id, source, argument } = order
  const answer = (answer: Omit<Answer, 'id'>): void => {
    if (process.connected) process.send?.({ id, ...answer })
  }
  obey(source, argument).then(
    (value) => {
      answer({ value })
    },
    (error: unknown) => {
      answer({ error: describe(error) })
    },
  )
})
