// Every option that cannot be: refused at once, by its name, before anything is opened.

import { inspect } from 'node:util'
import { runInNewContext } from 'node:vm'
import test from 'ava'
import { connect, listen, type ConnectOptions, type ListenOptions } from 'secure-rdma'

const PEM = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'
const good = { port: 7471, ca: PEM, cert: PEM, key: PEM }

type Kind = 'ERR_INVALID_ARG_TYPE' | 'ERR_INVALID_ARG_VALUE' | 'ERR_OUT_OF_RANGE'
type Row = readonly [options: Record<string, unknown>, kind: Kind, names: string]

const TYPE = 'ERR_INVALID_ARG_TYPE'
const VALUE = 'ERR_INVALID_ARG_VALUE'
const RANGE = 'ERR_OUT_OF_RANGE'

/** What both refuse. */
const common: Row[] = [
  [{ ca: undefined }, VALUE, 'options.ca or options.pins'],
  [{ ca: [] }, VALUE, 'options.ca or options.pins'],
  [{ ca: '' }, TYPE, 'options.ca'],
  [{ ca: 5 }, TYPE, 'options.ca'],
  [{ ca: [PEM, null] }, TYPE, 'options.ca[1]'],
  [{ ca: [new Uint8Array()] }, TYPE, 'options.ca[0]'],
  [{ pins: 5 }, TYPE, 'options.pins'],
  [{ pins: ['', 'a'] }, VALUE, 'options.pins[0]'],
  [{ pins: 'xyz' }, VALUE, 'options.pins must be the SHA-256'],
  [{ pins: ['0'.repeat(63)] }, VALUE, 'options.pins[0]'],
  [{ pins: `sha256/${'A'.repeat(42)}B=` }, VALUE, 'options.pins'],
  [{ pins: `sha1/${'A'.repeat(43)}=` }, VALUE, 'options.pins'],
  [{ ca: undefined, pins: '0'.repeat(64), crl: PEM }, VALUE, 'options.crl needs options.ca'],
  [{ cert: {} }, TYPE, 'options.cert'],
  [{ key: ['a'] }, TYPE, 'options.key'],
  [{ crl: false }, TYPE, 'options.crl'],
  [{ authorize: true }, TYPE, 'options.authorize'],
  [{ keyLogFile: 1 }, TYPE, 'options.keyLogFile'],
  [{ keyLogFile: 'a\0b' }, VALUE, 'options.keyLogFile'],
  [{ captureFile: 1 }, TYPE, 'options.captureFile'],
  [{ captureFile: 'a\0b' }, VALUE, 'options.captureFile'],
  [{ handshakeTimeout: 0 }, RANGE, 'options.handshakeTimeout'],
  [{ handshakeTimeout: 86_400_001 }, RANGE, 'options.handshakeTimeout'],
  [{ handshakeTimeout: 1.5 }, RANGE, 'options.handshakeTimeout'],
  [{ handshakeTimeout: '10' }, TYPE, 'options.handshakeTimeout'],
  [{ handshakeTimeout: NaN }, RANGE, 'options.handshakeTimeout'],
  [{ closeTimeout: -1 }, RANGE, 'options.closeTimeout'],
  [{ keepAliveInterval: 9 }, RANGE, 'options.keepAliveInterval'],
  [{ keepAliveInterval: 60_001 }, RANGE, 'options.keepAliveInterval'],
  [{ keepAliveMisses: 0 }, RANGE, 'options.keepAliveMisses'],
  [{ keepAliveMisses: 1001 }, RANGE, 'options.keepAliveMisses'],
  [{ device: '' }, VALUE, 'options.device'],
  [{ device: 1 }, TYPE, 'options.device'],
  [{ devicePort: 0 }, RANGE, 'options.devicePort'],
  [{ devicePort: 256 }, RANGE, 'options.devicePort'],
  [{ gidIndex: -1 }, RANGE, 'options.gidIndex'],
  [{ gidIndex: 256 }, RANGE, 'options.gidIndex'],
  [{ rdmaAddress: 'host.example' }, VALUE, 'options.rdmaAddress'],
  [{ rdmaAddress: 'fe80::1%eth0' }, VALUE, 'options.rdmaAddress'],
  [{ rdmaAddress: 1 }, TYPE, 'options.rdmaAddress'],
  [{ addressing: 'cm' }, VALUE, 'options.addressing'],
  [{ addressing: 1 }, VALUE, 'options.addressing'],
  [{ allowedPeerAddresses: ['10.0.0.1', 'x'] }, VALUE, 'options.allowedPeerAddresses[1]'],
  [{ maxPathMtu: 1500 }, VALUE, 'options.maxPathMtu'],
  [{ maxPathMtu: '1024' }, TYPE, 'options.maxPathMtu'],
  [{ maxMessageSize: 0 }, RANGE, 'options.maxMessageSize'],
  [{ maxMessageSize: 2 ** 31 + 1 }, RANGE, 'options.maxMessageSize'],
  [{ maxMessageSize: 1n }, TYPE, 'options.maxMessageSize'],
  [{ sendBufferSize: 0 }, RANGE, 'options.sendBufferSize'],
  [{ sendBufferSize: Infinity }, RANGE, 'options.sendBufferSize'],
  [{ receiveBufferSize: 0 }, RANGE, 'options.receiveBufferSize'],
  [{ credits: 3 }, RANGE, 'options.credits'],
  [{ credits: 4097 }, RANGE, 'options.credits'],
  [{ pool: 5 }, TYPE, 'options.pool'],
  [{ pool: { bufferSize: 4095 } }, RANGE, 'options.pool.bufferSize'],
  [{ pool: { receiveBuffers: 3 } }, RANGE, 'options.pool.receiveBuffers'],
  [
    { pool: { receiveBuffers: 15 } },
    RANGE,
    'options.pool.receiveBuffers must be at least options.credits, which is 16',
  ],
  [{ credits: 20, pool: { receiveBuffers: 19 } }, RANGE, 'options.pool.receiveBuffers must be at least'],
  [{ pool: Object.create({ bufferSize: 4096 }) }, VALUE, 'options.pool must be a plain object'],
  [{ pool: { sendBuffers: 0 } }, RANGE, 'options.pool.sendBuffers'],
  [{ pool: { buffers: 5 } }, VALUE, 'options.pool.buffers'],
  [{ pathProbeInterval: -1 }, RANGE, 'options.pathProbeInterval'],
  [{ pathTimeout: 0 }, RANGE, 'options.pathTimeout'],
  [{ queuePair: [] }, TYPE, 'options.queuePair'],
  [{ queuePair: { timeout: 0 } }, RANGE, 'options.queuePair.timeout'],
  [{ queuePair: { timeout: 32 } }, RANGE, 'options.queuePair.timeout'],
  [{ queuePair: { retryCount: 8 } }, RANGE, 'options.queuePair.retryCount'],
  [{ queuePair: { rnrRetry: -1 } }, RANGE, 'options.queuePair.rnrRetry'],
  [{ queuePair: { minRnrTimer: 0 } }, RANGE, 'options.queuePair.minRnrTimer'],
  [{ queuePair: { initiatorDepth: 0 } }, RANGE, 'options.queuePair.initiatorDepth'],
  [{ queuePair: { responderResources: 129 } }, RANGE, 'options.queuePair.responderResources'],
  [{ queuePair: { pkeyIndex: 65536 } }, RANGE, 'options.queuePair.pkeyIndex'],
  [{ queuePair: { psn: 1 } }, VALUE, 'options.queuePair.psn'],
  [{ exposeSecrets: 1 }, TYPE, 'options.exposeSecrets'],
  [{ signal: {} }, TYPE, 'signal'],
  [{ signal: 'now' }, TYPE, 'signal'],
  [{ host: '' }, VALUE, 'options.host'],
  [{ host: ['a'] }, TYPE, 'options.host'],
  [{ port: 65536 }, RANGE, 'options.port'],
  [{ port: '7471' }, TYPE, 'options.port'],
  [{ hots: 'typo' }, VALUE, 'options.hots'],
  [{ toString: 1 }, VALUE, 'options.toString'],
]

