/**
 * The messages of a connection one after the other, as an async generator over `receive` would give them, without what a
 * generator costs for each.
 *
 * @internal
 */
export class Messages implements AsyncIterableIterator<Buffer, undefined, undefined> {
  readonly #receive: () => Promise<Buffer | null>
  #isOver = false

  constructor(receive: () => Promise<Buffer | null>) {
    this.#receive = receive
  }

  next(): Promise<IteratorResult<Buffer, undefined>> {
    if (this.#isOver) return Promise.resolve({ done: true, value: undefined })
    return this.#receive().then(
      (message) => {
        if (message) return { done: false, value: message }
        this.#isOver = true
        return { done: true, value: undefined }
      },
      (error: unknown) => {
        this.#isOver = true
        throw error
      },
    )
  }

  return(): Promise<IteratorResult<Buffer, undefined>> {
    this.#isOver = true
    return Promise.resolve({ done: true, value: undefined })
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}
