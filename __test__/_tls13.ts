// Decrypts a captured TLS 1.3 connection with its key log: RFC 8446, no more of it than that takes.

import { createDecipheriv, createHmac } from 'node:crypto'

const HANDSHAKE = 22
const APPLICATION_DATA = 23

const suites: Readonly<Record<number, { cipher: 'aes-128-gcm' | 'aes-256-gcm' | 'chacha20-poly1305'; hash: string }>> =
  {
    0x1301: { cipher: 'aes-128-gcm', hash: 'sha256' },
    0x1302: { cipher: 'aes-256-gcm', hash: 'sha384' },
    0x1303: { cipher: 'chacha20-poly1305', hash: 'sha256' },
  }

interface TlsRecord {
  type: number
  header: Buffer
  body: Buffer
}

function recordsOf(stream: Buffer): TlsRecord[] {
  const records: TlsRecord[] = []
  for (let at = 0; at + 5 <= stream.length;) {
    const length = stream.readUInt16BE(at + 3)
    const body = stream.subarray(at + 5, at + 5 + length)
    if (body.length < length) break
    records.push({ type: stream.readUInt8(at), header: stream.subarray(at, at + 5), body })
    at += 5 + length
  }
  return records
}

/** The first handshake message of a stream: its 4-byte header, version and random, then the rest. */
function hello(stream: Buffer): { random: Buffer; rest: Buffer } {
  const record = recordsOf(stream).find(({ type }) => type === HANDSHAKE)
  if (!record) throw new Error('there is no hello')
  return { random: record.body.subarray(6, 38), rest: record.body.subarray(38) }
}

/** HKDF-Expand-Label for no more bytes than the hash has, so one block of HKDF-Expand. */
function expandLabel(hash: string, secret: Buffer, label: string, length: number): Buffer {
  const name = Buffer.from(`tls13 ${label}`)
  const info = Buffer.concat([Buffer.from([length >> 8, length & 0xff, name.length]), name, Buffer.from([0])])
  return createHmac(hash, secret)
    .update(info)
    .update(Buffer.from([1]))
    .digest()
    .subarray(0, length)
}

/** One direction under one secret. */
class Opener {
  readonly #cipher: string
  readonly #key: Buffer
  readonly #iv: Buffer
  #sequence = 0n

  constructor(suite: number, secret: Buffer) {
    const known = suites[suite]
    if (!known) throw new Error(`cipher suite ${suite.toString(16)} is not one of TLS 1.3`)
    this.#cipher = known.cipher
    this.#key = expandLabel(known.hash, secret, 'key', known.cipher === 'aes-128-gcm' ? 16 : 32)
    this.#iv = expandLabel(known.hash, secret, 'iv', 12)
  }

  /** Content and inner type of a record; undefined where it is not of this secret. */
  open({ header, body }: TlsRecord): { type: number; content: Buffer } | undefined {
    const nonce = Buffer.from(this.#iv)
    nonce.writeBigUInt64BE(nonce.readBigUInt64BE(4) ^ this.#sequence, 4)
    const decipher = createDecipheriv(this.#cipher as 'aes-256-gcm', this.#key, nonce, { authTagLength: 16 })
    decipher.setAAD(header)
    decipher.setAuthTag(body.subarray(-16))
    const inner = decipher.update(body.subarray(0, -16))
    try {
      decipher.final()
    } catch {
      return undefined
    }
    this.#sequence++
    const type = inner.findLastIndex((byte) => byte !== 0)
    return { type: inner[type] ?? 0, content: inner.subarray(0, type) }
  }
}

/** The application data of one direction: records under the handshake's secret first, then under the traffic secret. */
function decryptStream(stream: Buffer, suite: number, secrets: readonly Buffer[]): Buffer {
  const openers = secrets.map((secret) => new Opener(suite, secret))
  const data: Buffer[] = []
  for (const record of recordsOf(stream).filter(({ type }) => type === APPLICATION_DATA)) {
    let opened = openers[0]?.open(record)
    if (!opened) {
      openers.shift()
      opened = openers[0]?.open(record)
    }
    if (!opened) throw new Error('a record opens with none of the secrets')
    if (opened.type === APPLICATION_DATA) data.push(opened.content)
  }
  return Buffer.concat(data)
}

/** What both sides of a captured TLS 1.3 connection said in secret. */
export function decrypt(client: Buffer, server: Buffer, keyLog: string): { client: Buffer; server: Buffer } {
  const random = hello(client).random.toString('hex')
  const { rest } = hello(server)
  // Behind the random: the session id with its length, then the cipher suite.
  const suite = rest.readUInt16BE(1 + rest.readUInt8(0))
  const secret = (label: string): Buffer => {
    const line = new RegExp(`^${label} ${random} ([0-9a-f]+)$`, 'm').exec(keyLog)
    if (line?.[1] === undefined) throw new Error(`the key log has no ${label} of this connection`)
    return Buffer.from(line[1], 'hex')
  }
  const secrets = (side: string): Buffer[] => [
    secret(`${side}_HANDSHAKE_TRAFFIC_SECRET`),
    secret(`${side}_TRAFFIC_SECRET_0`),
  ]
  return {
    client: decryptStream(client, suite, secrets('CLIENT')),
    server: decryptStream(server, suite, secrets('SERVER')),
  }
}
