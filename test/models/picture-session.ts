// Pictures as they are painted: every sampler by the public calls, from noise, from pictures, around what is kept.
import test from 'ava'
import { ops, PictureSession, type SamplerName, type Tensor, tensor } from 'deem'
import { compare, normals, whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

const samplers: SamplerName[] = ['ddim', 'ddpm', 'pndm', 'dpmpp', 'euler', 'euler_ancestral']
const data = (x: Tensor) => {
  const values = x.toFloat32()
  x.dispose()
  return values
}

test('every sampler: one seed one picture, alone as in a batch, and steps as in one go', async (t) => {
  const { model, inputs } = await nano()
  const x = prompts(inputs)
  const which = whole([1, 3], [2])
  for (const sampler of samplers) {
    const options = { sampler, steps: 4, seed: [5, 8] }
    const both = data(await model.paint({ ...x, which }, options))
    const one = data(await model.paint({ ...x, which: whole([3], [1]) }, { sampler, steps: 4, seed: 8 }))
    compare(t, `${sampler}: the second alone`, one, both.subarray(both.length / 2), 1e-4)
    t.deepEqual(data(await model.paint({ ...x, which }, options)), both, sampler)
    t.notDeepEqual(data(await model.paint({ ...x, which }, { ...options, seed: [6, 8] })), both)
    using session = await PictureSession.open(model, 'picture', { ...x, which }, options)
    t.is(session.timesteps.length, sampler === 'pndm' ? 5 : 4)
    while (session.next < session.timesteps.length) (await session.advance(1)).dispose()
    t.deepEqual(data(await session.decode()), both, `${sampler}: step by step`)
    await t.throwsAsync(session.advance(1), { code: 'ERR_CONFIG', message: /0\.\.0/ })
  }
})

test('previews come in between, and change nothing', async (t) => {
  const { model, inputs } = await nano()
  const x = { ...prompts(inputs), which: whole([1], [1]) }
  const want = data(await model.paint(x, { steps: 5 }))
  const seen: [number, number, number[]][] = []
  let kept: Tensor | undefined
  const got = await model.paint(x, {
    steps: 5,
    previewEvery: 2,
    onPreview: (pictures, done, total) => {
      seen.push([done, total, pictures.shape])
      kept = pictures
    },
  })
  t.deepEqual(data(got), want)
  t.deepEqual(seen, [
    [2, 5, [1, 64, 64, 3]],
    [4, 5, [1, 64, 64, 3]],
  ])
  t.true(kept?.disposed)
  const fails = { steps: 5, previewEvery: 1, onPreview: () => Promise.reject(new Error('the listener fails')) }
  await t.throwsAsync(model.paint(x, fails), { message: 'the listener fails' })
})

test('from a picture: the less strength, the nearer to it', async (t) => {
  const { model, inputs } = await nano()
  const x = { ...prompts(inputs), which: whole([1], [1]) }
  const picture = ops.contiguous(ops.slice(inputs.image_tensors as Tensor, 0, 2, 3))
  for (const sampler of samplers) {
    const painted = async (strength: number) =>
      data(await model.paint({ ...x, picture }, { sampler, steps: 10, strength, seed: 3 }))
    using session = await PictureSession.open(
      model,
      'picture',
      { ...x, picture },
      { sampler, steps: 10, strength: 0.3 },
    )
    t.is(session.next, sampler === 'pndm' ? 8 : 7, sampler)
    const [little, half, all] = [await painted(0.1), await painted(0.5), await painted(1)]
    t.deepEqual(all, data(await model.paint(x, { sampler, steps: 10, seed: 3 })), `${sampler}: all is noise alone`)
    const apart = (a: Float32Array, b: Float32Array) => a.reduce((sum, v, i) => sum + Math.abs(v - (b[i] as number)), 0)
    // What the VAE makes of the picture is as near as one can come.
    const encoded = await model.open(
      'picture',
      { ...x, picture, repaint: ops.full([1, 64, 64, 1], 0, 'f32') },
      { sampler, steps: 2 },
    )
    ;(await encoded.call('advance', {}, {}))['latent']?.dispose()
    const near = data((await encoded.call('decode', {}, {}))['image'] as Tensor)
    encoded.dispose()
    t.true(apart(little, near) < apart(half, near), sampler)
  }
})

test('repainting keeps what lies outside of the mask', async (t) => {
  const { model, inputs } = await nano()
  const picture = ops.contiguous(ops.slice(inputs.image_tensors as Tensor, 0, 2, 3))
  const x = { ...prompts(inputs), which: whole([1], [1]), picture }
  const left = Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 64 < 32 ? 1 : 0))
  for (const sampler of samplers) {
    const run = async (repaint: Tensor) => {
      using session = await PictureSession.open(model, 'picture', { ...x, repaint }, { sampler, steps: 4, seed: 1 })
      return data(await session.advance())
    }
    const kept = await run(ops.full([1, 64, 64, 1], 0, 'f32'))
    const half = await run(tensor(left, [1, 64, 64, 1]))
    const all = await run(ops.full([1, 64, 64, 1], 1, 'f32'))
    const columns = (latent: Float32Array, from: number, to: number) =>
      latent.filter((_, i) => Math.floor(i / 4) % 8 >= from && Math.floor(i / 4) % 8 < to)
    // A mask set anywhere within a latent's pixels repaints it, and resizing reaches half a latent further at most.
    t.deepEqual(columns(half, 5, 8), columns(kept, 5, 8), sampler)
    t.notDeepEqual(columns(half, 0, 4), columns(kept, 0, 4), sampler)
    t.notDeepEqual(half, all)
    t.deepEqual(
      all,
      data(await (await PictureSession.open(model, 'picture', { ...x }, { sampler, steps: 4, seed: 1 })).advance()),
    )
  }
})

