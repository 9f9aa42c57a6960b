import test from 'ava'
import * as data from '../dist/data/index.js'
import { backgrounds, type Scene, type SceneSource } from '../dist/data/index.js'
import { DeemError } from '../dist/errors.js'
import { wilson } from '../dist/eval/interval.js'

const train: SceneSource = { seed: 7, split: 'train', vendors: ['twitter', 'google'] }
const held: SceneSource = { ...train, split: 'test' }
const scenes = (source: SceneSource, count: number): Scene[] =>
  Array.from({ length: count }, (_, i) => data.sceneAt(source, i))
const sprites = data.Sprites.load()
const rate = (list: readonly boolean[]): number => list.filter(Boolean).length / list.length

test('every noun has a picture by every vendor, no two the same', async (t) => {
  const loaded = await sprites
  for (const vendor of data.vendors) {
    const seen = new Set<string>()
    data.nouns.forEach((noun, index) => {
      for (const size of data.spriteSizes) {
        const pixels = loaded.get(vendor, index, size)
        t.is(pixels.length, size * size * 4)
        const ink = pixels.filter((_v, i) => i % 4 === 3).reduce((sum, alpha) => sum + alpha, 0) / (size * size)
        t.true(ink > 0.15 && ink < 0.98, `${noun.word} by ${vendor} covers ${ink}`)
        for (let i = 0; i < pixels.length; i += 4) {
          // Colours carry alpha: none may exceed it.
          for (let c = 0; c < 3; c++)
            if ((pixels[i + c] as number) > (pixels[i + 3] as number) + 1e-6) t.fail(`${noun.word} ${vendor}`)
        }
      }
      seen.add(loaded.get(vendor, index, 28).join())
    })
    t.is(seen.size, data.nouns.length)
  }
  t.throws(() => loaded.get('twitter', 0, 64), { instanceOf: DeemError, code: 'ERR_INDEX' })
})

test('nouns: 40 single words in groups of at least 5', (t) => {
  t.is(new Set(data.nouns.map(({ word }) => word)).size, 40)
  t.is(new Set(data.nouns.map(({ code }) => code)).size, 40)
  for (const group of new Set(data.nouns.map((noun) => noun.group)))
    t.true(data.nouns.filter((noun) => noun.group === group).length >= 5, group)
})

test('backgrounds lie far apart', (t) => {
  for (const a of backgrounds) {
    for (const b of backgrounds) {
      if (a !== b)
        t.true(Math.hypot(...a.rgb.map((value, c) => value - (b.rgb[c] as number))) > 0.25, `${a.name} ${b.name}`)
    }
  }
})

test('a scene is a function of seed, split and index', (t) => {
  t.deepEqual(scenes(train, 20), scenes({ ...train }, 20))
  t.deepEqual(data.sceneAt(train, 13), scenes(train, 20)[13])
  const known = new Set(scenes(train, 5000).map((scene) => JSON.stringify(scene)))
  t.is(known.size, 5000)
  for (const other of [held, { ...train, seed: 8 }, { ...train, split: 'validation' as const }]) {
    t.false(scenes(other, 5000).some((scene) => known.has(JSON.stringify(scene))))
  }
})

test('a picture is the same in every release', async (t) => {
  t.is(
    data.denseCaption(data.sceneAt(train, 0)),
    'a white background, a house in the top left, an upside down crab in the bottom left, an upside down tree in the bottom right.',
  )
  const { shape, data: pixels } = data.renderScenes(scenes(train, 2), await sprites)
  t.deepEqual(shape, [2, 64, 64, 3])
  t.true(pixels.every((value) => value >= 0 && value <= 1.00001))
})

