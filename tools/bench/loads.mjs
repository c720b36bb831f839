// @ts-check
// What both ends of a measurement agree on: where they are, how much goes at once, and how many of it.

/**
 * The addresses of the server and of its client. In the guest an unbound client would have the same ones
 * (tools/soft-roce/README.md); with them said, nobody needs to know.
 * @type {Record<string, { server: string, client?: string, device?: string }>}
 */
export const PLACES = {
  rdma: { server: '127.0.0.1', device: 'soft' },
  rxe: { server: '10.8.0.1', client: '10.8.0.2' },
}

/** Bytes. */
export const SMALL = 64
export const BULK = 1 << 20

export const SMALL_IN_FLIGHT = 64
export const BULK_IN_FLIGHT = 8
