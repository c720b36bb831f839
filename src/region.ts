import { constants } from 'node:buffer'
import { inspect, types, type InspectOptions } from 'node:util'
import type { NativeRegion } from '#binding'
import { environment } from './events.js'
import { unwrap } from './native.js'
import { argumentTypeError, argumentValueError, messageBytes, rangeError, unshared, whole } from './validate.js'

/** What the constructors want to see, so that nobody else constructs. */
const key = Symbol('secure-rdma')

/** What memory of ours is shown as, and the region that it is of. */
const regions = new WeakMap<ArrayBufferLike, Region>()

/** The native side of a region. @internal */
export let nativeOf: (region: Region) => NativeRegion

let createRegion: (native: NativeRegion, byteLength: number) => Region

/** Makes a slice whose bounds have been checked. */
let createSlice: (region: Region, byteOffset: number, byteLength: number) => RegionSlice

/**
 * Memory that connections read from, write to, and publish to their peers. Made by {@link allocate}.
 *
 * A region is registered with the device of a connection when it is first used there, once, however many connections of
 * that device use it. By itself it opens nothing to any peer: {@link Connection.publish} does, to one peer at a time.
 *
 * **A peer and the device may change the bytes at any time** while something of them is published or in flight. What
 * they are is certain when the operation is over, or when the peer has said so by a message or an immediate that it sent
 * behind its WRITEs. Copy what you check before you check it.
 */
export class Region implements Disposable {
  readonly #native: NativeRegion
  readonly #buffer: ArrayBuffer
  /** Length in bytes. */
  readonly byteLength: number
  #closed = false

