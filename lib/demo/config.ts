import { readFileSync } from 'node:fs'
import { parse } from 'yaml'
import type { z } from 'zod'
import { lazySchema, parseConfig } from '../config.js'

/** Everything the demo can be told; `configs/nano.yaml` holds the values. */
export const demoConfig = lazySchema((z) => {
  const whole = z.int().positive()
  const stage = {
    steps: whole,
    batch: whole,
    lr: z.number().positive(),
    warmup: z.int().nonnegative(),
    weight_decay: z.number().nonnegative(),
  }
  return z.strictObject({
    seed: z.int().nonnegative(),
    /** What all models compute in; default f32. With bf16 the optimizers keep f32 masters, and the trained model is written from these. */
    precision: z.enum(['f32', 'bf16']).optional(),
    model: z.strictObject({
      width: whole,
      image_tokens: whole,
      encoder: z.strictObject({ depths: z.array(whole).length(4), dims: z.array(whole).length(4), patch_size: whole }),
      resampler: z.strictObject({ layers: whole, heads: whole, intermediate: whole }),
      image_resampler: z.strictObject({ layers: whole, heads: whole, intermediate: whole }),
      llm: z.strictObject({ layers: whole, heads: whole, intermediate: whole, cross_attention_frequency: whole }),
      mmfs: z.strictObject({ heads: whole, points: whole }),
      denoiser: z.strictObject({
        channels: z.array(whole).min(1),
        heads: z.array(whole).min(1),
        layers: whole,
        groups: whole,
        text_layers: whole,
        text_heads: whole,
      }),
      vae: z.strictObject({ channels: z.array(whole).min(1), layers: whole, latent: whole, groups: whole }),
      max_length: whole,
    }),
    stages: z.strictObject({
      vae: z.strictObject({ ...stage, kl_weight: z.number().nonnegative() }),
      denoiser: z.strictObject({
        ...stage,
        /** Of all steps: those on one-object crops, at the start, with their own batch. */
        crop_share: z.number().min(0).max(1),
        crop_batch: whole,
        drop_caption: z.number().min(0).max(1),
      }),
      language: z.strictObject({
        ...stage,
        /** Of all steps: those at the start that are quiz alone. */
        quiz_share: z.number().min(0).max(1),
      }),
      encoder: z.strictObject(stage),
      bridges: z.strictObject({ ...stage, encoder_lr: z.number().positive() }),
      alignment: z.strictObject({ ...stage, encoder_lr: z.number().positive() }),
      questions: z.strictObject(stage),
    }),
    evaluation: z.strictObject({
      questions: whole,
      background_questions: whole,
      other_questions: whole,
      captions: whole,
      paintings: whole,
      sampler_steps: whole,
      guidance: z.number().nonnegative(),
    }),
  })
})
export type DemoConfig = z.output<ReturnType<typeof demoConfig>>
export type StageName = keyof DemoConfig['stages']

export function readDemoConfig(path: string): DemoConfig {
  return parseConfig(demoConfig, parse(readFileSync(path, 'utf8')), 'demo')
}

/** Every stage a few steps long and every evaluation small: proves that all of it runs, not that it learns. */
export function quick(config: DemoConfig): DemoConfig {
  const stages = Object.fromEntries(
    Object.entries(config.stages).map(([name, s]) => [
      name,
      { ...s, steps: Math.max(4, Math.round(s.steps / 60)), warmup: 2 },
    ]),
  ) as DemoConfig['stages']
  return {
    ...config,
    stages,
    evaluation: {
      ...config.evaluation,
      questions: 24,
      background_questions: 12,
      other_questions: 8,
      captions: 8,
      paintings: 8,
      sampler_steps: 4,
    },
  }
}
