const nothing = (): void => undefined

/** Has things done in the order in which they were asked for, also where one has to wait for something first. */
export class Order {
  #last: Promise<void> | undefined

  /** Whether nothing waits: what is done now is in its place. */
  get isFree(): boolean {
    return this.#last === undefined
  }

  /** Does it behind all that waits, and behind `first`; not at all where `first` rejects. */
  queue<T>(work: () => T, first?: Promise<unknown>): Promise<T> {
    first?.catch(nothing)
    const done = (this.#last ?? Promise.resolve()).then(() => first).then(work)
    const last = done.then(nothing, nothing)
    this.#last = last
    void last.then(() => {
      if (this.#last === last) this.#last = undefined
    })
    return done
  }
}