  private constructor(shown: symbol, native: NativeRegion, byteLength: number) {
    if (shown !== key) throw new TypeError('Illegal constructor: allocate() makes regions')
    this.#native = native
    this.#buffer = native.buffer()
    this.byteLength = byteLength
    // Not markAsUntransferable(): Node does so itself with memory of others, and Node 24 cannot end a thread that has.
    regions.set(this.#buffer, this)
  }

  static {
    nativeOf = (region) => region.#native
    createRegion = (native, byteLength) => new this(key, native, byteLength)
  }

  /**
   * The memory. It stays valid for as long as anything holds it: this buffer, the region, work in flight, what is
   * published of it. It cannot be transferred to another thread.
   */
  get buffer(): ArrayBuffer {
    return this.#buffer
  }

  /** Whether {@link close} was called. */
  get closed(): boolean {
    return this.#closed
  }

  /**
   * A range of it.
   *
   * @param byteOffset its first byte, 0 to `byteLength`
   * @param byteLength how many bytes; all that follow by default. None is good for a WRITE
   * @throws {RangeError} where it does not lie inside
   */
  slice(byteOffset = 0, byteLength?: number): RegionSlice {
    return createSlice(this, ...within('the region', this.byteLength, byteOffset, byteLength))
  }

  /**
   * Ends the region: nothing new is done with it. What is in flight completes, and what is published stays so until it is
   * unpublished or its connection ends. `buffer` can still be used. Idempotent.
   */
  close(): void {
    this.#closed = true
    this.#native.close()
  }

  /** The same as {@link close}. */
  [Symbol.dispose](): void {
    this.close()
  }

  /** Shows the length, and nothing of the contents. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    return `Region ${inspect({ byteLength: this.byteLength, closed: this.#closed }, { ...options, depth })}`
  }
}

/** A range of a region, as {@link Region.slice} makes it. */
export class RegionSlice {
  /** The region. */
  readonly region: Region
  /** Its first byte, from the region's start. */
  readonly byteOffset: number
  /** Length in bytes. */
  readonly byteLength: number

  private constructor(shown: symbol, region: Region, byteOffset: number, byteLength: number) {
    if (shown !== key) throw new TypeError('Illegal constructor: region.slice() makes slices')
    this.region = region
    this.byteOffset = byteOffset
    this.byteLength = byteLength
  }

  static {
    createSlice = (region, byteOffset, byteLength) => new this(key, region, byteOffset, byteLength)
  }

  /** The region's memory, all of it: `new Uint8Array(slice.buffer, slice.byteOffset, slice.byteLength)` is the slice's. */
  get buffer(): ArrayBuffer {
    return this.region.buffer
  }

  /**
   * A range of it; the offset counts from its own begin.
   *
   * @throws {RangeError} where it does not lie inside
   */
  slice(byteOffset = 0, byteLength?: number): RegionSlice {
    const [offset, length] = within('the slice', this.byteLength, byteOffset, byteLength)
    return createSlice(this.region, this.byteOffset + offset, length)
  }
}

/** Memory of a region: all of it, a slice, or a view of its `buffer`. */
export type LocalBytes = Region | RegionSlice | ArrayBufferView

/**
 * Allocates a region of zeroed memory, page-aligned, with a page that nobody may touch before and behind it.
 *
 * Its memory is given back when it is collected, like other memory of JavaScript's; nothing has to be closed for that.
 * {@link Region.close} ends its registrations, and with them the pinning of its pages, at once.
 *
 * @param byteLength 1 byte or more
 * @throws {RdmaError} `ERR_RDMA_NO_MEMORY`; `ERR_RDMA_NO_EXTERNAL_BUFFERS` where JavaScript takes no memory of others
 * (Electron)
 * @throws {TypeError | RangeError} for a length that cannot be
 */
// eslint-disable-next-line @typescript-eslint/require-await -- what fails rejects
export async function allocate(byteLength: number): Promise<Region> {
  const length = whole(1, constants.MAX_LENGTH, 'bytes')(byteLength, 'byteLength')
  return createRegion(unwrap<NativeRegion>(environment.allocate(length)), length)
}

/** A range of a region, checked. @internal */
export interface LocalRange {
  readonly native: NativeRegion
  readonly byteOffset: number
  readonly byteLength: number
}

/** Which region's bytes a value names. Memory of anybody else is refused by what it is. @internal */
export function localRange(value: unknown, name: string): LocalRange {
  if (value instanceof RegionSlice) return rangeOf(value.region, value.byteOffset, value.byteLength)
  if (value instanceof Region) return rangeOf(value, 0, value.byteLength)
  if (ArrayBuffer.isView(value)) {
    const region = regions.get(value.buffer)
    if (region) return rangeOf(region, value.byteOffset, value.byteLength)
    throw argumentValueError(`${name} is a view of ${describeForeign(value.buffer, value)}`)
  }
  if (types.isAnyArrayBuffer(value)) {
    const region = regions.get(value)
    if (region) return rangeOf(region, 0, region.byteLength)
    throw argumentValueError(`${name} is ${describeForeign(value)}`)
  }
  throw argumentTypeError(name, "a Region, a slice of one, or a view of one's buffer", value)
}

/**
 * The same, with memory of anybody else copied into a region of its own, whose native side is left in `copies`: to be closed
 * when it has been posted.
 *
 * @internal
 */
export function copiedRange(value: unknown, name: string, copies: NativeRegion[]): LocalRange {
  const isForeign = ArrayBuffer.isView(value)
    ? !regions.has(value.buffer)
    : types.isAnyArrayBuffer(value) && !regions.has(value)
  if (!isForeign) return localRange(value, name)
  const bytes = unshared(messageBytes(value))
  const native = unwrap<NativeRegion>(environment.allocate(Math.max(1, bytes.length)))
  copies.push(native)
  native.fill(bytes)
  return { native, byteOffset: 0, byteLength: bytes.length }
}

function rangeOf(region: Region, byteOffset: number, byteLength: number): LocalRange {
  return { native: nativeOf(region), byteOffset, byteLength }
}

const REMEDY = 'allocate() a region and copy the bytes into its buffer'

/** What memory is, and why it cannot be registered. */
function describeForeign(buffer: ArrayBufferLike, view?: ArrayBufferView): string {
  if (types.isSharedArrayBuffer(buffer)) {
    return `a SharedArrayBuffer, which Node frees with its last thread while a device may still write to it: ${REMEDY}`
  }
  if ((buffer as { detached?: boolean }).detached) return `an ArrayBuffer whose memory was taken away: ${REMEDY}`
  if ((buffer as { resizable?: boolean }).resizable) {
    return `a resizable ArrayBuffer, whose pages may be taken away while a device writes to them: ${REMEDY}`
  }
  if (Buffer.isBuffer(view) && view.byteLength < buffer.byteLength) {
    return `a pool that Node keeps for many Buffers, all of which would be registered: ${REMEDY}`
  }
  return `an ArrayBuffer of Node's, whose memory can be taken away while a device writes to it: ${REMEDY}`
}

/** Checks a range of `whole` bytes; the length is by default all that follows. */
export function within(of: string, all: number, offset: unknown, length: unknown): [offset: number, length: number] {
  const from = whole(0, all, 'bytes')(offset, 'byteOffset')
  if (length === undefined) return [from, all - from]
  const bytes = whole(0, Number.MAX_SAFE_INTEGER, 'bytes')(length, 'byteLength')
  if (from + bytes > all) {
    throw rangeError(`${bytes} bytes from byteOffset ${from} do not lie inside ${of} of ${all} bytes`)
  }
  return [from, bytes]
}
