import test from 'ava'
import { backward, type DType, ops, type Tensor, tensor } from 'deem'
import { activations, sigmoid } from '../_harness/activations.js'
import { compare, type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

type Values = (i: number, normal: () => number) => number
interface Unary {
  run: (x: Tensor) => Tensor
  f: (x: number) => number
  values?: Values
  /** Roundings of a narrow dtype on the way, default 1: derivatives of these are made from the rounded value. */
  roundings?: number
}

/** Away from a kink, by more than the rounding of the narrow dtypes. */
const awayFrom =
  (...kinks: number[]): Values =>
  (_, normal) => {
    const v = 2 * normal()
    return kinks.some((k) => Math.abs(v - k) < 0.05) ? v + 0.1 : v
  }
const positive: Values = (_, normal) => Math.exp(normal())
const away: Values = (_, normal) => {
  const v = normal()
  return v < 0 ? v - 0.5 : v + 0.5
}

const unary: Record<string, Unary> = {
  neg: { run: ops.neg, f: (x) => -x },
  exp: { run: ops.exp, f: Math.exp, roundings: 2 },
  log: { run: ops.log, f: Math.log, values: positive },
  sqrt: { run: ops.sqrt, f: Math.sqrt, values: positive, roundings: 2 },
  square: { run: ops.square, f: (x) => x * x },
  abs: { run: ops.abs, f: Math.abs, values: awayFrom(0) },
  tanh: { run: ops.tanh, f: Math.tanh, roundings: 3 },
  sigmoid: { run: ops.sigmoid, f: sigmoid },
  relu: { run: ops.relu, f: activations.relu, values: awayFrom(0) },
  silu: { run: ops.silu, f: activations.silu },
  gelu: { run: ops.gelu, f: activations.gelu },
  geluTanh: { run: ops.geluTanh, f: activations.gelu_tanh },
  quickGelu: { run: ops.quickGelu, f: activations.quick_gelu },
  addScalar: { run: (x) => ops.addScalar(x, -2.5), f: (x) => x - 2.5 },
  mulScalar: { run: (x) => ops.mulScalar(x, 0.375), f: (x) => 0.375 * x },
  clamp: { run: (x) => ops.clamp(x, -1, 0.5), f: (x) => Math.min(0.5, Math.max(-1, x)), values: awayFrom(-1, 0.5) },
}

const limits = (roundings: number) => ({ bf16: roundings * narrowLimits.bf16, f16: roundings * narrowLimits.f16 })
for (const [name, { run, f, values, roundings = 1 }] of Object.entries(unary)) {
  const at = (shape: number[], rest: Partial<OpCase> = {}): OpCase => ({
    name: `[${shape}]`,
    inputs: { x: { shape, ...(values && { values }) } },
    run: ({ x }) => run(x as Tensor),
    reference: ({ x }) => (x as F64).data.map(f),
    ...rest,
  })
  opTest(name, [
    at([]),
    at([1, 3]),
    at([3, 17], { narrow: limits(roundings) }),
    at([2, 3, 63], { probes: 10 }),
    at([0, 5]),
  ])
}

// ---- two inputs ---------------------------------------------------------------------------------------------------

/** Where element `i` of `shape` comes from in an operand broadcast to it. */
function source(i: number, shape: number[], from: number[]): number {
  let at = 0
  let step = 1
  for (let d = shape.length - 1, rest = i; d >= 0; d--) {
    const k = d - (shape.length - from.length)
    const coordinate = rest % (shape[d] as number)
    rest = Math.floor(rest / (shape[d] as number))
    if (k < 0) continue
    if (from[k] !== 1) at += coordinate * step
    step *= from[k] as number
  }
  return at
}
const broadcast = (a: number[], b: number[]) =>
  Array.from({ length: Math.max(a.length, b.length) }, (_, i) => {
    const size = (s: number[]) => s[i - (Math.max(a.length, b.length) - s.length)] ?? 1
    return size(a) === 1 ? size(b) : size(a)
  })
const count = (shape: number[]) => shape.reduce((a, v) => a * v, 1)

const binary: Record<string, { run: (a: Tensor, b: Tensor) => Tensor; f: (a: number, b: number) => number }> = {
  add: { run: ops.add, f: (a, b) => a + b },
  sub: { run: ops.sub, f: (a, b) => a - b },
  mul: { run: ops.mul, f: (a, b) => a * b },
  div: { run: ops.div, f: (a, b) => a / b },
}
for (const [name, { run, f }] of Object.entries(binary)) {
  const at = (left: number[], right: number[], rest: Partial<OpCase> = {}): OpCase => ({
    name: `[${left}] and [${right}]`,
    inputs: { a: { shape: left }, b: { shape: right, values: away } },
    run: ({ a, b }) => run(a as Tensor, b as Tensor),
    reference: ({ a, b }) => {
      const shape = broadcast(left, right)
      return Array.from({ length: count(shape) }, (_, i) =>
        f((a as F64).data[source(i, shape, left)] as number, (b as F64).data[source(i, shape, right)] as number),
      )
    },
    ...rest,
  })
  opTest(name, [
    at([3, 17], [3, 17], { narrow: limits(name === 'div' ? 3 : 1) }),
    at([], []),
    at([], [4]),
    at([3, 1], [1, 17]),
    at([17], [2, 3, 17]),
    at([2, 3, 63], [3, 1], { probes: 10 }),
    at([2, 1, 5], [4, 1]),
    at([2, 1, 3, 1], [4, 1, 5]),
    at([0, 3], [1, 3]),
    at([3, 0], [3, 1]),
    at([1, 1], [0]),
    {
      name: 'a tensor with itself',
      inputs: { a: { shape: [7], values: away } },
      run: ({ a }) => run(a as Tensor, a as Tensor),
      reference: ({ a }) => (a as F64).data.map((v) => f(v, v)),
    },
    {
      name: 'a tensor with its transpose',
      inputs: { a: { shape: [5, 5], values: away } },
      run: ({ a }) => run(a as Tensor, ops.permute(a as Tensor, [1, 0])),
      reference: ({ a }) =>
        (a as F64).data.map((v, i) => f(v, (a as F64).data[(i % 5) * 5 + Math.floor(i / 5)] as number)),
    },
  ])
}

const whereCase = (mask: number[], left: number[], right: number[]): OpCase => ({
  name: `[${mask}] of [${left}] and [${right}]`,
  inputs: {
    mask: { shape: mask, dtype: 'u8', values: (i) => [0, 1, 255, 0, 0][i % 5] as number },
    a: { shape: left },
    b: { shape: right },
  },
  run: ({ mask, a, b }) => ops.where(mask as Tensor, a as Tensor, b as Tensor),
  reference: (x) => {
    const shape = broadcast(broadcast(mask, left), right)
    const at = (t: F64 | undefined, i: number) => t?.data[source(i, shape, t.shape)] as number
    return Array.from({ length: count(shape) }, (_, i) => at(at(x['mask'], i) ? x['a'] : x['b'], i))
  },
})
opTest('where', [
  whereCase([3, 17], [3, 17], [3, 17]),
  whereCase([3, 1], [17], [3, 17]),
  whereCase([17], [], [2, 1]),
  whereCase([2, 3, 5], [5], []),
  whereCase([0, 3], [3], [1, 1]),
])

// ---- the edges of the number line -----------------------------------------------------------------------------------

const inf = Number.POSITIVE_INFINITY
const nan = Number.NaN
// Input, value and derivative. Where a function has a kink, its derivative is what ops.h says.
const edges: Record<string, [x: number, value: number, slope?: number][]> = {
  exp: [
    [-inf, 0, 0],
    [-200, 0, 0],
    [200, inf],
    [inf, inf],
    [nan, nan, nan],
  ],
  log: [
    [0, -inf],
    [inf, inf, 0],
    [-1, nan],
    [nan, nan],
    // The smallest normal number.
    [2 ** -126, Math.log(2 ** -126)],
  ],
  sqrt: [
    [0, 0, inf],
    [inf, inf, 0],
    [-1, nan, nan],
  ],
  abs: [
    [0, 0, 0],
    [-0, 0, 0],
    [-inf, inf, -1],
    [nan, nan],
  ],
  tanh: [
    [-inf, -1, 0],
    [inf, 1, 0],
    [1e-20, 1e-20, 1],
    [30, 1, 0],
    [nan, nan, nan],
  ],
  sigmoid: [
    [-inf, 0, 0],
    [inf, 1, 0],
    [-100, 0, 0],
    [100, 1, 0],
    [nan, nan, nan],
  ],
  relu: [
    [0, 0, 0],
    [-inf, 0, 0],
    [inf, inf, 1],
    [nan, nan],
  ],
  silu: [
    [0, 0, 0.5],
    [-1e4, 0, 0],
    [1e30, 1e30, 1],
    [-1e30, 0, 0],
    [nan, nan, nan],
  ],
  gelu: [
    [0, 0, 0.5],
    [-1e4, 0, 0],
    [1e30, 1e30, 1],
    [-1e30, 0, 0],
    [nan, nan, nan],
  ],
  geluTanh: [
    [0, 0, 0.5],
    [-1e4, 0, 0],
    [1e30, 1e30, 1],
    [-1e30, 0, 0],
    [nan, nan, nan],
  ],
  quickGelu: [
    [0, 0, 0.5],
    [-1e4, 0, 0],
    [1e30, 1e30, 1],
    [-1e30, 0, 0],
    [nan, nan, nan],
  ],
  // The gradient passes at both borders.
  clamp: [
    [-1, -1, 1],
    [0.5, 0.5, 1],
    [-1.5, -1, 0],
    [-inf, -1, 0],
    [inf, 0.5, 0],
    [nan, nan],
  ],
}
for (const [name, rows] of Object.entries(edges))
  test(`${name}: the edges of the number line`, async (t) => {
    const x = tensor(rows.map(([v]) => v))
    x.requiresGrad = true
    const y = (unary[name] as Unary).run(x)
    await backward([y], [ops.full([rows.length], 1, 'f32')])
    const [got, slope] = [y.toFloat32(), x.grad?.toFloat32() ?? []]
    const near = (a: number, b: number) =>
      Object.is(a, b) || Math.abs(a - b) <= 1e-6 * Math.max(1e-30, Math.abs(b)) || a === b
    for (const [i, [v, value, derivative]] of rows.entries()) {
      t.true(near(got[i] as number, value), `${name}(${v}) is ${got[i]}, not ${value}`)
      if (derivative !== undefined)
        t.true(near(slope[i] as number, derivative), `the slope of ${name} at ${v} is ${slope[i]}, not ${derivative}`)
    }
  })

test('functions keep their relative accuracy over their whole range', (t) => {
  const ranges: Record<string, [from: number, to: number, limit: number]> = {
    exp: [-80, 80, 2e-7],
    log: [1e-30, 1e30, 2e-7],
    tanh: [-12, 12, 5e-7],
    sigmoid: [-80, 80, 5e-7],
    gelu: [-5, 12, 3e-6],
    silu: [-80, 80, 5e-7],
  }
  for (const [name, [from, to, limit]] of Object.entries(ranges)) {
    const { run, f } = unary[name] as Unary
    const x = Float32Array.from({ length: 20000 }, (_, i) =>
      name === 'log' ? from * (to / from) ** (i / 20000) : from + ((to - from) * i) / 20000,
    )
    const y = run(tensor(x)).toFloat32()
    let worst = 0
    for (const [i, v] of x.entries()) {
      // gelu by erf loses everything in its left tail, so the reference there is good to 1e-9 at most.
      const want = f(v)
      worst = Math.max(worst, Math.abs((y[i] as number) - want) / Math.max(Math.abs(want), name === 'log' ? 1 : 1e-30))
    }
    t.true(worst <= limit, `${name}: relative error ${worst}`)
  }
})

test('whole numbers are exact', (t) => {
  const big = 2n ** 60n
  const a = tensor([big, -7n, 3n], [3], 'i64')
  const b = tensor([1n, 5n, -3n], [3], 'i64')
  t.deepEqual([...ops.add(a, b).read()], [big + 1n, -2n, 0n])
  t.deepEqual([...ops.sub(a, b).read()], [big - 1n, -12n, 6n])
  t.deepEqual([...ops.mul(a, b).read()], [big, -35n, -9n])
  t.deepEqual([...ops.where(tensor([1, 0, 1], [3], 'u8'), a, tensor(0n, [], 'i64')).read()], [big, 0n, 3n])
})

// ---- gradients of what was broadcast ---------------------------------------------------------------------------------

// One pass makes the products and sums them: in f32 to the bits of both operations, of narrower numbers without rounding the products.
for (const dtype of ['f32', 'bf16', 'f16'] as const)
  test(`mul: a broadcast factor gets the sums of products, ${dtype}`, async (t) => {
    const cases: [number[], number[]][] = [
      [[4096, 128], [128]],
      [
        [2, 300, 5],
        [2, 1, 5],
      ],
      [
        [3, 40, 33],
        [1, 33],
      ],
      [
        [1, 9, 7, 600],
        [1, 1, 1, 600],
      ],
      [
        [3, 50, 2],
        [3, 1, 1],
      ],
      [
        [6, 4, 10],
        [4, 1],
      ],
    ]
    for (const [seed, [shape, to]] of cases.entries()) {
      const draw = (stream: number) =>
        ops.cast(dtype === 'f32' ? ops.randn(shape, seed, stream) : ops.randint(shape, -3, 4, seed, stream), dtype)
      const [x, dy] = [draw(1), draw(2)]
      const row = ops.full(to, 1.5, dtype)
      row.requiresGrad = true
      const transposed = ops.permute(
        ops.contiguous(
          ops.permute(
            x,
            shape.map((_, i) => shape.length - 1 - i),
          ),
        ),
        shape.map((_, i) => shape.length - 1 - i),
      )
      const wide = (v: Tensor) => ops.cast(v, 'f32')
      const want = ops.cast(ops.sumTo(ops.mul(wide(dy), wide(x)), to), dtype).toFloat32()
      for (const factor of [x, transposed]) {
        await backward([ops.mul(factor, row)], [dy])
        t.deepEqual((row.grad as Tensor).toFloat32(), want, `[${shape}] to [${to}]`)
        row.clearGrad()
      }
    }
  })

// ---- large results ----------------------------------------------------------------------------------------------------

// More than 16 MB in 16 bits too; rows begin anywhere in a cache line.
const large = [33, 262_147]
const row = (x: Tensor, r: number) => ops.contiguous(ops.slice(x, 0, r, r + 1))

for (const dtype of ['f32', 'bf16', 'f16'] as const)
  test(`results too large for a cache are those of their rows, ${dtype}`, async (t) => {
    const draw = (shape: number[], seed: number) => ops.cast(ops.randn(shape, 1, seed), dtype)
    const [a, b, column] = [draw(large, 1), draw(large, 2), draw([33, 1], 3)]
    const runs: Record<string, (a: Tensor, b: Tensor, column: Tensor) => Tensor> = {
      'a b': ops.mul,
      'a column': (a, _, column) => ops.mul(a, column),
      'column - a': (a, _, column) => ops.sub(column, a),
      mulScalar: (a) => ops.mulScalar(a, 1.3),
      silu: ops.silu,
      cast: (a) => ops.cast(a, dtype === 'f32' ? 'bf16' : 'f32'),
    }
    for (const [name, run] of Object.entries(runs)) {
      using whole = run(a, b, column)
      for (const r of [0, 1, 16, 32]) {
        using alone = run(row(a, r), row(b, r), row(column, r))
        const [got, want] = [row(whole, r), alone].map((y) => Buffer.from(y.toFloat32().buffer))
        t.true(want?.equals(got as Buffer), `${name} ${r}`)
      }
    }
    a.requiresGrad = true
    await backward([ops.silu(a)], [b])
    const gradient = a.grad as Tensor
    for (const r of [0, 32]) {
      const x = row(a.detach(), r)
      x.requiresGrad = true
      await backward([ops.silu(x)], [row(b, r)])
      compare(t, `gradient ${r}`, row(gradient, r).toFloat32(), x.grad?.toFloat32() ?? [], 1e-7)
    }
  })

// ---- conversions ------------------------------------------------------------------------------------------------------

const conversions: [from: DType, value: number | bigint, to: DType, want: number | bigint][] = [
  ['f32', 1.75, 'i64', 1n],
  ['f32', -1.75, 'i32', -1],
  ['f32', nan, 'i64', 0n],
  ['f32', nan, 'u8', 0],
  ['f32', inf, 'i64', 2n ** 63n - 1n],
  ['f32', -1e30, 'i64', -(2n ** 63n)],
  ['f32', 1e10, 'i32', 2 ** 31 - 1],
  ['f32', -inf, 'i32', -(2 ** 31)],
  ['f32', 300, 'u8', 255],
  ['f32', -3, 'u8', 0],
  ['f32', 254.9, 'u8', 254],
  ['bf16', 1e30, 'i32', 2 ** 31 - 1],
  ['f16', -2.5, 'i32', -2],
  ['i64', 2n ** 40n, 'i32', 2 ** 31 - 1],
  ['i64', -(2n ** 40n), 'i32', -(2 ** 31)],
  ['i64', -1n, 'u8', 0],
  ['i64', 2n ** 24n + 1n, 'f32', 2 ** 24],
  ['i32', 256, 'u8', 255],
  ['i32', -(2 ** 31), 'i64', -(2n ** 31n)],
  ['u8', 200, 'i32', 200],
  ['u8', 200, 'f16', 200],
]
test('cast: cuts, clamps and rounds', (t) => {
  for (const [from, value, to, want] of conversions) {
    const x = from === 'i64' ? tensor(BigInt64Array.of(BigInt(value))) : tensor([Number(value)], [1], from)
    const y = ops.cast(x, to)
    t.is(y.dtype, to)
    t.is(to === 'bf16' || to === 'f16' ? y.toFloat32()[0] : y.read()[0], want, `${value} from ${from} to ${to}`)
  }
})

test('cast: strided views and empty tensors of every pair', (t) => {
  const dtypes: DType[] = ['f32', 'bf16', 'f16', 'i64', 'i32', 'u8']
  for (const from of dtypes)
    for (const to of dtypes) {
      const x = ops.cast(
        tensor([
          [1, 2, 3],
          [4, 5, 6],
        ]),
        from,
      )
      t.deepEqual([...ops.cast(ops.permute(x, [1, 0]), to).toFloat32()], [1, 4, 2, 5, 3, 6], `${from} to ${to}`)
      t.is(ops.cast(ops.cast(zeros(0, 3), from), to).size, 0)
    }
})

for (const dtype of ['bf16', 'f16'] as const)
  test(`cast: gradients pass through ${dtype}, rounded once`, async (t) => {
    const x = tensor([1, 2, 3])
    x.requiresGrad = true
    const y = ops.cast(x, dtype)
    const drawn = tensor(Float32Array.from({ length: 3 }, generator(3).normal))
    await backward([y], [ops.cast(drawn, dtype)])
    compare(t, 'gradient', x.grad?.toFloat32() ?? [], drawn.toFloat32(), narrowLimits[dtype])
    t.is(x.grad?.dtype, 'f32')
  })

test('full: numbers beyond an integer type are clamped like casts', (t) => {
  t.deepEqual([...ops.full([2], 300, 'u8').read()], [255, 255])
  t.deepEqual([...ops.full([1], -1, 'u8').read()], [0])
  t.deepEqual([...ops.full([1], 1e30, 'i64').read()], [2n ** 63n - 1n])
  t.deepEqual([...ops.full([1], nan, 'i32').read()], [0])
  t.deepEqual([...ops.full([1], 65520, 'f16').toFloat32()], [inf])
})

const u8 = tensor(new Uint8Array(3))
const ids = tensor(new BigInt64Array(3))
const x = zeros(3)
const tracked = zeros(3)
tracked.requiresGrad = true
const gone = zeros(3)
gone.dispose()
rejects('elementwise', {
  ...Object.fromEntries(
    Object.entries(unary).map(([name, { run }]) => [`${name} of integers`, ['ERR_DTYPE', () => run(ids)] as const]),
  ),
  ...Object.fromEntries(
    Object.entries(binary).flatMap(([name, { run }]) => [
      [`${name} of [2] and [3]`, ['ERR_SHAPE', () => run(zeros(2), x)] as const],
      [`${name} of [3, 2] and [3]`, ['ERR_SHAPE', () => run(zeros(3, 2), x)] as const],
      [`${name} of f32 and i64`, ['ERR_DTYPE', () => run(x, ids)] as const],
      [`${name} of f32 and bf16`, ['ERR_DTYPE', () => run(x, ops.cast(x, 'bf16'))] as const],
      [`${name} of bytes`, ['ERR_DTYPE', () => run(u8, u8)] as const],
      [`${name} of a disposed tensor`, ['ERR_DISPOSED', () => run(x, gone)] as const],
      [`${name} of a number`, ['ERR_DTYPE', () => run(x, 2 as unknown as Tensor)] as const],
    ]),
  ),
  'div of i64': ['ERR_DTYPE', () => ops.div(ids, ids)],
  'clamp with its bounds swapped': ['ERR_VALUE', () => ops.clamp(x, 1, -1)],
  'clamp with a bound that is no number': ['ERR_VALUE', () => ops.clamp(x, nan, 1)],
  'addScalar of a string': ['ERR_VALUE', () => ops.addScalar(x, '1' as unknown as number)],
  'mulScalar of nothing': ['ERR_VALUE', () => ops.mulScalar(x, undefined as unknown as number)],
  'where with a floating mask': ['ERR_DTYPE', () => ops.where(x, x, x)],
  'where with an i64 mask': ['ERR_DTYPE', () => ops.where(ids, x, x)],
  'where of mixed dtypes': ['ERR_DTYPE', () => ops.where(u8, x, ids)],
  'where of shapes that do not fit': ['ERR_SHAPE', () => ops.where(u8, zeros(2), x)],
  'where with a mask that does not fit': ['ERR_SHAPE', () => ops.where(u8, zeros(2), zeros(2))],
  'cast to an unknown dtype': ['ERR_DTYPE', () => ops.cast(x, 'f64' as DType)],
  'cast of a tensor that wants a gradient to integers': ['ERR_NO_GRADIENT', () => ops.cast(tracked, 'i64')],
  'full of a negative size': ['ERR_SHAPE', () => ops.full([-1], 0, 'f32')],
  'full of nine axes': ['ERR_SHAPE', () => ops.full([1, 1, 1, 1, 1, 1, 1, 1, 1], 0, 'f32')],
  'full of half a size': ['ERR_VALUE', () => ops.full([0.5], 0, 'f32')],
  'full of too many elements': ['ERR_SHAPE', () => ops.full([2 ** 30, 2 ** 30], 0, 'u8')],
})

/** The numbers of all patterns of 16 bits. */
function everyNumber(dtype: 'bf16' | 'f16'): Float32Array {
  const bits = Uint32Array.from({ length: 1 << 16 }, (_, i) => i << 16)
  if (dtype === 'bf16') return new Float32Array(bits.buffer)
  return Float32Array.from({ length: 1 << 16 }, (_, i) => {
    const exponent = (i >> 10) & 31
    const fraction = (i & 1023) / 1024
    const size =
      exponent === 31
        ? fraction > 0
          ? Number.NaN
          : Number.POSITIVE_INFINITY
        : exponent === 0
          ? fraction * 2 ** -14
          : (1 + fraction) * 2 ** (exponent - 15)
    return i & 0x8000 ? -size : size
  })
}

// 16-bit numbers are widened some at a time, and bf16's exponentials have fewer digits.
const sixteen = {
  // Half a unit in the last place, twice the largest of what exp leaves as 0, the largest number.
  bf16: { half: 2 ** -8, least: 2 ** -120, most: 3.38e38 },
  f16: { half: 2 ** -11, least: 2 ** -24, most: 65504 },
} as const
const ofInput = ['silu', 'gelu', 'geluTanh', 'quickGelu']
for (const name of ['exp', 'sigmoid', 'silu', 'gelu', 'geluTanh', 'quickGelu', 'mulScalar', 'square'])
  for (const dtype of ['bf16', 'f16'] as const)
    test(`${name}: of every ${dtype} number, what f32 gives, rounded`, async (t) => {
      const { run } = unary[name] as Unary
      const { half, least, most } = sixteen[dtype]
      const all = everyNumber(dtype)
      const wide = tensor(all)
      const short = ops.cast(wide, dtype)
      const far = (got: number, want: number, absolute: number) =>
        Number.isNaN(want) || Math.abs(want) >= most
          ? !(Number.isNaN(got) === Number.isNaN(want) && (Number.isNaN(got) || Math.abs(got) >= most * (1 - half)))
          : !(Math.abs(got - want) <= (half + 2e-5) * Math.abs(want) + absolute)
      const wrong = (got: Float32Array, want: Float32Array, absolute: number) => {
        const at = got.findIndex((v, i) => far(v, want[i] as number, absolute))
        return at < 0 ? '' : `of ${all[at]}: ${got[at]} instead of ${want[at]}`
      }
      t.is(wrong(run(short).toFloat32(), run(wide).toFloat32(), least), '')
      if (!ofInput.includes(name)) return
      const slopes = async (x: Tensor) => {
        x.requiresGrad = true
        const y = run(x)
        await backward([y], [ops.full(y.shape, 1, y.dtype)])
        return (x.grad as Tensor).toFloat32()
      }
      t.is(wrong(await slopes(short), await slopes(wide), 4e-5), '') // which may be differences of larger numbers
    })

/** gelu in float64 to 1e-12 of itself; in the left tail by the continued fraction of erfc, where 1 + erf would cancel. */
function exactGelu(x: number): number {
  if (x > -3.6) return activations.gelu(x)
  const a = -x / Math.SQRT2
  let f = a
  for (let k = 60; k >= 1; k--) f = a + k / 2 / f
  return (0.5 * x * Math.exp(-a * a)) / (f * Math.sqrt(Math.PI))
}

test('gelu: of every bf16 number, the nearest or its neighbour, seldom the latter', (t) => {
  const all = everyNumber('bf16')
  const got = ops.gelu(ops.cast(tensor(all), 'bf16')).toFloat32()
  // bf16 numbers in order, as whole numbers.
  const place = (v: number) => {
    const bits = new Int32Array(Float32Array.of(v).buffer)[0] as number
    return bits < 0 ? -((bits & 0x7fffffff) >> 16) : bits >> 16
  }
  let neighbours = 0
  for (const [i, x] of all.entries()) {
    const y = got[i] as number
    if (!Number.isFinite(x)) {
      t.is(y, x > 0 ? x : Number.NaN, `of ${x}`)
      continue
    }
    const want = exactGelu(x)
    const size = Math.abs(want)
    if (size < 1.001 * 2 ** -126) {
      // Numbers that kernels may take for zeros, and the least one beside them, which may fall among them.
      if (!(Math.abs(y) <= 2 ** -126)) t.fail(`of ${x}: ${y}`)
      continue
    }
    const unit = 2 ** (Math.floor(Math.log2(size)) - 7)
    const off = Math.abs(place(y) - place(Math.round(want / unit) * unit))
    if (off > 1) t.fail(`of ${x}: ${y} instead of ${want}`)
    neighbours += off
  }
  t.true(neighbours <= 60, `${neighbours} neighbours`)
})
