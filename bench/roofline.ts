// npm run bench:roofline: what the CUDA backend could reach on paper, on GPUs that nobody here has: for every operation of the bench in bf16
// the least time that its operations and bytes allow, and for the stage-1 training step of the published model the same by parts. With
// build-cuda/kernels.json (`npm run build:cuda`) also how many warps the registers and static shared memory of each kernel leave room for.
// Markdown, as docs/cuda.md quotes it.
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Work } from './case.js'
import { type Count, countConvNext, countLlamaLayer, countPerceiver, countUnet, countVae } from './cases/count.js'
import { cases } from './cases/index.js'
import { convnextBase, llamaLayer, resampler, unetSd21, vaeSd21 } from './cases/parts.js'
import { time } from './report.js'

interface Gpu {
  name: string
  arch: string
  /** Operations a second of dense bf16 matrix products with f32 sums, and bytes a second of its memory: from NVIDIA's data sheets. */
  flops: number
  bytes: number
  /**
   * The part of `flops` that mma.sync can have. Hopper's full rate needs wgmma, which these kernels do not use; measurements in the
   * literature put mma.sync at about 0.62 of it (Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture").
   */
  mma: number
  /** Of a multiprocessor: 32-bit registers, bytes of shared memory, warps. */
  registers: number
  shared: number
  warps: number
}

const gpus: readonly Gpu[] = [
  {
    name: 'H100 SXM',
    arch: 'sm_90',
    flops: 989e12,
    bytes: 3.35e12,
    mma: 0.62,
    registers: 65536,
    shared: 233472,
    warps: 64,
  },
  {
    name: 'RTX 4090',
    arch: 'sm_89',
    flops: 165e12,
    bytes: 1.008e12,
    mma: 1,
    registers: 65536,
    shared: 102400,
    warps: 48,
  },
]
/** What well-made kernels reach of either limit; what the self-test has to show. */
const reached = { flops: 0.7, bytes: 0.85 }
const launchSeconds = 3e-6

function paper({ flops, bytes }: Work, g: Gpu): { floor: number; expected: number; bound: string } {
  const compute = flops / g.flops
  const memory = bytes / g.bytes
  const expected =
    Math.max(flops / (g.flops * g.mma * reached.flops), bytes / (g.bytes * reached.bytes)) + launchSeconds
  return { floor: Math.max(compute, memory), expected, bound: compute > memory ? 'operations' : 'bytes' }
}

const row = (cells: readonly string[]) => console.log(`| ${cells.join(' | ')} |`)
function table(head: readonly string[]): void {
  row(head)
  row(head.map(() => '---'))
}
const giga = (n: number) => (n / 1e9 >= 100 ? (n / 1e9).toFixed(0) : (n / 1e9).toPrecision(3))

function operations(): void {
  console.log('\n## Operations, bf16\n')
  table(['case', 'GFLOP', 'GB', ...gpus.flatMap((g) => [`${g.name}: floor`, 'expected', 'set by'])])
  for (const c of cases.filter((c) => c.group === 'op' && c.precisions.includes('bf16'))) {
    const work = c.work(2)
    const of = gpus.map((g) => paper(work, g))
    row([
      `\`${c.name}\``,
      giga(work.flops),
      giga(work.bytes),
      ...of.flatMap((p) => [time(p.floor), time(p.expected), p.bound]),
    ])
  }
}

interface Part {
  name: string
  times: number
  count: Count
  pass: 'forward' | 'inputs' | 'all'
  /** Bytes of activations written and read once a pass, beside the weights. */
  activations: number
}

