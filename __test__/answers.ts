// What a connection answers when native code says something at the worst moment: its native half is played here.

import { dirname, join as path } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import type { Connection } from 'secure-rdma'

// eslint-disable-next-line @typescript-eslint/no-require-imports -- what the package does not export
const internal = require(path(dirname(require.resolve('secure-rdma/package.json')), 'dist/src/connection.js')) as {
  createConnection(native: unknown, id: number): Connection
}

/** How a connection ended, as native code says it. */
interface End {
  reason: string
  error?: { code: string; message: string }
  delivered: boolean
}

/** A native half that answers what it is set to. */
class Played {
  end: End | null = null
  acknowledged = 0
  /** What becomes of `destroy()`. */
  destroyed: End = { reason: 'destroyed', error: failure('ERR_RDMA_DESTROYED'), delivered: false }
  #behind: [question: string, step: () => void] | undefined

  /** Takes `step` right behind the next answer to `question`. */
  behind(question: string, step: () => void): void {
    this.#behind = [question, step]
  }

  sendMany = (): number => 1
  close = (): void => undefined
  destroy(): void {
    this.end ??= this.destroyed
  }
  look(words: Float64Array): void {
    // As crates/node/src/news.rs has it: no id, flags (always that there may be more), what is done, and no messages.
    words.set([0, this.end === null ? 4 : 5, this.acknowledged, 0])
    this.#answer('look', undefined)
  }
  // Something else than a short message is there once it has ended.
  receiveShort(): number {
    return this.#answer('receiveShort', this.end === null ? 0 : -1)
  }
  receive(): unknown {
    return this.#answer('receive', this.end === null ? false : (this.end.error ?? null))
  }
  closed(): End | null {
    return this.#answer('closed', this.end)
  }

  #answer<T>(question: string, answer: T): T {
    const [which, step] = this.#behind ?? []
    if (which === question) {
      this.#behind = undefined
      step?.()
    }
    return answer
  }
}

function failure(code: string): { code: string; message: string } {
  return { code, message: 'as played' }
}

const noId = 2 ** 31

/** What a promise comes to soon: its value, the code of its error, or that it still waits. */
async function soon(promise: Promise<unknown>): Promise<unknown> {
  return Promise.race([promise.catch((error: unknown) => (error as { code: string }).code), sleep(300, 'waits')])
}

for (const question of ['look', 'receiveShort']) {
  test(`an end right behind the question "${question}" leaves nobody waiting`, async (t) => {
    const native = new Played()
    const connection = internal.createConnection(native, noId)
    const waits = [connection.receive(), connection.send(Buffer.from('x'))]
    native.behind(question, () => {
      native.acknowledged = 1
      native.end = { reason: 'peerClosed', delivered: true }
    })
    void connection.close()
    // The end rings; once it is known, nobody answers any more.
    const isKnown = await Promise.race([connection.closed, sleep(20, undefined)])
    if (!isKnown) void connection.close()
    t.deepEqual(await Promise.all(waits.map(soon)), [null, undefined])
  })
}

test('what native code throws while it gives a message is told to whose turn it is, and to nobody else', async (t) => {
  const native = new Played()
  const connection = internal.createConnection(native, noId)
  const fail = (): never => {
    throw new RangeError('no memory')
  }
  native.behind('receiveShort', fail)
  await t.throwsAsync(() => connection.receive(), { instanceOf: RangeError })
  const waits = [connection.receive(), connection.receive()]
  native.behind('receiveShort', fail)
  native.end = { reason: 'peerClosed', delivered: true }
  void connection.close()
  await t.throwsAsync(async () => waits[0], { instanceOf: RangeError })
  t.is(await soon(Promise.resolve(waits[1])), null)
})

test('destroy(error) is the cause of what it ended, not of what had failed before', async (t) => {
  const mine = new Error('mine')
  for (const [end, cause] of [
    [null, mine],
    [{ reason: 'error', error: failure('ERR_RDMA_PEER_LOST'), delivered: false }, undefined],
  ] as const) {
    const native = new Played()
    const connection = internal.createConnection(native, noId)
    const waits = [connection.receive(), connection.send(Buffer.from('x'))]
    native.end = end
    connection.destroy(mine)
    for (const wait of [...waits, connection.receive()]) {
      const error = await t.throwsAsync(wait, { name: 'RdmaError', code: end?.error.code ?? 'ERR_RDMA_DESTROYED' })
      t.is(error.cause, cause)
    }
    const closed = await connection.closed
    t.is(closed.error === mine, end === null)
  }
})

test('close() fulfils only if everything that was sent has arrived', async (t) => {
  const lost = failure('ERR_RDMA_PEER_LOST')
  // How it ends, what a close() in progress then comes to, and one that is called behind the end.
  const rows: [end: End, during: unknown, behind: unknown][] = [
    [{ reason: 'closed', delivered: true }, undefined, undefined],
    [{ reason: 'peerClosed', delivered: true }, undefined, undefined],
    [{ reason: 'peerClosed', delivered: false }, 'ERR_RDMA_CLOSED', 'ERR_RDMA_CLOSED'],
    [{ reason: 'destroyed', error: failure('ERR_RDMA_DESTROYED'), delivered: true }, 'ERR_RDMA_DESTROYED', undefined],
    [{ reason: 'destroyed', error: failure('ERR_RDMA_DESTROYED'), delivered: false }, 'ERR_RDMA_DESTROYED', undefined],
    [{ reason: 'error', error: lost, delivered: true }, lost.code, undefined],
    [{ reason: 'error', error: lost, delivered: false }, lost.code, lost.code],
  ]
  for (const [end, during, behind] of rows) {
    const native = new Played()
    const connection = internal.createConnection(native, noId)
    const closing = connection.close()
    closing.catch(() => undefined)
    native.end = end
    // Asks for news.
    const again = connection.close()
    t.deepEqual([await soon(closing), await soon(again)], [during, during], JSON.stringify(end))
    t.is(await soon(connection.close()), behind, JSON.stringify(end))
  }
})
