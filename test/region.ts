// Regions of pictures: boxes, polygons, COCO's run lengths and masks, and what of a picture they let through.

import { fileURLToPath } from 'node:url'
import test from 'ava'
import { DeemError, image, type Picture, Pipeline, type Region, regionMask, Tokenizer, text, within } from 'deem'
import { nano, nanoConfig } from './_harness/nano.js'
import { generator } from './_harness/random.js'

const rows = (mask: Uint8Array, width: number) =>
  Array.from({ length: mask.length / width }, (_, r) => [...mask.subarray(r * width, (r + 1) * width)].join(''))

/** COCO's compressed string of a mask, written from its description. */
function packed(mask: Uint8Array, width: number, height: number): { counts: string; runs: number[] } {
  const runs: number[] = []
  let value = 0
  let run = 0
  for (let k = 0; k < mask.length; k++) {
    const v = mask[(k % height) * width + Math.floor(k / height)] as number
    if (v === value) run++
    else {
      runs.push(run)
      value = v
      run = 1
    }
  }
  runs.push(run)
  const letters = runs.map((own, i) => {
    let x = i > 2 ? own - (runs[i - 2] as number) : own
    let out = ''
    for (;;) {
      const five = x & 0x1f
      x >>= 5
      const more = five & 0x10 ? x !== -1 : x !== 0
      out += String.fromCharCode(48 + (more ? five | 0x20 : five))
      if (!more) return out
    }
  })
  return { counts: letters.join(''), runs }
}

test('boxes and polygons cover the pixels whose centres they hold', (t) => {
  t.deepEqual(rows(regionMask({ box: [1, 1, 3, 2] }, 6, 4), 6), ['000000', '011100', '011100', '000000'])
  t.deepEqual(
    rows(regionMask({ box: [-5, -5, 6.6, 20] }, 4, 2), 4),
    ['1100', '1100'].map((r) => r.replace('11', '11')),
  )
  const square = [
    [1, 1],
    [4, 1],
    [4, 3],
    [1, 3],
  ] as const
  t.deepEqual(regionMask({ polygons: [square] }, 6, 4), regionMask({ box: [1, 1, 3, 2] }, 6, 4))
  const triangle = [
    [0, 0],
    [4, 0],
    [0, 4],
  ] as const
  t.deepEqual(rows(regionMask({ polygons: [triangle] }, 4, 4), 4), ['1110', '1100', '1000', '0000'])
  t.deepEqual(
    rows(
      regionMask(
        {
          polygons: [
            triangle,
            [
              [3, 3],
              [9, 3],
              [9, 9],
              [3, 9],
            ],
          ],
        },
        4,
        4,
      ),
      4,
    ),
    ['1110', '1100', '1000', '0001'],
  )
})

test('run lengths: numbers and strings, of every shape', (t) => {
  const { uniform } = generator(5)
  for (const [width, height] of [
    [1, 1],
    [7, 3],
    [3, 11],
    [64, 48],
    [200, 150],
  ] as const)
    for (const share of [0, 0.02, 0.5, 1]) {
      const mask = Uint8Array.from({ length: width * height }, () => (uniform() < share ? 1 : 0))
      const { counts, runs } = packed(mask, width, height)
      t.deepEqual(regionMask({ rle: { size: [height, width], counts } }, width, height), mask)
      t.deepEqual(regionMask({ rle: { size: [height, width], counts: runs } }, width, height), mask)
    }
  // From the COCO tools' own documentation of runs: [2 zeros, 3 ones, 1 zero] down the columns.
  t.deepEqual(rows(regionMask({ rle: { size: [2, 3], counts: [2, 3, 1] } }, 3, 2), 3), ['011', '010'])
})

test('what does not fit is an error, whatever stands in it', (t) => {
  const bad: [RegExp, Region][] = [
    [/positive width/, { box: [0, 0, 0, 4] }],
    [/positive width/, { box: [0, 0, Number.NaN, 4] }],
    [
      /three corners/,
      {
        polygons: [
          [
            [0, 0],
            [1, 1],
          ],
        ],
      },
    ],
    [
      /three corners/,
      {
        polygons: [
          [
            [0, 0],
            [1, Number.NaN],
            [3, 3],
          ],
        ],
      },
    ],
    [/5 x 5/, { rle: { size: [5, 5], counts: [25] } }],
    [/reaches beyond/, { rle: { size: [4, 6], counts: [25] } }],
    [/reaches beyond/, { rle: { size: [4, 6], counts: [-1, 25] } }],
    [/cover 3 of 24/, { rle: { size: [4, 6], counts: [3] } }],
    [/cover 0 of 24/, { rle: { size: [4, 6], counts: '' } }],
    [/damaged/, { rle: { size: [4, 6], counts: 'oooooooooooooooooo' } }],
    [/damaged/, { rle: { size: [4, 6], counts: '\u0001' } }],
    [/damaged/, { rle: { size: [4, 6], counts: 'o' } }],
    [/needs 24 values/, { mask: { data: [1], width: 6, height: 4 } }],
    [/4 x 6/, { mask: { data: [1], width: 4, height: 6 } }],
  ]
  for (const [says, region] of bad) {
    const error = t.throws(() => regionMask(region, 6, 4))
    t.true(DeemError.isInstance(error), String(error))
    t.regex(error?.message ?? '', says)
  }
  const { uniform } = generator(9)
  for (let i = 0; i < 3000; i++) {
    const counts = Array.from({ length: Math.floor(uniform() * 12) }, () =>
      String.fromCharCode(40 + uniform() * 80),
    ).join('')
    try {
      t.is(regionMask({ rle: { size: [4, 6], counts } }, 6, 4).length, 24)
    } catch (e) {
      if (!DeemError.isInstance(e)) t.fail(String(e))
    }
  }
})

test('a region changes what the encoder passes on, a region of everything nothing', async (t) => {
  const { model } = await nano()
  const tokenizer = await Tokenizer.load(fileURLToPath(new URL('../test/fixtures/tokenizer', import.meta.url)), {
    padId: 511,
  })
  const p = new Pipeline({ model, tokenizer, config: nanoConfig() })
  const { uniform } = generator(2)
  const picture: Picture = {
    dtype: 'f32',
    shape: [80, 120, 3],
    data: Float32Array.from({ length: 80 * 120 * 3 }, uniform),
  }
  const score = (part: Parameters<typeof image>[0]) =>
    p.score([image(part as never), text('What?')], ['license', 'the work'])
  const whole = await score(picture)
  t.deepEqual(await score(within(picture, { box: [0, 0, 120, 80] })), whole)
  const left = await score(within(picture, { box: [20, 0, 20, 80] }))
  t.notDeepEqual(left, whole)
  t.deepEqual(
    await score(
      within(picture, {
        polygons: [
          [
            [20, 0],
            [40, 0],
            [40, 80],
            [20, 80],
          ],
        ],
      }),
    ),
    left,
  )
  t.notDeepEqual(await score(within(picture, { box: [60, 40, 0.6, 0.6] })), left)
  await t.throwsAsync(score(within(picture, { mask: { data: [], width: 1, height: 1 } })), { code: 'ERR_VALUE' })
  p.dispose()
})
