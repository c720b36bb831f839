import { channel } from 'node:diagnostics_channel'
import type { Connecting, NativeConnection } from '#binding'
import { abortError, onAbort } from './abort.js'
import { Authorizer } from './authorize.js'
import { createConnection, type Connection } from './connection.js'
import { environment, forget, Hold, register } from './events.js'
import { unwrapMade } from './native.js'
import { checkConnect, toNative } from './check-options.js'
import type { ConnectOptions } from './options.js'
import { isTraced, traced, traces } from './tracing.js'

const connected = channel('secure-rdma:client:connected')
const failed = channel('secure-rdma:client:connect-failed')

/**
 * Connects to a server: TCP, TLS 1.3 with certificates on both sides, then the RDMA queue pair, and a message each way
 * that proves the path. Only then it fulfils.
 *
 * Told through `node:diagnostics_channel`: `secure-rdma:client:connected` with `{ connection }`,
 * `secure-rdma:client:connect-failed` with `{ host, port, error }`; and as a `TracingChannel`, `secure-rdma:connect`, with a
 * {@link ConnectTrace}.
 *
 * @throws {RdmaError} what failed (`code`) and how far it had come (`phase`); what `authorize` threw is its `cause`
 * @throws {TypeError | RangeError} for an option that is unknown, missing or cannot be
 */
export async function connect(options: ConnectOptions): Promise<Connection> {
  const checked = checkConnect(options)
  const { host = 'localhost', port } = checked
  if (!isTraced(traces.connect)) return establish(checked, host)
  return traced(traces.connect, { host, port }, () => establish(checked, host))
}

async function establish(checked: ReturnType<typeof checkConnect>, host: string): Promise<Connection> {
  const { host: _host, port, localAddress, signal, ...rest } = checked
  if (signal?.aborted) throw abortError(signal)
  const authorizer = new Authorizer(rest.authorize)
  const hold = new Hold()
  try {
    const connection = await new Promise<Connection>((resolve, reject) => {
      let connecting: Connecting | undefined
      const id = register({ news })
      const stop = onAbort(signal, (signal) => {
        connecting?.cancel()
        forget(id)
        reject(abortError(signal))
      })

      function news(): void {
        if (!connecting) return
        authorizer.answerAll(connecting)
        const outcome = connecting.take()
        if (outcome === null) return
        settle(() => createConnection(unwrapMade<NativeConnection>(outcome, authorizer.causeOf(outcome)), id))
      }

      function settle(make: () => Connection): void {
        stop()
        try {
          resolve(make())
        } catch (error) {
          forget(id)
          reject(error)
        }
      }

      try {
        const native = { host, port, ...(localAddress !== undefined && { localAddress }), options: toNative(rest) }
        connecting = unwrapMade<Connecting>(environment.connect(id, native))
      } catch (error) {
        stop()
        forget(id)
        reject(error)
      }
    })
    connected.publish({ connection })
    return connection
  } catch (error) {
    failed.publish({ host, port, error })
    throw error
  } finally {
    hold.release()
  }
}