test('scenes keep their rules', (t) => {
  const all = scenes(train, 4000)
  for (const { objects, vendor } of all) {
    t.true(objects.length >= 1 && objects.length <= 3)
    t.is(new Set(objects.map(({ noun }) => noun)).size, objects.length)
    t.true(train.vendors.includes(vendor))
    const places = objects.map(({ quadrant }) => quadrant)
    t.deepEqual(places, [...new Set(places)].sort())
    for (const { x, y, size, quadrant } of objects) {
      t.true(size >= 26 && size <= 30)
      t.is((x >> 5) + 2 * (y >> 5), quadrant)
      t.is(((x + size - 1) >> 5) + 2 * ((y + size - 1) >> 5), quadrant)
    }
  }
  const objects = all.flatMap((scene) => scene.objects)
  const near = (value: number, wanted: number, slack: number): void => {
    t.true(Math.abs(value - wanted) < slack, `${value} ${wanted}`)
  }
  near(rate(objects.map(({ upside }) => upside)), 0.3, 0.02)
  for (let b = 0; b < backgrounds.length; b++) near(rate(all.map(({ background }) => background === b)), 1 / 8, 0.02)
  for (let q = 0; q < 4; q++) near(rate(objects.map(({ quadrant }) => quadrant === q)), 0.25, 0.02)
  const count = (noun: number): number => objects.filter((object) => object.noun === noun).length
  t.true(count(0) > 2.5 * count(39), 'a long tail')
  t.true(count(39) > 40, 'but every noun occurs')
})

test('pixels: background, sprite and turned sprite', async (t) => {
  const loaded = await sprites
  const object = { noun: 3, quadrant: 0, upside: false, size: 26, x: 2, y: 4 }
  const scene: Scene = { vendor: 'apple', background: 0, color: [0.25, 0.5, 0.75], objects: [object] }
  const up = data.renderCrops([scene], loaded).data
  const down = data.renderCrops([{ ...scene, objects: [{ ...object, upside: true }] }], loaded).data
  const sprite = loaded.get('apple', 3, 26)
  for (let y = 0; y < 32; y++) {
    for (let x = 0; x < 32; x++) {
      for (let c = 0; c < 3; c++) {
        const back = scene.color[c] as number
        const at = (y * 32 + x) * 3 + c
        const inside = x >= 2 && x < 28 && y >= 4 && y < 30
        const expected = (row: number, column: number): number => {
          const from = (row * 26 + column) * 4
          return (sprite[from + c] as number) + back * (1 - (sprite[from + 3] as number))
        }
        if (Math.abs((up[at] as number) - (inside ? expected(y - 4, x - 2) : back)) > 1e-6) t.fail(`${x} ${y}`)
        if (Math.abs((down[at] as number) - (inside ? expected(29 - y, 27 - x) : back)) > 1e-6)
          t.fail(`turned ${x} ${y}`)
      }
    }
  }
  t.throws(() => data.renderCrops([{ ...scene, objects: [{ ...object, x: 20 }] }], loaded), {
    instanceOf: DeemError,
    code: 'ERR_VALUE',
  })
})

test('the background is measured right on every vendor', async (t) => {
  const all = scenes({ ...held, vendors: data.vendors }, 1500)
  const measured = data.measureBackgrounds(data.renderScenes(all, await sprites))
  t.deepEqual(
    measured.map(({ background }) => background),
    all.map(({ background }) => background),
  )
  t.true(Math.max(...measured.map(({ distance }) => distance)) < 0.071)
})

