// The door for `import`. There is one implementation: the CommonJS module that `require` gives.
export { connect, Connection, devices, deviceStats, listen, RdmaError, Server } from './index.js'
export type * from './index.js'
