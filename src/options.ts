import type { Peer } from './peer.js'

/** PEM text (any number of certificates), or PEM or DER bytes; one or several. */
export type Material = string | Uint8Array | readonly (string | Uint8Array)[]

/** Attributes of the queue pair, as `ibv_modify_qp`(3) takes them. */
export interface QueuePairOptions {
  /** Index into the port's P_Key table, 0 to 65535. Default 0, the default partition. */
  pkeyIndex?: number | undefined
  /** Retransmission timeout as an exponent: 4.096 µs · 2^n, 1 to 31. Default 17, which is 0.54 s. */
  timeout?: number | undefined
  /**
   * Repetitions without an answer, 0 to 7. Default 7 on `soft` and 6 on other devices: the kernel's soft-RoCE takes 7 for
   * "for ever".
   */
  retryCount?: number | undefined
  /** Repetitions after "receiver not ready", 0 to 7. Default 6; 7 is for ever. */
  rnrRetry?: number | undefined
  /** Code of the wait that our "receiver not ready" asks for, 1 to 31. Default 12, which is 0.64 ms. */
  minRnrTimer?: number | undefined
  /** READs and atomics that this side may have outstanding, 1 to 128. Default 16. Device and peer cap it. */
  initiatorDepth?: number | undefined
  /** READs and atomics of the peer that this side serves at once, 1 to 128. Default 16. The device caps it. */
  responderResources?: number | undefined
}

/** The registered buffers that all connections of a device share, if they use the same sizes. */
export interface PoolOptions {
  /** Bytes of one buffer, 4096 to 1048576. Default 4096. A message takes as many as it needs. */
  bufferSize?: number | undefined
  /** Receive buffers at the most, 4 to 1048576. Default 16384. Each connection reserves `credits` of them. */
  receiveBuffers?: number | undefined
  /** Send buffers at the most, 1 to 1048576. Default 256. */
  sendBuffers?: number | undefined
}

/** What {@link connect} and {@link listen} have in common. An option that is not here is refused, not ignored. */
export interface CommonOptions {
  /**
   * Authorities that are trusted. `ca` or `pins` is required (except for a server with `requestCert: false`): the
   * system's own list is never used.
   */
  ca?: Material | undefined
  /**
   * Keys that are trusted: the SHA-256 of a certificate's SubjectPublicKeyInfo, as 64 hexadecimal digits or as base64
   * (with or without `sha256/`). With `ca`, both must hold. Alone, the key is the identity: neither chain nor name is
   * looked at.
   */
  pins?: string | readonly string[] | undefined
  /** The own certificate chain, end entity first. A server needs one; so does a client, unless its server asks for none. */
  cert?: Material | undefined
  /** The private key of `cert`: PKCS#8, PKCS#1 or SEC1, not encrypted. */
  key?: string | Uint8Array | undefined
  /**
   * Revocation lists. When there are any, every certificate of the peer's chain must be covered by one that has not
   * expired.
   */
  crl?: Material | undefined
  /**
   * Decides about a peer whose certificate has been verified, before any queue pair exists. The peer is let in if this
   * gives `true` (or a promise of it). Anything else refuses it, with `ERR_RDMA_UNAUTHORIZED`; so does an error, whose
   * message stays on this side. It runs under `handshakeTimeout`.
   */
  authorize?: ((peer: Peer) => boolean | Promise<boolean>) | undefined
  /**
   * Appends the TLS secrets of every connection to this file (NSS key log format). **Whoever reads the file can decrypt
   * captured connections.** For debugging only.
   */
  keyLogFile?: string | undefined
  /** Milliseconds from the start to the proof of path, 1 to 86400000. Default 10000. */
  handshakeTimeout?: number | undefined
  /** Milliseconds that `close()` may take before the connection is destroyed, 1 to 86400000. Default 5000. */
  closeTimeout?: number | undefined
  /**
   * Milliseconds between two signs of life that this side gives over TLS, 10 to 60000. Default 1000. The peer is told, and
   * judges this side's silence by it; the sides may differ.
   */
  keepAliveInterval?: number | undefined
  /** Missing signs of life of the peer that mean it is gone, 1 to 1000. Default 3. */
  keepAliveMisses?: number | undefined

