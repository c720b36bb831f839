// Reads offers in the decrypted exchange: frames of a length and a CBOR array `[kind, fields]`.

const OFFER = 1
const QPN = 3
const PSN = 4
const PATH_MTU = 5
const BINDING = 12

/** What a test wants of an offer. */
export interface DecodedOffer {
  /** The frame. */
  bytes: Buffer
  qpn: number
  psn: number
  /** The bytes that encode QPN and PSN. */
  numbers: Buffer
  /** What binds it to the TLS session. */
  binding: Buffer
}

/** The offer in what one side said, of which it is the first frame. */
export function offerIn(stream: Buffer): DecodedOffer {
  const bytes = stream.subarray(0, 4 + stream.readUInt32BE(0))
  const reader = new Reader(bytes.subarray(4))
  if (reader.head(4) !== 2 || reader.head(0) !== OFFER) throw new Error('the first frame is no offer')
  const fields = new Map<number, number | Buffer>()
  const places = new Map<number, number>()
  for (let left = reader.head(5); left > 0; left--) {
    const place = reader.at
    const key = reader.head(0)
    places.set(key, place)
    fields.set(key, reader.item())
  }
  const number = (key: number): number => {
    const value = fields.get(key)
    if (typeof value !== 'number') throw new Error(`field ${key} is no number`)
    return value
  }
  const binding = fields.get(BINDING)
  if (!Buffer.isBuffer(binding) || binding.length !== 32) throw new Error('the binding is not 32 bytes')
  const numbers = bytes.subarray(4).subarray(places.get(QPN), places.get(PATH_MTU))
  return { bytes, qpn: number(QPN), psn: number(PSN), numbers, binding }
}

/** The CBOR that an offer is made of. */
class Reader {
  readonly #bytes: Buffer
  at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  /** The number in the head of an item, which must be of this major type. */
  head(major: number): number {
    const first = this.#bytes.readUInt8(this.at++)
    if (first >> 5 !== major) throw new Error(`major type ${first >> 5} where ${major} belongs, at ${this.at - 1}`)
    const size = [1, 2, 4, 8][(first & 0x1f) - 24]
    if (size === undefined) return first & 0x1f
    const value = size === 8 ? Number(this.#bytes.readBigUInt64BE(this.at)) : this.#bytes.readUIntBE(this.at, size)
    this.at += size
    return value
  }

  /** A number or a byte string. */
  item(): number | Buffer {
    if (this.#bytes.readUInt8(this.at) >> 5 !== 2) return this.head(0)
    const length = this.head(2)
    this.at += length
    return this.#bytes.subarray(this.at - length, this.at)
  }
}
