/** Every code that an {@link RdmaError} can have. New ones may come; none changes its meaning. */
export const errorCodes = [
  'ERR_RDMA_INVALID_ARGUMENT',
  'ERR_RDMA_ABORTED',
  'ERR_RDMA_NO_MATCHING_DEVICE',
  'ERR_RDMA_NO_DEVICE',
  'ERR_RDMA_DEVICE_NOT_FOUND',
  'ERR_RDMA_DEVICE_UNSUPPORTED',
  'ERR_RDMA_DEVICE_OPEN',
  'ERR_RDMA_DEVICE_LOST',
  'ERR_RDMA_LIBRARY',
  'ERR_RDMA_MEMLOCK',
  'ERR_RDMA_RESOURCE',
  'ERR_RDMA_NO_MEMORY',
  'ERR_RDMA_NO_EXTERNAL_BUFFERS',
  'ERR_RDMA_ENTROPY',
  'ERR_RDMA_TRANSITION',
  'ERR_RDMA_MODIFY',
  'ERR_RDMA_UNREACHABLE',
  'ERR_RDMA_QUEUE_FULL',
  'ERR_RDMA_POST',
  'ERR_RDMA_WORK',
  'ERR_RDMA_TCP',
  'ERR_RDMA_TLS_CONFIG',
  'ERR_RDMA_TLS_UNTRUSTED',
  'ERR_RDMA_TLS_NAME',
  'ERR_RDMA_TLS_EXPIRED',
  'ERR_RDMA_TLS_NOT_YET_VALID',
  'ERR_RDMA_TLS_PURPOSE',
  'ERR_RDMA_TLS_REVOKED',
  'ERR_RDMA_TLS_REVOCATION_UNKNOWN',
  'ERR_RDMA_TLS_NO_CERTIFICATE',
  'ERR_RDMA_TLS_BAD_CERTIFICATE',
  'ERR_RDMA_TLS_PIN',
  'ERR_RDMA_TLS_ALERT',
  'ERR_RDMA_TLS_VERSION',
  'ERR_RDMA_TLS_ALPN',
  'ERR_RDMA_TLS',
  'ERR_RDMA_UNAUTHORIZED',
  'ERR_RDMA_PROTOCOL',
  'ERR_RDMA_VERSION',
  'ERR_RDMA_OFFER',
  'ERR_RDMA_PEER_REFUSED',
  'ERR_RDMA_HANDSHAKE_TIMEOUT',
  'ERR_RDMA_HANDSHAKE_EVICTED',
  'ERR_RDMA_HANDSHAKE_CLOSED',
  'ERR_RDMA_PATH',
  'ERR_RDMA_REGION_REVOKED',
  'ERR_RDMA_REGION_CLOSED',
  'ERR_RDMA_REGION_BOUNDS',
  'ERR_RDMA_REGION_ACCESS',
  'ERR_RDMA_REGION_ALIGNMENT',
  'ERR_RDMA_REGION_NAME',
  'ERR_RDMA_REGION_LIMIT',
  'ERR_RDMA_OPERATION_LIMIT',
  'ERR_RDMA_CLOSED',
  'ERR_RDMA_DESTROYED',
  'ERR_RDMA_PEER_LOST',
  'ERR_RDMA_PEER_VIOLATION',
  'ERR_RDMA_MESSAGE_TOO_LARGE',
  'ERR_RDMA_SEND_BUFFER_FULL',
  'ERR_RDMA_RECEIVE_POOL_FULL',
  'ERR_RDMA_ENDED',
  'ERR_RDMA_LOCKED',
  'ERR_RDMA_CLOSE_TIMEOUT',
  'ERR_RDMA_SERVER_CLOSED',
  'ERR_RDMA_INTERNAL',
] as const

/** The stable code of an {@link RdmaError}. */
export type RdmaErrorCode = (typeof errorCodes)[number]

/** How far a connection had come when an error happened. */
export type RdmaPhase =
  'connect' | 'tls' | 'authorize' | 'device' | 'exchange' | 'rtr' | 'rts' | 'path' | 'connected' | 'closing'

/** What an {@link RdmaError} may tell beside its message. */
export interface RdmaErrorDetails {
  /** The system or library call that failed. */
  syscall?: string | undefined
  /** Its errno, positive as in `errno.h`. */
  errno?: number | undefined
  /** The status of the work completion that brought the error, a number of `enum ibv_wc_status`. */
  wcStatus?: number | undefined
  /** How far the connection had come. */
  phase?: RdmaPhase | undefined
  /** What led to it. */
  cause?: unknown
}

/**
 * Every failure that is not a mistake in the arguments (those are `TypeError` and `RangeError`) and not an abort
 * (`AbortError`).
 *
 * `code` is stable and meant for programs; `message` is a sentence for people that names what happened, to what, and
 * what to do about it. Neither holds a PSN, an R_Key or a private key.
 */
export class RdmaError extends Error {
  /** Tells the kind of failure. */
  readonly code: RdmaErrorCode
  /** The system or library call that failed, where there was one. */
  declare readonly syscall?: string
  /** The errno of that call, positive as in `errno.h`. */
  declare readonly errno?: number
  /** The status of the work completion that brought the error, a number of `enum ibv_wc_status`. */
  declare readonly wcStatus?: number
  /** How far the connection had come. */
  declare readonly phase?: RdmaPhase

  constructor(code: RdmaErrorCode, message: string, details: RdmaErrorDetails = {}) {
    // Callers in JavaScript may give null, as to Error.
    const known = (details as RdmaErrorDetails | null) ?? {}
    const { cause } = known
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    // What is not known is absent, not undefined: `inspect` then shows only what there is.
    for (const name of ['syscall', 'errno', 'wcStatus', 'phase'] as const) {
      const value = known[name]
      if (value !== undefined) Object.defineProperty(this, name, { value, enumerable: true, configurable: true })
    }
  }

  static {
    Object.defineProperty(this.prototype, 'name', { value: 'RdmaError', configurable: true, writable: true })
  }
}
