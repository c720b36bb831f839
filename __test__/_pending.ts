// Notes every promise that secure-rdma gives to the tests of a file, and fails the file when one is pending at its end:
// whatever a peer or a test does, every promise settles. ava loads this before each file (`require` in package.json).
//
// SECURE_RDMA_TRACE_PENDING=1 also tells where each was asked for.

import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect, types } from 'node:util'
import test from 'ava'
import { Batch, Connection, Server } from 'secure-rdma'

/** What teardown has begun may take a moment: nothing that is sound takes longer. */
const GRACE = 5000

interface Noted {
  readonly promise: Promise<unknown>
  readonly what: string
  readonly where: string | undefined
}

let noted: Noted[] = []
let next = 1024

/** Seen without a handler: with one, a rejection that nobody handles would count as handled. */
function isPending({ promise }: Noted): boolean {
  try {
    return inspect(promise, { depth: 0, maxStringLength: 0, breakLength: Infinity }).startsWith('Promise { <pending>')
  } catch {
    // It holds what cannot be shown, and so has settled.
    return false
  }
}

function note<T>(what: string, promise: T): T {
  if (!types.isPromise(promise)) return promise
  const where = process.env['SECURE_RDMA_TRACE_PENDING'] ? new Error().stack : undefined
  noted.push({ promise, what, where })
  if (noted.length >= next) {
    noted = noted.filter(isPending)
    next = Math.max(1024, 2 * noted.length)
  }
  return promise
}

/** The promises that are pending now, by what gave them. */
export function pendingPromises(): string[] {
  noted = noted.filter(isPending)
  return noted.map(({ what, where }) => (where === undefined ? what : `${what} ${where}`))
}

type Method = (this: unknown, ...values: unknown[]) => unknown

/** Has what methods of a class give noted. */
function watch(owner: { name: string; prototype: object }): void {
  const methods = owner.prototype as Record<PropertyKey, Method>
  for (const key of Reflect.ownKeys(owner.prototype)) {
    const method: unknown = Object.getOwnPropertyDescriptor(owner.prototype, key)?.value
    if (typeof method !== 'function' || key === 'constructor') continue
    const what = `${owner.name}.${String(key)}`
    methods[key] = function (...values) {
      const given = note(what, Reflect.apply(method as Method, this, values))
      return key === Symbol.asyncIterator ? watched(what, given as AsyncGenerator) : given
    }
  }
}

function watched(what: string, iteration: AsyncGenerator): AsyncGenerator {
  const step = iteration.next.bind(iteration)
  iteration.next = () => note(`${what}.next`, step())
  return iteration
}

/** Has what functions of a module give noted: those that make things, with the end of what was made. */
function watchModule(file: string, ...names: string[]): void {
  const root = dirname(require.resolve('secure-rdma/package.json'))
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- where the package's own modules find each other
  const module = require(join(root, 'dist/src', file)) as Record<string, Method>
  for (const name of names) {
    const real = module[name]
    if (real === undefined) throw new Error(`${file} has no ${name}`)
    module[name] = (...values) => note(name, ended(Reflect.apply(real, undefined, values)))
  }
}

/** The same, once the end of what was made is noted too. A server comes with a promise, a connection as it is. */
function ended(made: unknown): unknown {
  if (types.isPromise(made)) {
    return made.then((server) => {
      if (server instanceof Server) void note('Server.closed', server.closed)
      return server
    })
  }
  if (made instanceof Connection) void note('Connection.closed', made.closed)
  return made
}

watch(Batch)
watch(Connection)
watch(Server)
watchModule('connect.js', 'connect')
watchModule('connection.js', 'createConnection')
watchModule('region.js', 'allocate')
watchModule('devices.js', 'devices', 'deviceStats')
watchModule('server.js', 'listen')

test.after.always('no promise is left pending', async (t) => {
  const began = performance.now()
  while (pendingPromises().length > 0 && performance.now() - began < GRACE) await sleep(20)
  t.deepEqual(pendingPromises(), [])
})
