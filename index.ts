/**
 * RDMA for Node.js whose queue pairs are set up over TLS 1.3.
 *
 * The setup is authenticated and encrypted. **The data that RDMA carries is neither**: whoever is on the path can read
 * it, and inject into it.
 *
 * ```ts
 * import { connect, listen } from 'secure-rdma'
 *
 * const server = await listen({ host: '10.8.0.1', port: 7471, ca, cert, key })
 * for await (const connection of server) {
 *   for await (const message of connection) await connection.send(message)
 * }
 *
 * const connection = await connect({ host: '10.8.0.1', port: 7471, ca, cert, key })
 * await connection.send(Buffer.from('hello'))
 * console.log(await connection.receive())
 * await connection.close()
 * ```
 *
 * @module secure-rdma
 */

export { Batch } from './src/batch.js'
export type { BatchOutcomes } from './src/batch.js'
export type { OperationOptions, WriteOptions } from './src/commands.js'
export { connect } from './src/connect.js'
export { Connection } from './src/connection.js'
export type {
  Closed,
  ConnectionStats,
  MessageBytes,
  ReceiveBatchOptions,
  SignalOptions,
} from './src/connection-types.js'
export { devices, deviceStats } from './src/devices.js'
export type { DeviceInfo, DeviceStats, DeviceStatsOptions, GidInfo, PortInfo } from './src/devices.js'
export type { DuplexOptions } from './src/duplex.js'
export { RdmaError } from './src/errors.js'
export type { RdmaErrorCode, RdmaErrorDetails, RdmaPhase } from './src/errors.js'
export type {
  CommonOptions,
  ConnectOptions,
  ListenOptions,
  Material,
  PoolOptions,
  QueuePairOptions,
} from './src/options.js'
export type { CertificateNames, Peer } from './src/peer.js'
export { allocate, Region, RegionSlice } from './src/region.js'
export type { LocalBytes } from './src/region.js'
export { RemoteRegion, RemoteSlice } from './src/remote.js'
export type { PublishOptions, RegionRight, RemoteBytes } from './src/remote.js'
export type { Address, ConnectionDevice, Handshake } from './src/report.js'
export type { SecureContextOptions } from './src/secure-context.js'
export { listen, Server } from './src/server.js'
export type { ServerAddress, ServerStats } from './src/server.js'
export type { AcceptTrace, ConnectTrace, OperationTrace, ReceiveTrace, SendTrace } from './src/tracing.js'
