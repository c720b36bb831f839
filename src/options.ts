import type { NativeOptions, NativePool, NativeQueuePair } from '#binding'
import { checkSignal } from './abort.js'
import type { Peer } from './peer.js'
import {
  address,
  argumentTypeError,
  argumentValueError,
  callable,
  flag,
  list,
  material,
  members,
  oneOf,
  pin,
  rangeError,
  spiffeId,
  text,
  whole,
  type Checked,
  type Checks,
} from './validate.js'

/** PEM text (any number of certificates), or PEM or DER bytes; one or several. */
export type Material = string | Uint8Array | readonly (string | Uint8Array)[]

/** Attributes of the queue pair, as `ibv_modify_qp`(3) takes them. */
export interface QueuePairOptions {
  /** Index into the port's P_Key table, 0 to 65535. Default 0, the default partition. */
  pkeyIndex?: number | undefined
  /** Retransmission timeout as an exponent: 4.096 µs · 2^n, 1 to 31. Default 17, which is 0.54 s. */
  timeout?: number | undefined
  /**
   * Repetitions without an answer, 0 to 7. Default 7 on `soft` and 6 on other devices: the kernel's soft-RoCE takes 7 for
   * "for ever".
   */
  retryCount?: number | undefined
  /** Repetitions after "receiver not ready", 0 to 7. Default 6; 7 is for ever. */
  rnrRetry?: number | undefined
  /** Code of the wait that our "receiver not ready" asks for, 1 to 31. Default 12, which is 0.64 ms. */
  minRnrTimer?: number | undefined
  /** READs and atomics that this side may have outstanding, 1 to 128. Default 16. Device and peer cap it. */
  initiatorDepth?: number | undefined
  /** READs and atomics of the peer that this side serves at once, 1 to 128. Default 16. The device caps it. */
  responderResources?: number | undefined
}

/** The registered buffers that all connections of a device share, if they use the same sizes. */
export interface PoolOptions {
  /** Bytes of one buffer, 4096 to 1048576. Default 4096. A message takes as many as it needs. */
  bufferSize?: number | undefined
  /** Receive buffers at the most, 4 to 1048576. Default 16384. Each connection reserves `credits` of them. */
  receiveBuffers?: number | undefined
  /** Send buffers at the most, 1 to 1048576. Default 256. */
  sendBuffers?: number | undefined
}

/** What {@link connect} and {@link listen} have in common. An option that is not here is refused, not ignored. */
export interface CommonOptions {
  /**
   * Authorities that are trusted. `ca` or `pins` is required (except for a server with `requestCert: false`): the
   * system's own list is never used.
   */
  ca?: Material | undefined
  /**
   * Keys that are trusted: the SHA-256 of a certificate's SubjectPublicKeyInfo, as 64 hexadecimal digits or as base64
   * (with or without `sha256/`). With `ca`, both must hold. Alone, the key is the identity: neither chain nor name is
   * looked at.
   */
  pins?: string | readonly string[] | undefined
  /** The own certificate chain, end entity first. A server needs one; so does a client, unless its server asks for none. */
  cert?: Material | undefined
  /** The private key of `cert`: PKCS#8, PKCS#1 or SEC1, not encrypted. */
  key?: string | Uint8Array | undefined
  /**
   * Revocation lists. When there are any, every certificate of the peer's chain must be covered by one that has not
   * expired.
   */
  crl?: Material | undefined
  /**
   * Decides about a peer whose certificate has been verified, before any queue pair exists. The peer is let in if this
   * gives `true` (or a promise of it). Anything else refuses it, with `ERR_RDMA_UNAUTHORIZED`; so does an error, whose
   * message stays on this side. It runs under `handshakeTimeout`.
   */
  authorize?: ((peer: Peer) => boolean | Promise<boolean>) | undefined
  /**
   * Appends the TLS secrets of every connection to this file (NSS key log format). **Whoever reads the file can decrypt
   * captured connections.** For debugging only.
   */
  keyLogFile?: string | undefined
  /** Milliseconds from the start to the proof of path, 1 to 86400000. Default 10000. */
  handshakeTimeout?: number | undefined
  /** Milliseconds that `close()` may take before the connection is destroyed, 1 to 86400000. Default 5000. */
  closeTimeout?: number | undefined
  /**
   * Milliseconds between two signs of life that this side gives over TLS, 10 to 60000. Default 1000. The peer is told, and
   * judges this side's silence by it; the sides may differ.
   */
  keepAliveInterval?: number | undefined
  /** Missing signs of life of the peer that mean it is gone, 1 to 1000. Default 3. */
  keepAliveMisses?: number | undefined

