import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { wilson } from '../dist/eval/interval.js'
import { hostTensor } from '../dist/host-tensor.js'
import { buildReport, type ReportChart, type ReportData, writeReport } from '../dist/report/index.js'

const picture = hostTensor(new Float32Array(2 * 2 * 3).fill(0.5), [2, 2, 3])
const evil = '<script>alert("1")</script> & \'x\''
const full: ReportData = {
  title: `Report ${evil}`,
  subtitle: evil,
  headline: [
    { label: 'existence', value: wilson(90, 100), target: 0.85 },
    { label: 'painted', value: wilson(80, 100), target: 0.9 },
    { label: 'time', value: '3 min' },
  ],
  facts: [['seed', '1']],
  stages: [{ name: 'VAE', steps: 1200, seconds: 75, charts: [chart([['mse', [1, 2, 3].map((i) => [i, 1 / i])]])] }],
  tables: [
    {
      title: 'Questions',
      columns: ['seen', 'unseen'],
      rows: [
        { label: evil, cells: [wilson(1, 2), wilson(0, 0)], targets: [0.5] },
        { label: 'losses', cells: [0.123456, undefined] },
      ],
    },
  ],
  galleries: [
    {
      title: 'Captions',
      items: [
        {
          pictures: [{ picture, label: evil }],
          lines: [
            { label: 'caption', said: evil, truth: 'a cat', right: false },
            { label: 'question', said: 'yes', truth: 'yes', right: true },
            { label: 'prompt', said: '' },
          ],
        },
      ],
    },
  ],
  notes: ['One seed.'],
}

function chart(series: [string, (readonly [number, number])[]][], log = false): ReportChart {
  return { title: 'loss', series: series.map(([name, points]) => ({ name, points })), log }
}

const page = (data: Partial<ReportData>): Promise<string> => buildReport({ title: 'T', ...data })
const drawn = async (one: ReportChart): Promise<string> => page({ stages: [{ name: 's', charts: [one] }] })
const paths = (text: string): string[] => [...text.matchAll(/ d="([^"]*)"/g)].map(([, d]) => d as string)

test('the page stands alone and escapes what it is given', async (t) => {
  const text = await buildReport(full)
  t.false(text.includes('<script'))
  t.true(text.includes('&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;x&#39;'))
  t.deepEqual(
    [...text.matchAll(/(?:src|href)="([^"]*)"/g)]
      .map(([, url]) => url?.slice(0, 5))
      .filter((url) => url !== 'data:' && !url?.startsWith('#')),
    [],
  )
  t.notRegex(text, /https?:|url\(|@import|undefined|NaN|\[object/)
})

test('tags close', async (t) => {
  const text = (await buildReport(full)).replace(/<style>.*?<\/style>/s, '')
  const open: string[] = []
  for (const [tag, close, name, self] of text.matchAll(/<(\/?)([a-z][a-z0-9]*)[^>]*?(\/?)>/g)) {
    if (self === '/' || ['meta', 'img'].includes(name as string)) continue
    if (close !== '/') open.push(name as string)
    else t.is(open.pop(), name, tag)
  }
  t.deepEqual(open, [])
})

test('rates come with intervals, targets with a verdict, unknown numbers with a dash', async (t) => {
  const text = (await buildReport(full)).replaceAll('\u00a0', ' ')
  t.true(text.includes('90.0 %'))
  t.true(text.includes('82.6 – 94.5 %, n = 100'))
  t.is(text.match(/>met</g)?.length, 1)
  t.is(text.match(/>missed</g)?.length, 1)
  t.true(text.includes('not measured'))
  t.true(text.includes('<td>0.123</td><td>–</td>'))
  t.true(text.includes('1,200 steps · 1 min 15 s'))
})

test('answers are marked, the truth stands beside wrong ones only', async (t) => {
  const text = await buildReport(full)
  t.is(text.match(/✓ right/g)?.length, 1)
  t.is(text.match(/✗ wrong/g)?.length, 1)
  t.true(text.includes('truth: a cat'))
  t.false(text.includes('truth: yes'))
  t.true(text.includes('<i>nothing</i>'))
  t.true(text.includes('Shown here: 1 of 2 right'))
})

test('an empty report is a page', async (t) => {
  const text = await page({})
  t.true(text.includes('<h1>T</h1>'))
  t.notRegex(text, /<section|<nav|<dl|undefined|false/)
})

const charts: [string, ReportChart, RegExp][] = [
  ['no series', chart([]), /nothing was measured/],
  ['no points', chart([['a', []]]), /nothing was measured/],
  ['no finite point', chart([['a', [[1, Number.NaN]]]]), /nothing was measured/],
  ['one point', chart([['a', [[1, 2]]]]), /<svg/],
  [
    'a flat line',
    chart([
      [
        'a',
        [
          [1, 2],
          [2, 2],
        ],
      ],
    ]),
    /<svg/,
  ],
  [
    'zeros',
    chart([
      [
        'a',
        [
          [0, 0],
          [1, 0],
        ],
      ],
    ]),
    /<svg/,
  ],
  [
    'negative values on a logarithmic axis',
    chart(
      [
        [
          'a',
          [
            [1, -1],
            [2, 0],
            [3, 5],
          ],
        ],
      ],
      true,
    ),
    /<svg/,
  ],
  ['nothing above zero on a logarithmic axis', chart([['a', [[1, -1]]]], true), /nothing was measured/],
  [
    'huge and tiny',
    chart([
      [
        'a',
        [
          [1, 1e30],
          [2, 1e-30],
        ],
      ],
    ]),
    /<svg/,
  ],
  [
    'two series',
    chart([
      [
        'train',
        [
          [1, 2],
          [2, 1],
        ],
      ],
      [
        'test',
        [
          [1, 3],
          [2, 2],
        ],
      ],
    ]),
    /class="key s2"/,
  ],
]
for (const [name, one, expected] of charts) {
  test(`chart of ${name}`, async (t) => {
    const text = await drawn(one)
    t.regex(text, expected)
    t.notRegex(text, /NaN|Infinity|undefined/)
    for (const d of paths(text)) {
      for (const [, x, y] of d.matchAll(/[ML]([-\d.]+) ([-\d.]+)/g)) {
        t.true(Number(x) >= 40 && Number(x) <= 340 && Number(y) >= 0 && Number(y) <= 190, d)
      }
    }
  })
}

test('a gap stays a gap, and long curves are thinned to both ends', async (t) => {
  const gap = await drawn(
    chart([
      [
        'a',
        [
          [1, 1],
          [2, 2],
          [3, Number.NaN],
          [4, 1],
          [5, 2],
        ],
      ],
    ]),
  )
  t.is(paths(gap)[0]?.match(/M/g)?.length, 2)
  const long = await drawn(chart([['a', Array.from({ length: 20000 }, (_, i) => [i + 1, Math.sin(i / 900)] as const)]]))
  const points = paths(long)[0]?.match(/[ML]/g)?.length ?? 0
  t.true(points > 200 && points <= 300)
  t.true(paths(long)[0]?.startsWith('M46 '))
  t.true(paths(long)[0]?.includes('L330 '))
})

test('writing makes the folder and leaves one file', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'deem-report-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'runs/demo/report.html')
  await writeReport(path, full)
  t.is(readFileSync(path, 'utf8'), await buildReport(full))
  t.deepEqual(readdirSync(join(folder, 'runs/demo')), ['report.html'])
  await t.throwsAsync(writeReport(join(path, 'inside'), full), { code: 'ERR_IO' })
})
