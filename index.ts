/**
 * RDMA for Node.js whose queue pairs are set up over TLS 1.3.
 *
 * The setup is authenticated and encrypted. **The data that RDMA carries is neither**: whoever is on the path can read
 * it and inject into it.
 *
 * @module secure-rdma
 */

export { RdmaError } from './src/errors.js'
export type { RdmaErrorCode, RdmaErrorDetails, RdmaPhase } from './src/errors.js'
