import type { Counting, Listing } from '#binding'
import { environment } from './events.js'
import { asked } from './lookup.js'
import { unwrap } from './native.js'
import { members, text, whole, type Checks } from './validate.js'

/** One entry of a port's GID table. */
export interface GidInfo {
  /** Its index, for `gidIndex`. */
  readonly index: number
  /** The GID, written as an IPv6 address; on RoCE an IPv4 address stands in it as `::ffff:a.b.c.d`. */
  readonly gid: string
  /** How its packets are carried. */
  readonly kind: 'RoCE v2' | 'IB/RoCE v1'
  /** The network interface that it comes from. */
  readonly interface?: string
  /** The largest path MTU that this interface carries, in bytes, where it need not be the port's. */
  readonly mtu?: number
}

/** One port of a device. */
export interface PortInfo {
  /** Its number, from 1, for `devicePort`. */
  readonly number: number
  /** Whether it carries packets now. */
  readonly active: boolean
  /** What carries its packets. */
  readonly linkLayer: 'ethernet' | 'infiniband'
  /** Its LID; 0 on Ethernet. */
  readonly lid: number
  /** The largest path MTU that it carries now, in bytes. */
  readonly activeMtu: number
  /** Its GIDs. */
  readonly gids: readonly GidInfo[]
  /** IP addresses of its network interface. */
  readonly addresses: readonly string[]
}

/** An RDMA device of this host. */
export interface DeviceInfo {
  /** Its name, for `device`. */
  readonly name: string
  /**
   * Which implementation stands behind it: `verbs` is a NIC, or the kernel's soft-RoCE; `soft` is the embedded device,
   * RoCE v2 in this process over UDP. Its GIDs are the addresses of this host.
   */
  readonly kind: 'verbs' | 'soft'
  /** Why it cannot carry connections, where it cannot. */
  readonly unusable?: string
  /** Its ports. */
  readonly ports: readonly PortInfo[]
  /** What it can do at the most. */
  readonly limits: {
    /** Work requests per queue. */
    readonly maxWorkRequests: number
    /** Scatter/gather entries per work request. */
    readonly maxSge: number
    /** Completions per completion queue. */
    readonly maxCompletions: number
    /** READs and atomics of peers that it serves at once. */
    readonly maxResponderResources: number
    /** READs and atomics that it may have outstanding. */
    readonly maxInitiatorDepth: number
    /** Work requests per shared receive queue; 0 where it has none. */
    readonly maxSharedReceives: number
    /** The longest message of the device, in bytes. */
    readonly maxMessage: number
  }
}

/**
 * Lists the RDMA devices of this host. The embedded one, `soft`, is always the last; a host without any other, or without
 * rdma-core, has it alone.
 *
 * @throws {RdmaError} `ERR_RDMA_LIBRARY` when rdma-core is there but unusable
 */
export function devices(): Promise<DeviceInfo[]> {
  return asked((id) => unwrap<Listing>(environment.devices(id))) as Promise<DeviceInfo[]>
}

/** What {@link deviceStats} takes beside the name. */
export interface DeviceStatsOptions {
  /** The device's port, 1 to 255. Default 1. */
  port?: number | undefined
}

/**
 * Counters of a device's port. Those of a NIC and of soft-RoCE are the kernel's (`hw_counters` and `counters` in
 * `/sys/class/infiniband/DEVICE/ports/PORT`), by its names: `sent_pkts`, `rcvd_pkts`, `out_of_seq_request`, …; they count for
 * all processes, and which there are differs by driver. The embedded device counts for this process since it was opened,
 * by soft-RoCE's names and some of its own. They only grow.
 */
export type DeviceStats = Readonly<Record<string, number>>

const statsOptions: Checks<Required<DeviceStatsOptions>> = { port: whole(1, 255) }

/**
 * Reads the counters of a device. `connection.device.stats()` does it for the device and port of a connection.
 *
 * @param device its name, as in {@link devices}
 * @throws {RdmaError} `ERR_RDMA_DEVICE_NOT_FOUND` where there is no such device or port
 * @throws {TypeError | RangeError} for an argument that cannot be
 */
export async function deviceStats(device: string, options: DeviceStatsOptions = {}): Promise<DeviceStats> {
  const name = text(device, 'device')
  const { port = 1 } = members<Required<DeviceStatsOptions>>(options, 'options', statsOptions)
  const counters = await asked((id) => unwrap<Counting>(environment.deviceCounters(id, name, port)))
  return Object.fromEntries(Object.entries(counters).sort(([one], [other]) => (one < other ? -1 : 1)))
}
