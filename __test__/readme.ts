// The README's example is examples/hello.mts, word for word, and it runs as the README says.

import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import test from 'ava'

const execute = promisify(execFile)
/** ava runs at the top of the repository. */
const example = readFileSync('examples/hello.mts', 'utf8')
const hello = resolve('build/examples/hello.mjs')
const certificates = resolve('build/examples/demo/certificates.js')

/** Where the example's server listens, and what its client then says, on the device that there is. */
const places: Record<string, { address: string; device: string }> = {
  rxe: { address: '10.8.0.1', device: 'rxe1' },
  soft: { address: '127.0.0.1', device: 'soft' },
}
const testDevice = process.env['SECURE_RDMA_TEST_DEVICE'] ?? ''
const place = places[testDevice]

test("the README's TypeScript is examples/hello.mts, at most 15 lines", (t) => {
  const blocks = [...readFileSync('README.md', 'utf8').matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code)
  t.deepEqual(blocks, [example])
  t.true(example.split('\n').length - 1 <= 15)
})

const hellos = place ? test : test.skip
hellos(`[${place ? testDevice : 'no device'}] the README's example says hello over RDMA`, async (t) => {
  const { address, device } = place ?? { address: '', device: '' }
  const folder = mkdtempSync(join(tmpdir(), 'hello-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  await execute(process.execPath, [certificates, folder, address])
  const server = spawn(process.execPath, [hello, 'server', address], { cwd: folder, stdio: 'inherit' })
  t.teardown(() => server.kill('SIGKILL'))
  const ended = once(server, 'exit')
  await listening(address, 7471)
  const { stdout } = await execute(process.execPath, [hello, 'client', address], { cwd: folder })
  t.is(stdout, `hello came back over ${device}\n`)
  t.deepEqual(await ended, [0, null])
})

/** Waits until something listens there. To a server of ours this is a handshake that fails, and does not end it. */
async function listening(host: string, port: number): Promise<void> {
  for (;;) {
    const socket = connect({ host, port })
    try {
      await once(socket, 'connect')
      return
    } catch {
      await sleep(50)
    } finally {
      socket.destroy()
    }
  }
}
