// The identities that most tests use: one authority, with a server's and a client's.
//
// SECURE_RDMA_TEST_IDENTITIES: a file that has them; it is made where it is missing. Without it each process makes its own,
// which takes seconds in an emulated guest, most of them to load what makes certificates.

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import type { Authority, Identity, KeptAuthority } from './_authority.js'

interface Identities {
  authority: KeptAuthority
  server: Identity & { ca: string }
  client: Identity & { ca: string }
}

export interface Fixture extends Omit<Identities, 'authority'> {
  authority: () => Promise<Authority>
}

const file = process.env['SECURE_RDMA_TEST_IDENTITIES']

let made: Promise<Fixture> | undefined

/** The identities that most tests use. */
export function fixture(): Promise<Fixture> {
  made ??= give()
  return made
}

async function give(): Promise<Fixture> {
  const { authority, server, client } = await identities()
  const restored = async (): Promise<Authority> => (await import('./_authority.js')).Authority.restore(authority)
  return { authority: restored, server, client }
}

async function identities(): Promise<Identities> {
  if (file !== undefined && existsSync(file)) return JSON.parse(readFileSync(file, 'utf8')) as Identities
  const fresh = await make()
  if (file !== undefined) writeFileSync(file, JSON.stringify(fresh), { mode: 0o600 })
  return fresh
}

async function make(): Promise<Identities> {
  const { Authority } = await import('./_authority.js')
  const authority = await Authority.make()
  const { ca } = authority
  const server = { ca, ...(await authority.issue({ name: 'CN=server.test' })) }
  const client = { ca, ...(await authority.issue({ name: 'CN=client.test' })) }
  return { authority: await authority.keep(), server, client }
}
