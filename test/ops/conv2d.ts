import test from 'ava'
import { backward, type Conv2dOptions, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { compare, type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** y[n, i, j, o] = b[o] + sum over kh, kw, c of x[n, i * s + kh - top, j * s + kw - left, c] w[o, kh, kw, c], zeros outside. */
function reference({ x, w, b }: Record<string, F64>, options: Conv2dOptions): Float64Array {
  const { stride = 1, padLeft = 0, padRight = 0, padTop = 0, padBottom = 0, groups = 1 } = options
  const [n, h, wide, channels] = (x as F64).shape as [number, number, number, number]
  const [out, kh, kw, inner] = (w as F64).shape as [number, number, number, number]
  const oh = Math.floor((h + padTop + padBottom - kh) / stride) + 1
  const ow = Math.floor((wide + padLeft + padRight - kw) / stride) + 1
  const y = new Float64Array(n * oh * ow * out)
  for (let at = 0; at < y.length; at++) {
    const o = at % out
    const j = Math.floor(at / out) % ow
    const i = Math.floor(at / out / ow) % oh
    const image = Math.floor(at / out / ow / oh)
    const first = groups === 1 ? 0 : o
    let sum = b ? (b.data[o] as number) : 0
    for (let r = 0; r < kh; r++)
      for (let s = 0; s < kw; s++) {
        const [row, column] = [i * stride + r - padTop, j * stride + s - padLeft]
        if (row < 0 || row >= h || column < 0 || column >= wide) continue
        for (let c = 0; c < inner; c++)
          sum +=
            ((x as F64).data[((image * h + row) * wide + column) * channels + first + c] as number) *
            ((w as F64).data[((o * kh + r) * kw + s) * inner + c] as number)
      }
    y[at] = sum
  }
  return y
}

const around = (p: number): Conv2dOptions => ({ padLeft: p, padRight: p, padTop: p, padBottom: p })

/** The kinds in the models. */
const kinds = {
  '3x3': { kernel: [3, 3], options: around(1) },
  '3x3, stride 2, padded right and below': { kernel: [3, 3], options: { stride: 2, padRight: 1, padBottom: 1 } },
  '3x3, stride 2, padding 1': { kernel: [3, 3], options: { stride: 2, ...around(1) } },
  '1x1': { kernel: [1, 1], options: {} },
  '4x4, stride 4': { kernel: [4, 4], options: { stride: 4 } },
  '2x2, stride 2': { kernel: [2, 2], options: { stride: 2 } },
  '7x7 depthwise': { kernel: [7, 7], options: around(3), depthwise: true },
} satisfies Record<string, { kernel: [number, number]; options: Conv2dOptions; depthwise?: boolean }>

interface Options extends Partial<OpCase> {
  bias?: boolean
}

function convCase(
  kind: string,
  x: [number, number, number, number],
  out: number,
  [kh, kw]: [number, number],
  options: Conv2dOptions,
  { bias = true, ...rest }: Options = {},
): OpCase {
  const inner = x[3] / (options.groups ?? 1)
  return {
    name: `${kind} of [${x}] to ${out}${bias ? '' : ', no bias'}`,
    inputs: { x: { shape: x }, w: { shape: [out, kh, kw, inner] }, ...(bias && { b: { shape: [out] } }) },
    run: (t) => ops.conv2d(t['x'] as Tensor, t['w'] as Tensor, t['b'] ?? null, options),
    reference: (v) => reference(v, options),
    probes: 20,
    ...rest,
  }
}

const narrow = narrowLimits
opTest('conv2d', [
  ...Object.entries(kinds).flatMap(([kind, { kernel, options, ...more }]) => {
    const depthwise = 'depthwise' in more
    const at = (x: [number, number, number, number], out: number, rest?: Options) =>
      convCase(kind, x, depthwise ? x[3] : out, kernel, depthwise ? { ...options, groups: x[3] } : options, rest)
    return [
      at([2, 8, 8, 16], 8, { narrow }),
      // Odd sizes, so that a stride leaves rows and columns over, and channels that fill no vector.
      at([1, 7, 9, 3], 5, { bias: false }),
      at([1, 5, 4, 17], 3, { narrow }),
      at([3, 4, 5, 1], 1),
      at([0, 8, 8, 4], 3),
    ]
  }),
  // The smallest maps the kernel fits.
  convCase('3x3 on one pixel', [1, 1, 1, 2], 3, [3, 3], around(1)),
  convCase('4x4 on its own size', [2, 4, 4, 3], 2, [4, 4], { stride: 4 }),
  convCase('4x4 of 3 channels, patches side by side', [2, 12, 20, 3], 6, [4, 4], { stride: 4 }, { probes: 10 }),
  convCase(
    '5x5 of 3 channels, some taps outside',
    [2, 9, 11, 3],
    5,
    [5, 5],
    { stride: 2, ...around(2) },
    { probes: 10 },
  ),
  convCase('7x7 depthwise on 2x3', [1, 2, 3, 5], 5, [7, 7], { ...around(3), groups: 5 }),
  convCase('depthwise with one channel', [1, 4, 4, 1], 1, [3, 3], { ...around(1), groups: 1 }),
  // Kinds that no model has.
  convCase('1x5', [1, 4, 9, 3], 4, [1, 5], { padLeft: 2, padRight: 2 }),
  convCase('5x1, padded above', [1, 6, 3, 2], 3, [5, 1], { padTop: 3 }),
  convCase('2x3, stride 3, all paddings differ', [2, 7, 8, 3], 4, [2, 3], {
    stride: 3,
    padLeft: 1,
    padRight: 2,
    padTop: 0,
    padBottom: 3,
  }),
  convCase('1x1, stride 2', [1, 5, 7, 6], 4, [1, 1], { stride: 2 }),
  convCase('1x1, padded', [1, 3, 3, 2], 2, [1, 1], around(1)),
  convCase('padding wider than the kernel', [1, 2, 2, 2], 2, [2, 2], around(3)),
  convCase('3x3 depthwise, stride 2', [1, 7, 8, 19], 19, [3, 3], { stride: 2, ...around(1), groups: 19 }, { narrow }),
  // Depthwise: several registers of channels and a part of one; strips that are not full, several of them, and columns in several blocks;
  // rows in several bands; taps that no loop is unrolled for, of even and of differing sides.
  ...(
    [
      ['7x7', [2, 9, 21, 37], [7, 7], around(3)],
      ['7x7, all paddings differ', [1, 10, 8, 5], [7, 7], { padLeft: 1, padRight: 5, padTop: 6, padBottom: 2 }],
      ['7x7, stride 2', [1, 13, 12, 37], [7, 7], { stride: 2, ...around(3) }],
      ['7x7, one row of results', [1, 7, 70, 5], [7, 7], { padLeft: 3, padRight: 3 }],
      ['3x3', [1, 33, 18, 37], [3, 3], around(1)],
      ['3x3 on one row', [1, 1, 135, 2], [3, 3], around(1)],
      ['5x5', [2, 6, 11, 33], [5, 5], around(2)],
      ['5x4', [1, 6, 9, 37], [5, 4], { padLeft: 2, padRight: 1, padTop: 0, padBottom: 4 }],
      ['5x4, stride 3', [2, 11, 14, 5], [5, 4], { stride: 3, padLeft: 3, padRight: 0, padTop: 1, padBottom: 2 }],
      ['9x1', [1, 12, 5, 6], [9, 1], { padTop: 4, padBottom: 4 }],
      ['9x3', [1, 12, 18, 37], [9, 3], { padLeft: 1, padRight: 1, padTop: 4, padBottom: 4 }],
      ['6x7', [1, 9, 41, 20], [6, 7], { padLeft: 3, padRight: 2, padTop: 3, padBottom: 2 }],
      [
        '3x3, wider padding than the kernel',
        [1, 2, 3, 18],
        [3, 3],
        { padLeft: 5, padRight: 4, padTop: 3, padBottom: 6 },
      ],
      ['2x2, stride 3', [1, 7, 8, 5], [2, 2], { stride: 3, padLeft: 1 }],
    ] as [string, [number, number, number, number], [number, number], Conv2dOptions][]
  ).flatMap(([kind, x, kernel, options], i) => [
    convCase(
      `${kind} depthwise`,
      x,
      x[3],
      kernel,
      { ...options, groups: x[3] },
      { bias: i % 2 === 0, narrow, probes: 5 },
    ),
  ]),
  // As many weights as are multiplied where they lie, with patches written out.
  ...(['1x1', '3x3'] as const).flatMap((pad) => {
    const few = { probes: 3, tolerance: { value: 1e-5, grad: 2e-5 } }
    const [options, side] = pad === '3x3' ? [around(1), 2] : [{ stride: 2, padRight: 1, padBottom: 2 }, 4]
    return [
      convCase(`3x3 of many weights, few pixels of ${side}`, [1, side, side, 512], 228, [3, 3], options, {
        ...few,
        narrow,
      }),
    ]
  }),
  // By tiles of 4 x 4 pixels and, where those would hang over, of 2 x 2; always where the machine multiplies bf16, to which transformed
  // numbers are rounded then (csrc/cpu/winograd.h).
  ...(
    [
      [2, 15, 16, 64],
      [8, 6, 6, 64],
    ] as const
  ).map((x) =>
    convCase('3x3 of many tiles', [...x], 96, [3, 3], around(1), {
      probes: 3,
      tolerance: { value: 1e-5, grad: 2e-5 },
      narrow: { ...narrow, bf16: 2 ** -7 },
    }),
  ),
  // Pixels of 64 channels and more are read where they lie (csrc/cpu/kernels/gemm_pack.h), those outside as zeros; with 512 and a stride of 2, copied.
  convCase('3x3 of 80 channels, strided', [2, 9, 7, 80], 40, [3, 3], { stride: 2, ...around(1) }, { probes: 5 }),
  convCase('5x4 of 64 channels', [1, 5, 19, 64], 35, [5, 4], { ...around(3), padTop: 1 }, { probes: 5 }),
  convCase('2x3 of 512 channels, strided', [1, 6, 5, 512], 20, [2, 3], { stride: 2, padLeft: 2 }, { probes: 3 }),
  convCase('3x3 of 63 channels', [1, 6, 6, 63], 65, [3, 3], around(1), { probes: 5 }),
  {
    name: 'a crop of a larger map',
    inputs: { x: { shape: [1, 8, 9, 4] }, w: { shape: [3, 3, 3, 4] } },
    run: ({ x, w }) => {
      const crop = ops.slice(ops.slice(x as Tensor, 1, 1, 7), 2, 2, 8)
      return ops.conv2d(crop, w as Tensor, null, around(1))
    },
    reference: ({ x, w }) => {
      const data = Float64Array.from({ length: 144 }, (_, i) => {
        const [row, column, c] = [Math.floor(i / 24) + 1, (Math.floor(i / 4) % 6) + 2, i % 4]
        return (x as F64).data[(row * 9 + column) * 4 + c] as number
      })
      return reference({ x: { data, shape: [1, 6, 6, 4] }, w: w as F64 }, around(1))
    },
  },
])

const bf16 = (...shape: number[]) => ops.cast(zeros(...shape), 'bf16')
const conv =
  (x: Tensor, w: Tensor, options: Conv2dOptions = {}, b: Tensor | null = null) =>
  () =>
    ops.conv2d(x, w, b, options)
const map = zeros(1, 5, 5, 4)
const w3 = zeros(2, 3, 3, 4)
rejects('conv2d', {
  'an unknown option': ['ERR_CONFIG', () => ops.conv2d(map, w3, null, { padding: 1 } as never)],
  'a map of three axes': ['ERR_SHAPE', conv(zeros(5, 5, 4), w3)],
  'a weight of three axes': ['ERR_SHAPE', conv(map, zeros(2, 3, 4))],
  'other channels': ['ERR_SHAPE', conv(map, zeros(2, 3, 3, 5))],
  'a weight in the published layout': ['ERR_SHAPE', conv(map, zeros(2, 4, 3, 3))],
  'a bias of another width': ['ERR_SHAPE', conv(map, w3, {}, zeros(3))],
  'a bias with two axes': ['ERR_SHAPE', conv(map, w3, {}, zeros(1, 2))],
  'a kernel higher than the map': ['ERR_SHAPE', conv(map, zeros(2, 6, 3, 4))],
  'a kernel wider than the map': ['ERR_SHAPE', conv(map, zeros(2, 3, 6, 4))],
  'a kernel larger than the padded map': ['ERR_SHAPE', conv(map, zeros(2, 8, 8, 4), around(1))],
  'an empty kernel': ['ERR_SHAPE', conv(map, zeros(2, 0, 3, 4))],
  'an empty map': ['ERR_SHAPE', conv(zeros(1, 0, 5, 4), w3)],
  'no input channels': ['ERR_SHAPE', conv(zeros(1, 5, 5, 0), zeros(2, 3, 3, 0))],
  'no output channels': ['ERR_SHAPE', conv(map, zeros(0, 3, 3, 4))],
  'stride 0': ['ERR_VALUE', conv(map, w3, { stride: 0 })],
  'a negative stride': ['ERR_VALUE', conv(map, w3, { stride: -1 })],
  'half a stride': ['ERR_VALUE', conv(map, w3, { stride: 0.5 })],
  'a huge stride': ['ERR_VALUE', conv(map, w3, { stride: 2 ** 40 })],
  'negative padding': ['ERR_VALUE', conv(map, w3, { padTop: -1 })],
  'huge padding': ['ERR_VALUE', conv(map, w3, { padLeft: 2 ** 52 })],
  'padding that is no number': ['ERR_VALUE', conv(map, w3, { padLeft: Number.NaN })],
  'padding to more elements than a tensor has': [
    'ERR_SHAPE',
    conv(zeros(64, 1, 1, 4), zeros(256, 3, 3, 4), around(60000)),
  ],
  'groups that do not divide': ['ERR_VALUE', conv(map, zeros(2, 3, 3, 1), { groups: 3 })],
  'groups between 1 and the channels': ['ERR_VALUE', conv(map, zeros(4, 3, 3, 2), { groups: 2 })],
  'no groups': ['ERR_VALUE', conv(map, w3, { groups: 0 })],
  'negative groups': ['ERR_VALUE', conv(map, w3, { groups: -4 })],
  'depthwise to more channels': ['ERR_VALUE', conv(map, zeros(8, 3, 3, 1), { groups: 4 })],
  'a full weight for depthwise': ['ERR_SHAPE', conv(map, zeros(4, 3, 3, 4), { groups: 4 })],
  'a weight of another dtype': ['ERR_DTYPE', conv(map, bf16(2, 3, 3, 4))],
  'a bias of another dtype': ['ERR_DTYPE', conv(map, w3, {}, bf16(2))],
  integers: ['ERR_DTYPE', conv(tensor(new Uint8Array(100), [1, 5, 5, 4]), tensor(new Uint8Array(72), [2, 3, 3, 4]))],
})

test('conv2d: works after everything refused', (t) => {
  t.deepEqual(ops.conv2d(map, w3, null, around(1)).shape, [1, 5, 5, 2])
})

const normals = (shape: number[], seed: number) => {
  const { normal } = generator(seed)
  return tensor(Float32Array.from({ length: shape.reduce((a, v) => a * v, 1) }, normal), shape)
}

async function valueAndGradients(depthwise: boolean, wanted = [0, 1, 2]) {
  const parts = [normals([2, 17, 19, 20], 1), normals([depthwise ? 20 : 24, 3, 3, depthwise ? 1 : 20], 2)]
  parts.push(normals([parts[1]?.shape[0] as number], 3))
  for (const i of wanted) (parts[i] as Tensor).requiresGrad = true
  const [x, w, b] = parts as [Tensor, Tensor, Tensor]
  const y = ops.conv2d(x, w, b, { ...around(1), groups: depthwise ? 20 : 1 })
  await backward([y], [normals(y.shape, 4)])
  return [y.toFloat32(), ...parts.map((p) => p.grad?.toFloat32())]
}

for (const depthwise of [false, true]) {
  const name = depthwise ? 'depthwise conv2d' : 'conv2d'
  test(`${name}: gradients only where wanted`, async (t) => {
    const all = await valueAndGradients(depthwise)
    for (const i of [0, 1, 2]) {
      const one = await valueAndGradients(depthwise, [i])
      t.deepEqual(one, [all[0], ...[0, 1, 2].map((k) => (k === i ? all[k + 1] : undefined))])
    }
  })

  // Convolutions may cut their sums by the number of threads: equal bits for equal threads, rounding apart for others.
  test.serial(`${name}: the same bits with the same threads`, async (t) => {
    const before = threads()
    try {
      const first = await valueAndGradients(depthwise)
      t.deepEqual(await valueAndGradients(depthwise), first)
      setThreads(before === 1 ? 2 : 1)
      for (const [i, other] of (await valueAndGradients(depthwise)).entries())
        compare(t, ['y', 'dx', 'dw', 'db'][i] as string, other as Float32Array, first[i] as Float32Array, 1e-5)
    } finally {
      setThreads(before)
    }
  })
}

test.serial('depthwise conv2d of many taps: the same bits of y and dx with any number of threads', async (t) => {
  const before = threads()
  const run = async (dtype: 'f32' | 'bf16', count: number) => {
    setThreads(count)
    const [x, w, b] = [normals([2, 37, 19, 52], 1), normals([52, 7, 7, 1], 2), normals([52], 3)].map((v) =>
      ops.cast(v, dtype),
    ) as [Tensor, Tensor, Tensor]
    x.requiresGrad = true
    const y = ops.conv2d(x, w, b, { ...around(3), groups: 52 })
    await backward([y], [ops.cast(normals(y.shape, 4), dtype)])
    return [y.toFloat32(), x.grad?.toFloat32()]
  }
  try {
    for (const dtype of ['f32', 'bf16'] as const) {
      const first = await run(dtype, 1)
      for (const count of [2, 3]) t.deepEqual(await run(dtype, count), first, `${dtype}, ${count} threads`)
    }
  } finally {
    setThreads(before)
  }
})

// Pixels may be multiplied in pairs (csrc/cpu/kernels/depthwise_pairs.h): one that a result has no tap over must not get into it, not even
// multiplied by zero. Sizes give strips that are full and not, rows of taps above and below the picture, odd ones and even ones.
for (const [kh, kw] of [
  [9, 3],
  [5, 5],
  [7, 7],
  [6, 7],
] as const)
  for (const bad of [Number.POSITIVE_INFINITY, Number.NaN])
    test(`depthwise conv2d ${kh}x${kw}: ${bad} in the picture stays under the taps`, async (t) => {
      const [h, w, c, above, beside] = [9, 43, 19, Math.floor(kh / 2), (kw - 1) / 2]
      const options = { padTop: above, padBottom: above, padLeft: beside, padRight: beside, groups: c }
      const weight = ops.cast(ops.addScalar(ops.rand([c, kh, kw, 1], 1, 1), 0.5), 'bf16')
      for (const [row, column] of [
        [0, 0],
        [4, 20],
        [5, 15],
        [8, 42],
        [3, 33],
      ] as const) {
        const data = new Float32Array(h * w * c).fill(1)
        data.fill(bad, (row * w + column) * c, (row * w + column + 1) * c)
        const x = ops.cast(tensor(data, [1, h, w, c]), 'bf16')
        const leaf = ops.cast(zeros(1, h, w, c), 'bf16')
        leaf.requiresGrad = true
        const y = ops.conv2d(leaf, weight, null, options)
        const dy = ops.slice(ops.cat([x, ops.full([1, 1, w, c], 1, 'bf16')], 1), 1, 0, y.shape[1] as number)
        await backward([y], [dy])
        // Of a kernel of even height, rows of results lie half a pixel above those of the picture.
        const results = {
          y: [ops.conv2d(x, weight, null, options), row - (kh - 1 - above), row + above],
          dx: [leaf.grad as Tensor, row - above, row + (kh - 1 - above)],
        } as const
        for (const [name, [result, first, last]] of Object.entries(results)) {
          const wrong = result.toFloat32().findIndex((v, i) => {
            const [atRow, atColumn] = [Math.floor(i / c / w), Math.floor(i / c) % w]
            return Number.isFinite(v) === (atRow >= first && atRow <= last && Math.abs(atColumn - column) <= beside)
          })
          t.is(wrong, -1, `${name} with ${bad} at ${row}, ${column}`)
        }
      }
    })

/** Whole numbers, with which every sum here is exact in f32. */
const whole = (shape: number[], step: number) => {
  const data = Float32Array.from({ length: shape.reduce((a, v) => a * v, 1) }, (_, i) => ((i * step) % 7) - 3)
  return { shape, data, tensor: () => tensor(data, shape, 'f32', { device: 'cpu' }) }
}

// Runs of numbers that begin within a row of taps, several of them, blocks of pixels; pixels in parts, where the gradient of the weights
// would need too much memory at once; and by tiles of 2 x 2 and of 4 x 4 pixels, also with part of a tile at the edges, several runs
// of channels, several chunks of tiles, several pictures, fewer tiles than output channels, alone and in pairs of bf16. Few channels, with
// strides that some taps and pixels fall between. Tiles of 4 x 4 multiply by numbers that f32 does not hold: their sums are not
// exact, but within `off` of the largest one.
for (const [n, h, w, c, o, k, stride, pads, off = 0] of [
  [1, 21, 30, 72, 20, 3, 1, [1, 1, 1, 1]],
  [1, 21, 30, 70, 20, 3, 2, [0, 1, 1, 0]],
  [2, 17, 19, 33, 40, 5, 1, [4, 0, 2, 3]],
  [1, 13, 40, 40, 150, 3, 1, [2, 2, 0, 0]],
  [1, 900, 800, 8, 1, 3, 1, [1, 1, 1, 1]],
  [6, 6, 14, 48, 80, 3, 1, [1, 1, 1, 1]],
  [13, 6, 14, 64, 70, 3, 1, [2, 0, 0, 1]],
  [4, 6, 14, 1056, 32, 3, 1, [1, 1, 1, 1]],
  [1, 8, 7, 544, 512, 3, 1, [1, 1, 1, 1]],
  [4, 6, 13, 32, 171, 3, 1, [1, 1, 1, 1]],
  [1, 31, 36, 48, 80, 3, 1, [1, 1, 1, 1], 1e-5],
  [3, 9, 12, 64, 70, 3, 1, [2, 0, 0, 1], 1e-5],
  [1, 70, 61, 48, 48, 3, 1, [0, 3, 2, 1], 1e-5],
  [1, 16, 17, 1056, 32, 3, 1, [1, 1, 1, 1], 1e-5],
  [1, 16, 16, 544, 512, 3, 1, [1, 1, 1, 1], 1e-5],
  [1, 16, 15, 32, 131, 3, 1, [1, 1, 1, 1], 1e-5],
  [2, 33, 30, 3, 40, 4, 4, [0, 0, 0, 0]],
  [1, 20, 23, 4, 37, 3, 1, [1, 1, 1, 1]],
  [1, 19, 22, 7, 9, 2, 3, [3, 1, 0, 2]],
  [2, 14, 17, 1, 5, 5, 2, [4, 0, 3, 3]],
] as [number, number, number, number, number, number, number, [number, number, number, number], number?][])
  test(`conv2d: ${n} x ${h} x ${w} x ${c} to ${o}, kernel ${k}, stride ${stride}, is exact where sums are${off ? ', but for rounding' : ''}, gradients too`, async (t) => {
    const [padLeft, padRight, padTop, padBottom] = pads
    const oh = Math.floor((h + padTop + padBottom - k) / stride) + 1
    const ow = Math.floor((w + padLeft + padRight - k) / stride) + 1
    const [xs, ws, dys] = [whole([n, h, w, c], 5), whole([o, k, k, c], 3), whole([n, oh, ow, o], 11)]
    const want = {
      y: new Float32Array(n * oh * ow * o),
      dx: new Float32Array(n * h * w * c),
      dw: new Float32Array(o * k * k * c),
    }
    for (let row = 0; row < n * oh; row++)
      for (let ox = 0; ox < ow; ox++)
        for (let kh = 0; kh < k; kh++)
          for (let kw = 0; kw < k; kw++) {
            const [image, oy] = [Math.floor(row / oh), row % oh]
            const [iy, ix] = [oy * stride + kh - padTop, ox * stride + kw - padLeft]
            if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue
            const from = ((image * h + iy) * w + ix) * c
            for (let channel = 0; channel < o; channel++) {
              const [to, at] = [(row * ow + ox) * o + channel, ((channel * k + kh) * k + kw) * c]
              const dy = dys.data[to] as number
              let sum = 0
              for (let i = 0; i < c; i++) {
                const [x, v] = [xs.data[from + i] as number, ws.data[at + i] as number]
                sum += x * v
                want.dx[from + i] = (want.dx[from + i] as number) + dy * v
                want.dw[at + i] = (want.dw[at + i] as number) + dy * x
              }
              want.y[to] = (want.y[to] as number) + sum
            }
          }
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const [x, weight, dy] = [xs, ws, dys].map((v) => ops.cast(v.tensor(), dtype)) as [Tensor, Tensor, Tensor]
      x.requiresGrad = true
      weight.requiresGrad = true
      const y = ops.conv2d(x, weight, null, { stride, padLeft, padRight, padTop, padBottom })
      await backward([y], [dy])
      for (const [name, got, values] of [
        ['y', y, want.y],
        ['dx', x.grad, want.dx],
        ['dw', weight.grad, want.dw],
      ] as const) {
        const rounded = ops.cast(tensor(values, [values.length], 'f32', { device: 'cpu' }), dtype).toFloat32()
        const result = (got as Tensor).toFloat32()
        if (off === 0) {
          t.deepEqual(result, rounded, `${name} ${dtype}`)
          continue
        }
        const largest = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
        // Rounding to fewer bits may go the other way.
        const step = { f32: 0, bf16: 2 ** -7, f16: 2 ** -10 }[dtype]
        const worst = result.reduce(
          (m, v, i) => Math.max(m, Math.abs(v - (rounded[i] as number)) - step * Math.abs(rounded[i] as number)),
          0,
        )
        t.true(worst <= off * largest, `${name} ${dtype}: off by ${worst / largest} of the largest`)
      }
    }
  })
