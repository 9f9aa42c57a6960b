// Handles, lifetimes and errors of tensors.
import test from 'ava'
import { backward, DeemError, memory, noGrad, ops, Scope, setMemoryLimit, type Tensor, tensor, tidy } from 'deem'

const codeOf = (error: unknown) => (DeemError.isInstance(error) ? error.code : String(error))

test('values survive the round trip in every dtype', (t) => {
  t.deepEqual(
    [
      ...tensor([
        [1, 2],
        [3, 4],
      ]).read(),
    ],
    [1, 2, 3, 4],
  )
  t.deepEqual(
    tensor([
      [1, 2],
      [3, 4],
    ]).shape,
    [2, 2],
  )
  t.deepEqual([...tensor([1n, -2n], [2], 'i64').read()], [1n, -2n])
  t.deepEqual([...tensor([0, 255], [2], 'u8').read()], [0, 255])
  t.deepEqual([...tensor([7, -7], [2], 'i32').read()], [7, -7])
  for (const dtype of ['bf16', 'f16'] as const)
    t.deepEqual([...tensor([1.5, -0.25], [2], dtype).toFloat32()], [1.5, -0.25])
  t.is(tensor(3).item(), 3)
})

test('disposal is idempotent, and use after it is an error', (t) => {
  const x = tensor([1])
  x.dispose()
  x.dispose()
  t.true(x.disposed)
  t.is(codeOf(t.throws(() => x.shape)), 'ERR_DISPOSED')
  t.is(codeOf(t.throws(() => ops.neg(x))), 'ERR_DISPOSED')
})

test('tidy frees what it does not return', (t) => {
  const before = memory().current
  const kept = tidy(() => {
    const x = ops.full([1024, 1024], 1, 'f32')
    return ops.sum(ops.add(x, x), [], false)
  })
  t.is(kept.item(), 2 * 1024 * 1024)
  t.true(memory().current - before < 1 << 20)
  t.is(codeOf(t.throws(() => tidy(() => Promise.resolve(1)))), 'ERR_VALUE')
})

test('a scope frees what it keeps', (t) => {
  let x: Tensor
  {
    using scope = new Scope()
    x = scope.keep(tensor([1, 2]))
    t.false(x.disposed)
  }
  t.true(x.disposed)
})

test('gradients gather in leaves, and a graph is used once', async (t) => {
  const x = tensor([1, 2, 3])
  x.requiresGrad = true
  await ops.sum(ops.square(x), [], false).backward()
  await ops.sum(x, [], false).backward()
  t.deepEqual([...(x.grad as Tensor).toFloat32()], [3, 5, 7])
  const y = ops.sum(ops.square(x), [], false)
  await y.backward()
  t.is(codeOf(await t.throwsAsync(y.backward())), 'ERR_VALUE')
  t.is(codeOf(await t.throwsAsync(backward([noGrad(() => ops.square(x))]))), 'ERR_NO_GRADIENT')
})

test('what is wrong is refused with a code', async (t) => {
  t.is(codeOf(t.throws(() => tensor(Float32Array.of(1, 2, 3), [2]))), 'ERR_SHAPE')
  t.is(codeOf(t.throws(() => tensor(Float32Array.of(1), [-1]))), 'ERR_SHAPE')
  t.is(codeOf(t.throws(() => tensor(Float32Array.of(1), [1, 1, 1, 1, 1, 1, 1, 1, 1]))), 'ERR_SHAPE')
  t.is(codeOf(t.throws(() => tensor(Float32Array.of(1), [1], 'i64'))), 'ERR_DTYPE')
  t.is(codeOf(t.throws(() => tensor(new Uint16Array(1), [1]))), 'ERR_DTYPE')
  t.is(codeOf(t.throws(() => tensor([[1], [1, 2]]))), 'ERR_SHAPE')
  t.is(codeOf(t.throws(() => ops.full([2 ** 40, 2 ** 40], 0, 'f32'))), 'ERR_SHAPE')
  t.is(codeOf(t.throws(() => ops.cast(tensor([1]), 'f64' as never))), 'ERR_DTYPE')
  t.is(codeOf(t.throws(() => ops.slice(tensor([1]), 0.5, 0, 1))), 'ERR_VALUE')
  t.is(codeOf(t.throws(() => ops.add(tensor([1]), undefined as never))), 'ERR_DTYPE')
  const ids = tensor([1n], [1], 'i64')
  t.is(
    codeOf(
      t.throws(() => {
        ids.requiresGrad = true
      }),
    ),
    'ERR_DTYPE',
  )
  t.is(codeOf(await t.throwsAsync(tensor([1]).backward())), 'ERR_NO_GRADIENT')
})

test('the byte limit is a typed error and loses nothing', (t) => {
  const x = tensor([1, 2, 3])
  setMemoryLimit(memory().current + (1 << 20))
  try {
    t.is(codeOf(t.throws(() => ops.full([1 << 22], 0, 'f32'))), 'ERR_OUT_OF_MEMORY')
  } finally {
    setMemoryLimit(0)
  }
  t.deepEqual([...x.toFloat32()], [1, 2, 3])
  t.is(ops.full([1 << 22], 0, 'f32').size, 1 << 22)
})
