/** What the trained model can do, measured on scenes it never saw. */
import {
  backgrounds,
  captionIds,
  denseCaption,
  measureBackgrounds,
  type NegativeKind,
  type QuestionKind,
  questionAt,
  questionDocument,
  renderScenes,
  type Scene,
  type SceneSource,
  sceneAt,
  sceneBatch,
  scoreCaption,
  slotCaption,
} from '../data/index.js'
import { type Rate, wilson } from '../eval/interval.js'
import { type HostTensor, hostTensor, i64 } from '../host-tensor.js'
import type { Picture } from '../image/decode.js'
import { pictureAt } from '../image/decode.js'
import type { ClipText } from '../models/clip-text.js'
import type { Deem } from '../models/deem.js'
import type { Unet } from '../models/unet.js'
import type { Vae } from '../models/vae.js'
import { ops } from '../ops.js'
import { type Document, image, text } from '../sequence.js'
import { type Tensor, tensor } from '../tensor.js'
import { disposeAll, toTensors, type World } from './world.js'

/** Rows of one call: enough to fill the cores, little enough to stop soon. */
const rows = 40

export interface Answered {
  scene: Scene
  kind: QuestionKind
  question: string
  said: string
  truth: string
  /** Existence only: where absent nouns were taken from. */
  negatives?: NegativeKind
}
export interface Captioned {
  scene: Scene
  said: string
}
export interface Painted {
  scene: Scene
  caption: string
  picture: Picture
  background: number
}
export interface Seen {
  scene: Scene
  picture: Picture
  reconstruction: Picture
  background: number
}

/** One group of scenes: vendors trained on, or the one that was not. */
export interface GroupResult {
  answers: Record<QuestionKind, Answered[]>
  captions: Captioned[]
  reconstructions: Seen[]
}

export interface Evaluation {
  seen: GroupResult
  unseen: GroupResult
  paintings: Painted[]
}

export async function evaluate(w: World, deem: Deem): Promise<Evaluation> {
  const { questions, background_questions, other_questions } = w.config.evaluation
  const counts: Record<QuestionKind, number> = {
    existence: questions,
    background: background_questions,
    count: other_questions,
    where: other_questions,
    orientation: other_questions,
    relation: other_questions,
  }
  const total = 2 * (Object.values(counts).reduce((a, n) => a + n, 0) + 2 * w.config.evaluation.captions)
  w.progress.start('evaluation', total + w.config.evaluation.paintings)
  let done = 0
  const advance = (pictures: number) => {
    done += pictures
    w.progress.update(done, pictures, {})
  }

  const group = async (source: SceneSource): Promise<GroupResult> => {
    const answers = {} as GroupResult['answers']
    for (const [kind, count] of Object.entries(counts) as [QuestionKind, number][])
      answers[kind] = await answerAll(w, deem, source, kind, count, advance)
    return {
      answers,
      captions: await captionAll(w, deem, source, advance),
      reconstructions: await reconstructAll(w, deem, source, advance),
    }
  }
  return { seen: await group(w.seen), unseen: await group(w.unseen), paintings: await paintAll(w, deem, advance) }
}

export const rightAnswers = (list: readonly Answered[]): Rate =>
  wilson(list.filter(({ said, truth }) => said === truth).length, list.length)

type Advance = (pictures: number) => void

/** Item by item in batches: `make` gives the batch's items, `use` handles them. */
async function inBatches<T>(
  w: World,
  count: number,
  make: (index: number) => T,
  use: (items: T[]) => Promise<void>,
  advance: Advance,
): Promise<void> {
  for (let start = 0; start < count; start += rows) {
    w.signal.throwIfAborted()
    const items = Array.from({ length: Math.min(rows, count - start) }, (_, i) => make(start + i))
    await use(items)
    advance(items.length)
  }
}

/** Greedy continuations of prompts. */
async function complete(w: World, deem: Deem, prompts: Document<Scene>[], maxNewTokens: number): Promise<string[]> {
  const options = {
    tokenizer: w.tokenizer,
    imageTokens: w.config.model.image_tokens,
    padding: 'left',
    eos: false,
  } as const
  const { labels: _labels, prompt_offset: _offset, ...host } = sceneBatch(prompts, w.sprites, options).inputs
  const inputs = toTensors(host as never)
  const { ids } = await deem.generateText(inputs as never, { maxNewTokens, signal: w.signal })
  disposeAll(inputs)
  return ids.map((row) => w.tokenizer.decode(row).trim())
}

async function answerAll(
  w: World,
  deem: Deem,
  source: SceneSource,
  kind: QuestionKind,
  count: number,
  advance: Advance,
): Promise<Answered[]> {
  const out: Answered[] = []
  await inBatches(
    w,
    count,
    (i) => questionAt(source, kind, i),
    async (asked) => {
      const prompts = asked.map((one) => questionDocument(one).slice(0, 2))
      const said = await complete(w, deem, prompts, 12)
      asked.forEach(({ scene, question }, i) => {
        out.push({
          scene,
          kind,
          question: question.text,
          said: said[i] ?? '',
          truth: question.answer,
          ...(question.negatives && { negatives: question.negatives }),
        })
      })
    },
    advance,
  )
  return out
}

async function captionAll(w: World, deem: Deem, source: SceneSource, advance: Advance): Promise<Captioned[]> {
  const out: Captioned[] = []
  await inBatches(
    w,
    w.config.evaluation.captions,
    (i) => sceneAt(source, i),
    async (scenes) => {
      const said = await complete(
        w,
        deem,
        scenes.map((scene) => [image(scene)]),
        60,
      )
      scenes.forEach((scene, i) => {
        out.push({ scene, said: said[i] ?? '' })
      })
    },
    advance,
  )
  return out
}

