export * from './data/index.js'
export { DeemError, type ErrorCode } from './errors.js'
export { type Rate, wilson } from './eval/interval.js'
export { mapTensors, readTensors, type TensorFile, writeTensors } from './files.js'
export type { BeamOptions } from './generate/beam.js'
export { type DecodeOptions, type DecodeStep, decode } from './generate/decode.js'
export {
  type PaintOptions,
  type PictureOptions,
  PictureSession,
  type PictureStart,
} from './generate/picture-session.js'
export { type ChoiceRules, type Continuations, type Next, type Sampling, TextSession } from './generate/text-session.js'
export { f32, type HostArrays, type HostDType, type HostTensor, hostTensor, i64 } from './host-tensor.js'
export * from './image/index.js'
export { type LoadOptions, loadModel } from './load-model.js'
export { ClipText } from './models/clip-text.js'
export { ConvNext, type EncoderOutput } from './models/convnext.js'
export {
  Deem,
  type DeemDraws,
  type DeemInputs,
  type DeemTrainInputs,
  type DeemTrainOptions,
  type GeneratedText,
  type GenerateTextOptions,
} from './models/deem.js'
export { Llama, type LlamaInputs, type LlamaOptions } from './models/llama.js'
export { Perceiver } from './models/perceiver.js'
export { Sampler, type SamplerConfig, type SamplerName, type SamplerPlan } from './models/sampler.js'
export { TextHead } from './models/text-head.js'
export { Unet, type UnetCondition } from './models/unet.js'
export { type Encoded, type Tiling, Vae, type VaeOptions } from './models/vae.js'
export {
  type CreateOptions,
  type ForwardOptions,
  type LoadReport,
  Module,
  modelKinds,
  type NameMatch,
  output,
  type ParameterInfo,
  type PlainTensor,
  type SessionHandle,
} from './module.js'
export {
  type Activation,
  type AttentionOptions,
  type Binary,
  type Conv2dOptions,
  type MmfsOptions,
  noGrad,
  type Ops,
  ops,
  type Unary,
} from './ops.js'
export type { GenerateOptions, PicturePiece, TextDelta } from './pipeline/interleave.js'
export { type ImageOptions, Pipeline } from './pipeline/pipeline.js'
export { type Geometry, type PictureFit, type Prompt, type RegionOf, within } from './pipeline/prompt.js'
export { Session, type SessionMessage, type SessionOptions } from './pipeline/session.js'
export { type ChatTemplate, chatTemplates, type JinjaTemplate } from './pipeline/template.js'
export type { FinishReason, TextOptions, TextResult } from './pipeline/writer.js'
export * from './report/index.js'
export { Scope, tidy } from './scope.js'
export {
  buildSequences,
  type Cut,
  type Document,
  type ImagePart,
  image,
  labels,
  type Part,
  type SequenceInputs,
  type SequenceOptions,
  type Sequences,
  type TextPart,
  text,
} from './sequence.js'
export {
  type Device,
  type DeviceReport,
  defaultDevice,
  devices,
  emptyCache,
  isa,
  type MemoryReport,
  memory,
  type OnDevice,
  resetPeakMemory,
  setDefaultDevice,
  setMemoryLimit,
  setThreads,
  synchronize,
  threads,
} from './system.js'
export type { CallOptions } from './task.js'
export { backward, type DType, type Nested, Tensor, type TensorOptions, type TypedArray, tensor } from './tensor.js'
export * from './tokenizer/index.js'
export type { WeightsReport } from './weights/assign.js'
export { type Converted, type ConvertOptions, convertFolder } from './weights/convert.js'
export type { VariantOptions } from './weights/folder.js'
export type { HubOptions } from './weights/hub.js'
export type { WeightLayout } from './weights/layouts.js'
export { type LoadDeemOptions, type LoadedDeem, loadDeem } from './weights/load.js'
export type { DeemPieces } from './weights/pieces.js'
export type { Quantization, QuantizeOption } from './weights/quantization.js'
export { type SaveDeemOptions, saveDeem } from './weights/save.js'
export type { SourceOptions } from './weights/source.js'
