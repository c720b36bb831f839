// @ts-check
// What node:net and node:tls need of the Node benchmarks: the same sockets, with and without TLS 1.3.

import { readFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'

/** @typedef {'net' | 'tls'} Stream */

const HOST = '127.0.0.1'

/**
 * The certificate and key of a role, and the authority that both sides trust.
 * @param {string} folder
 * @param {'server' | 'client'} role
 */
export function identity(folder, role) {
  const file = (/** @type {string} */ name) => readFileSync(join(folder, name))
  return { ca: file('ca.pem'), cert: file(`${role}.pem`), key: file(`${role}.key`) }
}

/**
 * A server whose sockets go to `take`. Fulfils with its port.
 * @param {Stream} stream
 * @param {string} folder
 * @param {(socket: net.Socket) => void} take
 * @returns {Promise<number>}
 */
export function listen(stream, folder, take) {
  const taking = (/** @type {net.Socket} */ socket) => {
    socket.setNoDelay(true)
    // A client that is done with a connection may reset it.
    socket.on('error', () => {})
    take(socket)
  }
  const server =
    stream === 'net'
      ? net.createServer(taking)
      : tls.createServer(
          { ...identity(folder, 'server'), requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' },
          taking,
        )
  return new Promise((resolve) => {
    server.listen(0, HOST, () => resolve(/** @type {net.AddressInfo} */ (server.address()).port))
  })
}

/**
 * Connects, authenticated where that is possible.
 * @param {Stream} stream
 * @param {string} folder
 * @param {number} port
 * @returns {Promise<net.Socket>}
 */
export function connect(stream, folder, port) {
  return new Promise((resolve, reject) => {
    const socket =
      stream === 'net'
        ? net.connect({ host: HOST, port }, () => resolve(socket))
        : tls.connect({ host: HOST, port, ...identities(folder), minVersion: 'TLSv1.3' }, () => resolve(socket))
    socket.setNoDelay(true)
    socket.once('error', reject)
  })
}

/** Bytes of memory that this process has for itself, after what is not used has been given back. */
export function resident() {
  globalThis.gc?.()
  const [, kibibytes] = /^RssAnon:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
  return Number(kibibytes) * 1024
}

/** @type {ReturnType<typeof identity> | undefined} */
let known

/** Read once: connections are measured, not files. @param {string} folder */
function identities(folder) {
  return (known ??= identity(folder, 'client'))
}
