import test from 'ava'
import { ops, type Tensor, tensor } from 'deem'
import { activations } from '../_harness/activations.js'
import { compare, type F64, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

const ops_ = {
  geglu: { run: ops.geglu, f: (a: number, b: number) => a * activations.gelu(b) },
  swiglu: { run: ops.swiglu, f: (a: number, b: number) => activations.silu(a) * b },
}

for (const [name, { run, f }] of Object.entries(ops_)) {
  const at = (shape: number[], more: Partial<OpCase> = {}): OpCase => ({
    name: `[${shape}]`,
    inputs: { x: { shape } },
    run: ({ x }) => run(x as Tensor),
    reference: ({ x }) => {
      const { data } = x as F64
      const n = (shape.at(-1) as number) / 2
      return Float64Array.from({ length: data.length / 2 }, (_, i) => {
        const row = Math.floor(i / n) * 2 * n + (i % n)
        return f(data[row] as number, data[row + n] as number)
      })
    },
    ...more,
  })
  opTest(name, [
    at([2]),
    at([1, 2]),
    at([4, 6], { narrow: { bf16: narrowLimits.bf16, f16: narrowLimits.f16 } }),
    at([3, 34]),
    at([2, 3, 126], { probes: 10 }),
    at([0, 8]),
    {
      name: 'columns of a wider tensor',
      inputs: { x: { shape: [3, 9] } },
      run: ({ x }) => run(ops.slice(x as Tensor, 1, 2, 8)),
      reference: ({ x }) =>
        Array.from({ length: 9 }, (_, i) => {
          const first = Math.floor(i / 3) * 9 + 2 + (i % 3)
          return f((x as F64).data[first] as number, (x as F64).data[first + 3] as number)
        }),
    },
  ])
  test(`${name}: a result too large for a cache is that of its rows`, (t) => {
    const x = ops.randn([17, 524_294], 1, 1) // rows begin anywhere in a cache line
    const whole = run(x)
    for (const r of [0, 1, 16]) {
      const row = (y: Tensor) => ops.contiguous(ops.slice(y, 0, r, r + 1))
      compare(t, `row ${r}`, row(whole).toFloat32(), run(row(x)).toFloat32(), 1e-7)
    }
  })
  rejects(name, {
    'an odd width': ['ERR_SHAPE', () => run(zeros(2, 3))],
    'no width': ['ERR_SHAPE', () => run(zeros(2, 0))],
    'a scalar': ['ERR_SHAPE', () => run(tensor(1))],
    integers: ['ERR_DTYPE', () => run(tensor(new BigInt64Array(4)))],
  })
}
