// Certificates for tests: an authority, and what it signs.

import 'reflect-metadata'
import { randomBytes, webcrypto } from 'node:crypto'
import * as x509 from '@peculiar/x509'

x509.cryptoProvider.set(webcrypto)

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const DAY = 24 * 60 * 60 * 1000

/** A certificate and its key, as the options of secure-rdma take them. */
export interface Identity {
  cert: string
  key: string
}

/** An authority as text. */
export interface KeptAuthority extends Identity {
  name: string
}

/** What a certificate can be made to say; the defaults are a good one. */
export interface Wish {
  name?: string
  /** DNS names and IP addresses it is for. */
  dns?: string[]
  ip?: string[]
  /** URIs, such as SPIFFE IDs. */
  uris?: string[]
  notBefore?: Date
  notAfter?: Date
  /** Extended key usages; both of TLS by default. */
  usages?: x509.ExtendedKeyUsageType[]
}

/** Addresses that the tests' servers listen on. */
const ADDRESSES = [
  '127.0.0.1',
  '127.0.0.2',
  '::1',
  '10.8.0.1',
  '10.8.0.2',
  '10.9.0.1',
  '10.9.0.2',
  'fd08::1',
  'fd08::2',
  'fd09::1',
  'fd09::2',
]

/** No other certificate's, whichever process made that. */
const serial = (): string => `01${randomBytes(7).toString('hex')}`

async function pemKey(keys: webcrypto.CryptoKeyPair): Promise<string> {
  const der = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey)
  return x509.PemConverter.encode(der, 'PRIVATE KEY')
}

/** A certificate authority. */
export class Authority {
  readonly #keys: webcrypto.CryptoKeyPair
  readonly #certificate: x509.X509Certificate
  readonly name: string

  private constructor(name: string, keys: webcrypto.CryptoKeyPair, certificate: x509.X509Certificate) {
    this.name = name
    this.#keys = keys
    this.#certificate = certificate
  }

  static async make(name = 'CN=Test Authority'): Promise<Authority> {
    const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: serial(),
      name,
      notBefore: new Date(Date.now() - DAY),
      notAfter: new Date(Date.now() + 30 * DAY),
      signingAlgorithm: ALGORITHM,
      keys,
      extensions: [
        new x509.BasicConstraintsExtension(true, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    })
    return new Authority(name, keys, certificate)
  }

  /** For {@link Authority.restore}. */
  async keep(): Promise<KeptAuthority> {
    return { name: this.name, cert: this.ca, key: await pemKey(this.#keys) }
  }

  static async restore({ name, cert, key }: KeptAuthority): Promise<Authority> {
    const certificate = new x509.X509Certificate(cert)
    const [der] = x509.PemConverter.decode(key)
    if (!der) throw new TypeError('no key of an authority')
    const privateKey = await webcrypto.subtle.importKey('pkcs8', der, ALGORITHM, true, ['sign'])
    const publicKey = await webcrypto.subtle.importKey('spki', certificate.publicKey.rawData, ALGORITHM, true, [
      'verify',
    ])
    return new Authority(name, { privateKey, publicKey }, certificate)
  }

  /** Its own certificate, for `ca`. */
  get ca(): string {
    return this.#certificate.toString('pem')
  }

  /** Signs a certificate for a new key. */
  async issue(wish: Wish = {}): Promise<Identity> {
    const { name = 'CN=peer.test', dns = ['peer.test', 'localhost'], ip = ADDRESSES, uris = [] } = wish
    const { usages = [x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth] } = wish
    const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serial(),
      subject: name,
      issuer: this.#certificate.subject,
      notBefore: wish.notBefore ?? new Date(Date.now() - DAY),
      notAfter: wish.notAfter ?? new Date(Date.now() + 30 * DAY),
      signingAlgorithm: ALGORITHM,
      publicKey: keys.publicKey,
      signingKey: this.#keys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension(usages),
        new x509.SubjectAlternativeNameExtension([
          ...dns.map((value) => ({ type: 'dns' as const, value })),
          ...ip.map((value) => ({ type: 'ip' as const, value })),
          ...uris.map((value) => ({ type: 'url' as const, value })),
        ]),
        await x509.AuthorityKeyIdentifierExtension.create(this.#keys.publicKey),
      ],
    })
    return { cert: certificate.toString('pem'), key: await pemKey(keys) }
  }

  /** A revocation list with these certificates in it; `nextUpdate` may lie in the past. */
  async revoke(identities: readonly Identity[], nextUpdate = new Date(Date.now() + DAY)): Promise<string> {
    const entries = identities.map(({ cert }) => ({
      serialNumber: new x509.X509Certificate(cert).serialNumber,
      revocationDate: new Date(Date.now() - DAY / 2),
      reason: x509.X509CrlReason.keyCompromise,
    }))
    const crl = await x509.X509CrlGenerator.create({
      issuer: this.#certificate.subject,
      thisUpdate: new Date(Date.now() - DAY),
      nextUpdate,
      entries,
      signingAlgorithm: ALGORITHM,
      signingKey: this.#keys.privateKey,
      extensions: [await x509.AuthorityKeyIdentifierExtension.create(this.#keys.publicKey)],
    })
    return x509.PemConverter.encode(crl.rawData, 'X509 CRL')
  }
}
