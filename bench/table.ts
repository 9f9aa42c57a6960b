// npm run bench:table -- NAME...
//
// Prints bench/results/NAME.json, one after the other, as one Markdown table: what docs/performance.md quotes.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { bytes, type Report, type Result, time } from './report.js'

const row = (cells: readonly string[]) => `| ${cells.join(' | ')} |`

function cells(r: Result): string[][] {
  const what = [`\`${r.case}\``, r.precision, String(r.threads)]
  if (!r.seconds) return [[...what, `failed: ${r.problem}`, '', '', '', '', '']]
  const percent = r.fractionOfPeak ? ` (${(100 * r.fractionOfPeak).toFixed(0)} %)` : ''
  const rate = r.rate
    ? `${(r.rate / 1e9).toFixed(r.bound === 'flops' ? 0 : 1)} ${r.bound === 'flops' ? 'GFLOP' : 'GB'}/s`
    : ''
  const ours = [...what, time(r.seconds.median), `${rate}${percent}`]
  const own = bytes(r.residentBytes)
  if (r.peers.length === 0) return [[...ours, '', '', '', own]]
  return r.peers.map((p) => {
    if (p.wrong) return [...ours, p.peer, 'other results', '', own]
    if (!p.seconds || !p.ratio) return [...ours, p.peer, 'none', '', own]
    const { low, median, high } = p.ratio
    const ratio = `**${median.toFixed(2)}** (${low.toFixed(2)} to ${high.toFixed(2)})`
    return [...ours, p.peer, time(p.seconds.median), ratio, `${own} / ${bytes(p.residentBytes)}`]
  })
}

const names = process.argv.slice(2)
if (names.length === 0) {
  console.error('which results? npm run bench:table -- NAME...')
  process.exit(2)
}
const reports = names.map(
  (name): Report =>
    JSON.parse(readFileSync(fileURLToPath(new URL(`../bench/results/${name}.json`, import.meta.url)), 'utf8')),
)
for (const { precision, threads, flops, bytes: stream } of reports.flatMap((r) => r.peaks))
  console.log(
    `Peak in ${precision}, ${threads} threads: ${(flops / 1e9).toFixed(0)} GFLOP/s, ${(stream / 1e9).toFixed(1)} GB/s.`,
  )
const head = ['case', 'dtype', 'threads', 'ours', 'rate (of peak)', 'peer', 'its time', 'ratio', 'memory']
console.log(['', row(head), row(head.map(() => '---'))].join('\n'))
for (const r of reports.flatMap((r) => r.results)) for (const line of cells(r)) console.log(row(line))
