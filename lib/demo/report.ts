/** The demo's results as a page: see lib/report. */
import { denseCaption, questionKinds, renderScenes, type Scene } from '../data/index.js'
import type { Rate } from '../eval/interval.js'
import { pictureAt } from '../image/decode.js'
import type { ReportData, ReportGallery, ReportItem, ReportLine, ReportStage, ReportTable } from '../report/index.js'
import { isa, memory, threads } from '../system.js'
import {
  captionRates,
  type DenoiserKnowledge,
  type Evaluation,
  type GroupResult,
  rightAnswers,
  rightBackgrounds,
} from './evaluate.js'
import { clock } from './progress.js'
import type { StageResult, World } from './world.js'

/** What the numbers are held to. */
export const targets = { existence_seen: 0.85, existence_unseen: 0.7, background: 0.95, painted_background: 0.9 }

export interface Results {
  existence: Record<'seen' | 'unseen', Rate>
  background: Record<'seen' | 'unseen', Rate>
  painted_background: Rate
  /** Of the objects there, those that captions name. */
  captioned_objects: Record<'seen' | 'unseen', Rate>
}

export function resultsOf({ seen, unseen, paintings }: Evaluation): Results {
  const both = (kind: 'existence' | 'background') => ({
    seen: rightAnswers(seen.answers[kind]),
    unseen: rightAnswers(unseen.answers[kind]),
  })
  return {
    existence: both('existence'),
    background: both('background'),
    painted_background: rightBackgrounds(paintings),
    captioned_objects: { seen: captionRates(seen.captions).recall, unseen: captionRates(unseen.captions).recall },
  }
}

const descriptions: Record<StageResult['stage'], string> = {
  vae: 'Pictures to latents and back.',
  denoiser:
    'Latents denoised under a caption of fixed slots: first crops, then whole scenes. From here on it is frozen.',
  language: 'Descriptions, questions and answers in words alone.',
  encoder: 'ConvNeXt, contrastively: crops against their captions.',
  bridges:
    'What lies between the pieces learns their languages from captions: image tokens become words, contexts what the text encoder would say.',
  alignment: 'All three losses; language model and denoiser frozen, the encoder and everything between trained.',
  questions:
    'Questions about pictures with the text loss and the consistency loss; the encoder frozen. One picture in four is painted, so that painting follows the language model.',
}

export interface ReportInput {
  w: World
  evaluation: Evaluation
  stages: StageResult[]
  knowledge: DenoiserKnowledge
  parameters: number
  seconds: number
}

export function reportData({ w, evaluation, stages, knowledge, parameters, seconds }: ReportInput): ReportData {
  const results = resultsOf(evaluation)
  const { seen, unseen } = evaluation
  const trained = w.train.vendors.join(' and ')
  const other = w.unseen.vendors.join(' and ')
  return {
    title: 'A small DEEM, from nothing',
    subtitle:
      `Trained on 64 px scenes of ${trained} emoji${w.feedback ? '' : ', without the consistency loss'}; measured on scenes it never saw, ` +
      `of the same vendors and of ${other}, a vendor it never saw.`,
    headline: [
      { label: `existence, ${trained}`, value: results.existence.seen, target: targets.existence_seen },
      { label: `existence, ${other}`, value: results.existence.unseen, target: targets.existence_unseen },
      { label: `background, ${trained}`, value: results.background.seen, target: targets.background },
      { label: 'painted background as asked', value: results.painted_background, target: targets.painted_background },
      { label: `objects that captions name, ${trained}`, value: results.captioned_objects.seen },
    ],
    facts: [
      ['time', clock(seconds)],
      ['parameters', `${(parameters / 1e6).toFixed(2)} M`],
      ['seed', String(w.config.seed)],
      ['consistency loss', w.feedback ? 'on' : 'off'],
      ['threads', String(threads())],
      ['instructions', isa()],
      ['peak memory', `${Math.round(memory().peak / 2 ** 20)} MB`],
    ],
    tables: [
      questionTable(seen, unseen),
      negativesTable(seen, unseen),
      captionTable(seen, unseen),
      pictureTable(evaluation),
    ],
    stages: stages.map(stageOf),
    galleries: [
      described(w, `Unseen scenes, ${trained}`, seen),
      described(w, `Unseen scenes, ${other}: a vendor never trained on`, unseen),
      painted(evaluation),
      reconstructed('What the encoder saw', [
        ...seen.reconstructions.slice(0, 12),
        ...unseen.reconstructions.slice(0, 12),
      ]),
    ],
    notes: [
      'Intervals are Wilson 95 % intervals over questions or pictures of one trained model; they say nothing about another seed.',
      'Yes and no are balanced in every yes/no question; answering always yes gives 50 %.',
      `What the denoiser knows: its loss is ${knowledge.truth.toFixed(4)} under true captions, ` +
        `${signed(knowledge.background - knowledge.truth)} with a false background, ${signed(knowledge.nouns - knowledge.truth)} with the objects of another scene.`,
      'This page claims nothing about the effect of the consistency loss: that takes runs with and without it over several seeds.',
    ],
  }
}

