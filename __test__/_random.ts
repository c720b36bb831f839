// Random values of all types, the same for the same seed.

/** What a value of a user's throws by itself: to be let through as it is. */
export class UserError extends Error {}

/** A source of random numbers, and of what is made of them. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** At least 0, and less than 1. (mulberry32) */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number below `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit)
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  pick<T>(makers: readonly (() => T)[]): T {
    const make = makers[this.below(makers.length)]
    if (!make) throw new Error('nothing to pick from')
    return make()
  }

  /** One that is aborted, or will be soon. */
  signal(): AbortSignal {
    return this.chance(0.3) ? AbortSignal.abort(new UserError('aborted')) : AbortSignal.timeout(this.below(30))
  }

  /** What a message can be: every kind of view and buffer, also those that have lost their memory. */
  bytes(): unknown {
    const length = this.pick([() => 0, () => this.below(100), () => this.below(70_000), () => 8 * this.below(1000)])
    return this.pick<unknown>([
      () => Buffer.alloc(length, this.below(256)),
      () => Buffer.from('pooled'),
      () => new Uint8Array(length),
      () => new ArrayBuffer(length),
      () => new SharedArrayBuffer(length),
      () => new Uint8Array(new SharedArrayBuffer(length)),
      () => new DataView(new ArrayBuffer(length), length >> 1),
      () => new Float64Array(length >> 3),
      () => new BigInt64Array(length >> 3),
      () => detached(length),
      () => new Uint8Array(resizable(length)),
      () => resizable(length),
    ])
  }

  /** Anything at all. */
  anything(depth = 2): unknown {
    if (depth > 0 && this.chance(0.15)) return Array.from({ length: this.below(4) }, () => this.anything(depth - 1))
    if (depth > 0 && this.chance(0.2)) return this.#object(depth - 1)
    return this.pick<unknown>([
      () => undefined,
      () => null,
      () => this.chance(0.5),
      () => NUMBERS[this.below(NUMBERS.length)],
      () => this.next() * 2 ** this.below(64) * (this.chance(0.5) ? 1 : -1),
      () => BigInt(this.below(2 ** 31)) ** 3n,
      () => Symbol('a'),
      () => TEXTS[this.below(TEXTS.length)],
      () => String.fromCharCode(...Array.from({ length: this.below(20) }, () => this.below(65_536))),
      () => () => this.anything(0),
      () => UserError,
      () => this.bytes(),
      () => new Date(this.next() * 1e13),
      () => /a/g,
      () => new Map([[1, 2]]),
      () => new UserError('an error'),
      () => Promise.resolve(1),
      () => this.signal(),
      () => hostile(),
      () => Object.create(null) as object,
      () => globalThis,
      () => new Proxy({}, {}),
    ])
  }

  #object(depth: number): object {
    const object: Record<string, unknown> = {}
    for (let count = this.below(4); count > 0; count--) {
      const name = NAMES[this.below(NAMES.length)] ?? ''
      if (this.chance(0.1)) Object.defineProperty(object, name, { get: raise, enumerable: true, configurable: true })
      else Object.defineProperty(object, name, { value: this.anything(depth), enumerable: true, configurable: true })
    }
    return object
  }
}

const NUMBERS = [
  0,
  -0,
  1,
  -1,
  0.5,
  NaN,
  Infinity,
  -Infinity,
  2,
  7,
  255,
  256,
  4096,
  65_535,
  65_536,
  2 ** 31,
  2 ** 53,
  1e300,
]
const TEXTS = [
  '',
  'a',
  '0',
  '-1',
  'fake0',
  '127.0.0.1',
  '::',
  '\0',
  '%s%n',
  '__proto__',
  'ä',
  '\ud800',
  'x'.repeat(5000),
]
const NAMES = [
  'host',
  'port',
  'ca',
  'cert',
  'key',
  'signal',
  'cause',
  'code',
  'then',
  '__proto__',
  'constructor',
  'depth',
]

function raise(): never {
  throw new UserError('a getter')
}

/** Throws whatever is done with it. */
function hostile(): object {
  const traps = ['get', 'has', 'ownKeys', 'getPrototypeOf', 'getOwnPropertyDescriptor', 'set', 'deleteProperty']
  return new Proxy({}, Object.fromEntries(traps.map((trap) => [trap, raise])))
}

function detached(length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  structuredClone(bytes, { transfer: [bytes.buffer] })
  return bytes
}

function resizable(length: number): ArrayBuffer {
  const Resizable = ArrayBuffer as new (length: number, options: { maxByteLength: number }) => ArrayBuffer
  return new Resizable(length, { maxByteLength: length + 100 })
}
