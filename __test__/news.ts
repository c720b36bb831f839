// News are told one after the other, and what runs thereupon is the user's: it may end a connection that is told next.

import { connect, listen } from 'secure-rdma'
import { deviceTest } from './_device.js'
import { connecting, join, listening } from './_peers.js'

/** Keeps the event loop from its turn, so that news gather. */
function busy(milliseconds: number): void {
  const end = performance.now() + milliseconds
  while (performance.now() < end);
}

for (const way of ['close', 'destroy'] as const) {
  deviceTest(
    `messages keep their order where authorize() has called ${way}() before they are told of`,
    async (t, place) => {
      let during: (() => void) | undefined
      const authorize = (): boolean => {
        during?.()
        return true
      }
      const server = await listen({ ...(await listening(place)), authorize })
      t.teardown(() => server.close())
      const toServer = await connecting(place, server.address()?.port ?? 0)
      // Which of two that have news is told first is not said.
      for (let round = 0; round < 10; round++) {
        during = undefined
        const { client, accepted } = await join(t, { server, toServer })
        const got: (number | undefined)[] = []
        const reading = (async () => {
          for await (const message of accepted) got.push(message[0])
        })()
        await client.send(Buffer.of(0))
        during = () => {
          during = undefined
          client.sendBatch([Buffer.of(2), Buffer.of(3)]).catch(() => undefined)
          busy(20)
          if (way === 'close') accepted.close().catch(() => undefined)
          else accepted.destroy()
        }
        const other = connect(toServer)
        client.send(Buffer.of(1)).catch(() => undefined)
        busy(40)
        for (const end of [await other, await server.accept()]) end.destroy()
        await reading.catch(() => undefined)
        t.deepEqual(got, [0, 1, 2, 3].slice(0, got.length), `round ${round}`)
        t.true(got.length >= 2)
      }
    },
  )
}