test('captions say what is there, and read back', (t) => {
  for (const scene of scenes(train, 500)) {
    const facts = data.readCaption(data.denseCaption(scene))
    t.deepEqual(facts, {
      background: scene.background,
      objects: scene.objects.map(({ noun, quadrant, upside }) => ({ noun, quadrant, upside })),
    })
    const n = scene.objects.length
    t.deepEqual(data.scoreCaption(data.denseCaption(scene), scene), {
      background: true,
      found: n,
      said: n,
      there: n,
      placed: n,
      turned: n,
    })
    t.is(data.slotCaption(scene).split(' ').length, data.slotCaptionWords)
    const sparse = data.readCaption(data.sparseCaption(scene, data.stream(train, 'test', 0)))
    t.true(sparse.objects.length >= 1)
    t.true(sparse.objects.every(({ noun }) => scene.objects.some((object) => object.noun === noun)))
  }
  const dropped = scenes(train, 4000).map((scene, i) => {
    const said = data.readCaption(data.sparseCaption(scene, data.stream(train, 'caption', i))).objects.length
    return scene.objects.length - said
  })
  const share =
    dropped.reduce((a, b) => a + b, 0) / scenes(train, 4000).reduce((sum, { objects }) => sum + objects.length, 0)
  t.true(share > 0.07 && share < 0.15, `${share}`)
  const scene: Scene = {
    vendor: 'google',
    background: 3,
    color: [0, 0, 1],
    objects: [
      { noun: 2, quadrant: 0, upside: false, size: 26, x: 0, y: 0 },
      { noun: 0, quadrant: 3, upside: true, size: 26, x: 32, y: 32 },
    ],
  }
  t.is(data.denseCaption(scene), 'a blue background, an apple in the top left, an upside down dog in the bottom right.')
  t.is(
    data.slotCaption(scene),
    'blue topleft upright apple topright none none bottomleft none none bottomright upside dog',
  )
  t.is(
    data.cropSlotCaption({ ...scene, objects: scene.objects.slice(1) }),
    'blue middle upside dog middle none none middle none none middle none none',
  )
  t.is(data.cropCaption(scene), 'an apple on a blue background.')
  t.deepEqual(data.scoreCaption('a red background, a dog in the top left, a bee in the top left.', scene), {
    background: false,
    found: 1,
    said: 2,
    there: 2,
    placed: 0,
    turned: 0,
  })
})

/** The answer by looking at the scene, from the words of the question alone. */
function answer(scene: Scene, question: string): string {
  const index = (word: string): number => data.nouns.findIndex((noun) => noun.word === word)
  const object = (word: string) => scene.objects.find(({ noun }) => noun === index(word))
  const words = question.replace('?', '').split(' ')
  const yesNo = (yes: boolean): string => (yes ? 'yes' : 'no')
  if (question.startsWith('is there')) return yesNo(object(words[3] as string) !== undefined)
  if (question.startsWith('how many')) return ['', 'one', 'two', 'three', 'four'][scene.objects.length] as string
  if (question.startsWith('what color')) return backgrounds[scene.background]?.name as string
  if (question.startsWith('where')) return data.quadrants[object(words[3] as string)?.quadrant as number] as string
  if (question.includes('upside down')) return yesNo(object(words[2] as string)?.upside === true)
  const [a, b] = [object(words[2] as string), object(words.at(-1) as string)]
  if (a === undefined || b === undefined) throw new Error(`${question} is about things that are not there`)
  const relation = words[3] as string
  const [x, y] = [(b.quadrant % 2) - (a.quadrant % 2), (b.quadrant >> 1) - (a.quadrant >> 1)]
  return yesNo({ left: x > 0, right: x < 0, above: y > 0, below: y < 0 }[relation] as boolean)
}

for (const kind of data.questionKinds) {
  test(`${kind} questions are right, and balanced where yes or no`, (t) => {
    const all = Array.from({ length: 600 }, (_, i) => data.questionAt(train, kind, i))
    for (const { scene, question } of all)
      t.is(question.answer, answer(scene, question.text), `${data.denseCaption(scene)} ${question.text}`)
    const answers = all.map(({ question }) => question.answer)
    if (answers.includes('yes')) t.is(rate(answers.map((one) => one === 'yes')), 0.5)
    else t.true(new Set(answers).size >= 3)
    t.deepEqual(data.questionAt(train, kind, 5), all[5])
    t.notDeepEqual(data.questionAt(held, kind, 5), all[5])
  })
}

test('absent nouns: popular ones are frequent, adversarial ones neighbours', (t) => {
  for (const kind of data.negativeKinds) {
    const all = Array.from({ length: 400 }, (_, i) => data.questionAt(train, 'existence', i, kind))
    t.true(all.every(({ question }) => question.negatives === kind))
    t.is(rate(all.map(({ question }) => question.answer === 'yes')), 0.5)
    for (const { scene, question } of all.filter((one) => one.question.answer === 'no')) {
      const asked = data.nouns.findIndex(({ word }) => question.text.split(/[ ?]/).includes(word))
      if (kind === 'popular') t.true(asked < 13)
      if (kind === 'adversarial')
        t.true(scene.objects.some(({ noun }) => data.nouns[noun]?.group === data.nouns[asked]?.group))
    }
  }
})

