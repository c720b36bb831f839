#!/usr/bin/env node
// @ts-check
// Checks the tarballs as users get them: publint, attw, and an install in an empty folder that imports, requires and
// compiles.
// CLI: node tools/test-pack.mjs

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pack } from './pack.mjs'
import { ProcessError, mainOf, run } from './process.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const bin = (/** @type {string} */ name) => join(root, 'node_modules/.bin', name)

const USE = `
const options: ConnectOptions = { port: 1, ca: 'x', addressing: 'verbs', queuePair: { retryCount: 6 } }
export async function use(): Promise<void> {
  const connection: Connection = await connect(options)
  for await (const message of connection) await connection.send(message.subarray(1))
  const closed = await connection.closed
  if (closed.error instanceof RdmaError) closed.error.code satisfies string
  const server = await listen({ cert: 'x', key: 'x', requestCert: false, authorize: (peer) => peer.port > 0 })
  server.address()?.port.toFixed()
  // @ts-expect-error -- text is not bytes
  await connection.send('text')
  // @ts-expect-error -- not an option
  await connect({ port: 1, rejectUnauthorized: false })
  console.log((await devices()).map((device) => device.name))
}
`
const NAMES = 'connect, devices, listen, RdmaError, type Connection, type ConnectOptions'

const RUN = `
const required = require('secure-rdma')
import('secure-rdma').then(async (imported) => {
  for (const name of ['connect', 'listen', 'devices', 'Connection', 'Server', 'RdmaError']) {
    if (typeof required[name] !== 'function' || required[name] !== imported[name]) throw new Error(name + ' differs between require and import')
  }
  const names = Object.keys(imported).filter((name) => name !== 'module.exports').sort().join()
  if (names !== Object.keys(required).sort().join()) throw new Error('import and require give different names: ' + names)
  console.log('import and require give one implementation;', (await required.devices()).length, 'devices')
})
`

await mainOf('test-pack', async () => {
  for (const cwd of ['.', ...readdirSync(join(root, 'npm')).map((name) => `npm/${name}`)]) {
    const status = spawnSync('npm', ['pack', '--dry-run'], { cwd: join(root, cwd), stdio: 'ignore' }).status
    if (status === 0) throw new ProcessError(`npm packs ${cwd}, which is not what is published`, 1)
  }
  const {
    main,
    platforms: [platform],
  } = pack(join(root, 'build/pack'))
  await run(bin('publint'), ['run', '--strict', main])
  await run(bin('publint'), ['run', '--strict', platform])
  await run(bin('attw'), ['--no-emoji', '--no-definitely-typed', main])

  const folder = mkdtempSync(join(tmpdir(), 'secure-rdma-pack-'))
  try {
    writeFileSync(join(folder, 'package.json'), '{ "name": "consumer", "private": true }')
    // Offline: what is installed is what was packed, and nothing else is needed.
    await run('npm', ['install', '--offline', '--no-audit', '--no-fund', main, platform], { cwd: folder })
    writeFileSync(join(folder, 'run.cjs'), RUN)
    await run(process.execPath, ['run.cjs'], { cwd: folder })
    symlinkSync(join(root, 'node_modules/@types'), join(folder, 'node_modules/@types'))
    writeFileSync(join(folder, 'esm.mts'), `import { ${NAMES} } from 'secure-rdma'${USE}`)
    writeFileSync(join(folder, 'cjs.cts'), `import { ${NAMES} } from 'secure-rdma'${USE}`)
    const strict = ['--strict', '--noEmit', '--target', 'es2022', '--types', 'node']
    await run(bin('tsc'), [...strict, '--module', 'nodenext', 'esm.mts', 'cjs.cts'], { cwd: folder })
    const bundler = ['--module', 'esnext', '--moduleResolution', 'bundler', 'esm.mts']
    await run(bin('tsc'), [...strict, ...bundler], { cwd: folder })
    console.log('the types compile as ESM, as CommonJS and for bundlers')
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