  /**
   * The RDMA device by name, such as `mlx5_0`, or `soft` for the embedded one. Default: the one whose GID is the local
   * address of the TLS connection; `soft` on loopback, and where there is no other. A host with devices none of which
   * fits is never given `soft` unasked.
   */
  device?: string | undefined
  /** The port of the device, 1 to 255 (`port` is TCP's). */
  devicePort?: number | undefined
  /** The index of the GID in the port's table, 0 to 255. */
  gidIndex?: number | undefined
  /** The local address that RDMA uses, where that is not the one of the TLS connection. */
  rdmaAddress?: string | undefined
  /**
   * How the path to the peer is found: by RDMA CM's address and route resolution, and nothing more of it (`hybrid`, the
   * default), or without RDMA CM (`verbs`). On `soft` it makes no difference: the kernel's routes are UDP's.
   */
  addressing?: 'hybrid' | 'verbs' | undefined
  /**
   * A new file (pcapng, for Wireshark) for every packet that the embedded device sends or receives: those of all
   * connections of this process, until the last of them has ended and no server uses the device. **Whoever reads the
   * file sees all data, PSNs and R_Keys.** For debugging only. On other devices it is refused: their packets do not pass
   * through this process.
   */
  captureFile?: string | undefined
  /** Addresses beside the one of the TLS peer to which this side may send RDMA packets. Default: none. */
  allowedPeerAddresses?: string | readonly string[] | undefined
  /** The largest path MTU to use, in bytes. Default: what the port carries. */
  maxPathMtu?: 256 | 512 | 1024 | 2048 | 4096 | undefined

  /** The longest message that this side takes, in bytes, 1 to 2147483648. Default 1048576. Longer ones the peer's `send` refuses. */
  maxMessageSize?: number | undefined
  /**
   * Bytes of messages that may wait to be sent, each with 64 bytes besides its own, 1 to 2^40. Default 16777216. Beyond it
   * `send` rejects at once.
   */
  sendBufferSize?: number | undefined
  /** Bytes of messages that may wait to be read before the peer has to wait, 1 to 2^40. Default 1048576. */
  receiveBufferSize?: number | undefined
  /** Receive buffers that are posted for the peer, 4 to 4096. Default 16. */
  credits?: number | undefined
  /** The buffers that connections share. */
  pool?: PoolOptions | undefined
  /** Milliseconds after which an idle connection proves its path, 0 (never) to 86400000. Default 1000. */
  pathProbeInterval?: number | undefined
  /** Milliseconds that sent work may go unanswered before the path counts as dead, 1 to 86400000. Default 3500. */
  pathTimeout?: number | undefined
  /** Attributes of the queue pair. */
  queuePair?: QueuePairOptions | undefined
  /**
   * Puts the starting PSNs into {@link Connection.handshake}. For tests and demonstrations: whoever knows them can
   * inject packets. Default false.
   */
  exposeSecrets?: boolean | undefined
}

/** What {@link connect} takes. */
export interface ConnectOptions extends CommonOptions {
  /** Name or IP address of the server, a link-local one with its zone (`fe80::1%eth0`). Default `localhost`. */
  host?: string | undefined
  /** The server's TCP port, 1 to 65535. */
  port: number
  /**
   * The local address of the TCP connection. By it the RDMA device is chosen. A link-local one is on the interface of
   * the host's zone.
   */
  localAddress?: string | undefined
  /** The name that the server's certificate must have. Default: `host`. Only with `ca`: `pins` alone judge no name. */
  servername?: string | undefined
  /**
   * The SPIFFE ID that the server's certificate must have, such as `spiffe://example.org/storage`, instead of a name. It is
   * judged as an X.509-SVID: exactly one URI name, no right to sign certificates or revocation lists, and the extended
   * key usages serverAuth and clientAuth both, if it has any. Needs `ca`: the authorities of that trust domain. Not together
   * with `servername`. A server sees the ID of a client as `peer.spiffeId`, in `authorize`.
   */
  peerIdentity?: string | undefined
  /** Gives up when it is aborted; whatever was made is unmade. */
  signal?: AbortSignal | undefined
}

/** What {@link listen} takes. */
export interface ListenOptions extends CommonOptions {
  /**
   * Name or IP address to listen on, a link-local one with its zone (`fe80::1%eth0`). Default `::`, which is every
   * address, IPv4 ones too.
   */
  host?: string | undefined
  /** The TCP port, 0 to 65535. Default 0: the system chooses, and `server.address()` tells. */
  port?: number | undefined
  /** TCP connections that the kernel keeps waiting, 1 to 65535. Default 4096. */
  backlog?: number | undefined
  /**
   * Whether clients must show a certificate that `ca` or `pins` trusts. Default **true** (node:tls: false). With false
   * anybody may connect, unless `authorize` objects; `ca`, `pins` and `crl` are then refused.
   */
  requestCert?: boolean | undefined
  /**
   * Handshakes at once, 1 to 65536. Default 256. When full, the one that has stalled longest gives way. A stall counts two
   * seconds later once the client's certificate has been verified, for one key in half of the places at the most.
   */
  maxPendingHandshakes?: number | undefined
  /**
   * Connections that are up and not accepted yet, 1 to 65536. Default 1024. When so many wait, newcomers are refused;
   * handshakes that had got past `authorize` by then come up all the same.
   */
  maxUnaccepted?: number | undefined
  /** Closes the server when it is aborted. */
  signal?: AbortSignal | undefined
}
