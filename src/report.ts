import { inspect, type InspectOptions } from 'node:util'
import type { NativeLocal, NativeReport } from '#binding'
import { deviceStats, type DeviceStats } from './devices.js'
import { toNames, type CertificateNames } from './peer.js'

/** Device, port and GID that a connection uses on this side. */
export interface ConnectionDevice {
  /** The device's name. */
  readonly name: string
  /** Which implementation stands behind it: libibverbs, or the embedded device. */
  readonly kind: 'verbs' | 'soft'
  /** The port, from 1. */
  readonly port: number
  /** Index of the GID in the port's table. */
  readonly gidIndex: number
  /** The GID, written as an IPv6 address. */
  readonly gid: string
  /** The network interface that the GID comes from. */
  readonly interface?: string
  /** What carries its packets. */
  readonly linkLayer: 'ethernet' | 'infiniband'
  /** The port's LID; 0 on Ethernet. */
  readonly lid: number
  /** Why this one was chosen, as a sentence. */
  readonly reason: string
  /** What its port has counted: see {@link deviceStats}. Its device must still be there, the connection need not. */
  stats(): Promise<DeviceStats>
}

/** An IP address and a TCP port. */
export interface Address {
  readonly address: string
  readonly port: number
}

/** What happened while a connection came up. Times are in milliseconds. */
export interface Handshake {
  /** Which side this is. */
  readonly role: 'client' | 'server'
  /** `TLSv1.3`. */
  readonly tlsVersion: string
  /** `TLS13_AES_256_GCM_SHA384` and the like. */
  readonly cipherSuite: string
  /** `X25519MLKEM768` and the like. */
  readonly keyExchange: string
  /** Names in the own certificate, where one was shown. */
  readonly ownCertificate?: CertificateNames
  /** Names in the peer's certificate, where it showed one. */
  readonly peerCertificate?: CertificateNames
  /** This end of the TLS connection. */
  readonly tlsLocal: Address
  /** The peer's end of the TLS connection. */
  readonly tlsPeer: Address
  /** How the path was found, and why so where another way was asked for. */
  readonly addressing: string
  /** The version of the exchange that both sides agreed on. */
  readonly version: number
  /** The number of the own queue pair. */
  readonly ownQpn: number
  /** The number of the peer's queue pair. */
  readonly peerQpn: number
  /** The peer's GID, written as an IPv6 address. */
  readonly peerGid: string
  /** The UDP port that packets go to, on RoCE v2. */
  readonly udpPort?: number
  /** The path MTU that both sides use, in bytes. */
  readonly pathMtu: number
  /** READs and atomics that this side may have outstanding. */
  readonly initiatorDepth: number
  /** READs and atomics that the peer may have outstanding. */
  readonly responderResources: number
  /** What the peer takes. */
  readonly peerTerms: {
    /** The longest message, in bytes. */
    readonly maxMessageSize: number
    /** Bytes of each receive buffer. */
    readonly segmentSize: number
    /** Receive buffers that it keeps posted. */
    readonly credits: number
  }
  /** Every step in order: `tcp`, `tls`, `authorize`, `device`, `RESET→INIT`, … `path`. */
  readonly steps: readonly { readonly name: string; readonly duration: number }[]
  /** How long the proof of path took. */
  readonly pathProof: number
  /** From the start (on a server: from TCP's accept) to the end of the proof of path. */
  readonly total: number
  /**
   * Fingerprint of the own starting PSN: an HMAC under a key that only the two ends have. Equal to the peer's
   * `peerPsnFingerprint`, and tells nothing about the PSN.
   */
  readonly ownPsnFingerprint: string
  /** Fingerprint of the peer's starting PSN. */
  readonly peerPsnFingerprint: string
  /** The starting PSNs, only with `exposeSecrets`. Not enumerable: neither `inspect` nor JSON shows them. */
  readonly secrets?: { readonly ownPsn: number; readonly peerPsn: number }
}

/** Makes what users see of the local address. @internal */
export function toDevice(native: NativeLocal): ConnectionDevice {
  const { name, port } = native
  // Not enumerable: what is shown, compared and copied is what was chosen.
  return Object.defineProperty(native, 'stats', {
    value: () => deviceStats(name, { port }),
  }) as unknown as ConnectionDevice
}

/** Makes what users see of a report. @internal */
export function toHandshake(native: NativeReport): Handshake {
  const { ownCertificate, peerCertificate, secrets, ...rest } = native
  const handshake = {
    ...rest,
    ...(ownCertificate && { ownCertificate: toNames(ownCertificate) }),
    ...(peerCertificate && { peerCertificate: toNames(peerCertificate) }),
  } as Handshake
  if (!secrets) return handshake
  Object.freeze(secrets)
  // Only who asks by name is told: `showHidden` shows what is not enumerable, and `getters` what accessors give.
  return Object.defineProperties(handshake, {
    secrets: { get: () => secrets },
    [inspect.custom]: {
      value: (depth: number, options: InspectOptions) => inspect({ ...handshake }, { ...options, depth }),
    },
  })
}
