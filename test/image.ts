import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import test from 'ava'
import sharp from 'sharp'
import { Random } from '../dist/data/random.js'
import { DeemError } from '../dist/errors.js'
import { hostTensor } from '../dist/host-tensor.js'
import * as image from '../dist/image/index.js'

const code = (wanted: string) => ({ instanceOf: DeemError, code: wanted })

/** A picture from a function of x, y and channel. */
function make(width: number, height: number, value: (x: number, y: number, c: number) => number): image.Picture {
  const data = Float32Array.from({ length: width * height * 3 }, (_v, i) =>
    value(Math.floor(i / 3) % width, Math.floor(i / 3 / width), i % 3),
  )
  return hostTensor(data, [height, width, 3])
}
const bytes = (x: number, y: number, c: number): number => ((x * 40 + y * 16 + c * 60) % 256) / 255
const worst = (a: image.Picture, b: image.Picture): number =>
  Math.max(...a.data.map((value, i) => Math.abs(value - (b.data[i] as number))))

test('what is written as PNG reads back, from bytes, path, URL and raw pixels', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'deem-image-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const picture = make(5, 3, bytes)
  const file = join(folder, 'a.png')
  const png = await image.encodePng(picture)
  writeFileSync(file, png)
  const raw = {
    data: Uint8Array.from(picture.data, (v) => Math.round(v * 255)),
    width: 5,
    height: 3,
    channels: 3 as const,
  }
  for (const source of [png, new Uint8Array(png), file, pathToFileURL(file), raw, picture]) {
    const got = await image.decodeImage(source)
    t.deepEqual(got.shape, [3, 5, 3])
    t.true(worst(got, picture) < 1e-6)
  }
  const wild = await image.decodeImage(await image.encodePng(make(2, 1, (x) => (x === 0 ? -3 : 7))))
  t.deepEqual([...wild.data], [0, 0, 0, 1, 1, 1])
})

test('gray, alpha, EXIF and 16 bits become upright RGB', async (t) => {
  const gray = await image.decodeImage({ data: Uint8Array.of(0, 51, 255), width: 3, height: 1, channels: 1 })
  t.deepEqual(
    [...gray.data].map((v) => Math.round(v * 10) / 10),
    [0, 0, 0, 0.2, 0.2, 0.2, 1, 1, 1],
  )
  const half = { data: Uint8Array.of(255, 0, 0, 0, 0, 0, 255, 255), width: 2, height: 1, channels: 4 as const }
  t.deepEqual([...(await image.decodeImage(half)).data], [1, 1, 1, 0, 0, 1])
  t.deepEqual([...(await image.decodeImage(half, { background: [0, 1, 0] })).data], [0, 1, 0, 0, 0, 1])
  // Orientation 6: the stored rows are the columns of the upright picture.
  const stored = sharp(Buffer.from([255, 0, 0, 0, 255, 0]), { raw: { width: 2, height: 1, channels: 3 } })
  const turned = await image.decodeImage(await stored.withMetadata({ orientation: 6 }).png().toBuffer())
  t.deepEqual(turned.shape, [2, 1, 3])
  t.deepEqual([...turned.data], [1, 0, 0, 0, 1, 0])
  const deep = sharp(Uint16Array.of(65535, 32768, 0), { raw: { width: 1, height: 1, channels: 3 } }).toColourspace(
    'rgb16',
  )
  t.true(
    worst(
      await image.decodeImage(await deep.png().toBuffer()),
      make(1, 1, (_x, _y, c) => [1, 0.5, 0][c] as number),
    ) < 0.003,
  )
})

test('pictures that are none are refused, by kind', async (t) => {
  const png = await image.encodePng(make(40, 30, bytes))
  const jpeg = await sharp(png).jpeg().toBuffer()
  const picture = make(4, 4, bytes)
  for (const broken of [Buffer.alloc(0), Buffer.from('no picture'), png.subarray(0, 60), jpeg.subarray(0, 300)]) {
    await t.throwsAsync(image.decodeImage(broken), code('ERR_FORMAT'))
  }
  await t.throwsAsync(image.decodeImage('/nowhere/a.png'), code('ERR_IO'))
  await t.throwsAsync(image.decodeImage(tmpdir()), code('ERR_IO'))
  for (const huge of [png, picture, { data: new Uint8Array(48), width: 4, height: 4, channels: 3 as const }]) {
    await t.throwsAsync(image.decodeImage(huge, { limitPixels: 15 }), code('ERR_VALUE'))
  }
  await t.throwsAsync(image.decodeImage(png, { limitPixels: 0 }), code('ERR_VALUE'))
  await t.throwsAsync(
    image.decodeImage({ data: new Uint8Array(5), width: 2, height: 1, channels: 3 }),
    code('ERR_SHAPE'),
  )
  await t.throwsAsync(
    image.decodeImage({ data: new Uint8Array(4), width: 2, height: 1, channels: 2 as 3 }),
    code('ERR_SHAPE'),
  )
  await t.throwsAsync(image.encodePng(hostTensor(new Float32Array(8), [2, 2, 2])), code('ERR_SHAPE'))
  await t.throwsAsync(image.resize(picture, 0, 4), code('ERR_VALUE'))
  t.throws(() => image.crop(picture, 2, 2, 3, 1), code('ERR_VALUE'))
  t.throws(() => image.centerCrop(picture, 5), code('ERR_VALUE'))
  t.throws(() => image.pad(picture, 3), code('ERR_VALUE'))
  t.throws(() => image.pictureAt(hostTensor(new Float32Array(12), [1, 2, 2, 3]), 1), code('ERR_INDEX'))
})