const ofConnect: Row[] = [
  [{ port: undefined }, TYPE, 'options.port'],
  [{ port: 0 }, RANGE, 'options.port'],
  [{ localAddress: 'localhost' }, VALUE, 'options.localAddress'],
  [{ servername: '' }, VALUE, 'options.servername'],
  [{ servername: 'a', ca: undefined, pins: '0'.repeat(64) }, VALUE, 'options.servername needs options.ca'],
  [{ cert: undefined }, VALUE, 'options.cert and options.key'],
  [{ key: undefined }, VALUE, 'options.cert and options.key'],
  [{ requestCert: true }, VALUE, 'options.requestCert'],
  [{ backlog: 1 }, VALUE, 'options.backlog'],
]

const ofListen: Row[] = [
  [{ cert: undefined, key: undefined }, VALUE, 'options.cert and options.key'],
  [{ key: undefined }, VALUE, 'options.cert and options.key'],
  [{ backlog: 0 }, RANGE, 'options.backlog'],
  [{ requestCert: 'yes' }, TYPE, 'options.requestCert'],
  [{ requestCert: false }, VALUE, 'options.ca has no effect with requestCert: false'],
  [{ requestCert: false, ca: undefined, pins: '0'.repeat(64) }, VALUE, 'options.pins has no effect'],
  [{ requestCert: false, ca: undefined, crl: PEM }, VALUE, 'options.crl has no effect'],
  [{ maxPendingHandshakes: 0 }, RANGE, 'options.maxPendingHandshakes'],
  [{ maxPendingHandshakes: 65537 }, RANGE, 'options.maxPendingHandshakes'],
  [{ maxUnaccepted: 0 }, RANGE, 'options.maxUnaccepted'],
  [{ servername: 'a' }, VALUE, 'options.servername'],
  [{ localAddress: '127.0.0.1' }, VALUE, 'options.localAddress'],
]