async function reconstructAll(w: World, deem: Deem, source: SceneSource, advance: Advance): Promise<Seen[]> {
  const { captions, sampler_steps: steps, guidance } = w.config.evaluation
  const out: Seen[] = []
  await inBatches(
    w,
    captions,
    (i) => sceneAt(source, i),
    async (scenes) => {
      const host = renderScenes(scenes, w.sprites)
      const inputs = toTensors({ image_tensors: host })
      const options = { steps, guidance, seed: w.config.seed, step: out.length, signal: w.signal }
      const painted = await hostPictures(deem.reconstruct(inputs as never, options))
      disposeAll(inputs)
      const measured = measureBackgrounds(painted)
      scenes.forEach((scene, i) => {
        out.push({
          scene,
          picture: pictureAt(host, i),
          reconstruction: pictureAt(painted, i),
          background: measured[i]?.background ?? -1,
        })
      })
    },
    advance,
  )
  return out
}

async function paintAll(w: World, deem: Deem, advance: Advance): Promise<Painted[]> {
  const { paintings, sampler_steps: steps, guidance } = w.config.evaluation
  const out: Painted[] = []
  await inBatches(
    w,
    paintings,
    (i) => sceneAt(w.seen, 100_000 + i),
    async (scenes) => {
      const captions = scenes.map(denseCaption)
      const documents = scenes.map((scene, i): Document<Scene> => [text(captions[i] as string), image(scene)])
      const {
        labels: _labels,
        prompt_offset: _offset,
        ...host
      } = sceneBatch(documents, w.sprites, {
        tokenizer: w.tokenizer,
        imageTokens: w.config.model.image_tokens,
        eos: false,
      }).inputs
      // The pictures asked for are not given away: black ones hold their place.
      const { shape } = host.image_tensors
      const blank = hostTensor(new Float32Array(host.image_tensors.data.length), shape)
      const which = i64(scenes.map((_, i) => i))
      const inputs = toTensors({ ...host, image_tensors: blank, image_tensors_dec: blank, which } as never)
      const options = { steps, guidance, seed: w.config.seed, step: 1000 + out.length, signal: w.signal }
      const painted = await hostPictures(deem.paint(inputs as never, options))
      disposeAll(inputs)
      const measured = measureBackgrounds(painted)
      scenes.forEach((scene, i) => {
        out.push({
          scene,
          caption: captions[i] as string,
          picture: pictureAt(painted, i),
          background: measured[i]?.background ?? -1,
        })
      })
    },
    advance,
  )
  return out
}

async function hostPictures(pending: Promise<Tensor>): Promise<HostTensor<'f32'>> {
  using t = await pending
  return hostTensor(t.toFloat32(), t.shape)
}

/** Captions summed up: how many backgrounds, nouns and places are right. */
export interface CaptionRates {
  background: Rate
  /** Of the objects there, those named; of those named, those there. */
  recall: Rate
  precision: Rate
  /** Of the objects named rightly: in the right corner, the right way up. */
  placed: Rate
  turned: Rate
}

export function captionRates(captions: readonly Captioned[]): CaptionRates {
  const scores = captions.map(({ said, scene }) => scoreCaption(said, scene))
  const total = (of: 'found' | 'said' | 'there' | 'placed' | 'turned') => scores.reduce((a, s) => a + s[of], 0)
  return {
    background: wilson(scores.filter((s) => s.background).length, scores.length),
    recall: wilson(total('found'), total('there')),
    precision: wilson(total('found'), total('said')),
    placed: wilson(total('placed'), total('found')),
    turned: wilson(total('turned'), total('found')),
  }
}

export const rightBackgrounds = (list: readonly { scene: Scene; background: number }[]): Rate =>
  wilson(list.filter(({ scene, background }) => scene.background === background).length, list.length)

/**
 * How much the text-conditioned denoiser's loss rises when one thing in its caption is false: feedback can teach only what the
 * denoiser knows.
 */
export interface DenoiserKnowledge {
  truth: number
  background: number
  nouns: number
}

export async function denoiserKnowledge(
  w: World,
  { vae, unet, text: words, scale }: { vae: Vae; unet: Unet; text: ClipText; scale: number },
): Promise<DenoiserKnowledge> {
  const count = 64
  const scenes = Array.from({ length: count }, (_, i) => sceneAt(w.seen, 200_000 + i))
  const other = (n: number, of: number) => (n + 1 + (n % (of - 1))) % of
  const falsified = {
    truth: scenes,
    background: scenes.map((s) => ({ ...s, background: other(s.background, backgrounds.length) })),
    nouns: scenes.map((s, i) => ({ ...s, objects: (scenes[(i + 1) % count] as Scene).objects })),
  }
  const host = renderScenes(scenes, w.sprites)
  using image = tensor(
    host.data.map((v) => 2 * v - 1),
    host.shape,
  )
  const encoded = await vae.encode({ image }, { grad: false })
  using latent = ops.mulScalar(encoded.mean, scale)
  disposeAll({ ...encoded })
  const loss = async (claimed: readonly Scene[]): Promise<number> => {
    const inputs = toTensors({
      input_ids: captionIds(claimed.map(slotCaption), w.tokenizer, w.config.model.image_tokens),
    })
    using context = await words.forward(inputs['input_ids'] as Tensor, { grad: false })
    let sum = 0
    const draws = 4
    for (let step = 0; step < draws; step++) {
      const y = await unet.loss({ latent, context }, { grad: false, seed: w.config.seed, step })
      sum += y.loss.item()
      disposeAll(y)
    }
    disposeAll(inputs)
    return sum / draws
  }
  const out = {} as DenoiserKnowledge
  for (const [name, claimed] of Object.entries(falsified)) out[name as keyof DenoiserKnowledge] = await loss(claimed)
  return out
}
