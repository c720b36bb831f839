// That the check at the end of each file sees a promise that is left pending: its control.

import test from 'ava'
import { devices } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { join, serve } from './_peers.js'
import { pendingPromises } from './_pending.js'

test('what looks at the host is seen while it is under way', async (t) => {
  const asked = devices()
  t.deepEqual(pendingPromises(), ['devices'])
  await asked
  t.deepEqual(pendingPromises(), [])
})

deviceTest('whatever is pending is seen, until it settles', async (t, place) => {
  const { server, client, accepted } = await join(t, await serve(t, place))
  const open = ['Server.closed', 'Connection.closed', 'Connection.closed']
  t.deepEqual(pendingPromises().sort(), [...open].sort())
  const message = client.receive()
  const iteration = client[Symbol.asyncIterator]().next()
  const accept = server.accept()
  const waiting = ['Connection.receive', 'Connection.receive', 'Connection.Symbol(Symbol.asyncIterator).next']
  t.deepEqual(pendingPromises().sort(), [...open, ...waiting, 'Server.accept'].sort())
  const settled = Promise.allSettled([message, iteration, accept])
  client.destroy()
  await Promise.all([server.close(), accepted.closed, settled])
  t.deepEqual(pendingPromises(), [])
})
