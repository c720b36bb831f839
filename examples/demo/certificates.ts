// An authority of our own and two certificates, for trying things out. They are valid for four hours.
// Run by itself: node certificates.js FOLDER [HOST...], for a server at these names or addresses.

import 'reflect-metadata'
import { webcrypto } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { join } from 'node:path'
import {
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  X509CertificateGenerator,
  cryptoProvider,
  type Extension,
  type X509Certificate,
} from '@peculiar/x509'

cryptoProvider.set(webcrypto)

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const HOUR = 3_600_000
/** Clocks differ. */
const notBefore = new Date(Date.now() - HOUR)
const notAfter = new Date(Date.now() + 4 * HOUR)

interface Authority {
  certificate: X509Certificate
  keys: webcrypto.CryptoKeyPair
}

/** Writes `ca.pem`, and for each of `server` and `client` a certificate and its key, as `NAME.pem` and `NAME.key`. */
export async function makeCertificates(folder: string, serverHosts: readonly string[]): Promise<void> {
  const authority = await makeAuthority()
  write('ca.pem', authority.certificate.toString('pem'))
  const names = new SubjectAlternativeNameExtension(
    serverHosts.map((value) => ({ type: isIP(value) ? ('ip' as const) : ('dns' as const), value })),
  )
  await issue('server', ExtendedKeyUsage.serverAuth, [names])
  await issue('client', ExtendedKeyUsage.clientAuth, [])

  async function issue(name: string, usage: ExtendedKeyUsage, extensions: Extension[]): Promise<void> {
    const keys = await makeKeys()
    const certificate = await X509CertificateGenerator.create({
      subject: `CN=demo ${name}`,
      issuer: authority.certificate.subject,
      publicKey: keys.publicKey,
      signingKey: authority.keys.privateKey,
      signingAlgorithm: algorithm,
      notBefore,
      notAfter,
      extensions: [
        new BasicConstraintsExtension(false, undefined, true),
        new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
        new ExtendedKeyUsageExtension([usage]),
        ...extensions,
      ],
    })
    write(`${name}.pem`, certificate.toString('pem'))
    const key = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey)
    write(`${name}.key`, PemConverter.encode(key, PemConverter.PrivateKeyTag))
  }

  function write(name: string, pem: string): void {
    writeFileSync(join(folder, name), `${pem}\n`, { mode: 0o600 })
  }
}

async function makeAuthority(): Promise<Authority> {
  const keys = await makeKeys()
  const certificate = await X509CertificateGenerator.createSelfSigned({
    name: 'CN=demo authority',
    keys,
    signingAlgorithm: algorithm,
    notBefore,
    notAfter,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
    ],
  })
  return { certificate, keys }
}

function makeKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
}

async function main(folder: string | undefined, hosts: string[]): Promise<void> {
  if (folder === undefined || folder.startsWith('-')) {
    console.error('usage: node certificates.js FOLDER [HOST...]')
    process.exitCode = 2
    return
  }
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  await makeCertificates(folder, hosts.length > 0 ? hosts : ['localhost', '127.0.0.1', '::1'])
}

if (require.main === module) void main(process.argv[2], process.argv.slice(3))