const sizes: [width: number, height: number][] = [
  [64, 64],
  [96, 32],
  [24, 72],
  [40, 56],
  [8, 8],
  [128, 80],
]

test('every size the VAE can divide: by all samplers, from pictures, around masks, in tiles, alone as in a batch', async (t) => {
  const { model, inputs } = await nano()
  const x = prompts(inputs)
  const [one, two] = [whole([1], [1]), whole([1, 3], [2])]
  for (const [i, [width, height]] of sizes.entries()) {
    const name = `${width} x ${height}`
    const sampler = samplers[i] as SamplerName
    const options = { sampler, steps: 3, width, height }
    const previews: number[][] = []
    const made = await model.paint(
      { ...x, which: two },
      { ...options, seed: [3, 4], previewEvery: 1, onPreview: ({ shape }) => void previews.push(shape) },
    )
    t.deepEqual(made.shape, [2, height, width, 3], name)
    t.true(previews.every((shape) => `${shape}` === `${made.shape}`) && previews.length >= 2)
    const both = data(made)
    t.true(both.every(Number.isFinite))
    const alone = data(await model.paint({ ...x, which: whole([3], [1]) }, { ...options, seed: 4 }))
    compare(t, `${name}: alone`, alone, both.subarray(both.length / 2), 1e-4)
    const picture = normals([1, height, width, 3], 5, 0.2)
    const latent = [1, height / 8, width / 8, 4]
    const mask = ops.full([1, height, width, 1], 0, 'f32')
    const run = async (more: object, how: object = {}) => {
      using session = await PictureSession.open(model, 'picture', { ...x, which: one, ...more }, { ...options, ...how })
      const y = await session.advance()
      t.deepEqual(y.shape, latent, name)
      return data(y)
    }
    const kept = await run({ picture, repaint: mask })
    const left = Float32Array.from({ length: width * height }, (_, k) => (k % width < width / 2 ? 1 : 0))
    const half = await run({ picture, repaint: tensor(left, [1, height, width, 1]) })
    const column = (k: number) => Math.floor(k / 4) % (width / 8)
    const right = (v: Float32Array) => v.filter((_, k) => column(k) > width / 16 + 1)
    t.deepEqual(right(half), right(kept), `${name}: what is kept`)
    t.notDeepEqual(half, kept, name)
    t.notDeepEqual(await run({ picture }, { strength: 0.5, seed: 1 }), await run({}, { seed: 1 }))
    const tiled = data(await model.paint({ ...x, which: one }, { ...options, tiling: { size: 32, overlap: 8 } }))
    const uncut = data(await model.paint({ ...x, which: one }, { ...options, tiling: true }))
    const plain = data(await model.paint({ ...x, which: one }, options))
    t.deepEqual(uncut, plain, `${name}: one tile`)
    t.is(`${tiled}` === `${plain}`, width <= 32 && height <= 32, `${name}: tiles`)
    const image_tensors = ops.contiguous(ops.slice(inputs.image_tensors as Tensor, 0, 0, 1))
    const again = await model.reconstruct({ image_tensors }, options)
    t.deepEqual(again.shape, [1, height, width, 3])
  }
})