  /**
   * The RDMA device by name, such as `mlx5_0`, or `soft` for the embedded one. Default: the one whose GID is the local
   * address of the TLS connection; `soft` on loopback, and where there is no other. A host with devices none of which
   * fits is never given `soft` unasked.
   */
  device?: string | undefined
  /** The port of the device, 1 to 255 (`port` is TCP's). */
  devicePort?: number | undefined
  /** The index of the GID in the port's table, 0 to 255. */
  gidIndex?: number | undefined
  /** The local address that RDMA uses, where that is not the one of the TLS connection. */
  rdmaAddress?: string | undefined
  /**
   * How the path to the peer is found: by RDMA CM's address and route resolution, and nothing more of it (`hybrid`, the
   * default), or without RDMA CM (`verbs`). On `soft` it makes no difference: the kernel's routes are UDP's.
   */
  addressing?: 'hybrid' | 'verbs' | undefined
  /**
   * A new file (pcapng, for Wireshark) for every packet that the embedded device sends or receives: those of all
   * connections of this process, until the last of them has ended and no server uses the device. **Whoever reads the
   * file sees all data, PSNs and R_Keys.** For debugging only. On other devices it is refused: their packets do not pass
   * through this process.
   */
  captureFile?: string | undefined
  /** Addresses beside the one of the TLS peer to which this side may send RDMA packets. Default: none. */
  allowedPeerAddresses?: string | readonly string[] | undefined
  /** The largest path MTU to use, in bytes. Default: what the port carries. */
  maxPathMtu?: 256 | 512 | 1024 | 2048 | 4096 | undefined

  /** The longest message that this side takes, in bytes, 1 to 2147483648. Default 1048576. Longer ones the peer's `send` refuses. */
  maxMessageSize?: number | undefined
  /**
   * Bytes of messages that may wait to be sent, each with 64 bytes besides its own, 1 to 2^40. Default 16777216. Beyond it
   * `send` rejects at once.
   */
  sendBufferSize?: number | undefined
  /** Bytes of messages that may wait to be read before the peer has to wait, 1 to 2^40. Default 1048576. */
  receiveBufferSize?: number | undefined
  /** Receive buffers that are posted for the peer, 4 to 4096. Default 16. */
  credits?: number | undefined
  /** The buffers that connections share. */
  pool?: PoolOptions | undefined
  /** Milliseconds after which an idle connection proves its path, 0 (never) to 86400000. Default 1000. */
  pathProbeInterval?: number | undefined
  /** Milliseconds that sent work may go unanswered before the path counts as dead, 1 to 86400000. Default 3500. */
  pathTimeout?: number | undefined
  /** Attributes of the queue pair. */
  queuePair?: QueuePairOptions | undefined
  /**
   * Puts the starting PSNs into {@link Connection.handshake}. For tests and demonstrations: whoever knows them can
   * inject packets. Default false.
   */
  exposeSecrets?: boolean | undefined
}

