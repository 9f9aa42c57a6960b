/** Norms, activations, reductions, lookups, resampling and views: where bytes set the floor. */
import { type Case, type OpCase, opCases, type Spec, size } from '../case.js'

const shapeName = (shape: readonly number[]) => shape.join('x')
const of = (shape: readonly number[], more: Partial<Spec> = {}): Spec => ({ shape, ...more })

function unary(program: string, shape: readonly number[], more: Partial<OpCase> = {}): OpCase {
  return { name: `${program}/${shapeName(shape)}`, program, inputs: { x: of(shape) }, output: shape, ...more }
}
function binary(program: string, shape: readonly number[], other = shape): OpCase {
  const to = other === shape ? '' : `_${shapeName(other)}`
  return { name: `${program}/${shapeName(shape)}${to}`, program, inputs: { a: of(shape), b: of(other) }, output: shape }
}
function norm(program: string, shape: readonly number[], settings: OpCase['settings'] = {}): OpCase {
  const width = [shape.at(-1) as number]
  const inputs: Record<string, Spec> = { x: of(shape), weight: of(width) }
  if (program !== 'rmsNorm') inputs['bias'] = of(width)
  const silu = settings['silu'] ? 'silu' : ''
  return { name: `${program}${silu}/${shapeName(shape)}`, program, settings, inputs, output: shape }
}
function reduce(program: string, shape: readonly number[], axes: readonly number[]): OpCase {
  const output = shape.filter((_, i) => axes.length > 0 && !axes.includes(i))
  return unary(program, shape, {
    name: `${program}/${shapeName(shape)}over${axes.join('') || 'all'}`,
    settings: { axes },
    output,
  })
}
/** `mmfs` at the sizes of a block: `queries` positions look at `images` pictures of square levels. */
function sampling(
  program: 'msDeformAttn' | 'mmfsAttention',
  name: string,
  c: { queries: number; images: number; sides: number[]; heads: number; points: number; head: number; batch?: number },
): OpCase {
  const { batch = 1, queries, images, sides, heads, points, head } = c
  const positions = sides.reduce((sum, s) => sum + s * s, 0)
  const levels = sides.length
  const width = heads * head
  const settings = { heads, points, sides, ratios: sides.map((s) => s / (sides[1] as number)) }
  const output = [batch, queries, width]
  // Four neighbours, each a multiply and an add, and the weight.
  const flops = 10 * batch * queries * width * images * levels * points
  if (program === 'msDeformAttn')
    return {
      name: `msDeformAttn/${name}`,
      program,
      settings,
      inputs: {
        value: of([batch, positions, heads, head]),
        locations: of([batch, queries, heads, levels, points, 2], { fill: 'uniform' }),
        weights: of([batch, queries, heads, levels, points], { fill: 'uniform', scale: 1 / (levels * points) }),
      },
      output,
      flops,
    }
  const table = 10
  const offsets = heads * points * 2
  const logits = heads * levels * (points + 1)
  return {
    name: `mmfsAttention/${name}`,
    program,
    settings,
    inputs: {
      value: of([batch, images, positions, width]),
      offsets: of([batch, queries, offsets], { scale: 2 }),
      offset_table: of([table, offsets]),
      logits: of([batch, queries, logits]),
      logit_table: of([table, logits]),
      relative: of([batch, images, queries], {
        dtype: 'i64',
        fill: { below: Math.min(images + 1, table) },
        grad: false,
      }),
      reference: of([queries, 2], { fill: 'uniform', grad: false }),
      ignore_token: of([width]),
    },
    output,
    flops,
    // Where a sample lies on the border of two cells, rounding chooses which cell's slope it gets: of 524288 offsets PyTorch has one or two
    // on the other side than in float64, which is an error of 1.5e-4 to 3.2e-4.
    gradientLimit: 1e-3,
  }
}

const big = [4096, 4096]
const forward: Pick<OpCase, 'passes'> = { passes: ['forward'] }

