import type { Rate } from '../eval/interval.js'
import type { Picture } from '../image/decode.js'

/** Everything a report shows, as plain data; {@link buildReport} makes one HTML file of it. */
export interface ReportData {
  title: string
  /** One sentence under the title. */
  subtitle?: string
  /** The few numbers a reader came for. */
  headline?: ReportHeadline[]
  /** Settings and machine: seed, threads, version, time. */
  facts?: [string, string][]
  stages?: ReportStage[]
  tables?: ReportTable[]
  galleries?: ReportGallery[]
  /** What the numbers do not say. */
  notes?: string[]
}

export interface ReportHeadline {
  label: string
  /** A rate is shown in percent with its interval. */
  value: Rate | string
  /** What was asked for, as a rate 0..1; marked as met or missed. */
  target?: number
}

/** One part of the training. */
export interface ReportStage {
  name: string
  description?: string
  steps?: number
  seconds?: number
  charts: ReportChart[]
}

export interface ReportChart {
  title: string
  series: ReportSeries[]
  /** Logarithmic vertical axis; for values above 0. */
  log?: boolean
}

export interface ReportSeries {
  name: string
  /** (step, value), by rising step. Values that are not finite leave a gap. */
  points: readonly (readonly [number, number])[]
}

/** A rate is shown with its 95 % interval; numbers with three significant digits; undefined as a dash. */
export type ReportCell = Rate | string | number | undefined

export interface ReportTable {
  title: string
  note?: string
  /** Of the cells; the first column holds the rows' labels. */
  columns: string[]
  rows: ReportRow[]
}

export interface ReportRow {
  label: string
  cells: ReportCell[]
  /** What was asked of each cell, as a rate 0..1. */
  targets?: (number | undefined)[]
}

/** A grid of pictures with what was said about them. */
export interface ReportGallery {
  title: string
  note?: string
  items: ReportItem[]
}

export interface ReportItem {
  /** Side by side: say, the scene and its reconstruction. */
  pictures: { picture: Picture; label?: string }[]
  lines: ReportLine[]
}

/** What a model said (or was told) beside the truth. */
export interface ReportLine {
  /** Who speaks: caption, prompt, a question. */
  label: string
  said: string
  truth?: string
  /** Marked where known. */
  right?: boolean
}
