// A crowd of TCP connections that never come to a handshake, in a process of their own: see flood.ts.

import { connect as connectTcp, type Socket } from 'node:net'

/** What the crowd is told. */
export interface Crowd {
  host: string
  port: number
  localAddress: string
  /** Connections that say nothing. */
  silent: number
  /** Connections that say one byte of `bytes` each second. */
  dripping: number
  bytes: Uint8Array
}

/** What it has seen. */
export interface Seen {
  /** Connections that are open now. */
  open: number
  /** How often one was made. */
  made: number
  /** How often one was ended by the server. */
  dropped: number
}

/** Starts a crowd; each one that is dropped comes back at once. Gives a function that tells what it has seen. */
export function flood({ silent, dripping, bytes, ...where }: Crowd): () => Seen {
  const seen: Seen = { open: 0, made: 0, dropped: 0 }
  const come = (drips: boolean): void => {
    const socket = connectTcp(where)
    socket.on('error', () => undefined)
    socket.once('connect', () => {
      seen.made++
      seen.open++
      if (drips) drip(socket, bytes)
      // An end of the server's is seen only by who reads.
      socket.resume()
      socket.once('close', () => {
        seen.open--
      })
    })
    socket.once('close', () => {
      seen.dropped++
      come(drips)
    })
  }
  for (let i = 0; i < silent; i++) come(false)
  for (let i = 0; i < dripping; i++) come(true)
  return () => ({ ...seen })
}

function drip(socket: Socket, bytes: Uint8Array): void {
  let at = 0
  const timer = setInterval(() => {
    socket.write(bytes.subarray(at, ++at))
  }, 1000)
  socket.once('close', () => {
    clearInterval(timer)
  })
}
