/** Packs that wait to be filled again. */
const spares: Pack[] = []
const MOST_SPARES = 4

/** Of longer ones the memory is given back. */
const MOST_SPARE_BYTES = 1 << 18

/**
 * Messages that cross into native code together, as `sendMany` takes them: their bytes, one message behind the other, and
 * their lengths.
 *
 * @internal
 */
export class Pack {
  bytes = new Uint8Array(4096)
  lengths = new Uint32Array(64)
  count = 0
  used = 0

  /** An empty one. */
  static take(): Pack {
    return spares.pop() ?? new Pack()
  }

  /** Gives it back: whoever takes it next fills it anew. */
  give(): void {
    this.count = this.used = 0
    if (spares.length < MOST_SPARES && this.bytes.length <= MOST_SPARE_BYTES) spares.push(this)
  }

  /** Adds a copy of a message, whose length is `length`. */
  add(message: Uint8Array, length: number): void {
    if (this.used + length > this.bytes.length) this.#growBytes(length)
    if (this.count === this.lengths.length) this.#growLengths()
    this.bytes.set(message, this.used)
    this.lengths[this.count++] = length
    this.used += length
  }

  /** The messages, one by one. */
  *messages(): Generator<Uint8Array> {
    let start = 0
    for (const length of this.lengths.subarray(0, this.count)) {
      yield this.bytes.subarray(start, (start += length))
    }
  }

  #growBytes(more: number): void {
    const grown = new Uint8Array(Math.max(2 * this.bytes.length, this.used + more))
    grown.set(this.bytes.subarray(0, this.used))
    this.bytes = grown
  }

  #growLengths(): void {
    const grown = new Uint32Array(2 * this.lengths.length)
    grown.set(this.lengths)
    this.lengths = grown
  }
}