for (const kind of data.pairKinds) {
  test(`pairs by ${kind}: one question, two right answers, nothing else changed`, async (t) => {
    const pairs = Array.from({ length: 200 }, (_, i) => data.pairAt(train, kind, i))
    for (const { first, second } of pairs) {
      t.is(first.question.text, second.question.text)
      t.not(first.question.answer, second.question.answer)
      t.is(first.question.answer, answer(first.scene, first.question.text))
      t.is(second.question.answer, answer(second.scene, second.question.text))
      t.is(first.scene.vendor, second.scene.vendor)
      if (kind !== 'background') t.deepEqual(first.scene.color, second.scene.color)
      if (kind === 'background') t.deepEqual(first.scene.objects, second.scene.objects)
      if (kind === 'count') t.is(Math.abs(first.scene.objects.length - second.scene.objects.length), 1)
      else t.is(first.scene.objects.length, second.scene.objects.length)
    }
    t.notThrows(() => pairs.slice(0, 20).map(({ first }) => first.scene))
    const painted = data.renderScenes(
      pairs.flatMap(({ first, second }) => [first.scene, second.scene]),
      await sprites,
    )
    t.true(painted.data.every(Number.isFinite))
  })
}

test('one tokenizer knows every word', (t) => {
  const tokenizer = data.sceneTokenizer()
  const unknown = tokenizer.id('<unk>') as number
  t.true(tokenizer.vocabSize < 300)
  for (let i = 0; i < 1000; i++) {
    const scene = data.sceneAt(train, i)
    const crop = data.cropAt(train, i)
    const question = data.questionAt(train, data.questionKinds[i % 6] as data.QuestionKind, i).question
    const texts = [
      data.denseCaption(scene),
      data.sparseCaption(scene, data.stream(train, 'x', i)),
      data.slotCaption(scene),
    ]
    for (const words of [
      ...texts,
      data.cropCaption(crop),
      data.cropSlotCaption(crop),
      question.text,
      question.answer,
    ]) {
      const ids = tokenizer.encode(words)
      t.false(ids.includes(unknown), words)
      t.is(tokenizer.decode(ids), words)
    }
    t.is(tokenizer.encode(texts[2] as string).length, data.slotCaptionWords)
  }
})

test('batches hold rows and their pictures in reading order', async (t) => {
  const tokenizer = data.sceneTokenizer()
  const options = { tokenizer, imageTokens: 4 }
  const documents = data.alignmentDocuments(train, 10, 4, 'dense')
  const batch = data.sceneBatch(documents, await sprites, options)
  t.deepEqual(
    batch.images,
    [10, 11, 12, 13].map((index) => data.sceneAt(train, index)),
  )
  t.deepEqual(batch.inputs.image_tensors.shape, [4, 64, 64, 3])
  const row = (r: number): number[] => {
    const width = batch.inputs.text_ids.shape[1] as number
    return Array.from(batch.inputs.text_ids.data.slice(r * width, (r + 1) * width), Number)
  }
  t.deepEqual(row(0).slice(0, 3), [1, tokenizer.ids.soi, tokenizer.ids.image])
  t.is(tokenizer.decode(row(1)).replaceAll('<pad>', '').trim(), data.denseCaption(data.sceneAt(train, 11)))

  const asked = data.questionAt(train, 'where', 3)
  const { labels } = data.sceneBatch([data.questionDocument(asked)], await sprites, options).inputs
  const learnt = Array.from(labels.data, Number).filter((id) => id >= 0)
  t.deepEqual(learnt, tokenizer.encode(asked.question.answer, { eos: true }))
  t.is(data.sceneBatch([data.textQuestionDocument(asked)], await sprites, options).images.length, 0)

  const ids = data.captionIds([data.slotCaption(asked.scene), 'red'], tokenizer, 15)
  t.deepEqual(ids.shape, [2, 15])
  t.is(Number(ids.data[29]), tokenizer.ids.pad)
  t.throws(() => data.captionIds([data.slotCaption(asked.scene)], tokenizer, 14), { code: 'ERR_VALUE' })
})