/** What {@link connect} takes. */
export interface ConnectOptions extends CommonOptions {
  /** Name or IP address of the server, a link-local one with its zone (`fe80::1%eth0`). Default `localhost`. */
  host?: string | undefined
  /** The server's TCP port, 1 to 65535. */
  port: number
  /**
   * The local address of the TCP connection. By it the RDMA device is chosen. A link-local one is on the interface of
   * the host's zone.
   */
  localAddress?: string | undefined
  /** The name that the server's certificate must have. Default: `host`. Only with `ca`: `pins` alone judge no name. */
  servername?: string | undefined
  /**
   * The SPIFFE ID that the server's certificate must have, such as `spiffe://example.org/storage`, instead of a name. It is
   * judged as an X.509-SVID: exactly one URI name, no right to sign certificates or revocation lists, and the extended
   * key usages serverAuth and clientAuth both, if it has any. Needs `ca`: the authorities of that trust domain. Not together
   * with `servername`. A server sees the ID of a client as `peer.spiffeId`, in `authorize`.
   */
  peerIdentity?: string | undefined
  /** Gives up when it is aborted; whatever was made is unmade. */
  signal?: AbortSignal | undefined
}

/** What {@link listen} takes. */
export interface ListenOptions extends CommonOptions {
  /**
   * Name or IP address to listen on, a link-local one with its zone (`fe80::1%eth0`). Default `::`, which is every
   * address, IPv4 ones too.
   */
  host?: string | undefined
  /** The TCP port, 0 to 65535. Default 0: the system chooses, and `server.address()` tells. */
  port?: number | undefined
  /** TCP connections that the kernel keeps waiting, 1 to 65535. Default 4096. */
  backlog?: number | undefined
  /**
   * Whether clients must show a certificate that `ca` or `pins` trusts. Default **true** (node:tls: false). With false
   * anybody may connect, unless `authorize` objects; `ca`, `pins` and `crl` are then refused.
   */
  requestCert?: boolean | undefined
  /**
   * Handshakes at once, 1 to 65536. Default 256. When full, the one that has stalled longest gives way. A stall counts two
   * seconds later once the client's certificate has been verified, for one key in half of the places at the most.
   */
  maxPendingHandshakes?: number | undefined
  /**
   * Connections that are up and not accepted yet, 1 to 65536. Default 1024. When so many wait, newcomers are refused;
   * handshakes that had got past `authorize` by then come up all the same.
   */
  maxUnaccepted?: number | undefined
  /** Closes the server when it is aborted. */
  signal?: AbortSignal | undefined
}

const DAY = 86_400_000

const queuePair: Checks<QueuePairOptions> = {
  pkeyIndex: whole(0, 0xffff),
  timeout: whole(1, 31),
  retryCount: whole(0, 7),
  rnrRetry: whole(0, 7),
  minRnrTimer: whole(1, 31),
  initiatorDepth: whole(1, 128),
  responderResources: whole(1, 128),
}

const pool: Checks<PoolOptions> = {
  bufferSize: whole(4096, 1 << 20, 'bytes'),
  receiveBuffers: whole(4, 1 << 20),
  sendBuffers: whole(1, 1 << 20),
}

const pathMtu = oneOf('256', '512', '1024', '2048', '4096')

/** The common options as they are after the check. @internal */
interface Normal {
  ca: Uint8Array[]
  pins: string[]
  cert: Uint8Array[]
  key: Uint8Array
  crl: Uint8Array[]
  authorize: NonNullable<CommonOptions['authorize']>
  keyLogFile: string
  handshakeTimeout: number
  closeTimeout: number
  keepAliveInterval: number
  keepAliveMisses: number
  device: string
  devicePort: number
  gidIndex: number
  rdmaAddress: string
  addressing: 'hybrid' | 'verbs'
  captureFile: string
  allowedPeerAddresses: string[]
  maxPathMtu: number
  maxMessageSize: number
  sendBufferSize: number
  receiveBufferSize: number
  credits: number
  pool: Checked<PoolOptions>
  pathProbeInterval: number
  pathTimeout: number
  queuePair: Checked<QueuePairOptions>
  exposeSecrets: boolean
}

