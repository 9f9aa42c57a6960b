// Weights in few bits: their bytes against the format as documented, how near they come to the floats, and products with them.
import test from 'ava'
import { DeemError, ops, type Tensor, tensor } from 'deem'
import { type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

interface Format {
  bits: 8 | 4
  group: number
  symmetric: boolean
}
const formats: Format[] = [8, 4].flatMap((bits) =>
  [32, 64, 128].flatMap((group) => [true, false].map((symmetric) => ({ bits: bits as 8 | 4, group, symmetric }))),
)
const nameOf = ({ bits, group, symmetric }: Format) => `int${bits}g${group}${symmetric ? '' : 'a'}`
const quantize = (w: Tensor, { bits, group, symmetric }: Format) => ops.quantize(w, bits, group, symmetric)
const dequantize = (packed: Tensor, cols: number, { bits, group, symmetric }: Format) =>
  ops.dequantize(packed, cols, bits, group, symmetric)

function halfOf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const mantissa = bits & 1023
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15))
}

/** One number of a packed row, read as csrc/ops/quantized_linear.h describes it; with the scale of its group. */
function numberAt(row: Uint8Array, cols: number, i: number, { bits, group, symmetric }: Format) {
  const block = 512 / bits
  const codes = Math.ceil(cols / block) * 64
  const groups = Math.ceil(cols / group)
  const half = (k: number) => halfOf((row[codes + 2 * k] as number) | ((row[codes + 2 * k + 1] as number) << 8))
  const byte = row[bits === 8 ? i : Math.floor(i / 32) * 16 + (i % 16)] as number
  const code = bits === 8 ? byte : i % 32 < 16 ? byte & 15 : byte >> 4
  const g = Math.floor(i / group)
  const scale = half(g)
  return {
    code,
    scale,
    value: symmetric ? (code - 2 ** (bits - 1)) * scale : code * scale + half(groups + g),
  }
}

const widths = [1, 31, 33, 127, 128, 129, 300]
for (const format of formats)
  test(`${nameOf(format)}: bytes are as documented, numbers within half a step`, (t) => {
    const { normal } = generator(format.group + format.bits)
    for (const cols of widths) {
      const rows = 3
      const data = Float32Array.from({ length: rows * cols }, normal)
      const packed = quantize(tensor(data, [rows, cols]), format)
      const bytes = packed.read() as Uint8Array
      const back = dequantize(packed, cols, format).toFloat32()
      const width = packed.shape[1] as number
      let unlike = 0
      let far = 0
      for (let r = 0; r < rows; r++)
        for (let i = 0; i < cols; i++) {
          const w = data[r * cols + i] as number
          const { value, scale, code } = numberAt(bytes.subarray(r * width, (r + 1) * width), cols, i, format)
          if (Math.abs((back[r * cols + i] as number) - value) > 2 ** -23 * Math.abs(value)) unlike++
          // Four symmetric bits reach one code farther on one side than on the other.
          const short = format.bits === 4 && format.symmetric && code === 15
          if (Math.abs(value - w) > Math.abs(scale) * (short ? 1 : 0.5) + 1e-7 * Math.abs(w)) far++
        }
      t.is(unlike, 0, `${cols} columns`)
      t.is(far, 0, `${cols} columns`)
    }
  })

test('rows take what they should: 8.5 and 4.5 bits a number at groups of 32', (t) => {
  const bits = (format: Format) => ((quantize(zeros(1, 4096), format).shape[1] as number) * 8) / 4096
  t.is(bits({ bits: 8, group: 32, symmetric: true }), 8.5)
  t.is(bits({ bits: 4, group: 32, symmetric: true }), 4.5)
  t.is(bits({ bits: 4, group: 32, symmetric: false }), 5)
  t.is(bits({ bits: 4, group: 128, symmetric: true }), 4.125)
})

test('what lies on the codes stays as it is', (t) => {
  const even = Float32Array.from({ length: 64 }, (_, i) => ((i % 16) - 8) * 0.25)
  for (const symmetric of [true, false]) {
    const format: Format = { bits: 4, group: 32, symmetric }
    t.deepEqual(dequantize(quantize(tensor(even, [1, 64]), format), 64, format).toFloat32(), even)
  }
  const constant = new Float32Array(40).fill(0.75)
  const format: Format = { bits: 4, group: 32, symmetric: false }
  t.deepEqual(dequantize(quantize(tensor(constant, [1, 40]), format), 40, format).toFloat32(), constant)
  t.deepEqual(dequantize(quantize(zeros(2, 33), format), 33, format).toFloat32(), new Float32Array(66))
})