test('the next batch is made while the last is in use', async (t) => {
  const made: number[] = []
  const used: number[] = []
  const make = (index: number): number => {
    made.push(index)
    return index
  }
  for await (const item of data.ahead(3, 6, make)) {
    used.push(item)
    await new Promise((resolve) => setTimeout(resolve, 5))
    t.is(made.at(-1), Math.min(5, item + 1))
  }
  t.deepEqual(used, [3, 4, 5])
  t.deepEqual(made, [3, 4, 5])
  for await (const item of data.ahead(0, 3, (index) => (index === 1 ? Promise.reject(new Error('late')) : index))) {
    t.is(item, 0)
    break
  }
  const failing = async (): Promise<void> => {
    for await (const item of data.ahead(0, 3, (index) => (index === 1 ? Promise.reject(new Error('late')) : index)))
      t.is(item, 0)
  }
  await t.throwsAsync(failing(), { message: 'late' })
})

test('scenes are made much faster than a model can take them', async (t) => {
  const loaded = await sprites
  data.renderScenes(scenes(train, 500), loaded)
  const start = performance.now()
  for (let i = 0; i < 20; i++) data.renderScenes(scenes(train, 100), loaded)
  const perSecond = 2000 / ((performance.now() - start) / 1000)
  t.log(`${Math.round(perSecond)} scenes a second`)
  // 35,000 on an idle core; a tenth of that leaves room for busy machines.
  t.true(perSecond > 3500)
})

test('random numbers are uniform and their streams apart', (t) => {
  const random = new data.Random(1, 'a')
  const values = Array.from({ length: 40000 }, () => random.uniform())
  t.true(Math.abs(values.reduce((a, b) => a + b) / values.length - 0.5) < 0.006)
  for (let bin = 0; bin < 20; bin++)
    t.true(Math.abs(rate(values.map((v) => Math.floor(v * 20) === bin)) - 0.05) < 0.006)
  const firsts = new Set<number>()
  for (let seed = 0; seed < 50; seed++)
    for (let index = 0; index < 200; index++) firsts.add(new data.Random(seed, 'train', index).uint32())
  t.true(firsts.size > 9990)
  t.not(new data.Random('ab', 'c').uint32(), new data.Random('a', 'bc').uint32())
  t.deepEqual(new data.Random(2 ** 40).uint32() === new data.Random(0).uint32(), false)
  const drawn = Array.from({ length: 9000 }, () => random.weighted([1, 0, 2]))
  t.false(drawn.includes(1))
  t.true(Math.abs(rate(drawn.map((index) => index === 2)) - 2 / 3) < 0.02)
  t.throws(() => new data.Random(0.5), { code: 'ERR_VALUE' })
  t.throws(() => random.int(0), { code: 'ERR_VALUE' })
})

// 81 of 263 is Newcombe's worked example, Stat. Med. 17 (1998) 857; the others follow from the closed form by hand.
const intervals: [number, number, number, number][] = [
  [81, 263, 0.2553, 0.3662],
  [0, 20, 0, 0.1611],
  [20, 20, 0.8389, 1],
  [1, 2, 0.0945, 0.9055],
]
for (const [right, total, low, high] of intervals) {
  test(`Wilson's interval of ${right} of ${total}`, (t) => {
    const got = wilson(right, total)
    t.true(Math.abs(got.low - low) < 1e-4 && Math.abs(got.high - high) < 1e-4, `${got.low} ${got.high}`)
  })
}

test("Wilson's interval of nothing, and of nonsense", (t) => {
  t.like(wilson(0, 0), { low: 0, high: 1 })
  for (const [right, total] of [
    [3, 2],
    [-1, 2],
    [0.5, 2],
  ] as const)
    t.throws(() => wilson(right, total), { code: 'ERR_VALUE' })
})
