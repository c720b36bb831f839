// A peer process that its parent drives: started, told what to run, stopped, continued and killed.

import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { Answer, Order, Scope } from './_child-main.js'

/** How a process ended. */
export interface Exit {
  code: number | null
  signal: NodeJS.Signals | null
}

/** What a child is started with. */
export interface ChildOptions {
  /** The node to run; our own by default. */
  node?: string | undefined
  /** A command that runs another, which this process is started with: into a network namespace, say. */
  through?: readonly string[] | undefined
  env?: Record<string, string> | undefined
  args?: string[] | undefined
}

interface Waiting {
  resolve: (value: unknown) => void
  reject: (error: Error) => void
}

/** A peer process. */
export class Child {
  readonly #process: ChildProcess
  readonly #waiting = new Map<number, Waiting>()
  #lastId = 0
  /** Fulfils when the process is gone. */
  readonly exited: Promise<Exit>

  private constructor({ node = process.execPath, through = [], env = {}, args = [] }: ChildOptions) {
    const [execPath = node, ...execArgv] = through.length > 0 ? [...through, node] : []
    this.#process = fork(join(__dirname, '_child-main.js'), args, {
      execPath,
      execArgv,
      serialization: 'advanced',
      env: { ...process.env, ...env },
    })
    this.#process.on('message', (answer: Answer) => {
      const waiting = this.#waiting.get(answer.id)
      this.#waiting.delete(answer.id)
      if (answer.error) waiting?.reject(Object.assign(new Error(answer.error.message), answer.error))
      else waiting?.resolve(answer.value)
    })
    this.exited = once(this.#process, 'exit').then(([code, signal]: (number | string | null)[]) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`the child is gone (${code ?? signal})`))
      this.#waiting.clear()
      return { code: code as number | null, signal: signal as NodeJS.Signals | null }
    })
  }

  /** Starts one. It is killed at the end of the test, if it still lives. */
  static start(t: ExecutionContext, options: ChildOptions = {}): Child {
    const child = new Child(options)
    t.teardown(async () => {
      child.kill()
      await child.exited
    })
    return child
  }

  get pid(): number {
    return this.#process.pid ?? 0
  }

  /**
   * Runs a function in the child, and gives what it gives there. It travels as its source: it sees its two parameters
   * and Node's globals, and nothing of what surrounds it here.
   */
  run<R, A = undefined>(task: (scope: Scope, argument: A) => R, argument?: A): Promise<Awaited<R>> {
    const id = ++this.#lastId
    return new Promise<unknown>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      this.#send({ id, source: task.toString(), argument })
    }) as Promise<Awaited<R>>
  }

  /** Lets the child end by itself: from now on nothing of the parent's keeps it alive. */
  release(): void {
    this.#send('release')
  }

  /** No signal handler sees it, and nothing is said to the peer. */
  kill(): void {
    this.#process.kill('SIGKILL')
  }

  /** The process stands still; its device goes on by itself. */
  stop(): void {
    this.#process.kill('SIGSTOP')
  }

  cont(): void {
    this.#process.kill('SIGCONT')
  }

  #send(order: Order): void {
    // A child that is gone shows in `exited`.
    this.#process.send(order, () => undefined)
  }
}
