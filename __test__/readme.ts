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
const examples = ['hello', 'regions'].map((name) => readFileSync(`examples/${name}.mts`, 'utf8'))
const certificates = resolve('build/examples/demo/certificates.js')

/** Where the example's server listens, and what its client then says, on the device that there is. */
const places: Record<string, { address: string; device: string }> = {
  rxe: { address: '10.8.0.1', device: 'rxe1' },
  soft: { address: '127.0.0.1', device: 'soft' },
}
const testDevice = process.env['SECURE_RDMA_TEST_DEVICE'] ?? ''
const place = places[testDevice]

test("the README's TypeScript is examples/hello.mts, at most 15 lines, and examples/regions.mts", (t) => {
  const blocks = [...readFileSync('README.md', 'utf8').matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code)
  t.deepEqual(blocks, examples)
  t.true((examples[0] ?? '').split('\n').length - 1 <= 15)
})

/** What the examples say at their ends. */
const says: Record<string, { server: string; client: (device: string) => string }> = {
  hello: { server: '', client: (device) => `hello came back over ${device}\n` },
  regions: {
    server: 'hello was written here, with 7\n',
    client: () => 'hello was read there, and 0n became 5n\n',
  },
}

const onDevice = place ? test.serial : test.skip
for (const [name, said] of Object.entries(says)) {
  onDevice(`[${place ? testDevice : 'no device'}] the README's example "${name}" runs over RDMA`, async (t) => {
    const { address, device } = place ?? { address: '', device: '' }
    const folder = mkdtempSync(join(tmpdir(), `${name}-`))
    t.teardown(() => {
      rmSync(folder, { recursive: true })
    })
    await execute(process.execPath, [certificates, folder, address])
    const example = resolve(`build/examples/${name}.mjs`)
    const server = spawn(process.execPath, [example, 'server', address], {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    t.teardown(() => server.kill('SIGKILL'))
    let told = ''
    server.stdout.setEncoding('utf8').on('data', (text: string) => {
      told += text
    })
    const ended = once(server, 'close')
    await listening(address, 7471)
    const { stdout } = await execute(process.execPath, [example, 'client', address], { cwd: folder })
    t.is(stdout, said.client(device))
    t.deepEqual(await ended, [0, null])
    t.is(told, said.server)
  })
}

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
