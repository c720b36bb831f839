// @ts-check
// Runs child processes for the project's tools: output inherited, signals passed on, failures said in one sentence.

import { spawn, spawnSync } from 'node:child_process'
import { constants } from 'node:os'

/** A child process that ended otherwise than with status 0. */
export class ProcessError extends Error {
  /**
   * @param {string} message
   * @param {number} exitStatus what our own process should exit with
   */
  constructor(message, exitStatus) {
    super(message)
    this.name = 'ProcessError'
    this.exitStatus = exitStatus
  }
}

/**
 * The exit status that a shell would report for a child that ended this way.
 * @param {number | null} code
 * @param {NodeJS.Signals | null} signal
 */
export function exitStatusOf(code, signal) {
  return code ?? 128 + (signal ? constants.signals[signal] : 0)
}

/**
 * Quotes one word for a POSIX shell.
 * @param {string} word
 */
export function shellQuote(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}

/**
 * Passes signals that ask us to stop on to `forward`, until the returned function is called.
 * @param {(signal: NodeJS.Signals) => void} forward
 * @param {NodeJS.Signals[]} [signals]
 */
export function onStopSignals(forward, signals = ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  for (const signal of signals) process.on(signal, forward)
  return () => {
    for (const signal of signals) process.off(signal, forward)
  }
}

/**
 * Runs a command with our own input and output, and resolves when it has ended well.
 * @param {string} command
 * @param {string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} [options] `env` is the whole environment, as in node:child_process
 * @returns {Promise<void>}
 */
export function run(command, args, options = {}) {
  const status = runForStatus(command, args, options)
  return status.then((exitStatus) => {
    if (exitStatus === 0) return
    const line = [command, ...args].map(shellQuote).join(' ')
    throw new ProcessError(`${line}: ended with exit status ${exitStatus}`, exitStatus)
  })
}

/**
 * Like `run`, but any exit status is an answer. Only a command that cannot be started rejects.
 * @param {string} command
 * @param {string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, stdio?: import('node:child_process').StdioOptions }} [options]
 * @returns {Promise<number>}
 */
export function runForStatus(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: 'inherit', ...options })
    const stopListening = onStopSignals((signal) => {
      // A terminal sends Ctrl-C to the whole foreground group, the child included. A second one from us
      // would look like an impatient user, and many programs answer that by skipping their clean-up.
      if (signal === 'SIGINT' && process.stdin.isTTY) return
      child.kill(signal)
    })
    child.once('error', (error) => {
      stopListening()
      reject(new ProcessError(`${command}: cannot be started: ${error.message}`, 127))
    })
    child.once('close', (code, signal) => {
      stopListening()
      resolve(exitStatusOf(code, signal))
    })
  })
}

/**
 * Runs a short command to its end and gives what it printed. Its errors go to our stderr unless `quiet`.
 * @param {string} command
 * @param {string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, input?: Buffer, quiet?: boolean, anyStatus?: boolean }} [options]
 * @returns {Buffer}
 */
export function capture(command, args, { quiet = false, anyStatus = false, ...options } = {}) {
  const result = spawnSync(command, args, {
    stdio: [options.input ? 'pipe' : 'ignore', 'pipe', quiet ? 'ignore' : 'inherit'],
    maxBuffer: 1 << 30,
    ...options,
  })
  if (result.error) throw new ProcessError(`${command}: cannot be started: ${result.error.message}`, 127)
  const status = exitStatusOf(result.status, result.signal)
  if (status !== 0 && !anyStatus) {
    const line = [command, ...args].map(shellQuote).join(' ')
    throw new ProcessError(`${line}: ended with exit status ${status}`, status)
  }
  return result.stdout
}

/**
 * Whether a command of this name can be run.
 * @param {string} command
 */
export function commandExists(command) {
  return spawnSync('sh', ['-c', 'command -v "$1"', 'sh', command], { stdio: 'ignore' }).status === 0
}

/**
 * The main function of a tool: a failure becomes one line on stderr and an exit status, without a stack trace,
 * unless it is a mistake of our own.
 * @param {string} tool the name that the line starts with
 * @param {() => unknown} main
 */
export async function mainOf(tool, main) {
  try {
    await main()
  } catch (error) {
    const known = error instanceof ProcessError
    console.error(`${tool}: ${known ? error.message : error instanceof Error ? error.stack : error}`)
    process.exitCode = known ? error.exitStatus : 1
  }
}
