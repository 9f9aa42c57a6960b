// The command line as a process: what it prints, and how it ends.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { tensor, writeTensors } from 'deem'
import { writeTorchFile } from './_harness/torch-file.js'

const main = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'deem-cli-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

function deem(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

test('doctor says what is there and why cuda is not', (t) => {
  const { status, stdout } = deem('doctor')
  t.is(status, 0)
  t.regex(stdout, /instructions\s+(sse4|avx2|avx512)/)
  t.regex(stdout, /threads\s+\d/)
  t.regex(stdout, /cpu\s+yes/)
  t.regex(stdout, /cuda\s+no: .*CUDA/)
  const json = JSON.parse(deem('doctor', '--json').stdout) as { threads: number; addon: string }
  t.true(json.threads >= 1 && json.addon.includes('deem'))
})

test('inspect lists tensors of safetensors and of torch files', async (t) => {
  const file = join(folder, 'a.safetensors')
  await writeTensors(
    file,
    { 'layer.weight': tensor([[1, 2, 3]]), ids: tensor(BigInt64Array.of(1n)) },
    { metadata: { format: 'pt' } },
  )
  const { status, stdout } = deem('inspect', file)
  t.is(status, 0)
  t.regex(stdout, /layer\.weight\s+f32\s+\[1, 3\]/)
  t.regex(stdout, /ids\s+i64\s+\[1\]/)
  t.regex(stdout, /format: pt/)
  t.regex(stdout, /2 tensors, 4 numbers/)
  const torch = join(folder, 'b.bin')
  const double = { storage: 'DoubleStorage', data: new Uint8Array(16), elements: 2, shape: [2] }
  writeTorchFile(torch, { x: double })
  const found = JSON.parse(deem('inspect', torch, '--json').stdout) as { tensors: object[] }
  t.deepEqual(found.tensors, [{ name: 'x', dtype: 'f64', shape: [2], bytes: 16 }])
})

test('mistakes end with 1 and a code, misuse with 2 and the help', (t) => {
  const broken = join(folder, 'broken.safetensors')
  writeFileSync(broken, 'not weights at all')
  const failed = deem('inspect', broken)
  t.is(failed.status, 1)
  t.regex(failed.stderr, /^ERR_FORMAT: .*broken/)
  t.regex(deem('inspect', join(folder, 'nowhere.bin')).stderr, /^ERR_IO/)
  for (const args of [['nonsense'], ['inspect'], ['doctor', '--colour']]) t.is(deem(...args).status, 2, args.join(' '))
  const help = deem('--help')
  t.is(help.status, 0)
  t.regex(help.stdout, /doctor[\s\S]*inspect/)
})
