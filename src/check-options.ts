import type { NativeOptions, NativePool, NativeQueuePair } from '#binding'
import { checkSignal } from './abort.js'
import type { CommonOptions, PoolOptions, QueuePairOptions } from './options.js'
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
