/** HTML that may go into a page as it stands. Made by {@link html} and {@link raw} only. */
export class Html {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

type Inline = Html | string | number | undefined | false | readonly Inline[]

/** A template whose values are escaped unless they are HTML already; lists are joined, undefined and false are nothing. */
export function html(parts: TemplateStringsArray, ...values: Inline[]): Html {
  return new Html(parts.reduce((sum, part, i) => sum + flat(values[i - 1]) + part))
}

/** Text known to be HTML. */
export function raw(text: string): Html {
  return new Html(text)
}

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }

function flat(value: Inline): string {
  if (value === undefined || value === false) return ''
  if (value instanceof Html) return value.text
  if (Array.isArray(value)) return value.map(flat).join('')
  return String(value).replace(/[&<>"']/g, (mark) => entities[mark] as string)
}

/** 0.9234 -> "92.3 %". */
export function percent(value: number): string {
  return Number.isFinite(value) ? `${(value * 100).toFixed(1)}\u00a0%` : '–'
}

/** 75 -> "1 min 15 s". */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)}\u00a0s`
  const whole = Math.round(seconds)
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60]
  return hours > 0 ? `${hours}\u00a0h ${minutes}\u00a0min` : `${minutes}\u00a0min ${rest}\u00a0s`
}

/** Three significant digits, plain where that is short: 1234567 -> "1,230,000", 0.00001234 -> "1.23e-5". */
export function short(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value === 0) return '0'
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e9) return value.toExponential(2)
  return Number(value.toPrecision(3)).toLocaleString('en-US', { maximumFractionDigits: 6 })
}
