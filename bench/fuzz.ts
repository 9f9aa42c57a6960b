// npm run fuzz -- TARGET [SECONDS] [SEED]: damages valid inputs at random and reads them. Anything but a result or a DeemError is a failure, which is
// written to fuzz-TARGET.bin; so is memory that grows. TARGET: safetensors, torch, tokenizer (tokenizer.model and .json), rle.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DeemError, mapTensors, memory, readTensors, regionMask, Tokenizer } from 'deem'
import { fixtures } from './fixture.js'

const [target = '', seconds = '600', seed = '1'] = process.argv.slice(2)

let state = Number(seed) >>> 0
/** mulberry32 */
function random(below: number): number {
  state = (state + 0x6d2b79f5) >>> 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below)
}

const tokens = [
  '[',
  ']',
  '{',
  '}',
  '"',
  ':',
  ',',
  '-1',
  '1e999',
  '9007199254740993',
  'null',
  '__proto__',
  '\\u0000',
  'F32',
  'BPE',
  '\0',
  '\x7f',
  '\xff\xff\xff\xff',
]

/** One to eight changes: bytes, bits, cuts, copies, and words that mean something to some parser. */
function damaged(bytes: Buffer): Buffer {
  let out = Buffer.from(bytes)
  for (let n = 1 + random(8); n > 0; n--) {
    const at = random(out.length + 1)
    const length = random(Math.min(64, out.length - at + 1))
    switch (random(7)) {
      case 0:
        if (at < out.length) out[at] = random(256)
        break
      case 1:
        if (at < out.length) out[at] = (out[at] as number) ^ (1 << random(8))
        break
      case 2:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at + length)])
        break
      case 3:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at, at + length), out.subarray(at)])
        break
      case 4:
        out = Buffer.concat([
          out.subarray(0, at),
          Buffer.from(tokens[random(tokens.length)] as string, 'latin1'),
          out.subarray(at),
        ])
        break
      case 5:
        if (at + 8 <= out.length) out.writeBigUInt64LE(BigInt(random(2 ** 32)) << BigInt(random(33)), at)
        break
      default:
        if (random(8) === 0) out = Buffer.from(out.subarray(0, at))
    }
  }
  return out
}

const folder = mkdtempSync(join(tmpdir(), 'deem-fuzz-'))
function file(name: string, bytes: Buffer): string {
  const path = join(folder, name)
  writeFileSync(path, bytes)
  return path
}

interface Target {
  seeds: () => Promise<Buffer[]> | Buffer[]
  run: (bytes: Buffer) => Promise<void> | void
}
const targets: Record<string, Target> = {
  safetensors: {
    seeds: () =>
      ['adamw', 'softmax_cross_entropy', 'rope'].map((op) => readFileSync(`${fixtures}ops/${op}/outputs.safetensors`)),
    run: async (bytes) => {
      const { tensors } = await readTensors(file('x.safetensors', bytes))
      for (const t of Object.values(tensors)) t.dispose()
    },
  },
  torch: {
    seeds: async () => {
      const { torchEntries, zip } = await import('../.test-build/_harness/torch-file.js' as string)
      const data = new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer)
      const float = { storage: 'FloatStorage', data, elements: 4, shape: [2, 2] }
      return [
        zip(torchEntries({ a: float })),
        zip(torchEntries({ a: float, b: { ...float, shape: [2], offset: 1, key: '0' } }, 'x')),
      ]
    },
    run: async (bytes) => {
      const { tensors } = await mapTensors(file('x.bin', bytes))
      for (const t of Object.values(tensors)) {
        if (t.size < 1e6) t.toFloat32()
        t.dispose()
      }
    },
  },
  tokenizer: {
    seeds: () => ['tokenizer.model', 'tokenizer.json'].map((name) => readFileSync(`${fixtures}tokenizer/${name}`)),
    run: async (bytes) => {
      const t = await Tokenizer.load(file(bytes[0] === 0x7b ? 'tokenizer.json' : 'tokenizer.model', bytes), {
        padId: 0,
      })
      t.decode(t.encode('The license, naïve 漢字\n').slice(0, 20))
    },
  },
  rle: {
    seeds: () => ['52203', '0b1', 'cc02O1', 'PPYo13N1O2N100O1O1'].map((s) => Buffer.from(s)),
    run: (bytes) => {
      try {
        regionMask({ rle: { size: [48, 64], counts: bytes.toString('latin1') } }, 64, 48)
      } catch (error) {
        if (!DeemError.isInstance(error)) throw error
      }
      const runs = [...bytes]
      const rest = 48 * 64 - runs.reduce((a, n) => a + n, 0)
      regionMask({ rle: { size: [48, 64], counts: rest > 0 ? [...runs, rest] : runs } }, 64, 48)
    },
  },
}

const chosen = targets[target]
if (!chosen) {
  console.error(`unknown target '${target}', known are ${Object.keys(targets).join(', ')}`)
  process.exit(2)
}
const seeds = await chosen.seeds()
const end = performance.now() + 1000 * Number(seconds)
let runs = 0
let fine = 0
let slowest = 0
let bytes: Buffer = Buffer.alloc(0)
let base = 0
try {
  while (performance.now() < end) {
    bytes = damaged(seeds[random(seeds.length)] as Buffer)
    // Some go through several hands.
    while (random(3) === 0) bytes = damaged(bytes)
    const begin = performance.now()
    try {
      await chosen.run(bytes)
      fine++
    } catch (error) {
      if (!DeemError.isInstance(error)) throw error
    }
    slowest = Math.max(slowest, performance.now() - begin)
    runs++
    if (runs === 2000) base = process.memoryUsage().rss
  }
  const growth = base > 0 ? process.memoryUsage().rss / base : 1
  console.log(
    `${target}: ${runs} runs, ${fine} of them read, the slowest ${slowest.toFixed(0)} ms, memory at the end ${growth.toFixed(2)} of that at the start, ${memory().current} bytes held`,
  )
  if (growth > 2 || slowest > 5000) process.exitCode = 1
} catch (error) {
  writeFileSync(`fuzz-${target}.bin`, bytes)
  console.error(`${target}: run ${runs} failed, input in fuzz-${target}.bin`, error)
  process.exitCode = 1
} finally {
  rmSync(folder, { recursive: true, force: true })
}
