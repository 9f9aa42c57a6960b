/** `ops/*`: each folder holds several cases, prefixed `case0.`, `case1.`, ... */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DeemError } from '../../errors.js'
import { readTensors } from '../../files.js'
import { type Activation, ops } from '../../ops.js'
import { backward, type Tensor, tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { below, type Case, type Json, leaf, nchw, need, nhwc, type Tensors } from '../case.js'
import type { Comparison, Rule } from '../compare.js'
import { check, type Program, type Timing } from '../program.js'

type Values = Record<string, Tensor>
interface OpKind {
  rule?: Rule
  /** Outputs from leaves (inputs and weights by name, cast and trainable where floating). */
  run: (x: Values, settings: Json, stored: { inputs: Tensors; outputs: Tensors }) => Values
  /** Inputs that want no gradient. */
  constant?: string[]
}

const number = (settings: Json, key: string): number => {
  const v = settings[key]
  if (typeof v !== 'number') throw new DeemError('ERR_FORMAT', `the case lacks the number '${key}'`)
  return v
}
const headsLast = (x: Tensor) => ops.permute(x, [0, 2, 1, 3]) // [B, H, T, D] <-> [B, T, H, D]
const bytes = (x: Tensor) => ops.cast(x, 'u8')

const kinds: Record<string, OpKind> = {
  activations: {
    run: ({ x }) => {
      const v = x as Tensor
      return { gelu_erf: ops.gelu(v), gelu_tanh: ops.geluTanh(v), silu: ops.silu(v), quick_gelu: ops.quickGelu(v) }
    },
  },
  gated: { run: ({ x }) => ({ geglu: ops.geglu(x as Tensor), swiglu: ops.swiglu(x as Tensor) }) },
  layer_norm: {
    run: (x, s) => ({ y: ops.layerNorm(need(x, 'x'), need(x, 'weight'), need(x, 'bias'), number(s, 'eps')) }),
  },
  rms_norm: { run: (x, s) => ({ y: ops.rmsNorm(need(x, 'x'), need(x, 'weight'), number(s, 'eps')) }) },
  group_norm_silu: {
    run: (x, s) => {
      const norm = (silu: boolean) =>
        nchw(
          ops.groupNorm(
            nhwc(need(x, 'x')),
            need(x, 'weight'),
            need(x, 'bias'),
            number(s, 'groups'),
            number(s, 'eps'),
            silu,
          ),
        )
      return { norm: norm(false), norm_silu: norm(true) }
    },
  },
  linear: {
    rule: 'long-sum',
    run: (x) => ({ y: ops.linear(need(x, 'x'), need(x, 'weight'), x['bias'] ?? null, 'none' as Activation) }),
  },
  conv2d: {
    rule: 'long-sum',
    run: (x, s) => {
      const [padLeft, padRight, padTop, padBottom] = s['pad_left_right_top_bottom'] as [number, number, number, number]
      const w = ops.contiguous(ops.permute(need(x, 'weight'), [0, 2, 3, 1]))
      const channels = need(x, 'x').shape[1] as number
      const options = {
        stride: number(s, 'stride'),
        padLeft,
        padRight,
        padTop,
        padBottom,
        groups: s['depthwise'] ? channels : 1,
      }
      return { y: nchw(ops.conv2d(nhwc(need(x, 'x')), w, x['bias'] ?? null, options)) }
    },
  },
  attention: {
    rule: 'long-sum',
    run: (x, s) => {
      const kind = String(s['kind'])
      const [q, k, v] = (['q', 'k', 'v'] as const).map((n) => headsLast(need(x, n))) as [Tensor, Tensor, Tensor]
      const keep = x['keep'] ? bytes(x['keep']) : null
      return {
        y: headsLast(ops.attention(q, k, v, keep, { scale: number(s, 'scale'), causal: kind.startsWith('causal') })),
      }
    },
  },
  rope: {
    run: (x, s) => {
      const turn = (name: string) =>
        headsLast(ops.rope(headsLast(need(x, name)), need(x, 'positions'), number(s, 'base')))
      return { q_rot: turn('q'), k_rot: turn('k') }
    },
  },
  softmax_cross_entropy: {
    run: (x, s) => ({
      loss: ops.crossEntropy(need(x, 'logits'), need(x, 'labels'), number(s, 'ignore_index')),
      log_probs: ops.logSoftmax(need(x, 'logits')),
    }),
  },
  embedding: {
    run: (x, s) => ({
      y: ops.embedInterleaved(
        need(x, 'ids'),
        need(x, 'table'),
        need(x, 'image_embeds'),
        need(x, 'soi_token'),
        number(s, 'image_token_id'),
        number(s, 'soi_token_id'),
      ),
    }),
  },
  ms_deform_attn: {
    rule: 'long-sum',
    run: (x, s) => ({
      y: ops.msDeformAttn(
        need(x, 'value'),
        s['level_shapes_hw'] as [number, number][],
        need(x, 'locations'),
        need(x, 'weights'),
      ),
    }),
  },
  bicubic_table: {
    run: (x, s) => {
      const side = number(s, 'target_side')
      return { y: ops.resampleTable(need(x, 'table'), side * side + (s['leading_cls_row'] ? 1 : 0)) }
    },
  },
  bilinear_mask: {
    constant: ['mask'],
    run: (x, s) => {
      const [h, w] = s['size'] as [number, number]
      const resized = ops.resizeBilinear(nhwc(need(x, 'mask')), h, w)
      const zero = ops.full([1], 0, resized.dtype)
      const one = ops.full([1], 1, resized.dtype)
      const positive = ops.where(ops.greater(resized, 0), one, zero)
      return { resized: nchw(resized), positive: nchw(positive) }
    },
  },
  nearest_upsample: {
    run: (x, s) => {
      const [h, w] = s['out_size'] as [number, number]
      return { y: nchw(ops.resizeNearest(nhwc(need(x, 'x')), h, w)) }
    },
  },
  timestep_embedding: { run: (x, s) => ({ y: ops.timestepEmbedding(need(x, 't'), number(s, 'dim')) }) },
  sincos_tables: {
    run: (_, s) => {
      const n = number(s, 'count_or_side')
      const kind = String(s['kind'])
      const y = kind === '1d' ? ops.sincos1d(number(s, 'dim'), n) : ops.sincos2d(number(s, 'dim'), n, kind === '2d_cls')
      return { y }
    },
  },
}

export function opRunner(op: string): ((c: Case, repeat: number, timing: Timing) => Promise<Comparison[]>) | undefined {
  if (op === 'adamw') return runAdamW
  const kind = kinds[op]
  if (!kind) return undefined
  return async (c, repeat, timing) => {
    const results: Comparison[] = []
    for (const settings of c.config['cases'] as Json[]) {
      const prefix = String(settings['prefix'])
      const stored = {
        inputs: below(c.inputs, prefix),
        outputs: below(c.outputs, prefix),
        grads: below(c.grads, prefix),
      }
      const given = Object.entries({ ...stored.inputs, ...below(c.weights, prefix) }).filter(
        ([name]) => !name.startsWith('ct.'),
      )
      let leaves: Values = {}
      const program: Program = {
        reset: () => {
          leaves = Object.fromEntries(
            given.map(([name, t]) => [name, leaf(t, c.dtype, !kind.constant?.includes(name))]),
          )
        },
        forward: () => kind.run(leaves, settings, stored),
        gradient: (name) => leaves[name]?.grad ?? null,
        rule: kind.rule ?? 'op',
        gradientRule: 'op-gradient',
      }
      results.push(...(await check(program, stored, c.dtype, prefix, repeat, timing)))
    }
    return results
  }
}

/** Steps with given gradients: the gradient of sum(p * g) is g, so the public path is used from end to end. */
async function runAdamW(c: Case, _repeat: number, timing: Timing): Promise<Comparison[]> {
  const results: Comparison[] = []
  const { compare } = await import('../compare.js')
  for (const settings of c.config['cases'] as Json[]) {
    const prefix = String(settings['prefix'])
    const inputs = below(c.inputs, prefix)
    const outputs = below(c.outputs, prefix)
    const grads = need(inputs, 'grads')
    const rates = need(inputs, 'lrs').toFloat32()
    const p = tensor(need(inputs, 'param').toFloat32())
    p.requiresGrad = true
    const optimizer = new AdamW(
      { p },
      {
        lr: 1,
        betas: settings['betas'] as [number, number],
        eps: number(settings, 'eps'),
        weightDecay: number(settings, 'weight_decay'),
        maxGradNorm: (settings['max_grad_norm'] as number | null) ?? 0,
        noDecay: [],
      },
    )
    const n = p.size
    const path: number[] = []
    const norms: number[] = []
    for (const [step, lr] of rates.entries()) {
      await backward([ops.sum(ops.mul(p, ops.reshape(ops.slice(grads, 0, step, step + 1), [n])), [], false)])
      const start = performance.now()
      norms.push(await optimizer.step(lr))
      timing.forward.push(performance.now() - start)
      optimizer.zeroGrad()
      path.push(...p.toFloat32())
    }
    const dir = mkdtempSync(join(tmpdir(), 'deem-parity-'))
    await optimizer.save(join(dir, 'state.safetensors'))
    const { tensors: state } = await readTensors(join(dir, 'state.safetensors'))
    rmSync(dir, { recursive: true })
    const got: Record<string, Float32Array> = {
      params: Float32Array.from(path),
      norms_before_clip: Float32Array.from(norms),
      exp_avg: need(state, 'exp_avg.p').toFloat32(),
      exp_avg_sq: need(state, 'exp_avg_sq.p').toFloat32(),
    }
    for (const [name, want] of Object.entries(outputs)) {
      const value = got[name]
      if (!value) throw new DeemError('ERR_FORMAT', `the case stores '${name}', which AdamW does not have`)
      results.push(compare(prefix + name, value, want, 'op', 'f32'))
    }
  }
  return results
}
