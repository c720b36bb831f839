import type { NativeRegion, NativeRemote } from '#binding'
import { copiedRange, localRange, type LocalRange } from './region.js'
import { remoteRange, type RemoteRange } from './remote.js'
import { argumentTypeError, flag, members, messageBytes, rangeError, whole, type Checks } from './validate.js'

/** What every one-sided operation may be told. */
export interface OperationOptions {
  /** Where in `remote` it begins, in bytes from its begin. Default 0. */
  offset?: number | undefined
  /**
   * Waits until all earlier READs and atomics of the connection are complete. Without it, an operation may overtake the
   * bytes that an earlier READ brings.
   */
  fence?: boolean | undefined
}

/** What a WRITE may be told. */
export interface WriteOptions extends OperationOptions {
  /** A number, 0 to 2^32 − 1, that the peer's `receiveImmediate()` gives when all bytes are there. */
  immediate?: number | undefined
}

const operationOptions: Checks<Required<OperationOptions>> = {
  offset: whole(0, Number.MAX_SAFE_INTEGER, 'bytes'),
  fence: flag,
}
const writeOptions: Checks<Required<WriteOptions>> = { ...operationOptions, immediate: whole(0, 0xffff_ffff) }

/** Bytes that an atomic works on. */
const ATOMIC = 8

/** Kinds and flags, as crates/node/src/commands.rs has them. */
const [SEND, WRITE, READ, COMPARE_AND_SWAP, FETCH_AND_ADD] = [0, 1, 2, 3, 4]
const [FENCE, IMMEDIATE] = [1, 2]

const NO_BYTES = new Uint8Array(0)

/**
 * A list of operations on its way into native code: one crossing whatever its length, and no object for any of them.
 * Arguments are checked as they come.
 *
 * @internal
 */
export class Commands {
  /** One memory in two ways: doubles, and integers of 64 bits. */
  #numbers = new Float64Array(32)
  #integers = new BigUint64Array(this.#numbers.buffer)
  #count = 0
  #bytes = NO_BYTES
  #used = 0
  #length = 0
  #operations = 0
  readonly regions: NativeRegion[] = []
  readonly remotes: NativeRemote[] = []
  /** Regions that are for this list alone. */
  readonly #copies: NativeRegion[] = []

  /** How many operations there are, messages among them. */
  get length(): number {
    return this.#length
  }

  /** Whether there is anything but messages. */
  get hasOperations(): boolean {
    return this.#operations > 0
  }

  /** Whether there are messages. */
  get hasMessages(): boolean {
    return this.#length > this.#operations
  }

  /** What native code takes. */
  get words(): BigUint64Array {
    return this.#integers
  }

  get wordCount(): number {
    return this.#count
  }

  get messages(): Uint8Array {
    return this.#bytes.subarray(0, this.#used)
  }

