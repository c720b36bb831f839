import { native } from './native.js'
import { drain, type News } from './news.js'

/** Something that lives in native code and may have news. */
export interface Source {
  /**
   * Takes in what the news of a connection bring, before anybody is told any news: to be told may lead to a later look at
   * another connection. Must run no code of the user's.
   */
  bring?(news: News): void
  /** Called when there is news, with what it is where that is a connection's; must not throw. */
  news(news?: News): void
}

const sources = new Map<number, Source>()
let lastId = 0
let holders = 0
let turn = 0

const environment = new native.Environment(() => {
  turn++
  drain(ask, bring, tell)
})

function ask(words: Float64Array, bytes: Uint8Array): number {
  return environment.drain(words, bytes)
}

function bring(id: number, news: News): void {
  alone(() => sources.get(id)?.bring?.(news))
}

function tell(id: number, news: News | undefined): void {
  alone(() => sources.get(id)?.news(news))
}

function alone(call: () => void): void {
  try {
    call()
  } catch (error) {
    // A mistake of ours, or of a subscriber: it must not keep the others from their news.
    process.nextTick(() => {
      throw error
    })
  }
}

/** Counts the turns of the event loop that have brought news. */
export function turns(): number {
  return turn
}

/** The native side of this environment. */
export { environment }

/**
 * Gives `source` an id under which native code calls it. It is kept alive until {@link forget}.
 */
export function register(source: Source): number {
  do lastId = (lastId + 1) >>> 0
  while (sources.has(lastId))
  sources.set(lastId, source)
  return lastId
}

/** Hands an id on: native code that had it now belongs to `source`. */
export function reassign(id: number, source: Source): void {
  sources.set(id, source)
}

/** No news is wanted any more. */
export function forget(id: number): void {
  sources.delete(id)
}

/** Keeps the event loop alive while it is held, as `ref()` and `unref()` of node:net do. */
export class Hold {
  #wanted = true
  #open = true

  constructor() {
    change(1)
  }

  /** Keeps the event loop alive (again). */
  ref(): void {
    this.#set(true, this.#open)
  }

  /** Lets the program end although this is open. */
  unref(): void {
    this.#set(false, this.#open)
  }

  /** For good. */
  release(): void {
    this.#set(this.#wanted, false)
  }

  #set(wanted: boolean, open: boolean): void {
    const before = this.#wanted && this.#open
    this.#wanted = wanted
    this.#open = open
    const after = wanted && open
    if (before !== after) change(after ? 1 : -1)
  }
}

function change(by: 1 | -1): void {
  const before = holders
  holders += by
  if (before === 0 || holders === 0) environment.keepAlive(holders > 0)
}
