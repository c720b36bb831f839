import { inspect } from 'node:util'
import { isRefusal } from './native.js'
import { toPeer, type Peer } from './peer.js'
import type { NativeQuestion } from '#binding'

/** What native code can be asked, and told. */
interface Asker {
  takeQuestions(): NativeQuestion[]
  answer(ticket: number, refusal?: string): void
}

/** Whose handshake it is: no two that are under way come from the same address and port. */
type Who = Pick<Peer, 'address' | 'port'>

/** What is kept for handshakes whose failure native code has not told yet: no more than native code keeps of those. */
const MOST = 256

/** The `authorize` of one `connect` or one server, and what it threw. */
export class Authorizer {
  readonly #authorize: ((peer: Peer) => unknown) | undefined
  readonly #thrown = new Map<string, unknown>()

  constructor(authorize: ((peer: Peer) => unknown) | undefined) {
    this.#authorize = authorize
  }

  /** Asks about every peer that waits. Whatever `authorize` does, there is an answer, and no rejection is unhandled. */
  answerAll(asker: Asker): void {
    for (const { ticket, peer } of asker.takeQuestions()) {
      this.#decide(toPeer(peer)).then(
        (refusal) => {
          asker.answer(ticket, refusal)
        },
        () => {
          asker.answer(ticket, 'authorize gave no answer')
        },
      )
    }
  }

  /** What `authorize` threw, where `failure` comes of it. `who` is left out where only one was asked about. Given once. */
  causeOf(failure: object, who?: Who): unknown {
    const name = who ? nameOf(who) : this.#thrown.keys().next().value
    if (name === undefined) return undefined
    const thrown = this.#thrown.get(name)
    this.#thrown.delete(name)
    return isRefusal(failure) ? thrown : undefined
  }

  async #decide(peer: Peer): Promise<string | undefined> {
    try {
      if ((await this.#authorize?.(peer)) === true) return undefined
      return 'authorize did not return true'
    } catch (error) {
      this.#remember(peer, error)
      return `authorize threw: ${describe(error)}`
    }
  }

  #remember(peer: Who, error: unknown): void {
    for (const oldest of this.#thrown.keys()) {
      if (this.#thrown.size < MOST) break
      this.#thrown.delete(oldest)
    }
    this.#thrown.set(nameOf(peer), error)
  }
}

function nameOf({ address, port }: Who): string {
  return `${address} ${port}`
}

/** Anything can be thrown, also what cannot be made a string of. */
function describe(error: unknown): string {
  try {
    const what: unknown = error instanceof Error ? error.message : error
    return typeof what === 'string' ? what : inspect(what)
  } catch {
    return 'something that cannot be shown'
  }
}
