import { isIP } from 'node:net'
import { inspect, types } from 'node:util'

/** A value of the wrong type, as Node's own functions say it. */
export function argumentTypeError(name: string, expected: string, value: unknown): TypeError {
  const shown = typeof value === 'function' ? 'a function' : inspect(value, { depth: 0 }).slice(0, 60)
  return withCode(new TypeError(`${name} must be ${expected}; it is ${shown}`), 'ERR_INVALID_ARG_TYPE')
}

/** A value of the right type that cannot be. `shown` is left out where it may hold a secret. */
export function argumentValueError(message: string): TypeError {
  return withCode(new TypeError(message), 'ERR_INVALID_ARG_VALUE')
}

/** A number that is too small or too large. */
export function rangeError(message: string): RangeError {
  return withCode(new RangeError(message), 'ERR_OUT_OF_RANGE')
}

function withCode<E extends Error>(error: E, code: string): E {
  return Object.assign(error, { code })
}

/** Turns what a user gave for the option `name` into what native code takes, or throws. */
export type Check<T> = (value: unknown, name: string) => T

/** A text that is not empty and has no NUL in it. */
export const text: Check<string> = (value, name) => {
  if (typeof value !== 'string') throw argumentTypeError(name, 'a string', value)
  if (value === '' || value.includes('\0')) throw argumentValueError(`${name} must not be empty, nor hold a NUL`)
  return value
}

/** An IPv4 or IPv6 address. */
export const address: Check<string> = (value, name) => {
  if (typeof value !== 'string') throw argumentTypeError(name, 'an IP address', value)
  if (isIP(value) === 0 || value.includes('%')) {
    throw argumentValueError(`${name} must be an IP address, without a zone; it is ${inspect(value)}`)
  }
  return value
}

/** The SHA-256 of a key: 64 hexadecimal digits, also with colons, or base64 of 32 bytes, also behind `sha256/`. */
export const pin: Check<string> = (value, name) => {
  const given = text(value, name)
  if (/^[\da-f]{64}$/i.test(given.replaceAll(':', ''))) return given
  // The last digit holds four bits of the last byte.
  if (/^(sha256\/)?[\w+/-]{42}[AEIMQUYcgkosw048]=*$/.test(given)) return given
  throw argumentValueError(
    `${name} must be the SHA-256 of a SubjectPublicKeyInfo, as 64 hexadecimal digits or base64; it is ${inspect(given)}`,
  )
}

/** The SPIFFE ID of a workload, as SPIFFE-ID §2 spells it: a certificate's is compared with it byte for byte. */
export const spiffeId: Check<string> = (value, name) => {
  const given = text(value, name)
  const isOne = /^spiffe:\/\/[a-z\d._-]{1,255}(\/(?!\.{1,2}(\/|$))[\w.-]+)+$/.test(given)
  if (isOne && given.length <= 2048) return given
  throw argumentValueError(
    `${name} must be the SPIFFE ID of a workload, as in spiffe://trust-domain/path; it is ${inspect(given)}`,
  )
}

/** `true` or `false`. */
export const flag: Check<boolean> = (value, name) => {
  if (typeof value !== 'boolean') throw argumentTypeError(name, 'true or false', value)
  return value
}

/** A whole number. */
export function whole(least: number, most: number, unit = ''): Check<number> {
  return (value, name) => {
    if (typeof value !== 'number') throw argumentTypeError(name, 'a number', value)
    if (!Number.isInteger(value) || value < least || value > most) {
      throw rangeError(`${name} takes whole numbers${unit && ` of ${unit}`} from ${least} to ${most}; it is ${value}`)
    }
    return value
  }
}

/** One of some words. */
export function oneOf<T extends string>(...words: readonly T[]): Check<T> {
  return (value, name) => {
    const word = words.find((candidate) => candidate === value)
    if (word === undefined) {
      throw argumentValueError(`${name} must be ${words.map((w) => `'${w}'`).join(' or ')}; it is ${inspect(value)}`)
    }
    return word
  }
}

