import { inspect } from 'node:util'
import { toPeer, type Peer } from './peer.js'
import type { NativeQuestion } from '#binding'

/** What native code can be asked, and told. */
interface Asker {
  takeQuestions(): NativeQuestion[]
  answer(ticket: number, refusal?: string): void
}

/** Asks `authorize` about every peer that waits. Whatever it does, there is an answer. */
export function answerQuestions(asker: Asker, authorize: ((peer: Peer) => unknown) | undefined): void {
  for (const { ticket, peer } of asker.takeQuestions()) {
    void decide(authorize, toPeer(peer)).then((refusal) => {
      asker.answer(ticket, refusal)
    })
  }
}

async function decide(authorize: ((peer: Peer) => unknown) | undefined, peer: Peer): Promise<string | undefined> {
  try {
    if ((await authorize?.(peer)) === true) return undefined
    return 'authorize did not return true'
  } catch (error) {
    return `authorize threw: ${describe(error)}`
  }
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
