export * from './data/index.js'
export { DeemError, type ErrorCode } from './errors.js'
export { Deem, type DeemInputs, type DeemTrainInputs, type DeemTrainOptions } from './models/deem.js'
export { type Rate, wilson } from './eval/interval.js'
export { readTensors, writeTensors } from './files.js'
export { f32, type HostTensor, hostTensor, i64 } from './host-tensor.js'
export * from './image/index.js'
export {
  type CreateOptions,
  type ForwardOptions,
  type LoadReport,
  Module,
  modelKinds,
  type NameMatch,
  output,
  type ParameterInfo,
} from './module.js'
export {
  type Activation,
  type AttentionOptions,
  type Conv2dOptions,
  type MmfsOptions,
  noGrad,
  type Ops,
  ops,
} from './ops.js'
export * from './report/index.js'
export { Scope, tidy } from './scope.js'
export {
  buildSequences,
  type Cut,
  type Document,
  image,
  labels,
  type Part,
  type SequenceInputs,
  type SequenceOptions,
  type Sequences,
  text,
} from './sequence.js'
export {
  emptyCache,
  isa,
  type MemoryReport,
  memory,
  resetPeakMemory,
  setMemoryLimit,
  setThreads,
  threads,
} from './system.js'
export type { CallOptions } from './task.js'
export { backward, type DType, Tensor, type TypedArray, tensor } from './tensor.js'
export * from './tokenizer/index.js'
