/** Operations as the cases name them: inputs by name in, one result out. */
import { type Activation, backward, noGrad, ops, type Tensor, tensor, tidy } from 'deem'
import { AdamW } from 'deem/train'
import type { Case, Precision, Settings } from '../case.js'
import { disposeAll, drawCotangents, drawInputs, inputGradients, type Subject } from './subject.js'

type Inputs = Readonly<Record<string, Tensor>>
type Program = (x: Inputs, s: Settings) => Tensor

function at(x: Inputs, name: string): Tensor {
  const t = x[name]
  if (!t) throw new Error(`the case has no input '${name}'`)
  return t
}
const unary =
  (f: (x: Tensor) => Tensor): Program =>
  (x) =>
    f(at(x, 'x'))
const binary =
  (f: (a: Tensor, b: Tensor) => Tensor): Program =>
  (x) =>
    f(at(x, 'a'), at(x, 'b'))
const axes = (s: Settings) => s['axes'] as number[]
const levels = (s: Settings) => (s['sides'] as number[]).map((side): [number, number] => [side, side])

const programs: Record<string, Program> = {
  add: binary(ops.add),
  mul: binary(ops.mul),
  div: binary(ops.div),
  tanh: unary(ops.tanh),
  exp: unary(ops.exp),
  square: unary(ops.square),
  silu: unary(ops.silu),
  gelu: unary(ops.gelu),
  quickGelu: unary(ops.quickGelu),
  geglu: unary(ops.geglu),
  swiglu: unary(ops.swiglu),
  softmax: unary(ops.softmax),
  logSoftmax: unary(ops.logSoftmax),
  argmax: unary(ops.argmax),
  norm: unary((x) => tensor([ops.norm(x)])),
  mulScalar: unary((x) => ops.mulScalar(x, 1.25)),
  clamp: unary((x) => ops.clamp(x, -0.5, 0.5)),
  cast: unary((x) => ops.cast(x, x.dtype === 'f32' ? 'bf16' : 'f32')),
  dropout: unary((x) => ops.dropout(x, 0.1, 1, 1)),
  transpose: unary((x) => ops.contiguous(ops.permute(x, [0, 2, 1, 3]))),
  where: (x) => ops.where(at(x, 'mask'), at(x, 'a'), at(x, 'b')),
  sum: (x, s) => ops.sum(at(x, 'x'), axes(s), false),
  mean: (x, s) => ops.mean(at(x, 'x'), axes(s), false),
  mseLoss: binary(ops.mseLoss),
  cat: (x) => ops.cat([at(x, 'a'), at(x, 'b')], 3),
  randn: (_, s) => ops.randn([s['count'] as number], 1, 1),
  linear: (x, s) => ops.linear(at(x, 'x'), at(x, 'weight'), at(x, 'bias'), s['activation'] as Activation),
  addLinear: (x) => ops.addLinear(at(x, 'residual'), at(x, 'x'), at(x, 'weight'), at(x, 'bias'), at(x, 'scale')),
  matmul: (x) => ops.matmul(at(x, 'a'), at(x, 'b'), false, false),
  conv2d: (x, s) => {
    const pad = s['pad'] as number
    return ops.conv2d(at(x, 'x'), at(x, 'weight'), at(x, 'bias'), {
      stride: s['stride'] as number,
      groups: s['groups'] as number,
      padLeft: pad,
      padRight: pad,
      padTop: pad,
      padBottom: pad,
    })
  },
  layerNorm: (x) => ops.layerNorm(at(x, 'x'), at(x, 'weight'), at(x, 'bias'), 1e-6),
  rmsNorm: (x) => ops.rmsNorm(at(x, 'x'), at(x, 'weight'), 1e-5),
  groupNorm: (x, s) =>
    ops.groupNorm(at(x, 'x'), at(x, 'weight'), at(x, 'bias'), s['groups'] as number, 1e-6, s['silu'] as boolean),
  attention: (x, s) => ops.attention(at(x, 'q'), at(x, 'k'), at(x, 'v'), null, { causal: s['causal'] as boolean }),
  rope: (x) => ops.rope(at(x, 'x'), at(x, 'positions'), 10000),
  crossEntropy: (x) => ops.crossEntropy(at(x, 'logits'), at(x, 'labels'), -100),
  embedding: (x) => ops.embedding(at(x, 'table'), at(x, 'ids')),
  gatherRows: (x) => ops.gatherRows(at(x, 'x'), at(x, 'index')),
  msDeformAttn: (x, s) => ops.msDeformAttn(at(x, 'value'), levels(s), at(x, 'locations'), at(x, 'weights')),
  mmfsAttention: (x, s) =>
    ops.mmfsAttention(
      at(x, 'value'),
      at(x, 'offsets'),
      at(x, 'offset_table'),
      at(x, 'logits'),
      at(x, 'logit_table'),
      at(x, 'relative'),
      at(x, 'reference'),
      at(x, 'ignore_token'),
      {
        heads: s['heads'] as number,
        points: s['points'] as number,
        levelShapes: levels(s),
        scaleRatios: s['ratios'] as number[],
      },
    ),
  resampleTable: (x, s) => ops.resampleTable(at(x, 'x'), s['target'] as number),
  resizeBilinear: (x, s) => ops.resizeBilinear(at(x, 'x'), s['side'] as number, s['side'] as number),
  resizeNearest: (x, s) => ops.resizeNearest(at(x, 'x'), s['side'] as number, s['side'] as number),
}

