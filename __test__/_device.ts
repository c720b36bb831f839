// Which device the tests run on. The same files run on any: the environment says which one there is.
//
// SECURE_RDMA_TEST_DEVICE=rxe    two soft-RoCE devices with a wire between, in the guest of tools/soft-roce
// SECURE_RDMA_TEST_DEVICE=soft   the embedded device, over loopback, anywhere. In a test build of the addon its wire can be
//                                cut, and only the tests that need that run
// SECURE_RDMA_TEST_DEVICE=mixed  the embedded device in a network namespace and a soft-RoCE device outside, in the guest
//                                (tools/soft-roce/peer.sh)
// SECURE_RDMA_TEST_DEVICE=together  both of these in one process, in that namespace (peer.sh --together)
// SECURE_RDMA_TEST_DEVICE=fake   two in-memory devices, in a test build of the addon
// unset                          none: device tests are reported as skipped
//
// Titles begin with the device, `[rxe ipv4 hybrid] …`: tools/test.mjs counts by it what ran on a real one.

import test, { type ExecutionContext } from 'ava'
import { devices, type CommonOptions } from 'secure-rdma'
import { softFaults } from './_soft-faults.js'

/** The devices that tests know. */
export type TestDevice = 'rxe' | 'soft' | 'mixed' | 'together' | 'fake'

/** One end of a place. */
export type End = 'server' | 'client'

/** Two addresses that reach each other by RDMA. */
export interface Place {
  /** For titles. */
  name: string
  /** Where the server listens. */
  server: string
  /** What the client binds, so that it uses the other device. */
  client: string
  /** How the path is found. Means nothing to the embedded device. */
  addressing: 'hybrid' | 'verbs'
  /** The devices' names. */
  devices: Record<End, string>
  /** What else a server and a client need here. */
  options?: Partial<Record<End, CommonOptions>>
  /** The network interface that shows all packets, in the guest. */
  wire?: string
  /** The command that runs another at this end, where that is elsewhere. */
  enter?: Partial<Record<End, readonly string[]>>
}

const rxe = { devices: { server: 'rxe0', client: 'rxe1' }, wire: 'v0' }
const ipv4 = { server: '10.8.0.1', client: '10.8.0.2', ...rxe }
const ipv6 = { server: 'fd08::1', client: 'fd08::2', ...rxe }

const soft = { addressing: 'hybrid', devices: { server: 'soft', client: 'soft' } } as const

/** The embedded device's network namespace, at the other end of the wire of rxe2. */
export const namespace = 'peer'
const enter = ['ip', 'netns', 'exec', namespace]

const mixed = (['ipv4', 'ipv6'] as const).flatMap((family): Place[] => {
  const [outside, inside] = family === 'ipv4' ? ['10.9.0.1', '10.9.0.2'] : ['fd09::1', 'fd09::2']
  const common = { addressing: 'hybrid', wire: 'v2' } as const
  return [
    {
      ...common,
      name: `mixed soft→rxe ${family}`,
      server: outside,
      client: inside,
      devices: { server: 'rxe2', client: 'soft' },
      enter: { client: enter },
    },
    {
      ...common,
      name: `mixed rxe→soft ${family}`,
      server: inside,
      client: outside,
      devices: { server: 'soft', client: 'rxe2' },
      enter: { server: enter },
    },
  ]
})

/**
 * One process at both ends. It has verbs devices, so that `soft` is taken where it is named only; and to the addressing of
 * librdmacm, rxe2's address in this namespace is none of rxe2's.
 */
const together = mixed.map((place): Place => {
  const { name, server, client, devices } = place
  const optionsAt = (end: End): CommonOptions =>
    devices[end] === 'soft' ? { device: 'soft' } : { addressing: 'verbs' }
  const options = { server: optionsAt('server'), client: optionsAt('client') }
  return { name: name.replace('mixed', 'together'), server, client, devices, addressing: 'verbs', options }
})

const all: Record<TestDevice, readonly Place[]> = {
  rxe: [
    { name: 'rxe ipv4 hybrid', ...ipv4, addressing: 'hybrid' },
    { name: 'rxe ipv6 hybrid', ...ipv6, addressing: 'hybrid' },
    { name: 'rxe ipv4 verbs', ...ipv4, addressing: 'verbs' },
    { name: 'rxe ipv6 verbs', ...ipv6, addressing: 'verbs' },
  ],
  soft: [
    { name: 'soft ipv4', server: '127.0.0.1', client: '127.0.0.2', ...soft },
    { name: 'soft ipv6', server: '::1', client: '::1', ...soft },
  ],
  mixed,
  together,
  fake: [
    {
      name: 'fake',
      server: '127.0.0.1',
      client: '127.0.0.2',
      addressing: 'hybrid',
      devices: { server: 'fake0', client: 'fake1' },
    },
  ],
}

