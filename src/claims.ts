import { RdmaError } from './errors.js'

/** Who has a direction of a connection: a stream, by the name of what gave it, or nobody and then everybody. @internal */
export class Claim {
  #owner: string | undefined

  /** Throws where somebody else than `owner` has it. */
  take(owner: string): void {
    if (this.#owner !== owner) this.refuse(owner)
    this.#owner = owner
  }

  /** Throws where a stream has what `call` would use. */
  refuse(call: string): void {
    if (this.#owner !== undefined) throw locked(call, `${this.#owner} has the connection`)
  }
}

/** What `call` throws when it would interfere. @internal */
export function locked(call: string, why: string): RdmaError {
  const message = `${call} is not possible: ${why}, and messages would be lost to the one or the other, or change their order`
  return new RdmaError('ERR_RDMA_LOCKED', message)
}