export async function opSubject(c: Case, precision: Precision): Promise<Subject> {
  if (c.program === 'adamw') return adamwSubject(c, precision)
  const program = programs[c.program]
  if (!program) throw new Error(`there is no program '${c.program}'`)
  const x = drawInputs(c, precision)
  const once = () => tidy(() => program(x, c.settings))
  const forget = () => {
    for (const t of Object.values(x)) if (t.requiresGrad) t.clearGrad()
  }
  if (c.pass === 'forward')
    return {
      inputs: x,
      results: async () => ({ y: noGrad(once) }),
      run: async (times) =>
        noGrad(() => {
          for (let i = 0; i < times; i++) once().dispose()
        }),
      [Symbol.dispose]: () => disposeAll(x),
    }
  const first = noGrad(once)
  const cotangents = drawCotangents({ y: first })
  first.dispose()
  const cotangent = cotangents['cotangent.y'] as Tensor
  const pass = async () => {
    using y = once()
    await backward([y], [cotangent])
  }
  return {
    inputs: { ...x, ...cotangents },
    results: async () => {
      const y = noGrad(once)
      await pass()
      const results = { y, ...inputGradients(x) }
      forget()
      return results
    },
    run: async (times) => {
      for (let i = 0; i < times; i++) {
        await pass()
        forget()
      }
    },
    [Symbol.dispose]: () => disposeAll(x, cotangents),
  }
}

async function adamwSubject(c: Case, precision: Precision): Promise<Subject> {
  const x = drawInputs(c, precision)
  const parameters = Object.fromEntries(Object.entries(x).filter(([name]) => name.startsWith('p')))
  const { lr, decay } = c.settings as { lr: number; decay: number }
  // The peers are given the starting values, not those that our own steps leave.
  const own = Object.fromEntries(Object.entries(parameters).map(([name, t]) => [name, tidy(() => ops.addScalar(t, 0))]))
  for (const t of Object.values(own)) t.requiresGrad = true
  const gradients = Object.keys(own).map((name) => x[name.replace('p', 'g')] as Tensor)
  await backward(Object.values(own), gradients)
  const optimizer = new AdamW(own, { lr, weightDecay: decay, noDecay: [] })
  return {
    inputs: x,
    results: async () => {
      await optimizer.step()
      return { p0: tidy(() => ops.addScalar(own['p0']?.detach() as Tensor, 0)) }
    },
    run: async (times) => {
      for (let i = 0; i < times; i++) await optimizer.step()
    },
    [Symbol.dispose]: () => {
      optimizer.dispose()
      disposeAll(x, own)
    },
  }
}