/** The device that there is, if there is one. */
export const testDevice = asked()

/** Where connections can be made: every family and way of addressing. Empty where there is no device. */
export const places: readonly Place[] = testDevice === undefined ? [] : all[testDevice]

/** What stands behind the device at an end. */
export function kindOf({ devices }: Place, end: End): string {
  return devices[end].replace(/\d+$/, '').replace('rxe', 'verbs')
}

/** What `handshake.addressing` begins with at an end. */
export function addressingOf(place: Place, end: End): string {
  return kindOf(place, end) === 'soft' ? 'UDP ports ' : place.addressing
}

/** Whether the tests have a network namespace, or a whole machine, whose packets they may filter and capture. */
const ownsWire = testDevice === 'rxe' || testDevice === 'mixed'

function asked(): TestDevice | undefined {
  const name = process.env['SECURE_RDMA_TEST_DEVICE']
  if (name === undefined || name === '') return undefined
  if (Object.hasOwn(all, name)) return name as TestDevice
  throw new Error(`SECURE_RDMA_TEST_DEVICE=${name}: the tests know ${Object.keys(all).join(', ')}`)
}

/** A test on a device. */
export type DeviceTest = (t: ExecutionContext, place: Place) => void | Promise<void>

/** Registers a test at these places; where there are none, as skipped for this reason. */
function register(title: string, which: readonly Place[], implementation: DeviceTest, reason = 'no device'): void {
  // One at a time: wire, filters and counters are one for all in the guest, and a census of what is open is anywhere.
  if (which.length === 0) test.skip(`[${reason}] ${title}`, () => undefined)
  for (const place of which) {
    test.serial(`[${place.name}] ${title}`, async (t) => {
      await assertDevices(place)
      await implementation(t, place)
    })
  }
}

/** Where a device was asked for there must be one: a test never passes without. */
async function assertDevices(place: Place): Promise<void> {
  const there = (await devices()).map(({ name }) => name)
  const { server, client } = place.devices
  if (there.includes(server) && there.includes(client)) return
  throw new Error(
    `${place.name}: there must be ${server} and ${client}, and there is ${there.join(', ') || 'no device'}`,
  )
}

/**
 * Where a test runs that is not for one family of addresses: on soft, which is quick, at both; between soft and rxe with either
 * as the server, at the first place and at the last; otherwise at the first.
 */
const somewhere = placesFor(testDevice)

function placesFor(device: TestDevice | undefined): readonly Place[] {
  if (device === 'soft') return places
  const last = device === 'together' ? places.slice(-1) : []
  return [...places.slice(0, 1), ...last]
}

/** In a test build of the addon only what needs one runs on soft. */
const isForCuts = testDevice === 'soft' && softFaults !== undefined

/** A test that needs a device, whichever, with both ends in this process. */
export function deviceTest(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  if (testDevice === 'mixed') register(title, [], implementation, 'mixed: its two ends are not in one process')
  else register(title, somewhere, implementation)
}

/** A test that needs a device and runs at every place: IPv4 and IPv6, each way of addressing. */
export function everywhere(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  register(title, testDevice === 'mixed' ? [] : places, implementation)
}

/** Where two processes meet: in-memory devices reach no other one, and of two with `soft` one has UDP 4791. */
const amongProcesses = testDevice === 'fake' || testDevice === 'together' ? [] : places
const oneProcess = `${testDevice ?? 'no device'}: in one process`

/** A test between processes, at every place. */
export function betweenProcesses(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  register(title, amongProcesses, implementation, oneProcess)
}

/** A test that needs processes and no more than one place. */
export function processTest(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  const which = testDevice === 'mixed' ? [] : amongProcesses.filter((place) => somewhere.includes(place))
  register(title, which, implementation, testDevice === 'mixed' ? 'mixed: one end is here' : oneProcess)
}

/** A test that drops RDMA's packets on their way: see `cut` in _wire.ts. */
export function cutTest(title: string, implementation: DeviceTest): void {
  const which = testDevice === 'rxe' || isForCuts ? somewhere : []
  register(title, which, implementation, `${testDevice ?? 'no device'}: only a test build can cut its wire`)
}

/** A test that needs the guest's real devices: it looks at their counters, or at what is there only. */
export function rxeTest(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  register(title, testDevice === 'rxe' ? somewhere : [], implementation, `${testDevice ?? 'no device'}: not rxe`)
}

/** A test of soft only. */
export function softTest(title: string, implementation: DeviceTest): void {
  if (isForCuts) return
  register(title, testDevice === 'soft' ? somewhere : [], implementation, `${testDevice ?? 'no device'}: not soft`)
}

/** A test between soft and rxe, at every place. */
export function mixedTest(title: string, implementation: DeviceTest): void {
  register(title, testDevice === 'mixed' ? places : [], implementation, `${testDevice ?? 'no device'}: not mixed`)
}

export { ownsWire }
