// @ts-check
// Takes the ELF kernel out of Debian's bzImage: QEMU starts it directly (PVH), about 3 s sooner under TCG than when
// the guest has to decompress itself.

import { spawnSync } from 'node:child_process'
import { gunzipSync } from 'node:zlib'
import { ProcessError } from '../process.mjs'

const ELF = Buffer.from('\x7fELF', 'latin1')

/** @type {{ magic: Buffer, unpack: (packed: Buffer) => Buffer | undefined }[]} */
const COMPRESSIONS = [
  { magic: Buffer.from('fd377a585a00', 'hex'), unpack: (packed) => filter('xz', ['-dc', '--single-stream'], packed) },
  { magic: Buffer.from('28b52ffd', 'hex'), unpack: (packed) => filter('zstd', ['-dcq'], packed) },
  { magic: Buffer.from('1f8b08', 'hex'), unpack: gunzip },
]

/**
 * @param {Buffer} image the content of /boot/vmlinuz-*
 * @returns {Buffer} the ELF kernel inside it
 */
export function unpackVmlinux(image) {
  for (const { magic, unpack } of COMPRESSIONS) {
    // The magic bytes also occur by chance, so every place is tried until one unpacks to an ELF file.
    for (let at = image.indexOf(magic); at >= 0; at = image.indexOf(magic, at + 1)) {
      const unpacked = unpack(image.subarray(at))
      if (unpacked?.subarray(0, 4).equals(ELF)) return unpacked
    }
  }
  throw new ProcessError('no compressed ELF kernel found in the kernel image', 1)
}

/**
 * What follows the packed kernel in the image makes the tools complain, so only their output counts.
 * @param {string} command
 * @param {string[]} args
 * @param {Buffer} input
 */
function filter(command, args, input) {
  return spawnSync(command, args, { input, stdio: ['pipe', 'pipe', 'ignore'], maxBuffer: 1 << 28 }).stdout ?? undefined
}

/** @param {Buffer} packed */
function gunzip(packed) {
  try {
    return gunzipSync(packed)
  } catch {
    return undefined
  }
}
