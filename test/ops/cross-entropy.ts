import test from 'ava'
import { backward, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

function reference({ logits, labels }: Record<string, F64>): [number] {
  const { data, shape } = logits as F64
  const classes = shape[1] as number
  let sum = 0
  let kept = 0
  for (const [r, label] of (labels as F64).data.entries()) {
    if (label === -100) continue
    const row = data.subarray(r * classes, (r + 1) * classes)
    const top = row.reduce((a, v) => Math.max(a, v))
    sum += top + Math.log(row.reduce((a, v) => a + Math.exp(v - top), 0)) - (row[label] as number)
    kept++
  }
  return [kept ? sum / kept : 0]
}

const lossCase = (rows: number, classes: number, ignored: (r: number) => boolean, spread = 1): OpCase => ({
  name: `[${rows}, ${classes}], row 0 ${ignored(0) ? 'ignored' : 'kept'}, spread ${spread}`,
  inputs: {
    logits: { shape: [rows, classes], values: (_, normal) => spread * normal() },
    labels: { shape: [rows], dtype: 'i64', values: (r) => (ignored(r) ? -100 : (r * 31 + 5) % classes) },
  },
  run: (t) => ops.crossEntropy(t['logits'] as Tensor, t['labels'] as Tensor, -100),
  reference,
})

opTest('crossEntropy', [
  lossCase(13, 33, (r) => r % 3 === 1),
  lossCase(7, 130, (r) => r !== 4),
  lossCase(5, 65, () => false),
  lossCase(4, 8, () => true),
  lossCase(3, 1, () => false),
  lossCase(6, 50, (r) => r === 2, 30),
  lossCase(0, 8, () => false),
])

const labels = (...values: bigint[]) => tensor(BigInt64Array.from(values))
rejects('crossEntropy', {
  'a label past the classes': ['ERR_INDEX', () => ops.crossEntropy(zeros(1, 4), labels(4n), -100)],
  'a negative label': ['ERR_INDEX', () => ops.crossEntropy(zeros(1, 4), labels(-1n), -100)],
  'too few labels': ['ERR_SHAPE', () => ops.crossEntropy(zeros(2, 4), labels(1n), -100)],
  'three axes': ['ERR_SHAPE', () => ops.crossEntropy(zeros(1, 1, 4), labels(1n), -100)],
  'no classes': ['ERR_SHAPE', () => ops.crossEntropy(zeros(1, 0), labels(-100n), -100)],
  'floating labels': ['ERR_DTYPE', () => ops.crossEntropy(zeros(1, 4), zeros(1), -100)],
})

test.serial('crossEntropy: the same bits with any number of threads', async (t) => {
  const before = threads()
  const { normal } = generator(1)
  const data = Float32Array.from({ length: 64 * 500 }, normal)
  try {
    const results: [number, Float32Array][] = []
    for (const count of [1, 2, 5]) {
      setThreads(count)
      const logits = tensor(data, [64, 500])
      logits.requiresGrad = true
      const loss = ops.crossEntropy(logits, labels(...Array.from({ length: 64 }, (_, i) => BigInt(i))), 7)
      await backward([loss])
      results.push([loss.item(), (logits.grad as Tensor).toFloat32()])
    }
    for (const other of results.slice(1)) t.deepEqual(other, results[0])
  } finally {
    setThreads(before)
  }
})