const common: Checks<Normal> = {
  ca: list(material),
  pins: list(pin),
  cert: list(material),
  key: material,
  crl: list(material),
  authorize: callable as Checks<Normal>['authorize'],
  keyLogFile: text,
  handshakeTimeout: whole(1, DAY, 'milliseconds'),
  closeTimeout: whole(1, DAY, 'milliseconds'),
  keepAliveInterval: whole(10, 60_000, 'milliseconds'),
  keepAliveMisses: whole(1, 1000),
  device: text,
  devicePort: whole(1, 255),
  gidIndex: whole(0, 255),
  rdmaAddress: address,
  addressing: oneOf('hybrid', 'verbs'),
  captureFile: text,
  allowedPeerAddresses: list(address),
  maxPathMtu: (value, name) => {
    if (typeof value !== 'number') throw argumentTypeError(name, 'a number of bytes', value)
    return Number(pathMtu(String(value), name))
  },
  maxMessageSize: whole(1, 2 ** 31, 'bytes'),
  sendBufferSize: whole(1, 2 ** 40, 'bytes'),
  receiveBufferSize: whole(1, 2 ** 40, 'bytes'),
  credits: whole(4, 4096),
  pool: (value, name) => members<PoolOptions>(value, name, pool),
  pathProbeInterval: whole(0, DAY, 'milliseconds'),
  pathTimeout: whole(1, DAY, 'milliseconds'),
  queuePair: (value, name) => members<QueuePairOptions>(value, name, queuePair),
  exposeSecrets: flag,
}

interface NormalConnect extends Normal {
  host: string
  port: number
  localAddress: string
  servername: string
  peerIdentity: string
  signal: AbortSignal | undefined
}

interface NormalListen extends Normal {
  host: string
  port: number
  backlog: number
  requestCert: boolean
  maxPendingHandshakes: number
  maxUnaccepted: number
  signal: AbortSignal | undefined
}

const connectTable: Checks<NormalConnect> = {
  ...common,
  host: text,
  port: whole(1, 65535),
  localAddress: address,
  servername: text,
  peerIdentity: spiffeId,
  signal: checkSignal as Checks<NormalConnect>['signal'],
}

/** @internal */
export const listenTable: Checks<NormalListen> = {
  ...common,
  host: text,
  port: whole(0, 65535),
  backlog: whole(1, 65535),
  requestCert: flag,
  maxPendingHandshakes: whole(1, 65536),
  maxUnaccepted: whole(1, 65536),
  signal: checkSignal as Checks<NormalListen>['signal'],
}

const certificatesOnly = 'give cert and key as PEM or DER, the key not encrypted'
const fixedVersion = 'TLS 1.3 is the only version, with the cipher suites of the library'
const noResumption = 'there is no resumption and no early data'

/** Options of node:tls that people may try here. Ignoring one of them could mean less security than was asked for. @internal */
export const foreign: Readonly<Record<string, string>> = {
  pfx: certificatesOnly,
  passphrase: certificatesOnly,
  privateKeyEngine: certificatesOnly,
  privateKeyIdentifier: certificatesOnly,
  clientCertEngine: certificatesOnly,
  rejectUnauthorized: 'the peer is always verified; trust more authorities with ca, or a single key with pins',
  checkServerIdentity: 'the name is always checked; servername says another name, authorize adds checks of your own',
  minVersion: fixedVersion,
  maxVersion: fixedVersion,
  secureProtocol: fixedVersion,
  secureOptions: fixedVersion,
  ciphers: fixedVersion,
  honorCipherOrder: fixedVersion,
  ecdhCurve: fixedVersion,
  sigalgs: fixedVersion,
  dhparam: fixedVersion,
  secureContext: 'give ca, cert and key themselves',
  session: noResumption,
  sessionTimeout: noResumption,
  sessionIdContext: noResumption,
  ticketKeys: noResumption,
  requestOCSP: 'revocation lists are given with crl',
  ALPNProtocols: 'the protocol is always secure-rdma/1',
  ALPNCallback: 'the protocol is always secure-rdma/1',
  SNICallback: 'a server has one certificate',
  pskCallback: 'peers are known by certificates',
  socket: 'the connection is made here; localAddress says from where',
  path: 'the control channel is a TCP connection',
  timeout: 'use handshakeTimeout, keepAliveInterval or queuePair.timeout',
  enableTrace: 'use keyLogFile and captureFile, or another packet capture',
}

