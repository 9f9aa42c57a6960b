import { mkdir, rename, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { causedBy } from '../errors.js'
import type { Rate } from '../eval/interval.js'
import { encodePng } from '../image/decode.js'
import { lineChart } from './chart.js'
import { duration, type Html, html, percent, raw, short } from './html.js'
import { style } from './style.js'
import type {
  ReportCell,
  ReportData,
  ReportGallery,
  ReportHeadline,
  ReportItem,
  ReportLine,
  ReportRow,
  ReportStage,
  ReportTable,
} from './types.js'

/** One HTML file that needs nothing else: style, charts and pictures are inside, and there are no scripts. */
export async function buildReport(data: ReportData): Promise<string> {
  const galleries: Html[] = []
  for (const [i, gallery] of (data.galleries ?? []).entries())
    galleries.push(await gallerySection(gallery, `gallery-${i}`))
  const { stages = [], tables = [], notes = [] } = data
  const sections: [string, string][] = [
    ...(tables.length > 0 ? ([['measured', 'Measured']] as [string, string][]) : []),
    ...(stages.length > 0 ? ([['training', 'Training']] as [string, string][]) : []),
    ...(data.galleries ?? []).map(({ title }, i): [string, string] => [`gallery-${i}`, title]),
  ]
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>${data.title}</title>
<style>${raw(style)}</style>
</head>
<body><main>
<header><h1>${data.title}</h1>
${data.subtitle !== undefined && html`<p class="soft">${data.subtitle}</p>`}
${sections.length > 1 && html`<nav>${sections.map(([id, name]) => html`<a href="#${id}">${name}</a>`)}</nav>`}
</header>
${data.headline && html`<dl class="headline">${data.headline.map(headlineCard)}</dl>`}
${data.facts && html`<dl class="facts">${data.facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`}
${tables.length > 0 && html`<section id="measured"><h2>Measured</h2>${tables.map(tableBlock)}</section>`}
${
  stages.length > 0 &&
  html`<section id="training"><h2>Training</h2>
<p class="note">Thin lines are single values, thick lines a running mean over a fiftieth of them; the number is where it ends.</p>
${stages.map(stageBlock)}</section>`
}
${galleries}
${notes.length > 0 && html`<footer><ul>${notes.map((note) => html`<li>${note}</li>`)}</ul></footer>`}
</main></body>
</html>
`
  return page.text
}

/** Writes {@link buildReport}'s page; a reader never sees half of it. */
export async function writeReport(path: string, data: ReportData): Promise<void> {
  const page = await buildReport(data)
  const part = `${path}.part`
  try {
    await mkdir(dirname(path), { recursive: true })
    await writeFile(part, page)
    await rename(part, path)
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `[report] cannot write ${path}`)
  }
}

function headlineCard({ label, value, target }: ReportHeadline): Html {
  if (typeof value === 'string') return html`<div><dt>${label}</dt><dd class="big">${value}</dd></div>`
  const asked = target === undefined ? undefined : html` · asked ${percent(target)} ${metMark(value, target)}`
  return html`<div><dt>${label}</dt><dd class="big">${percent(value.value)}</dd><dd class="under">${interval(value)}, n = ${value.total}${asked}</dd></div>`
}

function metMark(rate: Rate, target: number): Html {
  return rate.value >= target ? html`<span class="mark good">met</span>` : html`<span class="mark bad">missed</span>`
}

function interval(rate: Rate): string {
  return `${(rate.low * 100).toFixed(1)} – ${percent(rate.high)}`
}

function stageBlock(stage: ReportStage): Html {
  const size = [
    stage.steps === undefined ? '' : `${stage.steps.toLocaleString('en-US')} steps`,
    stage.seconds === undefined ? '' : duration(stage.seconds),
  ].filter((part) => part !== '')
  return html`<div class="stage"><h3>${stage.name}<span>${size.join(' · ')}</span></h3>
${stage.description !== undefined && html`<p class="note">${stage.description}</p>`}
<div class="charts">${stage.charts.map(lineChart)}</div></div>`
}

function tableBlock(table: ReportTable): Html {
  const rates = table.rows.some(({ cells }) => cells.some((cell) => typeof cell === 'object'))
  return html`<h3>${table.title}</h3>
${table.note !== undefined && html`<p class="note">${table.note}</p>`}
<div class="scroll"><table><thead><tr><th></th>${table.columns.map((name) => html`<th>${name}</th>`)}</tr></thead>
<tbody>${table.rows.map(tableRow)}</tbody></table></div>
${rates && html`<p class="note">Rates with 95 % intervals (Wilson) and the number of cases; an upright mark is what was asked for.</p>`}`
}

function tableRow({ label, cells, targets }: ReportRow): Html {
  return html`<tr><th>${label}</th>${cells.map((cell, i) => html`<td>${cellText(cell, targets?.[i])}</td>`)}</tr>`
}

function cellText(cell: ReportCell, target: number | undefined): Html | string {
  if (cell === undefined) return '–'
  if (typeof cell === 'number') return short(cell)
  if (typeof cell === 'string') return cell
  if (cell.total === 0) return 'not measured'
  const x = (rate: number): string => (rate * 120).toFixed(1)
  return html`<span class="rate"><b>${percent(cell.value)}</b><svg width="120" height="16" viewBox="0 0 120 16" aria-hidden="true">
<line class="track" x1="0" x2="120" y1="8" y2="8"/><line class="range" x1="${x(cell.low)}" x2="${x(cell.high)}" y1="8" y2="8"/>
${target !== undefined && html`<line class="wanted" x1="${x(target)}" x2="${x(target)}" y1="1" y2="15"/>`}<circle class="dot" cx="${x(cell.value)}" cy="8" r="3.5"/></svg>
<small>${interval(cell)} · ${cell.total}</small></span>`
}

async function gallerySection(gallery: ReportGallery, id: string): Promise<Html> {
  const items = await Promise.all(gallery.items.map(itemCard))
  const known = gallery.items
    .flatMap(({ lines }) => lines.map(({ right }) => right))
    .filter((right) => right !== undefined)
  const count = `${known.filter(Boolean).length} of ${known.length} right`
  return html`<section id="${id}"><h2>${gallery.title}</h2>
<p class="note">${gallery.note}${known.length > 0 && html` <span class="count">Shown here: ${count}.</span>`}</p>
<div class="items">${items}</div></section>`
}

async function itemCard(item: ReportItem): Promise<Html> {
  const pictures = await Promise.all(
    item.pictures.map(async ({ picture, label }) => {
      const url = `data:image/png;base64,${(await encodePng(picture)).toString('base64')}`
      return html`<figure><img src="${url}" alt="${label ?? 'picture'}">${label !== undefined && html`<figcaption>${label}</figcaption>`}</figure>`
    }),
  )
  return html`<article class="item"><div class="pictures">${pictures}</div><dl class="lines">${item.lines.map(spoken)}</dl></article>`
}

function spoken({ label, said, truth, right }: ReportLine): Html {
  const mark =
    right === undefined
      ? undefined
      : right
        ? html` <span class="mark good">✓ right</span>`
        : html` <span class="mark bad">✗ wrong</span>`
  const beside = truth !== undefined && truth !== said && html`<dd class="truth">truth: ${truth}</dd>`
  return html`<dt>${label}</dt><dd>${said === '' ? html`<i>nothing</i>` : said}${mark}</dd>${beside}`
}
