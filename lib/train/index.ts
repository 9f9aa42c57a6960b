export { AdamW, type AdamWOptions, type OptimizedParameter, type ParameterGroup } from './adamw.js'
export { constant, cosineWithWarmup, type Schedule } from './schedule.js'
export { type TrainStepOptions, trainStep } from './step.js'