/** The options of a connect, checked. @internal */
export function checkConnect(options: unknown): Checked<NormalConnect> & { port: number } {
  const checked = members<NormalConnect>(options, 'options', connectTable, {
    ...foreign,
    requestCert: 'a client always verifies its server',
  })
  const { port } = checked
  if (port === undefined) throw argumentTypeError('options.port', 'a number', port)
  requireTrust(checked)
  requirePair(checked)
  requireRoom(checked)
  if (checked.servername !== undefined && !checked.ca?.length) {
    throw argumentValueError('options.servername needs options.ca: where pins stand alone, no name is looked at')
  }
  if (checked.peerIdentity !== undefined) {
    if (checked.servername !== undefined) {
      throw argumentValueError('options.servername and options.peerIdentity are two identities: give one')
    }
    if (!checked.ca?.length) {
      throw argumentValueError('options.peerIdentity needs options.ca: an authority must vouch for it, a pin does not')
    }
  }
  return { ...checked, port }
}

/** The options of a listen, checked. @internal */
export function checkListen(options: unknown): Checked<NormalListen> {
  const checked = members<NormalListen>(options, 'options', listenTable, {
    ...foreign,
    peerIdentity: 'a server has many clients: authorize sees peer.spiffeId',
    servername: 'a server has no name to expect of its clients; authorize sees the names in their certificates',
    localAddress: 'a server listens on host',
  })
  requireCertificate(checked)
  if (checked.requestCert === false) refuseTrust(checked)
  else requireTrust(checked)
  requirePair(checked)
  requireRoom(checked)
  return checked
}

/** What one side is known by and trusts: what can be judged without its other options. */
type Trust = Pick<Checked<Normal>, 'ca' | 'pins' | 'cert' | 'key' | 'crl'>

/** @internal */
export function requireCertificate({ cert, key }: Trust): void {
  if (cert === undefined || key === undefined) {
    throw argumentValueError('options.cert and options.key are required: a server shows a certificate')
  }
}

/** @internal */
export function requireTrust({ ca, pins, crl }: Trust): void {
  if ((ca?.length ?? 0) + (pins?.length ?? 0) === 0) {
    throw argumentValueError("options.ca or options.pins is required: the system's authorities are not used")
  }
  if (crl?.length && !ca?.length) {
    throw argumentValueError("options.crl needs options.ca: a list is checked with its issuer's key")
  }
}

/** What would judge certificates that nobody is asked for: whoever gives it believes that clients are judged. @internal */
export function refuseTrust(options: Trust): void {
  for (const name of ['ca', 'pins', 'crl'] as const) {
    if (options[name]?.length) {
      throw argumentValueError(`options.${name} has no effect with requestCert: false: leave one of them out`)
    }
  }
}

const DEFAULT_CREDITS = 16

function requireRoom({ credits = DEFAULT_CREDITS, pool }: Checked<Normal>): void {
  const { receiveBuffers = credits } = pool ?? {}
  if (receiveBuffers < credits) {
    throw rangeError(
      `options.pool.receiveBuffers must be at least options.credits, which is ${credits}; it is ${receiveBuffers}`,
    )
  }
}

/** @internal */
export function requirePair({ cert, key }: Trust): void {
  if ((cert === undefined) !== (key === undefined)) {
    throw argumentValueError('options.cert and options.key belong together: give both, or neither')
  }
}

/** As native code takes them. @internal */
export function toNative(options: Checked<Normal> & { requestCert?: boolean; servername?: string }): NativeOptions {
  const { ca = [], pins = [], cert = [], crl = [], allowedPeerAddresses = [], authorize, ...rest } = options
  const { exposeSecrets = false, pool, queuePair, ...plain } = rest
  return {
    ...plain,
    ca,
    pins,
    cert,
    crl,
    allowedPeerAddresses,
    exposeSecrets,
    authorize: authorize !== undefined,
    ...(pool && { pool: pool as NativePool }),
    ...(queuePair && { queuePair: queuePair as NativeQueuePair }),
  }
}
