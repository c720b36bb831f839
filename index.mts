// The door for `import`. There is one implementation: the CommonJS module that `require` gives.
export { RdmaError } from './index.js'
export type * from './index.js'
