// The package as a whole: its two doors, its errors, and what it does where there is no RDMA.

import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { inspect } from 'node:util'
import test from 'ava'
import * as required from 'secure-rdma'
import { RdmaError } from 'secure-rdma'
import { fixture } from './_certificates.js'

const root = dirname(require.resolve('secure-rdma/package.json'))

test('import and require give one implementation', async (t) => {
  const imported = await import('secure-rdma')
  const names = Object.keys(required).sort()
  const classes = ['Batch', 'Connection', 'RdmaError', 'Region', 'RegionSlice', 'RemoteRegion', 'RemoteSlice', 'Server']
  t.deepEqual(names, [...classes, 'allocate', 'connect', 'deviceStats', 'devices', 'listen'])
  for (const name of names as (keyof typeof required)[]) t.is(imported[name], required[name], name)
})

test('the codes of RdmaError are those of the Rust side', (t) => {
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- what the package does not export
  const internal = (path: string): unknown => require(join(root, path))
  const { errorCodes } = internal('dist/src/errors.js') as { errorCodes: readonly string[] }
  const binding = internal('binding.cjs') as { errorCodes(): string[] }
  t.deepEqual([...errorCodes], binding.errorCodes())
})

test('an RdmaError tells what is known, and no more', (t) => {
  const cause = new Error('why')
  const error = new RdmaError('ERR_RDMA_MODIFY', 'it did not work', { errno: 110, syscall: 'ibv_modify_qp', cause })
  t.true(error instanceof Error && error instanceof RdmaError)
  t.like(error, { name: 'RdmaError', code: 'ERR_RDMA_MODIFY', errno: 110, syscall: 'ibv_modify_qp', cause })
  t.deepEqual(Object.keys(error).sort(), ['code', 'errno', 'syscall'])
  t.false('wcStatus' in error || 'phase' in error)
  t.regex(inspect(error), /^RdmaError: it did not work\n/)
  t.false(Object.hasOwn(new RdmaError('ERR_RDMA_CLOSED', 'over'), 'cause'))
})

test('connections and servers cannot be constructed', (t) => {
  for (const name of ['Batch', 'Connection', 'Region', 'RemoteRegion', 'Server'] as const) {
    const constructor = required[name] as unknown as new (...values: unknown[]) => unknown
    t.throws(() => new constructor(), { instanceOf: TypeError, message: /^Illegal constructor/ })
    t.throws(() => new constructor(Symbol('secure-rdma'), {}, 1), { instanceOf: TypeError })
  }
})

/** The published build: tests on in-memory devices load another. */
function addon(): string {
  const name = readdirSync(root).find((file) => /^secure-rdma\..*\.node$/.test(file))
  if (name === undefined) throw new Error('there is no addon: npm run build')
  return join(root, name)
}

/** Libraries that a file must have to be loaded. */
function needed(file: string): string[] {
  const lines = execFileSync('readelf', ['--dynamic', '--wide', file], { encoding: 'utf8' }).split('\n')
  return lines.flatMap((line) => /\(NEEDED\).*\[(.*)\]/.exec(line)?.[1] ?? [])
}

test('the addon does not need libibverbs or librdmacm, and stays loaded', (t) => {
  const libraries = needed(addon())
  t.true(libraries.includes('libc.so.6'), 'the control: libraries are seen')
  t.deepEqual(
    libraries.filter((library) => /ibverbs|rdmacm/.test(library)),
    [],
  )
  t.regex(execFileSync('readelf', ['--dynamic', addon()], { encoding: 'utf8' }), /FLAGS_1.*NODELETE/)
})

/** What a program prints in a process whose dynamic loader finds neither library. */
function withoutRdmaCore(program: string): string {
  // In a mount namespace of its own the libraries' folder has other files in their place.
  const hide = `
    for library in $(ldconfig -p | sed -n 's/.*=> \\(.*lib\\(ibverbs\\|rdmacm\\).*\\)/\\1/p'); do
      mount --bind /dev/null "$library"
    done
    exec "$0" "$@"`
  const args = ['--mount', '--map-root-user', 'sh', '-c', hide, process.execPath, '-e', program]
  const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: '' }
  return execFileSync('unshare', args, { encoding: 'utf8', cwd: root, env })
}

test('where rdma-core is absent the package loads, and has the embedded device and no other', async (t) => {
  const { server, client } = await fixture()
  const said = withoutRdmaCore(`
    const { connect, devices, listen } = require('secure-rdma')
    const { server, client } = ${JSON.stringify({ server, client })}
    async function main() {
      const listening = await listen({ host: '127.0.0.1', ...server })
      const { port } = listening.address()
      const refusal = (device) => connect({ host: '127.0.0.1', port, device, ...client }).catch((error) => error)
      const named = await refusal('rxe0')
      const connection = await connect({ host: '127.0.0.1', port, ...client })
      const accepted = await listening.accept()
      await connection.send(Buffer.from('without'))
      const message = String(await accepted.receive())
      const { kind, name, reason } = connection.device
      await connection.close()
      await listening.close()
      const libraries = require('node:fs').readFileSync('/proc/self/maps', 'utf8')
      return {
        devices: (await devices()).map(({ name }) => name),
        loaded: /libibverbs|librdmacm/.test(libraries),
        named: [named.code, named.phase, named.message],
        embedded: { kind, name, reason, message },
      }
    }
    main().then((result) => console.log(JSON.stringify(result)))`)
  const { devices, loaded, named, embedded } = JSON.parse(said) as Record<string, unknown>
  t.deepEqual([devices, loaded], [['soft'], false])
  t.like(named, ['ERR_RDMA_DEVICE_NOT_FOUND', 'device'])
  t.regex(String((named as string[])[2]), /no RDMA device is called "rxe0"/)
  const reason = 'the connection is on loopback (127.0.0.1)'
  t.deepEqual(embedded, { kind: 'soft', name: 'soft', reason, message: 'without' })
})

test('the control: libraries of that name are found where they are not hidden', (t) => {
  const found = execFileSync('ldconfig', ['-p'], { encoding: 'utf8' })
  t.regex(found, /libibverbs\.so\.1/)
})
