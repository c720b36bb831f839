// @ts-check
// Writes a cpio archive in the "newc" format, the one that Linux unpacks as its initial file system.

const DIRECTORY = 0o040755
const SYMLINK = 0o120777
const REGULAR = 0o100000

export class CpioWriter {
  /** @type {Buffer[]} */
  #parts = []
  #directories = new Set([''])
  #inode = 1

  /** @param {string} path */
  directory(path) {
    if (this.#directories.has(path)) return
    this.#parentOf(path)
    this.#directories.add(path)
    this.#entry(path, DIRECTORY, Buffer.alloc(0))
  }

  /**
   * @param {string} path
   * @param {Buffer | string} content
   * @param {number} [permissions]
   */
  file(path, content, permissions = 0o644) {
    this.#parentOf(path)
    this.#entry(path, REGULAR | permissions, Buffer.from(content))
  }

  /**
   * @param {string} path
   * @param {string} target
   */
  symlink(path, target) {
    this.#parentOf(path)
    this.#entry(path, SYMLINK, Buffer.from(target))
  }

  /** @returns {Buffer} the finished archive */
  finish() {
    this.#entry('TRAILER!!!', 0, Buffer.alloc(0))
    return Buffer.concat(this.#parts)
  }

  /** The kernel makes no parents by itself. @param {string} path */
  #parentOf(path) {
    this.directory(path.slice(0, Math.max(0, path.lastIndexOf('/'))))
  }

  /**
   * @param {string} path
   * @param {number} mode
   * @param {Buffer} content
   */
  #entry(path, mode, content) {
    const name = Buffer.from(`${path}\0`)
    // inode, mode, uid, gid, links, mtime, size, device (major, minor), its own device (major, minor), name, checksum
    const fields = [this.#inode++, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0]
    const header = Buffer.from('070701' + fields.map((field) => field.toString(16).padStart(8, '0')).join(''))
    this.#parts.push(...aligned(header, name), ...aligned(content))
  }
}

/** Header with name, and content, each end on a multiple of four. @param {...Buffer} buffers */
function aligned(...buffers) {
  const length = buffers.reduce((sum, buffer) => sum + buffer.length, 0)
  return [...buffers, Buffer.alloc(-length & 3)]
}