  /** Makes it empty. Keeps the memory, unless there is much. */
  clear(): void {
    for (const copy of this.#copies.splice(0)) copy.close()
    this.#count = this.#used = this.#length = this.#operations = 0
    this.regions.length = this.remotes.length = 0
    if (this.#bytes.length > 1 << 20) this.#bytes = NO_BYTES
  }

  /** A message. The bytes are copied. */
  send(message: unknown): void {
    const bytes = messageBytes(message)
    const { length } = bytes
    this.#reserve(2)
    this.#number(SEND)
    this.#number(length)
    if (this.#used + length > this.#bytes.length) this.#growBytes(length)
    this.#bytes.set(bytes, this.#used)
    this.#used += length
    this.#length++
  }

  /** RDMA WRITE. The number of its bytes. */
  write(local: unknown, remote: unknown, options: unknown): number {
    const { offset, fence, immediate } = members<Required<WriteOptions>>(options, 'options', writeOptions)
    const flags = (fence ? FENCE : 0) | (immediate === undefined ? 0 : IMMEDIATE)
    return this.#transfer(WRITE, flags, immediate ?? 0, this.#copied(local), remoteRange(remote, 'remote', offset ?? 0))
  }

  /** RDMA READ. The number of its bytes. */
  read(remote: unknown, local: unknown, options: unknown): number {
    const { offset, fence } = members<Required<OperationOptions>>(options, 'options', operationOptions)
    const from = remoteRange(remote, 'remote', offset ?? 0)
    return this.#transfer(READ, fence ? FENCE : 0, 0, gathered(local, localRange), from)
  }

  compareAndSwap(remote: unknown, expected: unknown, desired: unknown, options: unknown): void {
    this.#atomic(COMPARE_AND_SWAP, remote, [integer(expected, 'expected'), integer(desired, 'desired')], options)
  }

  fetchAndAdd(remote: unknown, addend: unknown, options: unknown): void {
    this.#atomic(FETCH_AND_ADD, remote, [BigInt.asUintN(64, integer(addend, 'addend', -(1n << 63n)))], options)
  }

  #transfer(kind: number, flags: number, immediate: number, local: LocalRange[], remote: RemoteRange): number {
    const length = local.reduce((sum, { byteLength }) => sum + byteLength, 0)
    if (length > remote.byteLength) {
      throw rangeError(`${length} bytes do not fit into the ${remote.byteLength} bytes of remote from the offset on`)
    }
    if (length === 0 && kind === READ) throw rangeError('a READ needs 1 byte or more of local memory')
    this.#reserve(6 + 3 * local.length)
    this.#number(kind)
    this.#number(flags)
    this.#number(immediate)
    this.#number(placeOf(this.remotes, remote.native))
    this.#number(remote.byteOffset)
    this.#number(local.length)
    for (const { native, byteOffset, byteLength } of local) {
      this.#number(placeOf(this.regions, native))
      this.#number(byteOffset)
      this.#number(byteLength)
    }
    this.#length++
    this.#operations++
    return length
  }

  #copied(local: unknown): LocalRange[] {
    return gathered(local, (part, name) => copiedRange(part, name, this.#copies))
  }

  #atomic(kind: number, remote: unknown, operands: readonly bigint[], options: unknown): void {
    const { offset, fence } = members<Required<OperationOptions>>(options, 'options', operationOptions)
    const at = remoteRange(remote, 'remote', offset ?? 0)
    if (at.byteLength < ATOMIC)
      throw rangeError(`remote has ${at.byteLength} bytes from the offset on: an atomic takes 8`)
    this.#reserve(4 + operands.length)
    this.#number(kind)
    this.#number(fence ? FENCE : 0)
    this.#number(placeOf(this.remotes, at.native))
    this.#number(at.byteOffset)
    for (const operand of operands) this.#integers[this.#count++] = operand
    this.#length++
    this.#operations++
  }

  #number(value: number): void {
    this.#numbers[this.#count++] = value
  }

  #reserve(words: number): void {
    if (this.#count + words <= this.#numbers.length) return
    const grown = new Float64Array(Math.max(2 * this.#numbers.length, this.#count + words))
    const integers = new BigUint64Array(grown.buffer)
    // As integers: doubles that are none might change their bits.
    integers.set(this.#integers)
    this.#numbers = grown
    this.#integers = integers
  }

  #growBytes(more: number): void {
    const grown = new Uint8Array(Math.max(4096, 2 * this.#bytes.length, this.#used + more))
    grown.set(this.messages)
    this.#bytes = grown
  }
}

/** The ranges of a gather list. */
function gathered(local: unknown, range: (part: unknown, name: string) => LocalRange): LocalRange[] {
  if (!Array.isArray(local)) return [range(local, 'local')]
  return local.map((part: unknown, index) => range(part, `local[${index}]`))
}

/** Lists name the same thing again and again: the last one first. */
function placeOf<T>(list: T[], wanted: T): number {
  const place = list.lastIndexOf(wanted)
  return place >= 0 ? place : list.push(wanted) - 1
}

function integer(value: unknown, name: string, least = 0n): bigint {
  if (typeof value !== 'bigint') throw argumentTypeError(name, 'a bigint', value)
  if (value < least || value >= 1n << 64n) {
    throw rangeError(`${name} takes integers from ${least} to 2^64 - 1; it is ${value}`)
  }
  return value
}
