// The door for `import`. There is one implementation: the CommonJS module that `require` gives.
export {
  allocate,
  Batch,
  connect,
  Connection,
  devices,
  deviceStats,
  listen,
  RdmaError,
  Region,
  RegionSlice,
  RemoteRegion,
  RemoteSlice,
  Server,
} from './index.js'
export type * from './index.js'
