// Faults of the embedded device that a test build of the addon can be told to have.

import { dirname, join } from 'node:path'

/** What a test build does to packets that arrive at this process' embedded device. */
export interface SoftFaults {
  /** Drops them from now on, if their UDP payload is longer than so many bytes. */
  softDrop(longerThan: number): void
  /** Lets them pass again. */
  softPass(): void
  /** How many were dropped so far. */
  softDropped(): number
}

// eslint-disable-next-line @typescript-eslint/no-require-imports -- what the package does not export
const binding = require(
  join(dirname(require.resolve('secure-rdma/package.json')), 'binding.cjs'),
) as Partial<SoftFaults>

/** There in a test build only. */
export const softFaults = 'softDrop' in binding ? (binding as SoftFaults) : undefined
