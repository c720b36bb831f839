// What publish() is asked for: a range of a region, and what the peer may do with it.

import { localRange, within, type LocalRange } from './region.js'
import { accessBits } from './remote.js'
import { argumentTypeError, members, whole, type Checks } from './validate.js'

/** What {@link PublishOptions} become. */
interface Published {
  access: number
  offset: number
  length: number
}

const publishOptions: Checks<Published> = {
  access: accessBits,
  offset: whole(0, Number.MAX_SAFE_INTEGER, 'bytes'),
  length: whole(1, Number.MAX_SAFE_INTEGER, 'bytes'),
}

/** The range of `local` that the options name, and the rights to it, as bits. @internal */
export function toPublish(local: unknown, options: unknown): { range: LocalRange; access: number } {
  const given = localRange(local, 'local')
  const checked = members<Published>(options, 'options', publishOptions)
  if (checked.access === undefined) throw argumentTypeError('options.access', "'read', 'write' or 'atomic'", undefined)
  const [from, byteLength] = within('local', given.byteLength, checked.offset ?? 0, checked.length)
  const range = { native: given.native, byteOffset: given.byteOffset + from, byteLength }
  return { range, access: checked.access }
}