/** One element or an array of them. */
export function list<T>(check: Check<T>): Check<T[]> {
  return (value, name) => {
    if (!Array.isArray(value)) return [check(value, name)]
    return value.map((element: unknown, index) => check(element, `${name}[${index}]`))
  }
}

/** Text or bytes of certificates and keys. Never shown in a message: it may be a key. */
export const material: Check<Uint8Array> = (value, name) => {
  if (typeof value === 'string' && value !== '') return new TextEncoder().encode(value)
  if (types.isUint8Array(value) && value.length > 0) return value
  const expected = 'a string or a Uint8Array with PEM or DER in it, and not empty'
  throw withCode(new TypeError(`${name} must be ${expected}`), 'ERR_INVALID_ARG_TYPE')
}

/** A function. */
export const callable: Check<(...values: never[]) => unknown> = (value, name) => {
  if (typeof value !== 'function') throw argumentTypeError(name, 'a function', value)
  return value as (...values: never[]) => unknown
}

/** The checks of an object's members, by name. */
export type Checks<T> = { readonly [Name in keyof T]-?: Check<Exclude<T[Name], undefined>> }

/** What a checked object holds. */
export type Checked<T> = { [Name in keyof T]?: T[Name] }

/**
 * Checks an object by a table. `undefined` counts as not given; a member that the table does not have is refused, and
 * `foreign` may say why. So is an object that may inherit members: they would be ignored, and with them an `authorize`
 * or `crl` that was asked for.
 */
export function members<T>(
  value: unknown,
  name: string,
  table: Checks<T>,
  foreign: Readonly<Record<string, string>> = {},
): Checked<T> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw argumentTypeError(name, 'an object', value)
  }
  if (!isPlain(value)) {
    throw argumentValueError(`${name} must be a plain object: what it inherits would be ignored; give { ...options }`)
  }
  const checked: Checked<T> = {}
  for (const [key, given] of Object.entries(value)) {
    if (given === undefined) continue
    if (!Object.hasOwn(table, key)) throw unknownMember(name, key, table, foreign)
    const member = key as keyof T & string
    checked[member] = table[member](given, `${name}.${key}`)
  }
  return checked
}

/** Whether it inherits from nothing, or from what every object literal does; `Object.prototype` differs by realm. */
function isPlain(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  if (typeof prototype !== 'object' || prototype === null) return true
  return Object.getPrototypeOf(prototype) === null && Object.hasOwn(prototype, 'isPrototypeOf')
}

function unknownMember(name: string, key: string, table: object, foreign: Readonly<Record<string, string>>): TypeError {
  const why = Object.hasOwn(foreign, key) ? foreign[key] : `the names are ${Object.keys(table).join(', ')}`
  return argumentValueError(`${name}.${key} is not an option of secure-rdma: ${why}`)
}

const typedArrays = Object.getPrototypeOf(Uint8Array.prototype) as object
// eslint-disable-next-line @typescript-eslint/unbound-method -- called on what is measured
const lengthOf = Object.getOwnPropertyDescriptor(typedArrays, 'byteLength')?.get as (this: unknown) => number

/**
 * How many bytes there are, where the value is a Uint8Array that can be copied as it is; -1 where {@link messageBytes} has
 * to look closer. What the value says of itself does not count.
 */
export function plainLength(value: unknown): number {
  // None: its buffer may have been transferred away.
  return types.isUint8Array(value) ? lengthOf.call(value) || -1 : -1
}

/**
 * The bytes of a message, as a view of its own.
 */
export function messageBytes(value: unknown): Uint8Array {
  const expected = 'a Buffer, TypedArray, DataView or ArrayBuffer (for text: Buffer.from(text))'
  // Throws where the buffer was transferred away: an empty message would be sent otherwise.
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
  if (types.isAnyArrayBuffer(value)) return new Uint8Array(value)
  throw argumentTypeError('message', expected, value)
}

/** The same bytes where no other thread can change them: native code may not meet that while it copies. */
export function unshared(bytes: Uint8Array): Uint8Array {
  return types.isSharedArrayBuffer(bytes.buffer) ? bytes.slice() : bytes
}
