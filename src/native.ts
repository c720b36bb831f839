import type * as Binding from '#binding'
import { RdmaError, type RdmaErrorCode, type RdmaPhase } from './errors.js'
import { argumentValueError } from './validate.js'

/** The addon. */
export const native = load()

function load(): typeof Binding {
  try {
    // A static import could not say what to install when there is no addon.
    // eslint-disable-next-line @typescript-eslint/no-require-imports
    return require('#binding') as typeof Binding
  } catch (cause) {
    const { platform, arch, versions } = process
    throw new Error(
      `secure-rdma has no native part for ${platform}-${arch} (Node ${versions.node}). It is published for Linux with ` +
        `glibc on x64 and arm64, as the optional packages secure-rdma-linux-x64-gnu and secure-rdma-linux-arm64-gnu: ` +
        `install without --omit=optional, on the machine (or for the platform) that runs it. In a clone of the ` +
        `repository, npm run build makes it. The cause below says what was tried.`,
      { cause },
    )
  }
}

/** What native functions give instead of throwing. */
type NativeError = Binding.NativeError

/** Whether native code gave an error. */
export function isError(value: unknown): value is NativeError {
  return typeof value === 'object' && value !== null && 'code' in value && 'message' in value
}

/** Makes the error that users see. */
export function toRdmaError(error: NativeError, cause?: unknown): RdmaError {
  const { code, message, syscall, errno, wcStatus, phase } = error
  const details = { syscall, errno, wcStatus, phase: phase as RdmaPhase | undefined, cause }
  return new RdmaError(code as RdmaErrorCode, message, details)
}

/** Throws where native code gave an error. */
export function unwrap<T>(result: T | NativeError, cause?: unknown): T {
  if (isError(result)) throw toRdmaError(result, cause)
  return result
}

/** {@link unwrap} for what is made of options: a mistake in them is the caller's, whichever side finds it. */
export function unwrapMade<T>(result: T | NativeError, cause?: unknown): T {
  if (isError(result) && result.code === 'ERR_RDMA_INVALID_ARGUMENT') throw argumentValueError(result.message)
  return unwrap(result, cause)
}

/** Whether native code gave an error because `authorize` refused the peer. */
export function isRefusal(result: object): boolean {
  return isError(result) && result.code === 'ERR_RDMA_UNAUTHORIZED'
}
