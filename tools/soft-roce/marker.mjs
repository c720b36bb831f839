// @ts-check
// Passes a stream on up to an end marker. The guest's output ports have no end of their own, and QEMU may still hold
// output when the guest has said that it is done: only the marker tells that the last byte is here.

/**
 * @param {import('node:stream').Readable} from
 * @param {import('node:stream').Writable} to
 * @param {string} marker
 * @returns {Promise<void>} fulfilled when the marker, or the end of the stream, has come and all before it is written
 */
export async function passUntilMarker(from, to, marker) {
  const end = Buffer.from(marker)
  let held = Buffer.alloc(0)
  for await (const chunk of from) {
    const data = Buffer.concat([held, chunk])
    const at = data.indexOf(end)
    const pass = at >= 0 ? at : data.length - beginningOf(end, data)
    await write(to, data.subarray(0, pass))
    held = data.subarray(pass)
    if (at >= 0) return
  }
  await write(to, held)
}

/**
 * How many bytes at the end of `data` may be the beginning of the marker.
 * @param {Buffer} marker
 * @param {Buffer} data
 */
function beginningOf(marker, data) {
  for (let length = Math.min(marker.length - 1, data.length); length > 0; length--) {
    if (data.subarray(-length).equals(marker.subarray(0, length))) return length
  }
  return 0
}

/**
 * Waits where the reader is slow, so that its slowness reaches the command in the guest.
 * @param {import('node:stream').Writable} to
 * @param {Buffer} data
 * @returns {Promise<void>}
 */
function write(to, data) {
  return new Promise((resolve) => {
    if (data.length === 0) resolve()
    else to.write(data, () => resolve())
  })
}
