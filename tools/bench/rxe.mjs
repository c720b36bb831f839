// @ts-check
// On the kernel's soft-RoCE: secure-rdma from TypeScript against perftest, in the guest of tools/soft-roce.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ProcessError, runForStatus } from '../process.mjs'
import { ROOT } from '../set-up.mjs'

/** Boot, and what two processes take to start there, with room for a busy machine. Seconds. */
const ALLOWANCE = { boot: 120, round: 120 }

/**
 * @param {{ rounds: number, seconds: number }} options
 * @returns {Promise<Map<string, number | string>>} by name
 */
export async function measureRxe({ rounds, seconds }) {
  const folder = mkdtempSync(join(tmpdir(), 'secure-rdma-bench-'))
  try {
    const file = join(folder, 'rxe.json')
    const timeout = Math.ceil(ALLOWANCE.boot + rounds * (ALLOWANCE.round + 4 * seconds))
    const inside = [process.execPath, join(ROOT, 'tools/bench/rxe-guest.mjs'), file, `${rounds}`, `${seconds}`]
    const guest = ['tools/soft-roce/run.mjs', '--share', folder, '--timeout', `${timeout}`, '--', ...inside]
    const status = await runForStatus(process.execPath, guest, { cwd: ROOT })
    if (status !== 0) throw new ProcessError(`the guest ended with exit status ${status}, and above is why`, 1)
    return new Map(Object.entries(JSON.parse(readFileSync(file, 'utf8'))))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