export const pointwise: Case[] = [
  norm('layerNorm', [4096, 320]),
  norm('layerNorm', [1024, 1280]),
  norm('layerNorm', [3584, 128]),
  norm('rmsNorm', [512, 4096]),
  norm('rmsNorm', [2048, 4096]),
  norm('groupNorm', [1, 64, 64, 320], { groups: 32, silu: true }),
  norm('groupNorm', [1, 16, 16, 1280], { groups: 32, silu: true }),
  norm('groupNorm', [1, 256, 256, 128], { groups: 32, silu: true }),
  norm('groupNorm', [32, 8, 8, 96], { groups: 16, silu: true }),
  unary('gelu', [4096, 1280]),
  unary('silu', [512, 11008]),
  unary('quickGelu', [77, 4096]),
  unary('tanh', big),
  unary('exp', big),
  unary('square', big),
  unary('mulScalar', big),
  unary('clamp', big),
  unary('geglu', [4096, 2560], { output: [4096, 1280] }),
  unary('swiglu', [512, 22016], { output: [512, 11008] }),
  binary('add', big),
  binary('add', [1, 64, 64, 320], [1, 1, 1, 320]),
  binary('mul', [512, 11008]),
  binary('mul', [1, 64, 64, 128], [128]),
  binary('div', big),
  unary('where', big, { inputs: { mask: of(big, { dtype: 'u8', fill: { below: 2 } }), a: of(big), b: of(big) } }),
  unary('cast', big, { outputBytes: 4 }),
  reduce('sum', big, []),
  reduce('sum', big, [0]),
  reduce('mean', big, [1]),
  reduce('mean', [1, 64, 64, 1024], [1, 2]),
  { ...binary('mseLoss', big), output: [1], outputBytes: 4 },
  unary('argmax', [512, 32006], { output: [512], outputBytes: 8, ...forward }),
  // PyTorch's sum of 16 million squares in f32 is off by 6e-4.
  unary('norm', big, { output: [1], outputBytes: 8, ...forward, unchecked: ['f32'] }),
  unary('softmax', [1024, 4096]),
  unary('logSoftmax', [512, 32006]),
  {
    name: 'crossEntropy/1024x32006',
    program: 'crossEntropy',
    inputs: { logits: of([1024, 32006]), labels: of([1024], { dtype: 'i64', fill: { below: 32006 } }) },
    output: [1],
    outputBytes: 4,
  },
  {
    name: 'embedding/2048of32006x4096',
    program: 'embedding',
    inputs: {
      table: of([32006, 4096], { touched: 2048 * 4096 }),
      ids: of([2048], { dtype: 'i64', fill: { below: 32006 } }),
    },
    output: [2048, 4096],
    ...forward,
  },
  {
    name: 'embedding/2048of8192x1024',
    program: 'embedding',
    inputs: {
      table: of([8192, 1024], { touched: 2048 * 1024 }),
      ids: of([2048], { dtype: 'i64', fill: { below: 8192 } }),
    },
    output: [2048, 1024],
  },
  {
    name: 'gatherRows/4096of8192x1024',
    program: 'gatherRows',
    inputs: {
      x: of([8192, 1024], { touched: 4096 * 1024 }),
      index: of([4096], { dtype: 'i64', fill: { below: 8192 } }),
    },
    output: [4096, 1024],
  },
  ...[
    [1, 512, 32, 128],
    [1, 2048, 32, 128],
    [32, 112, 4, 32],
  ].map(
    ([b, t, h, d]): OpCase => ({
      name: `rope/${b}x${t}h${h}d${d}`,
      program: 'rope',
      inputs: {
        x: of([b, t, h, d] as number[]),
        positions: of([b, t] as number[], { dtype: 'i64', fill: { below: 2048 } }),
      },
      output: [b, t, h, d] as number[],
    }),
  ),
  sampling('msDeformAttn', '4096q5440x16x64', {
    queries: 4096,
    images: 1,
    sides: [64, 32, 16, 8],
    heads: 16,
    points: 8,
    head: 64,
  }),
  sampling('msDeformAttn', '2048q1344x16x64', {
    queries: 2048,
    images: 1,
    sides: [32, 16, 8],
    heads: 16,
    points: 8,
    head: 64,
  }),
  sampling('mmfsAttention', '2048q4x1344x1024', {
    queries: 2048,
    images: 4,
    sides: [32, 16, 8],
    heads: 16,
    points: 8,
    head: 64,
  }),
  sampling('mmfsAttention', '4096q1x5440x1024', {
    queries: 4096,
    images: 1,
    sides: [64, 32, 16, 8],
    heads: 16,
    points: 8,
    head: 64,
  }),
  sampling('mmfsAttention', 'nano32x112q1x84x128', {
    batch: 32,
    queries: 112,
    images: 1,
    sides: [8, 4, 2],
    heads: 4,
    points: 4,
    head: 32,
  }),
  unary('resampleTable', [4096, 320], { settings: { target: 1024 }, output: [1024, 320] }),
  unary('resizeBilinear', [1, 512, 512, 1], { settings: { side: 64 }, output: [1, 64, 64, 1], ...forward }),
  unary('resizeNearest', [1, 32, 32, 640], { settings: { side: 64 }, output: [1, 64, 64, 640] }),
  unary('transpose', [1, 4096, 20, 64], { output: [1, 20, 4096, 64] }),
  {
    name: 'cat/64x64x640+320',
    program: 'cat',
    inputs: { a: of([1, 64, 64, 640]), b: of([1, 64, 64, 320]) },
    output: [1, 64, 64, 960],
  },
  unary('randn', [1], {
    name: 'randn/4194304',
    settings: { count: 1 << 22 },
    output: [1 << 22],
    random: true,
    precisions: ['f32'],
    ...forward,
  }),
  unary('dropout', big, { random: true, ...forward }),
].flatMap(opCases)

/** Moments in f32: with the parameter and its gradient four arrays are read and three written. */
function adamw(tensors: number, shape: readonly number[]): Case {
  const elements = tensors * size(shape)
  return {
    name: `adamw/${tensors}x${shapeName(shape)}`,
    group: 'op',
    program: 'adamw',
    settings: { lr: 1e-3, decay: 0.05 },
    inputs: Object.fromEntries(
      Array.from({ length: tensors }, (_, i) => [
        [`p${i}`, of(shape)],
        [`g${i}`, of(shape, { grad: false })],
      ]).flat() as [string, Spec][],
    ),
    pass: 'forward',
    precisions: ['f32'],
    work: () => ({ flops: 0, bytes: 28 * elements }),
    peers: ['torch', 'torch-compile'],
  }
}

export const optimizers: Case[] = [adamw(4, [512, 512]), adamw(24, [4096, 1024])]
