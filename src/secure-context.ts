import type { NativeSecureContext } from '#binding'
import { foreign, listenTable, requireCertificate, requirePair, requireTrust, refuseTrust } from './check-options.js'
import type { CommonOptions } from './options.js'
import { members } from './validate.js'

/**
 * What {@link Server.setSecureContext} takes: who the server is and whom it trusts, all of it. Nothing is taken over from
 * before: an option that is left out is not set.
 */
export type SecureContextOptions = Pick<CommonOptions, 'ca' | 'pins' | 'cert' | 'key' | 'crl'>

const { ca, pins, cert, key, crl } = listenTable
const table = { ca, pins, cert, key, crl }

/** The options of a new secure context, checked. @internal */
export function checkSecureContext(options: unknown, requestCert: boolean): NativeSecureContext {
  const kept = 'it stays what listen() was given'
  const checked = members(options, 'options', table, {
    ...foreign,
    requestCert: kept,
    keyLogFile: kept,
    authorize: kept,
  })
  requireCertificate(checked)
  if (requestCert) requireTrust(checked)
  else refuseTrust(checked)
  requirePair(checked)
  const { ca = [], pins = [], cert = [], crl = [], key } = checked
  return { ca, pins, cert, crl, ...(key && { key }) }
}
