import { type Html, html, raw, short } from './html.js'
import type { ReportChart, ReportSeries } from './types.js'

// In units of the drawing; it scales with the page.
const width = 340
const height = 190
const plot = { left: 46, right: 330, top: 10, bottom: 164 }
const mostPoints = 300

type Point = readonly [number, number]

/** A line chart as inline SVG: every point faintly, a running mean on top, the last value of that mean in words. */
export function lineChart(chart: ReportChart): Html {
  const series = chart.series.map((one) => ({
    name: one.name,
    points: thin(one.points),
    smooth: thin(runningMean(one.points)),
  }))
  const shown = series.flatMap((one) => [...one.points, ...one.smooth]).filter((point) => usable(point, chart.log))
  const legend = html`<figcaption>${chart.title}${series.map((one, i) => legendEntry(one.name, lastOf(one.smooth), i, series.length))}</figcaption>`
  if (shown.length === 0) return html`<figure class="chart">${legend}<p class="empty">nothing was measured</p></figure>`

  const scale = (value: number): number => (chart.log ? Math.log10(value) : value)
  const xs = shown.map(([step]) => step)
  const x = linear(Math.min(...xs), Math.max(...xs), plot.left, plot.right)
  const range = verticalRange(shown.map(([, value]) => scale(value)))
  const y = linear(range[0], range[1], plot.bottom, plot.top)
  const place = ([step, value]: Point): Point => [x(step), Math.max(plot.top - 6, y(scale(value)))]
  const line = (points: readonly Point[], kind: string, i: number): Html =>
    html`<path class="${kind} s${i + 1}" d="${path(points, (point) => usable(point, chart.log), place)}"/>`

  const yTicks = chart.log
    ? powers(range[0], range[1])
    : ticks(range[0], range[1], 4).map((value) => ({ value, at: value }))
  const xTicks = ticks(Math.min(...xs), Math.max(...xs), 4)
  return html`<figure class="chart">${legend}
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${describe(chart)}">
${yTicks.map(({ value, at }) => html`<line class="grid" x1="${plot.left}" x2="${plot.right}" y1="${fixed(y(at))}" y2="${fixed(y(at))}"/><text class="tick" x="${plot.left - 6}" y="${fixed(y(at) + 3.5)}" text-anchor="end">${short(value)}</text>`)}
${xTicks.map((step) => html`<text class="tick" x="${fixed(x(step))}" y="${plot.bottom + 16}" text-anchor="middle">${step.toLocaleString('en-US')}</text>`)}
<line class="axis" x1="${plot.left}" x2="${plot.right}" y1="${plot.bottom}" y2="${plot.bottom}"/>
${series.map((one, i) => line(one.points, 'dots', i))}${series.map((one, i) => line(one.smooth, 'line', i))}
</svg></figure>`
}

function legendEntry(name: string, last: number | undefined, index: number, count: number): Html {
  const value = last === undefined ? undefined : html` <b>${short(last)}</b>`
  if (count === 1) return html`<span class="last">${value}</span>`
  return html`<span class="last"><i class="key s${index + 1}"></i>${name}${value}</span>`
}

/** Exponential running mean over about 2 % of the points, unbiased at the start; gaps do not count. */
function runningMean(points: ReportSeries['points']): Point[] {
  const keep = 1 - 1 / Math.max(1, points.length / 50)
  let [sum, weight] = [0, 0]
  return points.map(([step, value]) => {
    if (!Number.isFinite(value)) return [step, value]
    sum = keep * sum + (1 - keep) * value
    weight = keep * weight + (1 - keep)
    return [step, sum / weight]
  })
}

/** At most {@link mostPoints} points, evenly chosen, the last among them. */
function thin(points: readonly Point[]): Point[] {
  const step = Math.max(1, (points.length - 1) / (mostPoints - 1))
  const count = Math.min(points.length, mostPoints)
  return Array.from({ length: count }, (_, i) => points[Math.round(i * step)] as Point)
}

function usable([step, value]: Point, log: boolean | undefined): boolean {
  return Number.isFinite(step) && Number.isFinite(value) && (!log || value > 0)
}

function path(points: readonly Point[], keep: (point: Point) => boolean, place: (point: Point) => Point): Html {
  let pen = 'M'
  let out = ''
  for (const point of points) {
    if (!keep(point)) {
      pen = 'M'
      continue
    }
    const [x, y] = place(point)
    out += `${pen}${fixed(x)} ${fixed(y)}`
    pen = 'L'
  }
  return raw(out)
}

function lastOf(points: readonly Point[]): number | undefined {
  return points.findLast(([, value]) => Number.isFinite(value))?.[1]
}

function linear(from: number, to: number, low: number, high: number): (value: number) => number {
  const span = to - from || 1
  return (value) => low + ((value - from) / span) * (high - low)
}

/** The range of all but the wildest 1 %, which a few first steps may be; with a little air. */
function verticalRange(values: number[]): [number, number] {
  const sorted = values.sort((a, b) => a - b)
  const low = sorted[0] as number
  const high = sorted[Math.ceil((sorted.length - 1) * 0.99)] as number
  const air = (high - low) * 0.05 || Math.abs(low) * 0.05 || 1
  return [low - air, high + air]
}

/** Round numbers between `low` and `high`, about `count`. */
function ticks(low: number, high: number, count: number): number[] {
  const rough = (high - low) / count || 1
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number)
  const first = Math.ceil(low / step)
  const last = Math.floor(high / step + 1e-9)
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)))
}

/** 1, 2, 5 times powers of ten between two logarithms; only the powers where they span much. */
function powers(low: number, high: number): { value: number; at: number }[] {
  const factors = high - low > 2 ? [1] : high - low > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]
  const out: { value: number; at: number }[] = []
  for (let power = Math.floor(low); power <= high; power++) {
    for (const factor of factors) {
      const at = power + Math.log10(factor)
      if (at >= low && at <= high) out.push({ value: factor * 10 ** power, at })
    }
  }
  return out
}

function describe(chart: ReportChart): string {
  const ends = chart.series.map((one) => `${one.name} ends at ${short(lastOf(runningMean(one.points)) ?? Number.NaN)}`)
  return `${chart.title}: ${ends.join(', ')}`
}

const fixed = (value: number): string => String(Math.round(value * 10) / 10)
