// Sends a file from one process to another over RDMA, and tells what happened. Started by tools/demo.mjs; by itself:
// node main.js --server ADDRESS --client ADDRESS [--file PATH] [--size BYTES] [--show-secrets]

import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs, types } from 'node:util'
import { makeCertificates } from './certificates.js'
import { field, print, hex, size } from './print.js'
import type { News, Result, Task } from './protocol.js'

/** What is sent at least, unless --size says otherwise. */
const LEAST = 64 * 2 ** 20

const { NO_COLOR, FORCE_COLOR } = process.env
const colours = NO_COLOR ? false : FORCE_COLOR ? FORCE_COLOR !== '0' : process.stdout.isTTY
const paint =
  (code: number) =>
  (text: string): string =>
    colours ? `\x1b[${code}m${text}\x1b[0m` : text
const bold = paint(1)
const dim = paint(2)
const red = paint(31)
const green = paint(32)
const prefixes = { server: paint(36)('server │ '), client: paint(35)('client │ ') }

/** A process of the demo. */
interface Running {
  readonly child: ChildProcess
  /** The port that it listens on, when it does. */
  readonly port: Promise<number>
  /** What it found, when it has ended well. */
  readonly result: Promise<Result>
}

function start(role: 'server' | 'client', task: Task): Running {
  const child = fork(join(__dirname, `${role}.js`), [JSON.stringify(task)], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  for (const output of [child.stdout, child.stderr]) {
    if (!output) continue
    createInterface({ input: output, crlfDelay: Infinity }).on('line', (line) => {
      print(prefixes[role] + (output === child.stderr ? red(line) : line))
    })
  }
  let result: Result | undefined
  const port = new Promise<number>((resolve) => {
    child.on('message', (news: News) => {
      if ('listening' in news) resolve(news.listening)
      else result = news.result
    })
  })
  // 'close' comes when its last line has been read.
  const ended = once(child, 'close').then(([code, signal]: (number | string | null)[]) => {
    if (code === 0 && result) return result
    throw new Error(`the ${role} ended with ${signal ?? `exit status ${code}`}`)
  })
  return { child, port, result: ended }
}

/** Both processes, until both have ended. */
async function transfer(task: Task): Promise<{ server: Result; client: Result }> {
  const children: ChildProcess[] = []
  const stop = (): void => {
    for (const child of children) child.kill()
  }
  try {
    const server = start('server', task)
    children.push(server.child)
    const port = await Promise.race([server.port, server.result.then(() => 0)])
    const client = start('client', { ...task, port })
    children.push(client.child)
    const [serverResult, clientResult] = await Promise.all([server.result, client.result])
    return { server: serverResult, client: clientResult }
  } catch (error) {
    // The other side says what it saw, if it can.
    await Promise.race([Promise.all(children.map(ended)), new Promise((resolve) => setTimeout(resolve, 3000).unref())])
    throw error
  } finally {
    stop()
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'close')
}

/** Compares what both sides told, prints it, and gives whether all is equal. */
function compare({ server, client }: { server: Result; client: Result }): boolean {
  const rows: [what: string, shown: string, equal: boolean][] = [
    ['QPN, client', hex(client.ownQpn), client.ownQpn === server.peerQpn],
    ['QPN, server', hex(server.ownQpn), server.ownQpn === client.peerQpn],
    ['PSN, client', client.ownPsn, client.ownPsn === server.peerPsn],
    ['PSN, server', server.ownPsn, server.ownPsn === client.peerPsn],
    ['bytes', String(client.bytes), client.bytes === server.bytes],
    ['SHA-256', client.sha256, client.sha256 === server.sha256],
  ]
  print('', bold('What both sides say'))
  for (const [what, shown, equal] of rows) {
    print(`  ${field(what, shown.padEnd(64))}  ${equal ? green('equal') : red('DIFFERENT')}`)
  }
  return rows.every(([, , equal]) => equal)
}

function readArguments(): Omit<Task, 'certificates' | 'port'> {
  const { values } = parseArgs({
    options: {
      server: { type: 'string' },
      client: { type: 'string' },
      file: { type: 'string', default: process.execPath },
      size: { type: 'string' },
      'show-secrets': { type: 'boolean', default: false },
    },
  })
  const { server, client, file, 'show-secrets': showSecrets } = values
  if (server === undefined || client === undefined) throw new TypeError('--server and --client are required')
  const bytes = statSync(file).size
  if (bytes === 0) throw new Error(`${file} is empty`)
  return {
    server,
    client,
    file,
    size: values.size === undefined ? Math.max(bytes, LEAST) : Number(values.size),
    showSecrets,
  }
}

async function main(): Promise<void> {
  const began = performance.now()
  const given = readArguments()
  // mkdtemp makes it for its owner alone (0700).
  const certificates = mkdtempSync(join(tmpdir(), 'secure-rdma-demo-'))
  const clean = (): void => {
    rmSync(certificates, { recursive: true, force: true })
  }
  process.once('exit', clean)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(130))

  await makeCertificates(certificates, [given.server])
  const bytes = statSync(given.file).size
  const repeated =
    given.size > bytes ? ', again and again from its start' : given.size < bytes ? ', its first part' : ''
  print(
    bold('A file goes from one process to another over RDMA. TLS 1.3 sets the queue pairs up.'),
    'The setup is authenticated and encrypted. The data is neither.',
    '',
    field('file', `${given.file}: ${size(given.size)}${repeated}`),
    field('certificates', `made now in ${certificates}, removed at the end`),
    '',
  )
  const equal = compare(await transfer({ ...given, certificates, port: 0 }))
  print('', dim('No R_Key: only messages were sent, and no memory was granted to the peer.'))
  print(
    `${equal ? green('All equal.') : red('NOT EQUAL.')} ${((performance.now() - began) / 1000).toFixed(1)} s in all.`,
  )
  if (!equal) process.exitCode = 1
}

main().catch((error: unknown) => {
  console.error(red(`demo: ${types.isNativeError(error) ? error.message : String(error)}`))
  process.exitCode = 1
})
