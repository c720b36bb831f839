// Which device the tests run on. The same files run on any: the environment says which one there is.
//
// SECURE_RDMA_TEST_DEVICE=rxe    two soft-RoCE devices with a wire between, in the guest of tools/soft-roce
// SECURE_RDMA_TEST_DEVICE=fake   two in-memory devices, in a test build of the addon
// unset                          none: device tests are reported as skipped
//
// Titles begin with the device, `[rxe ipv4 hybrid] …`: tools/test.mjs counts by it what ran on a real one.

import test, { type ExecutionContext } from 'ava'
import { devices } from 'secure-rdma'

/** The devices that tests know. */
export type TestDevice = 'rxe' | 'fake'

/** Two addresses that reach each other by RDMA, each on a device of its own. */
export interface Place {
  /** For titles. */
  name: string
  /** Where the server listens. */
  server: string
  /** What the client binds, so that it uses the other device. */
  client: string
  /** How the path is found. */
  addressing: 'hybrid' | 'verbs'
  /** The devices' names. */
  devices: { server: string; client: string }
}

const rxe = { server: 'rxe0', client: 'rxe1' }
const ipv4 = { server: '10.8.0.1', client: '10.8.0.2', devices: rxe }
const ipv6 = { server: 'fd08::1', client: 'fd08::2', devices: rxe }

const all: Record<TestDevice, readonly Place[]> = {
  rxe: [
    { name: 'rxe ipv4 hybrid', ...ipv4, addressing: 'hybrid' },
    { name: 'rxe ipv6 hybrid', ...ipv6, addressing: 'hybrid' },
    { name: 'rxe ipv4 verbs', ...ipv4, addressing: 'verbs' },
    { name: 'rxe ipv6 verbs', ...ipv6, addressing: 'verbs' },
  ],
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

function asked(): TestDevice | undefined {
  const name = process.env['SECURE_RDMA_TEST_DEVICE']
  if (name === undefined || name === '') return undefined
  if (Object.hasOwn(all, name)) return name as TestDevice
  throw new Error(`SECURE_RDMA_TEST_DEVICE=${name}: the tests know ${Object.keys(all).join(' and ')}`)
}

/** A test on a device. */
export type DeviceTest = (t: ExecutionContext, place: Place) => void | Promise<void>

function register(title: string, which: readonly Place[], implementation: DeviceTest): void {
  // One at a time: wire, filters and counters are one for all in the guest, and a census of what is open is anywhere.
  if (which.length === 0) test.skip(`[no device] ${title}`, () => undefined)
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

/** A test that needs a device, whichever. It runs at the first place. */
export function deviceTest(title: string, implementation: DeviceTest): void {
  register(title, places.slice(0, 1), implementation)
}

/** A test that needs a device and runs at every place: IPv4 and IPv6, each way of addressing. */
export function everywhere(title: string, implementation: DeviceTest): void {
  register(title, places, implementation)
}

/** A test between processes, at every place; in-memory devices reach no other process. */
export function betweenProcesses(title: string, implementation: DeviceTest): void {
  register(title, testDevice === 'rxe' ? places : [], implementation)
}

/** A test that needs the guest's real devices: it captures, filters, or looks at their counters. */
export function rxeTest(title: string, implementation: DeviceTest): void {
  register(title, testDevice === 'rxe' ? places.slice(0, 1) : [], implementation)
}