const signed = (x: number) => `${x < 0 ? '' : '+'}${x.toFixed(4)}`

function stageOf({ stage, steps, seconds, history }: StageResult): ReportStage {
  return {
    name: stage,
    description: descriptions[stage],
    steps,
    seconds,
    charts: Object.entries(history).map(([name, values]) => ({
      title: name,
      log: values.every((v) => v > 0),
      series: [{ name, points: values.map((v, i) => [i + 1, v] as const) }],
    })),
  }
}

function questionTable(seen: GroupResult, unseen: GroupResult): ReportTable {
  const asked: Record<string, number> = { existence: targets.existence_seen, background: targets.background }
  const askedOther: Record<string, number> = { existence: targets.existence_unseen, background: targets.background }
  return {
    title: 'Questions',
    note: 'Answered right, word for word.',
    columns: ['seen vendors', 'unseen vendor'],
    rows: questionKinds.map((kind) => ({
      label: kind,
      cells: [rightAnswers(seen.answers[kind]), rightAnswers(unseen.answers[kind])],
      targets: [asked[kind], askedOther[kind]],
    })),
  }
}

function negativesTable(seen: GroupResult, unseen: GroupResult): ReportTable {
  const cells = (kind: string) =>
    [seen, unseen].map((g) => rightAnswers(g.answers.existence.filter((a) => a.negatives === kind)))
  return {
    title: 'Existence, by where the absent nouns come from',
    columns: ['seen vendors', 'unseen vendor'],
    rows: ['random', 'popular', 'adversarial'].map((kind) => ({ label: kind, cells: cells(kind) })),
  }
}

function captionTable(seen: GroupResult, unseen: GroupResult): ReportTable {
  const [a, b] = [captionRates(seen.captions), captionRates(unseen.captions)]
  return {
    title: 'Captions',
    columns: ['seen vendors', 'unseen vendor'],
    rows: [
      { label: 'background named', cells: [a.background, b.background] },
      { label: 'objects there that are named', cells: [a.recall, b.recall] },
      { label: 'objects named that are there', cells: [a.precision, b.precision] },
      { label: 'of these, in the right corner', cells: [a.placed, b.placed] },
      { label: 'of these, the right way up', cells: [a.turned, b.turned] },
    ],
  }
}

function pictureTable({ seen, unseen, paintings }: Evaluation): ReportTable {
  return {
    title: 'Pictures',
    note: 'A background counts as the named colour nearest to the median of the outermost pixels.',
    columns: ['background right'],
    rows: [
      {
        label: 'painted from captions',
        cells: [rightBackgrounds(paintings)],
        targets: [targets.painted_background],
      },
      { label: 'reconstructed, seen vendors', cells: [rightBackgrounds(seen.reconstructions)] },
      { label: 'reconstructed, unseen vendor', cells: [rightBackgrounds(unseen.reconstructions)] },
    ],
  }
}

function described({ sprites }: World, title: string, group: GroupResult): ReportGallery {
  const captioned = group.captions.slice(0, 8).map(({ scene, said }): [Scene, ReportLine[]] => {
    // All of it: the background, each object and no other, where it is and which way up.
    const { background, recall, precision, placed, turned } = captionRates([{ scene, said }])
    const right = [background, recall, precision, placed, turned].every((rate) => rate.value === 1)
    return [scene, [{ label: 'caption', said, truth: denseCaption(scene), right }]]
  })
  const answered = Array.from({ length: 8 }, (_, i) => i).flatMap((i): [Scene, ReportLine[]][] => {
    const kind = questionKinds[i % questionKinds.length] as (typeof questionKinds)[number]
    const one = group.answers[kind][i]
    return one
      ? [[one.scene, [{ label: one.question, said: one.said, truth: one.truth, right: one.said === one.truth }]]]
      : []
  })
  const all = [...captioned, ...answered]
  const pictures = renderScenes(
    all.map(([scene]) => scene),
    sprites,
  )
  return {
    title,
    items: all.map(([, lines], i): ReportItem => ({ pictures: [{ picture: pictureAt(pictures, i) }], lines })),
  }
}

function painted({ paintings }: Evaluation): ReportGallery {
  return {
    title: 'Painted from captions',
    note: 'Captions of scenes never trained on; the first pictures of the measured set, none chosen. Marked: whether the background is the one asked for.',
    items: paintings.slice(0, 24).map(({ scene, caption, picture, background }) => ({
      pictures: [{ picture }],
      lines: [{ label: 'caption', said: caption, right: background === scene.background }],
    })),
  }
}

function reconstructed(title: string, list: GroupResult['reconstructions']): ReportGallery {
  return {
    title,
    note: "Left the scene, right what the frozen denoiser paints from the encoder's tokens and maps, the path of the consistency loss.",
    items: list.map(({ picture, reconstruction }) => ({
      pictures: [
        { picture, label: 'scene' },
        { picture: reconstruction, label: 'seen' },
      ],
      lines: [],
    })),
  }
}