/** Options of node:tls whose loss could mean less security than was asked for. */
const ofTls = [
  ...['pfx', 'passphrase', 'rejectUnauthorized', 'checkServerIdentity', 'minVersion', 'maxVersion', 'secureProtocol'],
  ...['ciphers', 'ecdhCurve', 'sigalgs', 'dhparam', 'secureContext', 'session', 'ticketKeys', 'ALPNProtocols'],
  ...['SNICallback', 'pskCallback', 'requestOCSP', 'socket', 'path', 'timeout', 'enableTrace', 'secureOptions'],
]

const tls: Row[] = ofTls.flatMap((name): Row[] => [
  [{ [name]: 'x' }, VALUE, `options.${name} is not an option of secure-rdma: `],
  [{ [name]: false }, VALUE, `options.${name} is not an option of secure-rdma: `],
])

const classes = { [TYPE]: TypeError, [VALUE]: TypeError, [RANGE]: RangeError }

for (const [name, rows] of Object.entries({
  connect: [...common, ...ofConnect, ...tls],
  listen: [...common, ...ofListen, ...tls],
})) {
  const call = (options: unknown): Promise<unknown> =>
    name === 'connect' ? connect(options as ConnectOptions) : listen(options as ListenOptions)

  test(`${name} refuses ${rows.length} bad options by name`, async (t) => {
    for (const [bad, kind, names] of rows) {
      const shown = inspect(bad)
      const error = await t.throwsAsync<Error & { code: string }>(call({ ...good, ...bad }), undefined, shown)
      t.is(error.code, kind, `${shown}: ${error.message}`)
      t.true(error instanceof classes[kind], shown)
      t.true(error.message.startsWith(names), `${shown} → ${error.message}`)
    }
  })

  test(`${name} refuses what is no options at all`, async (t) => {
    for (const bad of [undefined, null, 5, 'x', [], true]) {
      await t.throwsAsync(call(bad), { instanceOf: TypeError, code: TYPE, message: /^options must be an object/ })
    }
  })

  test(`${name} refuses options that may inherit what it would not see, and takes those of other realms`, async (t) => {
    class Options {
      readonly port = 1
    }
    const authorize = (): boolean => false
    for (const odd of [
      Object.create({ ...good, authorize }),
      Object.create(good),
      new Options(),
      new Map(),
      new Proxy(new Options(), {}),
    ]) {
      await t.throwsAsync(call(Object.assign(odd as object, good)), {
        code: VALUE,
        message: /^options must be a plain object/,
      })
    }
    const foreign = runInNewContext('({})') as object
    for (const plain of [Object.create(null) as object, foreign]) {
      // The next check is the first to object.
      await t.throwsAsync(call(Object.assign(plain, good, { hots: 1 })), { message: /^options\.hots/ })
    }
  })

  test(`${name} never shows a key in an error`, async (t) => {
    const secret = 'c2VjcmV0LXNlY3JldC1zZWNyZXQ'
    for (const bad of [{ key: { secret } }, { key: [secret] }, { ca: 5, key: secret }, { passphrase: secret }]) {
      const error = await t.throwsAsync(call({ ...good, ...bad }))
      t.false(inspect(error).includes(secret), inspect(bad))
    }
  })
}

test('material that cannot be read is an RdmaError, not a TypeError', async (t) => {
  await t.throwsAsync(connect(good), { name: 'RdmaError', code: 'ERR_RDMA_TLS_CONFIG' })
  await t.throwsAsync(listen(good), { name: 'RdmaError', code: 'ERR_RDMA_TLS_CONFIG' })
})

test('a signal that was aborted before keeps anything from beginning', async (t) => {
  const reason = new Error('never mind')
  const signal = AbortSignal.abort(reason)
  for (const call of [connect({ ...good, signal }), listen({ ...good, signal })]) {
    const error = await t.throwsAsync(call, { name: 'AbortError', code: 'ABORT_ERR' })
    t.is(error.cause, reason)
  }
})

test('every spelling of a pin is taken as native code takes it', async (t) => {
  const digits = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  const base64 = Buffer.from(digits, 'hex').toString('base64')
  const url = base64.replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '')
  const colons = digits.replaceAll(/..(?!$)/g, '$&:')
  for (const pins of [digits, digits.toUpperCase(), colons, base64, url, `sha256/${base64}`, [digits, base64]]) {
    // It gets as far as the certificates.
    await t.throwsAsync(connect({ ...good, ca: undefined, pins }), { code: 'ERR_RDMA_TLS_CONFIG', message: /cert/ })
  }
})
