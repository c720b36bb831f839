import { inspect, type InspectOptions } from 'node:util'
import type { NativeRemote } from '#binding'
import { within } from './region.js'
import { argumentTypeError, list, oneOf, type Check } from './validate.js'

/** What a peer may do with a region: RDMA READ, RDMA WRITE, atomics. */
export type RegionRight = 'read' | 'write' | 'atomic'

/** The rights, with their bits of `enum ibv_access_flags`. */
const RIGHTS: Readonly<Record<RegionRight, number>> = { read: 4, write: 2, atomic: 8 }

/** What {@link Connection.publish} takes. */
export interface PublishOptions {
  /** What the peer may do with it: one right, or several. There is no default. */
  access: RegionRight | readonly RegionRight[]
  /** The first byte that is published, from the begin of what is given. Default 0. */
  offset?: number | undefined
  /** How many bytes, 1 or more. By default all that follow. */
  length?: number | undefined
}

/** The rights as bits. */
export const accessBits: Check<number> = (value, name) => {
  const rights = list(oneOf('read', 'write', 'atomic'))(value, name)
  if (rights.length === 0) throw argumentTypeError(name, "'read', 'write', 'atomic' or several of them", value)
  return rights.reduce((bits, right) => bits | RIGHTS[right], 0)
}

/** What the constructors want to see. */
const key = Symbol('secure-rdma')

/** Makes what users see of a grant. @internal */
export let createRemote: (native: NativeRemote, name: string) => RemoteRegion

/** Its native side. @internal */
export let nativeOfRemote: (remote: RemoteRegion) => NativeRemote

let createSlice: (region: RemoteRegion, byteOffset: number, byteLength: number) => RemoteSlice

/**
 * A range of the peer's memory that the peer has published to this connection: {@link Connection.remote} gives it. It is
 * worth something on that connection alone. Its address and key are shown nowhere.
 *
 * When the peer takes it back, operations that have not begun and all later ones fail with `ERR_RDMA_REGION_REVOKED`; the
 * connection lives on.
 */
export class RemoteRegion {
  readonly #native: NativeRemote
  /** The name that the peer published it under. */
  readonly name: string
  /** Length in bytes. */
  readonly byteLength: number
  /** What may be done with it. */
  readonly access: readonly RegionRight[]

  private constructor(shown: symbol, native: NativeRemote, name: string) {
    if (shown !== key) throw new TypeError('Illegal constructor: connection.remote() gives them')
    this.#native = native
    this.name = name
    this.byteLength = native.byteLength()
    const bits = native.access()
    this.access = (Object.keys(RIGHTS) as RegionRight[]).filter((right) => (bits & RIGHTS[right]) !== 0)
  }

  static {
    createRemote = (native, name) => new this(key, native, name)
    nativeOfRemote = (remote) => remote.#native
  }

  /** Whether the peer has taken it back. */
  get revoked(): boolean {
    return this.#native.isRevoked()
  }

  /**
   * A range of it.
   *
   * @throws {RangeError} where it does not lie inside
   */
  slice(byteOffset = 0, byteLength?: number): RemoteSlice {
    return createSlice(this, ...within("the peer's region", this.byteLength, byteOffset, byteLength))
  }

  /** Shows what it is called and how long it is. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    const { name, byteLength, access, revoked } = this
    return `RemoteRegion ${inspect({ name, byteLength, access, revoked }, { ...options, depth })}`
  }
}

/** A range of a {@link RemoteRegion}. */
export class RemoteSlice {
  /** The region. */
  readonly region: RemoteRegion
  /** Its first byte, from the region's start. */
  readonly byteOffset: number
  /** Length in bytes. */
  readonly byteLength: number

  private constructor(shown: symbol, region: RemoteRegion, byteOffset: number, byteLength: number) {
    if (shown !== key) throw new TypeError('Illegal constructor: remote.slice() makes slices')
    this.region = region
    this.byteOffset = byteOffset
    this.byteLength = byteLength
  }

  static {
    createSlice = (region, byteOffset, byteLength) => new this(key, region, byteOffset, byteLength)
  }

  /**
   * A range of it; the offset counts from its own begin.
   *
   * @throws {RangeError} where it does not lie inside
   */
  slice(byteOffset = 0, byteLength?: number): RemoteSlice {
    const [offset, length] = within('the slice', this.byteLength, byteOffset, byteLength)
    return createSlice(this.region, this.byteOffset + offset, length)
  }
}

/** Memory of the peer's: all of a region, or a slice. */
export type RemoteBytes = RemoteRegion | RemoteSlice

/** A range of the peer's memory, checked. @internal */
export interface RemoteRange {
  readonly native: NativeRemote
  readonly byteOffset: number
  readonly byteLength: number
}

/** What is from `offset` on. @internal */
export function remoteRange(value: unknown, name: string, offset: number): RemoteRange {
  const is = (value: unknown): value is RemoteBytes => value instanceof RemoteRegion || value instanceof RemoteSlice
  if (!is(value)) throw argumentTypeError(name, 'what connection.remote() gives, or a slice of it', value)
  const slice = value.slice(offset)
  return { native: nativeOfRemote(slice.region), byteOffset: slice.byteOffset, byteLength: slice.byteLength }
}
