// What a device has counted.

import test from 'ava'
import { deviceStats, devices, RdmaError } from 'secure-rdma'
import { deviceTest, testDevice } from './_device.js'
import { join, serve } from './_peers.js'

/** A counter that grows with each message. The in-memory devices have their own; the others have the kernel's names. */
const GROWS = testDevice === 'fake' ? 'acknowledged' : 'rcvd_pkts'

deviceTest('the counters of a device grow with what its connections do', async (t, place) => {
  const { client, accepted } = await join(t, await serve(t, place))
  const before = await client.device.stats()
  t.true(Object.values(before).every((value) => Number.isSafeInteger(value) && value >= 0))
  t.deepEqual(Object.keys(before), Object.keys(before).sort())
  for (let i = 0; i < 10; i++) {
    await client.send(Buffer.alloc(10))
    await accepted.receive()
  }
  const after = await accepted.device.stats()
  t.deepEqual(Object.keys(await deviceStats(client.device.name)).sort(), Object.keys(before).sort())
  const here = (await client.device.stats())[GROWS] ?? NaN
  t.true(here >= (before[GROWS] ?? NaN) + 10, `${GROWS}: ${before[GROWS]} before, ${here} after`)
  t.true((after[GROWS] ?? 0) > 0)
  t.false('stats' in { ...client.device }, 'what is shown and copied is data')
  await client.close()
  t.true((await client.device.stats())[GROWS] !== undefined, 'the device outlives the connection')
})

/** What rdma_rxe counts and the embedded device does not: it has no port that goes down. */
const NOT_ON_SOFT = ['link_downed']

if (testDevice === 'together') {
  deviceTest('the embedded device counts by the names of rdma_rxe', async (t, { devices: { server, client } }) => {
    const kernels = server === 'soft' ? client : server
    const names = Object.keys(await deviceStats(kernels))
    t.true(names.includes('rcvd_pkts'), names.join(', '))
    const ours = Object.keys(await deviceStats('soft'))
    t.deepEqual(
      names.filter((name) => !ours.includes(name)),
      NOT_ON_SOFT.filter((name) => names.includes(name)),
    )
  })
}

test('a device or port that is not there is told by name', async (t) => {
  const missing = { instanceOf: RdmaError, code: 'ERR_RDMA_DEVICE_NOT_FOUND' }
  await t.throwsAsync(deviceStats('nothing0'), { ...missing, message: /"nothing0"; there are: .*soft/ })
  await t.throwsAsync(deviceStats('soft', { port: 2 }), { ...missing, message: /soft has no port 2/ })
  for (const { name, ports } of await devices()) {
    for (const { number } of ports) t.is(typeof (await deviceStats(name, { port: number })), 'object')
  }
})

test('bad arguments are refused', async (t) => {
  for (const bad of [undefined, '', 5, {}, 'a\0b'])
    await t.throwsAsync(deviceStats(bad as string), { name: 'TypeError' })
  await t.throwsAsync(deviceStats('soft', { port: 0 }), { name: 'RangeError' })
  await t.throwsAsync(deviceStats('soft', { ports: 1 } as object), { name: 'TypeError' })
  await t.throwsAsync(deviceStats('soft', null as never), { name: 'TypeError' })
})
