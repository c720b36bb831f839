// @ts-check
// Runs a child process and looks at its output line by line.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { exitStatusOf, onStopSignals } from './process.mjs'

/**
 * Runs a command; its stderr is ours, each line of its stdout goes to `onLine`.
 * @param {string} command
 * @param {string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} options `env` is the whole environment
 * @param {(line: string) => void} onLine
 * @returns {Promise<number>} the exit status
 */
export async function runLines(command, args, options, onLine) {
  const child = spawn(command, args, { ...options, stdio: ['ignore', 'pipe', 'inherit'] })
  const stopListening = onStopSignals((signal) => child.kill(signal))
  const ended = new Promise((resolve) => {
    child.once('error', (error) => {
      console.error(`${command}: cannot be started: ${error.message}`)
      resolve(127)
    })
    child.once('close', (code, signal) => resolve(exitStatusOf(code, signal)))
  })
  try {
    for await (const line of createInterface({ input: child.stdout, crlfDelay: Infinity })) onLine(line)
    return await ended
  } finally {
    stopListening()
  }
}