/** One row of 2048 tokens with `images` pictures of 256 px, painted at 512 px: LLM and denoiser frozen, the encoder trained. */
function stage1(images: number): Part[] {
  const length = 2048
  const plain = { ...llamaLayer, spatial_shapes: [] }
  const layer = countLlamaLayer(llamaLayer, length, images)
  const bare = countLlamaLayer(plain, length, 0)
  const tokens = (side: number, width: number) => 2 * side * side * width
  return [
    {
      name: 'ConvNeXt-B',
      times: images,
      count: countConvNext(convnextBase, 256),
      pass: 'all',
      activations: 36 * 8 * tokens(64, 128),
    },
    {
      name: 'Q-Former',
      times: images,
      count: countPerceiver(resampler, 257),
      pass: 'all',
      activations: 12 * 20 * 2 * 77 * 768,
    },
    {
      name: 'LLaMA layers without MMFS',
      times: 24,
      count: bare,
      pass: 'inputs',
      activations: 2 * length * (12 * 4096 + 3 * 11008),
    },
    {
      name: 'LLaMA layers with MMFS',
      times: 8,
      count: layer,
      pass: 'inputs',
      activations: 2 * length * (20 * 4096 + 3 * 11008),
    },
    {
      name: 'denoiser, both losses',
      times: 2 * images,
      count: countUnet(unetSd21, 64, 77),
      pass: 'inputs',
      activations: 1.6e9,
    },
    {
      name: 'VAE encode, both losses',
      times: 2 * images,
      count: countVae(vaeSd21, 512, 'encode'),
      pass: 'forward',
      activations: 1.5e9,
    },
  ]
}

function trainingStep(images: number): void {
  console.log(`\n## Stage-1 step of the 7B model: one row of 2048 tokens, ${images} pictures, bf16\n`)
  table(['part', 'times', 'TFLOP', 'GB', ...gpus.flatMap((g) => [`${g.name}: floor`, 'expected'])])
  const sums = gpus.map(() => ({ floor: 0, expected: 0 }))
  for (const p of stage1(images)) {
    const passes = p.pass === 'forward' ? 1 : 3
    const flops = p.times * (p.pass === 'forward' ? p.count.forward : p.count.backward(p.pass === 'all'))
    const bytes = p.times * passes * (2 * p.count.weights + p.activations)
    const of = gpus.map((g) => paper({ flops, bytes }, g))
    for (const [i, { floor, expected }] of of.entries()) {
      const sum = sums[i] as { floor: number; expected: number }
      sum.floor += floor
      sum.expected += expected
    }
    row([
      p.name,
      String(p.times),
      (flops / 1e12).toPrecision(3),
      giga(bytes),
      ...of.flatMap(({ floor, expected }) => [time(floor), time(expected)]),
    ])
  }
  row([
    '**all**',
    '',
    '',
    '',
    ...sums.flatMap(({ floor, expected }) => [`**${time(floor)}**`, `**${time(expected)}**`]),
  ])
}

interface Compiled {
  name: string
  arch: string
  registers: number
  smem: number
}

/** Registers are dealt out to warps in portions of 256. */
function warps(k: Compiled, g: Gpu): number {
  return Math.min(g.warps, Math.floor(g.registers / (Math.ceil((k.registers * 32) / 256) * 256)))
}

function occupancy(): void {
  const path = fileURLToPath(new URL('../build-cuda/kernels.json', import.meta.url))
  if (!existsSync(path)) {
    console.log('\nWithout build-cuda/kernels.json (npm run build:cuda) nothing can be said of occupancy.')
    return
  }
  const all = JSON.parse(readFileSync(path, 'utf8')) as Compiled[]
  console.log('\n## Warps a multiprocessor has room for, by registers, and blocks, by static shared memory\n')
  table(['kernel', ...gpus.flatMap((g) => [`${g.name}: registers`, 'warps', 'blocks'])])
  const names = [...new Set(all.map((k) => k.name))].sort()
  for (const name of names) {
    const of = gpus.map((g) => ({ g, k: all.find((k) => k.name === name && k.arch === g.arch) }))
    row([
      `\`${name}\``,
      ...of.flatMap(({ g, k }) =>
        k
          ? [
              String(k.registers),
              `${warps(k, g)} of ${g.warps}`,
              k.smem > 0 ? String(Math.floor(g.shared / (k.smem + 1024))) : 'any',
            ]
          : ['-', '-', '-'],
      ),
    ])
  }
}

console.log('On paper: no GPU has run any of this.\n')
for (const g of gpus)
  console.log(
    `${g.name}: ${(g.flops / 1e12).toFixed(0)} TFLOP/s (bf16, dense), ${(g.bytes / 1e12).toFixed(2)} TB/s; mma.sync gives ${g.mma} of the former. ` +
      `Expected: ${reached.flops} of that, ${reached.bytes} of the memory's rate, and ${launchSeconds * 1e6} us a launch.`,
  )
operations()
trainingStep(4)
occupancy()