test('mistakes of beginnings', async (t) => {
  const { model, inputs } = await nano()
  const x = { ...prompts(inputs), which: whole([1], [1]) }
  const open = (more: Record<string, Tensor>, options: object = {}) =>
    PictureSession.open(model, 'picture', { ...x, ...more }, options)
  const picture = normals([1, 64, 64, 3], 1)
  const mask = normals([1, 64, 64, 1], 1)
  await t.throwsAsync(open({}, { strength: 0.5 }), { code: 'ERR_CONFIG', message: /needs a picture/ })
  await t.throwsAsync(open({ picture }, { strength: 0 }), { code: 'ERR_CONFIG', message: /above 0/ })
  await t.throwsAsync(open({ repaint: mask }), { code: 'ERR_VALUE', message: /needs the picture/ })
  await t.throwsAsync(open({ picture: normals([1, 32, 32, 3], 1) }), { code: 'ERR_SHAPE', message: /\[1, 64, 64, 3\]/ })
  await t.throwsAsync(open({ picture, repaint: normals([1, 64, 64, 3], 1) }), { code: 'ERR_SHAPE' })
  await t.throwsAsync(open({ picture: whole(Array(64 * 64 * 3).fill(0), [1, 64, 64, 3]) }), { code: 'ERR_DTYPE' })
  await t.throwsAsync(open({}, { seed: [1, 2] }), { code: 'ERR_CONFIG', message: /each of 1 pictures but has 2/ })
  await t.throwsAsync(open({}, { sampler: 'heun' }), { code: 'ERR_CONFIG', message: /heun/ })
  for (const size of [
    { width: 60 },
    { height: 0 },
    { width: -8 },
    { height: 12.5 },
    { width: Number.NaN },
    { tiling: { size: 7 } },
  ])
    await t.throwsAsync(
      open({}, size),
      { code: 'ERR_CONFIG', message: /multiple of 8|finite|whole|integer/ },
      JSON.stringify(size),
    )
  await t.throwsAsync(open({}, { width: 8192, height: 8200 }), {
    code: 'ERR_CONFIG',
    message: /67108864 pixels.*8192 x 8200/,
  })
  await t.throwsAsync(open({}, { width: 2 ** 52, height: 2 ** 52 }), { code: 'ERR_CONFIG' })
  await t.throwsAsync(open({ picture }, { width: 32 }), { code: 'ERR_SHAPE', message: /\[1, 64, 32, 3\]/ })
  await t.throwsAsync(open({ latent: normals([1, 8, 8, 4], 1) }, { width: 32 }), {
    code: 'ERR_SHAPE',
    message: /\[1, 8, 4, 4\]/,
  })
  using session = await open({}, { steps: 2 })
  await t.throwsAsync(session.advance(2, normals([1, 8, 8, 4], 1)), { code: 'ERR_VALUE', message: /one evaluation/ })
  await t.throwsAsync(session.advance(-1), { code: 'ERR_CONFIG' })
  t.is((await session.advance()).shape.join(), '1,8,8,4')
})
