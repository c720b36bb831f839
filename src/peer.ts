import type { NativeNames, NativePeer } from '#binding'

/** The names in a certificate. */
export interface CertificateNames {
  /** The subject, as in `CN=storage-1, O=Example`. */
  readonly subject: string
  /** The issuer. */
  readonly issuer: string
  /** The subject's common name. */
  readonly commonName?: string
  /** DNS names. */
  readonly dnsNames: readonly string[]
  /** IP addresses. */
  readonly ipAddresses: readonly string[]
  /** URIs, SPIFFE IDs among them. */
  readonly uris: readonly string[]
  /** From when on it is valid. */
  readonly validFrom: Date
  /** Until when it is valid. */
  readonly validTo: Date
}

/** Who the other side is, as TLS has verified it. */
export interface Peer {
  /** Its IP address in the TLS connection. */
  readonly address: string
  /** Its TCP port. */
  readonly port: number
  /** The names in its certificate; absent where it showed none (`requestCert: false`). */
  readonly names?: CertificateNames
  /**
   * Its SPIFFE ID, such as `spiffe://example.org/storage`: where its certificate leads to an authority in `ca` and is an
   * X.509-SVID, with exactly one URI name. `names.uris` alone proves neither.
   */
  readonly spiffeId?: string
  /** SHA-256 of its public key (SubjectPublicKeyInfo), in hexadecimal digits: what `pins` takes. */
  readonly spkiSha256?: string
  /** Its certificates in DER, end entity first, for `new crypto.X509Certificate()`. */
  readonly certificates: readonly Buffer[]
  /** `TLSv1.3`. */
  readonly tlsVersion: string
  /** `TLS13_AES_256_GCM_SHA384` and the like. */
  readonly cipherSuite: string
  /** `X25519MLKEM768` and the like. */
  readonly keyExchange: string
}

/** Makes what users see of a certificate's names. @internal */
export function toNames(native: NativeNames): CertificateNames {
  const { subject, issuer, commonName, dns, ip, uri, notBefore, notAfter } = native
  return {
    subject,
    issuer,
    ...(commonName !== undefined && { commonName }),
    dnsNames: dns,
    ipAddresses: ip,
    uris: uri,
    validFrom: new Date(notBefore * 1000),
    validTo: new Date(notAfter * 1000),
  }
}

/** Makes what users see of a peer. @internal */
export function toPeer(native: NativePeer): Peer {
  const { address, port, names, spiffeId, spkiSha256, certificates, tlsVersion, cipherSuite, keyExchange } = native
  const peer = {
    address,
    port,
    ...(names && { names: toNames(names) }),
    ...(spiffeId !== undefined && { spiffeId }),
    ...(spkiSha256 !== undefined && { spkiSha256 }),
    tlsVersion,
    cipherSuite,
    keyExchange,
  }
  // Long, and of use to few: not shown by `inspect`.
  return Object.defineProperty(peer, 'certificates', { value: certificates }) as Peer
}