/** The textbook resampling, one axis after the other, in doubles. */
function reference(picture: image.Picture, width: number, height: number, filter: image.Filter): image.Picture {
  const kernels = {
    bicubic: (x: number): number =>
      x < 1 ? 1.5 * x ** 3 - 2.5 * x ** 2 + 1 : x < 2 ? -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 : 0,
    lanczos: (x: number): number =>
      x === 0 ? 1 : x < 3 ? (3 * Math.sin(Math.PI * x) * Math.sin((Math.PI * x) / 3)) / (Math.PI * x) ** 2 : 0,
  }
  const weights = (from: number, to: number): number[][] =>
    Array.from({ length: to }, (_v, i) => {
      const step = Math.max(1, from / to)
      const row = Array.from({ length: from }, (_w, j) =>
        kernels[filter](Math.abs(j + 0.5 - ((i + 0.5) * from) / to) / step),
      )
      const total = row.reduce((a, b) => a + b, 0)
      return row.map((value) => value / total)
    })
  const [oldHeight = 0, oldWidth = 0] = picture.shape
  const [across, down] = [weights(oldWidth, width), weights(oldHeight, height)]
  return make(width, height, (x, y, c) => {
    let sum = 0
    down[y]?.forEach((v, j) => {
      across[x]?.forEach((u, i) => {
        if (u !== 0 && v !== 0) sum += u * v * (picture.data[(j * oldWidth + i) * 3 + c] as number)
      })
    })
    return Math.min(1, Math.max(0, sum))
  })
}

const smooth = make(40, 30, (x, y, c) => 0.5 + 0.4 * Math.sin(x / 5 + c) * Math.cos(y / 4))
// Enlarging is ours: rounding only. Shrinking is libvips', whose kernels are tabled and whose rims differ a little.
for (const filter of ['bicubic', 'lanczos'] as const) {
  for (const [width, height, tolerance] of [
    [40, 30, 1e-7],
    [80, 60, 2e-6],
    [97, 31, 2e-6],
    [41, 300, 2e-6],
    [20, 15, 0.01],
    [32, 24, 0.01],
    [16, 90, 0.01],
  ] as const) {
    test(`${filter} from 40 x 30 to ${width} x ${height}`, async (t) => {
      const got = await image.resize(smooth, width, height, filter)
      t.deepEqual(got.shape, [height, width, 3])
      const error = worst(got, reference(smooth, width, height, filter))
      t.true(error < tolerance, `${error}`)
    })
  }
}

// libvips rounds its kernels: weights may sum to 0.9995, a fifth of an 8-bit step.
test('resizing keeps flat pictures flat and stays in range', async (t) => {
  const flat = make(9, 7, (_x, _y, c) => [0, 0.5, 1][c] as number)
  const random = new Random(1)
  const noise = make(31, 17, () => random.int(2))
  for (const [width, height] of [
    [1, 1],
    [3, 20],
    [64, 2],
  ] as const) {
    t.true(
      worst(
        await image.resize(flat, width, height),
        make(width, height, (_x, _y, c) => [0, 0.5, 1][c] as number),
      ) < 1e-3,
    )
    t.true((await image.resize(noise, width, height, 'lanczos')).data.every((value) => value >= 0 && value <= 1))
  }
})

test('crop, flip and pad move pixels and change none', (t) => {
  const picture = make(5, 4, bytes)
  t.deepEqual(
    image.crop(picture, 1, 2, 3, 2),
    make(3, 2, (x, y, c) => Math.fround(bytes(x + 1, y + 2, c))),
  )
  t.deepEqual(
    image.centerCrop(picture, 2, 3),
    make(2, 3, (x, y, c) => Math.fround(bytes(x + 1, y, c))),
  )
  t.deepEqual(
    image.flipHorizontal(picture),
    make(5, 4, (x, y, c) => Math.fround(bytes(4 - x, y, c))),
  )
  t.deepEqual(image.flipHorizontal(image.flipHorizontal(picture)), picture)
  const padded = image.pad(picture, 8, 6, [1, 0, 0.5])
  t.deepEqual(image.crop(padded, 1, 1, 5, 4), picture)
  t.deepEqual([...image.crop(padded, 0, 0, 1, 1).data], [1, 0, 0.5])
  t.deepEqual([...image.crop(padded, 7, 5, 1, 1).data], [1, 0, 0.5])
})

test('squares: stretch, cover and contain', async (t) => {
  const picture = make(64, 32, (x) => (x < 16 || x >= 48 ? 1 : 0))
  const rim = (one: image.Picture): number => one.data[(16 * 32 + 1) * 3] as number
  const stretched = await image.square(picture, 32, { fit: 'stretch' })
  t.is(rim(stretched), 1)
  const covered = await image.square(picture, 32)
  t.deepEqual(covered, image.centerCrop(picture, 32))
  const contained = await image.square(picture, 32, { fit: 'contain', color: [0, 1, 0] })
  t.deepEqual([...image.crop(contained, 0, 0, 1, 1).data], [0, 1, 0])
  const slope = make(10, 10, (x) => x / 10)
  t.deepEqual(await image.square(slope, 20, { flip: true }), image.flipHorizontal(await image.square(slope, 20)))
})

test('both views of a step show the same part', async (t) => {
  const png = await image.encodePng(make(90, 60, (x, y) => (Math.hypot(x - 45, y - 30) < 20 ? 1 : 0)))
  const { encoder, decoder } = await image.twoViews(png, { encoder: 32, decoder: 64 }, { filter: 'lanczos' })
  t.deepEqual(
    [encoder.shape, decoder.shape],
    [
      [32, 32, 3],
      [64, 64, 3],
    ],
  )
  t.true(worst(await image.resize(decoder, 32, 32), encoder) < 0.12)
  const same = await image.twoViews(png, { encoder: 32, decoder: 32 })
  t.is(same.encoder, same.decoder)
})
