import type { AdamWOptions } from './adamw.js'

/** The optimizer of the published alignment stage: groups by the first name piece that matches (model.md, table of stages). */
export const publishedGroups: AdamWOptions = {
  lr: 1e-4,
  weightDecay: 0.05,
  betas: [0.9, 0.995],
  eps: 1e-6,
  maxGradNorm: 1,
  groups: [
    { match: 'llama_cross_attn.gate', lr: 1e-4, weightDecay: 0 },
    { match: 'sampling_offsets', lr: 1e-5, weightDecay: 0 },
    { match: 'llama_cross_attn', lr: 1e-4 },
    { match: 'visual_tokenizer.encoder.unet', lr: 1e-5 },
    { match: 'visual_tokenizer.sniffer.vision_model.visual', lr: 2e-5 },
    { match: 'visual_tokenizer.sniffer.vision_model.encoder', lr: 2e-5 },
  ],
}
