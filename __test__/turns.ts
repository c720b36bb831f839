// The event loop keeps its turn, and every promise its answer, whatever the other side or a callback does.

import { connect } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { join, serve } from './_peers.js'

deviceTest('a reader that always finds a message leaves timers their turn', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const count = 2000
  const sends = Promise.all(Array.from({ length: count }, () => client.send(Buffer.alloc(8))))
  let sinceTick = 0
  let most = 0
  const timer = setInterval(() => {
    sinceTick = 0
  }, 1)
  for (let i = 0; i < count; i++) {
    await accepted.receive()
    most = Math.max(most, ++sinceTick)
    const until = performance.now() + 0.2
    while (performance.now() < until);
  }
  clearInterval(timer)
  await sends
  // 64 messages between two turns, in which the timer is due; as many more where a turn comes between the two phases.
  t.true(most <= 2 * 64, `${most} messages between two ticks`)
  t.true(most > 1, 'the control: messages were always there')
})

deviceTest('end() may be called again, and each call is answered', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const send = client.send(Buffer.from('x'))
  const first = client.end()
  const busyUntil = performance.now() + 300
  while (performance.now() < busyUntil);
  await Promise.all([send, first, client.end(), client.end()])
  t.is(String(await accepted.receive()), 'x')
  t.is(await accepted.receive(), null)
})

deviceTest('authorize may throw anything', async (t, place) => {
  const throwing: (() => never)[] = [
    () => {
      throw Object.create(null) as Error
    },
    () => {
      throw Object.defineProperty(new Error(), 'message', { get: () => Symbol('not a string') })
    },
  ]
  for (const authorize of throwing) {
    const { toServer } = await serve(t, place)
    await t.throwsAsync(connect({ ...toServer, authorize }), { code: 'ERR_RDMA_UNAUTHORIZED' })
  }
})
