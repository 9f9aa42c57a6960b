/** What `deem cuda-selftest` runs of the operations, each at a size that says something of its speed and at a small one. */
import { ops } from '../ops.js'
import { tidy } from '../scope.js'
import { type Tensor, tensor } from '../tensor.js'

export interface SelftestCase {
  name: string
  /** Floating inputs by name: shapes, drawn normal, scaled and shifted. */
  inputs: Record<string, { shape: number[]; scale?: number; shift?: number }>
  /** The others, made on the CPU, which have no gradient. */
  constants?: () => Record<string, Tensor>
  /** Gets both by name. */
  run(t: Record<string, Tensor>): Tensor
  /** Operations of a forward pass; 0 where only its bytes count. */
  flops: number
  /** The operation has no gradient. */
  forwardOnly?: boolean
}

const ids = (n: number, below: number, shape = [n]) =>
  tensor(
    BigInt64Array.from({ length: n }, (_, i) => BigInt((i * 7919) % below)),
    shape,
  )

/** `scale` divides the large sizes: 1 for a GPU, more where somebody tries it on an emulated one. */
export function selftestCases(scale: number): SelftestCase[] {
  const rows = Math.max(8, Math.floor(4096 / scale))
  const width = Math.max(64, Math.floor(4096 / scale))
  const side = Math.max(4, Math.floor(64 / scale))
  const tokens = Math.max(16, Math.floor(2048 / scale))
  const channels = Math.max(16, Math.floor(320 / scale))
  const vocabulary = Math.max(100, Math.floor(32006 / scale))
  const labels = Math.max(4, Math.floor(512 / scale))
  const x = { shape: [rows, width] }
  const map = { shape: [1, side, side, channels] }
  const vector = (n: number) => ({ shape: [n] })
  const weight = (shape: number[]) => ({ shape, scale: 1 / Math.sqrt(shape.slice(1).reduce((a, b) => a * b, 1)) })
  const heads = (t: number, h: number) => ({ shape: [1, t, h, 64] })
  const by = (
    name: string,
    inputs: SelftestCase['inputs'],
    run: SelftestCase['run'],
    flops = 0,
    constants?: SelftestCase['constants'],
  ): SelftestCase => ({ name, inputs, run, flops, ...(constants && { constants }) })
  const of = (t: Record<string, Tensor>, name: string) => t[name] as Tensor
  const unary = (name: 'gelu' | 'silu' | 'softmax' | 'geglu' | 'swiglu' | 'tanh') =>
    by(name, { x }, (t) => ops[name](of(t, 'x')))
  const attention = (name: string, queries: number, keys: number, kv: number, causal: boolean) =>
    by(
      name,
      { q: heads(queries, 8), k: heads(keys, kv), v: heads(keys, kv) },
      (t) => ops.attention(of(t, 'q'), of(t, 'k'), of(t, 'v'), null, { causal }),
      4 * 8 * 64 * queries * keys * (causal && queries === keys ? 0.5 : 1),
    )
  const quantized = (name: string, bits: number, m: number) =>
    by(
      name,
      { x: { shape: [m, width] }, b: vector(width) },
      (t) => ops.quantizedLinear(of(t, 'x'), of(t, 'packed'), bits, 32, true, of(t, 'b')),
      2 * m * width * width,
      () => ({ packed: tidy(() => ops.quantize(ops.randn([width, width], 6, 0, 'cpu'), bits, 32, true)) }),
    )
  const levels: [number, number][] = [side, side / 2, side / 4].map((n) => [Math.ceil(n), Math.ceil(n)])
  const points = levels.reduce((sum, [h, w]) => sum + h * w, 0)
  const conv = (name: string, kernel: number, stride: number, groups: number) =>
    by(
      name,
      { x: map, w: weight([channels, kernel, kernel, channels / groups]), b: vector(channels) },
      (t) => {
        const pad = (kernel - 1) >> 1
        const padding = { padLeft: pad, padRight: pad, padTop: pad, padBottom: pad }
        return ops.conv2d(of(t, 'x'), of(t, 'w'), of(t, 'b'), { stride, groups, ...padding })
      },
      (2 * (side / stride) ** 2 * channels * channels * kernel * kernel) / groups,
    )
  return [
    by('add', { a: x, b: x }, (t) => ops.add(of(t, 'a'), of(t, 'b'))),
    unary('gelu'),
    unary('silu'),
    unary('tanh'),
    unary('geglu'),
    unary('swiglu'),
    unary('softmax'),
    by('sum of rows', { x }, (t) => ops.sum(of(t, 'x'), [0], false)),
    by('transpose', { x }, (t) => ops.contiguous(ops.permute(of(t, 'x'), [1, 0]))),
    by('layer norm', { x, w: vector(width), b: vector(width) }, (t) =>
      ops.layerNorm(of(t, 'x'), of(t, 'w'), of(t, 'b'), 1e-6),
    ),
    by('rms norm', { x, w: vector(width) }, (t) => ops.rmsNorm(of(t, 'x'), of(t, 'w'), 1e-5)),
    by('group norm with silu', { x: map, w: vector(channels), b: vector(channels) }, (t) =>
      ops.groupNorm(of(t, 'x'), of(t, 'w'), of(t, 'b'), 8, 1e-5, true),
    ),
    by(
      'cross-entropy',
      { x: { shape: [labels, vocabulary] } },
      (t) => ops.crossEntropy(of(t, 'x'), of(t, 'labels'), -100),
      0,
      () => ({ labels: ids(labels, vocabulary) }),
    ),
    by(
      'embedding',
      { x },
      (t) => ops.embedding(of(t, 'x'), of(t, 'ids')),
      0,
      () => ({ ids: ids(rows, rows) }),
    ),
    by(
      'rope',
      { x: heads(tokens, 8) },
      (t) => ops.rope(of(t, 'x'), of(t, 'positions'), 1e4),
      0,
      () => ({ positions: ids(tokens, tokens, [1, tokens]) }),
    ),
    by(
      'linear',
      { x, w: weight([width, width]), b: vector(width) },
      (t) => ops.linear(of(t, 'x'), of(t, 'w'), of(t, 'b'), 'none'),
      2 * rows * width * width,
    ),
    by(
      'linear of one row',
      { x: { shape: [1, width] }, w: weight([width, width]) },
      (t) => ops.linear(of(t, 'x'), of(t, 'w'), null, 'none'),
      2 * width * width,
    ),
    quantized('int8 linear', 8, rows),
    quantized('int4 linear', 4, rows),
    quantized('int8 linear of one row', 8, 1),
    quantized('int4 linear of one row', 4, 1),
    attention('attention', tokens, tokens, 8, false),
    attention('attention, causal, grouped heads', tokens, tokens, 2, true),
    attention('attention of one query', 1, tokens, 2, true),
    conv('3x3 convolution', 3, 1, 1),
    conv('3x3 convolution, stride 2', 3, 2, 1),
    conv('7x7 depthwise convolution', 7, 1, channels),
    by(
      'deformable attention',
      {
        value: { shape: [1, points, 8, 32] },
        locations: { shape: [1, points, 8, 3, 4, 2], scale: 0.3, shift: 0.5 },
        weights: { shape: [1, points, 8, 3, 4] },
      },
      (t) => ops.msDeformAttn(of(t, 'value'), levels, of(t, 'locations'), of(t, 'weights')),
      points * 8 * 3 * 4 * 32 * 8,
    ),
    by(
      'sampling of several images',
      {
        value: { shape: [1, 2, points, 256] },
        offsets: { shape: [1, points, 8 * 4 * 2] },
        offsetTable: { shape: [3, 8 * 4 * 2] },
        logits: { shape: [1, points, 8 * 3 * 5] },
        logitTable: { shape: [3, 8 * 3 * 5] },
        reference: { shape: [points, 2], scale: 0.2, shift: 0.5 },
        ignored: { shape: [256] },
      },
      (t) =>
        ops.mmfsAttention(
          of(t, 'value'),
          of(t, 'offsets'),
          of(t, 'offsetTable'),
          of(t, 'logits'),
          of(t, 'logitTable'),
          of(t, 'relative'),
          of(t, 'reference'),
          of(t, 'ignored'),
          { heads: 8, points: 4, levelShapes: levels, scaleRatios: [1.5, 1, 0.5] },
        ),
      points * 2 * 8 * 3 * 4 * 32 * 8,
      () => ({ relative: ids(2 * points, 3, [1, 2, points]) }),
    ),
    {
      ...by('bilinear resize', { x: map }, (t) => ops.resizeBilinear(of(t, 'x'), 2 * side + 1, side)),
      forwardOnly: true,
    },
    by('nearest resize', { x: map }, (t) => ops.resizeNearest(of(t, 'x'), 2 * side, 2 * side)),
    by('dropout', { x }, (t) => ops.dropout(of(t, 'x'), 0.3, 1, 2)),
  ]
}
