/** Matrix products, convolutions and attention: where operations, not bytes, set the floor. */
import { type Case, type OpCase, opCases, type Spec } from '../case.js'

const weight = (shape: readonly number[]): Spec => ({
  shape,
  scale: 1 / Math.sqrt(shape.slice(1).reduce((a, b) => a * b, 1)),
})

function linear(rows: number, inner: number, outer: number, more: Partial<OpCase> = {}): OpCase {
  return {
    name: `linear/${rows}x${inner}x${outer}`,
    program: 'linear',
    settings: { activation: 'none' },
    inputs: { x: { shape: [rows, inner] }, weight: weight([outer, inner]), bias: { shape: [outer] } },
    output: [rows, outer],
    flops: 2 * rows * inner * outer,
    ...more,
  }
}

/** A residual branch's last product with its layer scale, as in ConvNeXt. */
function addLinear(rows: number, inner: number, outer: number): OpCase {
  const { inputs, ...rest } = linear(rows, inner, outer)
  return {
    ...rest,
    name: `addLinear/${rows}x${inner}x${outer}`,
    program: 'addLinear',
    inputs: { ...inputs, residual: { shape: [rows, outer] }, scale: { shape: [outer] } },
  }
}

function matmul(batch: number, m: number, k: number, n: number): OpCase {
  return {
    name: `matmul/${batch}x${m}x${k}x${n}`,
    program: 'matmul',
    inputs: { a: { shape: [batch, m, k] }, b: { shape: [batch, k, n], scale: 1 / Math.sqrt(k) } },
    output: [batch, m, n],
    flops: 2 * batch * m * k * n,
  }
}

interface Conv {
  n?: number
  side: number
  from: number
  to?: number
  kernel: number
  stride?: number
  pad?: number
  depthwise?: boolean
  passes?: OpCase['passes']
}

function conv({
  n = 1,
  side,
  from,
  to = from,
  kernel,
  stride = 1,
  pad = (kernel - 1) >> 1,
  depthwise = false,
  passes,
}: Conv): OpCase {
  const out = Math.floor((side + 2 * pad - kernel) / stride) + 1
  const per = depthwise ? 1 : from
  return {
    name: `${depthwise ? 'depthwise' : 'conv'}${kernel}x${kernel}/${n}x${side}x${side}x${from}${from === to ? '' : `to${to}`}${stride > 1 ? `s${stride}` : ''}`,
    program: 'conv2d',
    settings: { stride, pad, groups: depthwise ? from : 1 },
    inputs: { x: { shape: [n, side, side, from] }, weight: weight([to, kernel, kernel, per]), bias: { shape: [to] } },
    output: [n, out, out, to],
    flops: 2 * n * out * out * to * per * kernel * kernel,
    ...(passes && { passes }),
  }
}

interface Attention {
  batch?: number
  queries: number
  keys?: number
  heads: number
  keyHeads?: number
  size: number
  causal?: boolean
  passes?: OpCase['passes']
}

function attention({
  batch = 1,
  queries,
  keys = queries,
  heads,
  keyHeads = heads,
  size,
  causal = false,
  passes,
}: Attention): OpCase {
  const pairs = causal && keys === queries ? (queries * (queries + 1)) / 2 : queries * keys
  const kv: Spec = { shape: [batch, keys, keyHeads, size] }
  return {
    name: `attention/${batch}x${queries}x${keys}h${heads}${keyHeads === heads ? '' : `kv${keyHeads}`}d${size}${causal ? 'causal' : ''}`,
    program: 'attention',
    settings: { causal, grouped: keyHeads !== heads },
    inputs: { q: { shape: [batch, queries, heads, size] }, k: kv, v: kv },
    output: [batch, queries, heads, size],
    flops: 4 * batch * heads * size * pairs,
    // Scores again, then the gradients of weights, q, k and v: five products where the forward pass has two.
    backwardFlops: 2.5,
    ...(passes && { passes }),
  }
}

export const products: Case[] = [
  linear(1, 4096, 4096, { passes: ['forward'] }),
  linear(1, 4096, 11008, { passes: ['forward'] }),
  linear(16, 4096, 4096),
  linear(16, 4096, 11008, { passes: ['forward'] }),
  linear(512, 4096, 4096),
  linear(512, 4096, 11008),
  linear(77, 768, 3072, { name: 'linear/77x768x3072gelu', settings: { activation: 'gelu' } }),
  linear(3584, 128, 352),
  addLinear(256, 2048, 512),
  matmul(1, 1024, 1024, 1024),
  matmul(16, 512, 64, 512),
  matmul(128, 112, 32, 112),
  conv({ side: 64, from: 320, kernel: 3 }),
  conv({ side: 32, from: 640, kernel: 3 }),
  conv({ side: 16, from: 1280, kernel: 3 }),
  conv({ side: 8, from: 1280, kernel: 3 }),
  conv({ side: 64, from: 320, kernel: 3, stride: 2 }),
  conv({ side: 64, from: 4, to: 320, kernel: 3 }),
  conv({ side: 256, from: 128, kernel: 3, passes: ['forward'] }),
  conv({ side: 64, from: 640, to: 320, kernel: 1 }),
  conv({ side: 16, from: 2560, to: 1280, kernel: 1 }),
  conv({ side: 256, from: 3, to: 128, kernel: 4, stride: 4, pad: 0 }),
  conv({ n: 32, side: 8, from: 96, kernel: 3 }),
  conv({ side: 64, from: 128, kernel: 7, depthwise: true }),
  conv({ side: 32, from: 256, kernel: 7, depthwise: true }),
  conv({ side: 16, from: 512, kernel: 7, depthwise: true }),
  conv({ side: 8, from: 1024, kernel: 7, depthwise: true }),
  conv({ n: 32, side: 16, from: 64, kernel: 7, depthwise: true }),
  attention({ queries: 4096, heads: 5, size: 64 }),
  attention({ queries: 4096, heads: 8, size: 40 }),
  attention({ queries: 4096, keys: 77, heads: 5, size: 64 }),
  attention({ queries: 1024, heads: 10, size: 64 }),
  attention({ queries: 1024, keys: 77, heads: 8, size: 80 }),
  attention({ queries: 77, heads: 12, size: 64 }),
  attention({ queries: 77, keys: 257, heads: 12, size: 64 }),
  attention({ queries: 512, heads: 32, size: 128, causal: true }),
  attention({ queries: 2048, heads: 32, size: 128, causal: true }),
  attention({ queries: 1, keys: 2048, heads: 32, size: 128, causal: true, passes: ['forward'] }),
  attention({ queries: 1, keys: 2048, heads: 32, keyHeads: 4, size: 64, causal: true, passes: ['forward'] }),
  attention({ queries: 4096, heads: 1, size: 512, passes: ['forward'] }),
  attention({ batch: 32, queries: 112, heads: 4, size: 32, causal: true }),
].flatMap(opCases)
