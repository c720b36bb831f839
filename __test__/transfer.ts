// Messages of all sizes both ways at once, and a file: two processes, two devices, every byte compared.

import { addressingOf, betweenProcesses } from './_device.js'
import { receiverNotReady } from './_guest.js'
import { closed, connected } from './_processes.js'
import { fileFromServer, messagesBothWays } from './_transfer.js'

const MESSAGES = 10_000
const FILE_SIZE = 64 << 20

betweenProcesses(`${MESSAGES} messages both ways at once, then a file`, async (t, place) => {
  t.timeout(240_000)
  const { addressing } = place
  const refusals = receiverNotReady()
  const processes = await connected(t, place, { options: { addressing } })
  const { server, client } = processes.told
  t.deepEqual({ server: server.device.name, client: client.device.name }, place.devices)
  t.regex(server.handshake.addressing, new RegExp(`^${addressingOf(place, 'server')}`))
  t.regex(client.handshake.addressing, new RegExp(`^${addressingOf(place, 'client')}`))

  for (const { shortest, longest } of await messagesBothWays(t, processes, MESSAGES)) {
    t.is(shortest, 0)
    t.true(longest > 60_000)
  }
  await fileFromServer(t, processes, FILE_SIZE)
  await closed(t, processes)
  t.is(receiverNotReady(), refusals, 'nobody was sent to when it was not ready')
})