const productCase = (
  rows: number[],
  out: number,
  cols: number,
  format: Format,
  more: Partial<OpCase> = {},
): OpCase => ({
  name: `[${[...rows, cols]}] to ${out}, ${nameOf(format)}${more.inputs ? ', no bias' : ''}`,
  inputs: {
    x: { shape: [...rows, cols] },
    w: { shape: [out, cols], grad: false },
    b: { shape: [out] },
  },
  run: ({ x, w, b }) =>
    ops.quantizedLinear(
      x as Tensor,
      quantize(w as Tensor, format),
      format.bits,
      format.group,
      format.symmetric,
      b ?? null,
    ),
  reference: ({ x, w, b }) => {
    const weight = (w as F64).data
    const near = dequantize(quantize(tensor(Float32Array.from(weight), [out, cols]), format), cols, format).toFloat32()
    const n = (x as F64).data.length / Math.max(cols, 1)
    const y = new Float64Array(rows.reduce((a, v) => a * v, 1) * out)
    for (let r = 0; r < Math.min(n, y.length / Math.max(out, 1)); r++)
      for (let o = 0; o < out; o++) {
        let sum = b ? (b.data[o] as number) : 0
        for (let i = 0; i < cols; i++) sum += ((x as F64).data[r * cols + i] as number) * (near[o * cols + i] as number)
        y[r * out + o] = sum
      }
    return y
  },
  probes: 12,
  ...more,
})

const int4: Format = { bits: 4, group: 32, symmetric: true }
const int8: Format = { bits: 8, group: 64, symmetric: false }
opTest('quantizedLinear', [
  ...formats.map((format) => productCase([2], 5, 200, format)),
  // Few rows and many take different ways.
  ...[1, 3, 8, 32, 33, 70].flatMap((rows) => [
    productCase([rows], 7, 65, int4, { narrow: narrowLimits }),
    productCase([rows], 33, 31, int8, { narrow: narrowLimits }),
  ]),
  productCase([2, 3], 4, 130, int4),
  productCase([], 3, 40, int8),
  productCase([0], 3, 40, int4),
  productCase([2], 0, 40, int4),
  productCase([40], 300, 257, int4),
])

test('weights of several tiles give what one product gives', (t) => {
  const { normal } = generator(7)
  const [out, cols, rows] = [1100, 1024, 40]
  const w = tensor(Float32Array.from({ length: out * cols }, normal), [out, cols])
  const x = tensor(Float32Array.from({ length: rows * cols }, normal), [rows, cols])
  const packed = quantize(w, int4)
  const near = dequantize(packed, cols, int4)
  const whole = ops.linear(x, near, null, 'none').toFloat32()
  const tiled = ops.quantizedLinear(x, packed, 4, 32, true, null).toFloat32()
  const few = ops.quantizedLinear(ops.slice(x, 0, 0, 3), packed, 4, 32, true, null).toFloat32()
  const worst = (a: Float32Array, b: Float32Array) =>
    a.reduce((m, v, i) => Math.max(m, Math.abs(v - (b[i] as number))), 0)
  const largest = whole.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
  t.true(worst(tiled, whole) < 2e-6 * largest)
  t.true(worst(few, whole) < 2e-6 * largest)
})

test('a row is the same in any batch of few rows', (t) => {
  const { normal } = generator(9)
  const packed = quantize(tensor(Float32Array.from({ length: 20 * 500 }, normal), [20, 500]), int4)
  const x = tensor(Float32Array.from({ length: 8 * 500 }, normal), [8, 500])
  const all = ops.quantizedLinear(x, packed, 4, 32, true, null).toFloat32()
  for (let r = 0; r < 8; r++)
    t.deepEqual(
      ops.quantizedLinear(ops.slice(x, 0, r, r + 1), packed, 4, 32, true, null).toFloat32(),
      all.slice(r * 20, (r + 1) * 20),
    )
})

const packed = () => quantize(zeros(4, 40), int4)
rejects('quantize', {
  'three bits': ['ERR_VALUE', () => ops.quantize(zeros(2, 3), 3, 32, true)],
  'groups of 16': ['ERR_VALUE', () => ops.quantize(zeros(2, 3), 4, 16, true)],
  'one axis': ['ERR_SHAPE', () => ops.quantize(zeros(3), 4, 32, true)],
  NaN: ['ERR_VALUE', () => ops.quantize(tensor([[1, Number.NaN]]), 4, 32, true)],
  infinity: ['ERR_VALUE', () => ops.quantize(tensor([[1, Number.POSITIVE_INFINITY]]), 8, 32, false)],
  'a scale beyond f16': ['ERR_VALUE', () => ops.quantize(tensor([[1e30, 0]]), 8, 32, true)],
})
rejects('quantizedLinear', {
  'another width': ['ERR_SHAPE', () => ops.quantizedLinear(zeros(2, 400), packed(), 4, 32, true, null)],
  'another format': ['ERR_SHAPE', () => ops.quantizedLinear(zeros(2, 40), packed(), 8, 32, false, null)],
  'floats as codes': ['ERR_DTYPE', () => ops.quantizedLinear(zeros(2, 40), zeros(4, 68), 4, 32, true, null)],
  'a bias of another width': ['ERR_SHAPE', () => ops.quantizedLinear(zeros(2, 40), packed(), 4, 32, true, zeros(3))],
  'codes as x': ['ERR_DTYPE', () => ops.quantizedLinear(ops.cast(zeros(2, 40), 'u8'), packed(), 4, 32, true, null)],
})
test('cols must be whole', (t) => {
  const error = t.throws(() => ops.dequantize(packed(), -1, 4, 32, true))
  t.is(DeemError.isInstance(error) && error.code, 'ERR_VALUE')
})
