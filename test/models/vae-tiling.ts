// The VAE in tiles: the blend of what every tile gives alone, in the memory of one.
import test from 'ava'
import { type ErrorCode, emptyCache, memory, ops, resetPeakMemory, type Tensor, tensor, tidy, Vae } from 'deem'
import { enliven, normals } from '../_harness/model.js'

const config = { block_out_channels: [8, 16, 16, 16], layers_per_block: 1, norm_num_groups: 4 } // 8 pixels a latent
const factor = 8
async function vae(): Promise<Vae> {
  const made = await Vae.build(config, { seed: 1 })
  enliven(made)
  return made
}
const quiet = { grad: false }

/** Where tiles begin and what they weigh, written from the rule: spread evenly, ramps over the overlap, weights that sum to 1. */
function tilesOf(total: number, size: number, overlap: number, scale: number): { begin: number; weight: number[] }[] {
  if (total <= size) return [{ begin: 0, weight: Array(total * scale).fill(1) }]
  const count = Math.ceil((total - overlap) / (size - overlap))
  const begins = Array.from({ length: count }, (_, i) => Math.floor((i * (total - size)) / (count - 1)))
  const raw = begins.map((_, i) =>
    Array.from({ length: size * scale }, (_w, k) => {
      const left = i === 0 ? 1 : (k + 0.5) / (overlap * scale)
      const right = i === count - 1 ? 1 : (size * scale - k - 0.5) / (overlap * scale)
      return overlap === 0 ? 1 : Math.min(1, left, right)
    }),
  )
  const sum = new Float64Array(total * scale)
  for (const [i, w] of raw.entries())
    for (const [k, v] of w.entries()) (sum[(begins[i] as number) * scale + k] as number) += v
  return raw.map((w, i) => {
    const begin = begins[i] as number
    return { begin, weight: w.map((v, k) => v / (sum[begin * scale + k] as number)) }
  })
}

/** The blend of f over the tiles of x [N, H, W, C]; `into` outputs and `from` inputs a latent. */
async function blend(
  x: Tensor,
  { size, overlap }: { size: number; overlap: number },
  [from, into]: [number, number],
  f: (tile: Tensor) => Promise<Tensor>,
): Promise<Float64Array> {
  const [n = 0, h = 0, w = 0] = x.shape
  const cut = (length: number) => tilesOf(length / from, size / factor, overlap / factor, into)
  const width = (w / from) * into
  let out = new Float64Array()
  for (const row of cut(h))
    for (const column of cut(w)) {
      const [th, tw] = [row.weight.length, column.weight.length]
      const at = (axis: { begin: number; weight: number[] }) =>
        [axis.begin * from, (axis.begin + axis.weight.length / into) * from] as const
      const part = tidy(() => ops.contiguous(ops.slice(ops.slice(x, 1, ...at(row)), 2, ...at(column))))
      const y = await f(part)
      const c = y.shape[3] as number
      if (out.length === 0) out = new Float64Array(n * (h / from) * into * width * c)
      for (const [i, v] of y.toFloat32().entries()) {
        const [k, px, py, b] = [i % c, Math.floor(i / c) % tw, Math.floor(i / c / tw) % th, Math.floor(i / c / tw / th)]
        const place = (b * (h / from) * into + row.begin * into + py) * width + column.begin * into + px
        ;(out[place * c + k] as number) += v * (row.weight[py] as number) * (column.weight[px] as number)
      }
      part.dispose()
      y.dispose()
    }
  return out
}

const apart = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((worst, v, i) => Math.max(worst, Math.abs(v - (b[i] as number))), 0)
const rms = (a: ArrayLike<number>, b?: ArrayLike<number>) =>
  Math.sqrt(Array.from(a).reduce((sum, v, i) => sum + (v - (b?.[i] ?? 0)) ** 2, 0) / a.length)

const cases: { latents: [number, number, number]; size: number; overlap: number }[] = [
  { latents: [1, 12, 12], size: 64, overlap: 16 },
  { latents: [2, 8, 21], size: 64, overlap: 32 },
  { latents: [1, 17, 5], size: 48, overlap: 16 },
  { latents: [1, 9, 13], size: 64, overlap: 32 }, // three tiles over one place
  { latents: [1, 10, 10], size: 40, overlap: 0 },
  { latents: [1, 5, 5], size: 8, overlap: 0 },
]

test('tiles are decoded and encoded as they would be alone, and blended', async (t) => {
  const model = await vae()
  for (const {
    latents: [n, h, w],
    ...tiling
  } of cases) {
    const name = `${n} x ${h} x ${w}, ${JSON.stringify(tiling)}`
    const latent = normals([n, h, w, 4], 1, 0.2)
    const image = normals([n, h * factor, w * factor, 3], 2, 0.5)
    const got = await model.decode(latent, { tiling })
    t.deepEqual(got.shape, image.shape)
    const want = await blend(latent, tiling, [1, factor], (tile) => model.decode(tile, quiet))
    t.true(apart(got.toFloat32(), want) < 1e-5, `${name}: decoded ${apart(got.toFloat32(), want)}`)
    const { mean, logvar } = await model.encode({ image }, { tiling })
    for (const [key, y] of Object.entries({ mean, logvar })) {
      const moments = await blend(image, tiling, [factor, 1], async (tile) => {
        const encoded = await model.encode({ image: tile }, quiet)
        return encoded[key as 'mean']
      })
      t.true(apart(y.toFloat32(), moments) < 2e-5, `${name}: ${key} ${apart(y.toFloat32(), moments)}`)
    }
  }
})

test('what fits in a tile is not cut; what does not is near the whole, nearer with an overlap', async (t) => {
  const model = await vae()
  const [h, w] = [192, 256]
  const pixels = Float32Array.from({ length: h * w * 3 }, (_, i) => {
    const [c, x, y] = [i % 3, Math.floor(i / 3) % w, Math.floor(i / 3 / w)]
    return 0.6 * Math.sin(x / (20 + 7 * c)) * Math.cos(y / 31) + (((x >> 5) + (y >> 5)) % 2) * 0.4 - 0.2
  })
  const image = tensor(pixels, [1, h, w, 3])
  const latent = normals([1, h / factor, w / factor, 4], 3, 0.2)
  const whole = {
    mean: (await model.encode({ image }, quiet)).mean.toFloat32(),
    pixels: (await model.decode(latent, quiet)).toFloat32(),
  }
  const tiled = async (tiling: true | { size: number; overlap?: number }) => ({
    mean: (await model.encode({ image }, { tiling })).mean.toFloat32(),
    pixels: (await model.decode(latent, { tiling })).toFloat32(),
  })
  for (const tiling of [true, { size: 256 }, { size: 512, overlap: 256 }] as const)
    t.deepEqual(await tiled(tiling), whole, JSON.stringify(tiling))
  // Group norms and attention see a tile each: with these random weights by as much as the docstring of Tiling says.
  const near = await tiled({ size: 128 })
  const hard = await tiled({ size: 128, overlap: 0 })
  const off = (y: { mean: Float32Array; pixels: Float32Array }) => ({
    mean: rms(y.mean, whole.mean) / rms(whole.mean),
    pixels: rms(y.pixels, whole.pixels) / rms(whole.pixels),
  })
  t.log('tiles of half a side, RMS beside the whole', off(near), 'without overlap', off(hard))
  t.true(off(near).mean < 0.4 && off(near).pixels < 0.1, JSON.stringify(off(near)))
  t.true(off(near).mean < off(hard).mean && off(near).pixels < off(hard).pixels)
})

test.serial('memory is that of a tile', async (t) => {
  const model = await vae()
  const latent = normals([2, 64, 64, 4], 3, 0.2)
  const image = normals([2, 512, 512, 3], 4)
  const peak = async (run: () => Promise<Tensor[]>) => {
    emptyCache()
    const before = memory().current
    resetPeakMemory()
    for (const x of await run()) x.dispose()
    return memory().peak - before
  }
  const both = async (tiling: boolean | { size: number }) => ({
    decode: await peak(async () => [await model.decode(latent, { tiling, grad: false })]),
    encode: await peak(async () => Object.values(await model.encode({ image }, { tiling, grad: false }))),
  })
  const [all, some, few] = [await both(false), await both({ size: 256 }), await both({ size: 128 })]
  t.log(JSON.stringify({ all, some, few }))
  const pictures = 2 * 512 * 512 * 3 * 4
  // A tile is a quarter, then a sixteenth, of one of the two pictures; beside it stands what comes out.
  t.true(some.decode - pictures < 0.16 * all.decode, `${some.decode} of ${all.decode}`)
  t.true(few.decode - pictures < 0.05 * all.decode, `${few.decode} of ${all.decode}`)
  t.true(some.encode < 0.16 * all.encode, `${some.encode} of ${all.encode}`)
  t.true(few.encode < 0.05 * all.encode, `${few.encode} of ${all.encode}`)
})

test.serial('an abort comes through between tiles and leaves nothing; progress counts tiles', async (t) => {
  const model = await vae()
  const latent = normals([1, 96, 96, 4], 3, 0.2)
  await model.decode(latent, { tiling: { size: 64 } }).then((y) => y.dispose())
  const before = memory().current
  const reason = new Error('stopped by the test')
  const stop = new AbortController()
  const told: [number, number][] = []
  const onProgress = (done: number, total: number) => {
    told.push([done, total])
    stop.abort(reason)
  }
  const call = model.decode(latent, { tiling: { size: 64 }, signal: stop.signal, onProgress })
  await t.throwsAsync(call, { is: reason })
  t.true(told.length >= 1 && told.every(([done, total]) => done < total && total === 256), JSON.stringify(told))
  t.is(memory().current, before)
})

const mistakes: Record<string, [ErrorCode, object]> = {
  'a size that is no multiple': ['ERR_CONFIG', { tiling: { size: 100 } }],
  'no size': ['ERR_CONFIG', { tiling: { size: 0 } }],
  'a negative size': ['ERR_CONFIG', { tiling: { size: -64 } }],
  'an overlap that is no multiple': ['ERR_CONFIG', { tiling: { size: 64, overlap: 4 } }],
  'an overlap of more than half': ['ERR_CONFIG', { tiling: { size: 64, overlap: 40 } }],
  'a negative overlap': ['ERR_CONFIG', { tiling: { size: 64, overlap: -8 } }],
  'a size that is no number': ['ERR_CONFIG', { tiling: { size: Number.NaN } }],
  'a gradient': ['ERR_NO_GRADIENT', { tiling: { size: 64 }, grad: true }],
}

test('mistakes', async (t) => {
  const model = await vae()
  for (const [name, [code, options]] of Object.entries(mistakes)) {
    await t.throwsAsync(model.decode(normals([1, 9, 9, 4], 1), options), { code }, name)
    await t.throwsAsync(model.encode({ image: normals([1, 72, 72, 3], 1) }, options), { code }, name)
  }
  await t.throwsAsync(model.decode(normals([1, 0, 9, 4], 1)), { code: 'ERR_SHAPE' })
})
