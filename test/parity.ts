// The parity command on the stored cases: all pass, and it notices whatever is not as it should be.
import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { ops, readTensors, type Tensor, tensor, writeTensors } from 'deem'

const root = fileURLToPath(new URL('..', import.meta.url))
const fixtures = join(root, 'test/fixtures')

interface Result {
  case: string
  ok: boolean
  compared: number
  kind: string
  skipped?: string
  tensors?: Record<'outputs' | 'gradients', Record<string, number>>
  failures: string[]
}

function parity(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist/parity/cli.js'), ...args], {
    encoding: 'utf8',
  })
  return { status, stdout, stderr }
}

const resultsOf = (stdout: string) => (JSON.parse(stdout) as { results: Result[] }).results

function countCases(dir: string): number {
  // Folders of weights, with config.json files of their own below.
  if (basename(dir) === 'hf_layout')
    return readdirSync(dir, { withFileTypes: true }).filter((e) => e.isDirectory()).length
  const here = ['config.json', 'expected.json'].some((file) => existsSync(join(dir, file))) ? 1 : 0
  const below = readdirSync(dir, { withFileTypes: true }).filter((entry) => entry.isDirectory())
  return below.reduce((sum, { name }) => sum + countCases(join(dir, name)), here)
}

test('every stored case agrees with the reference', (t) => {
  const { status, stdout, stderr } = parity(fixtures, '--json')
  t.is(status, 0, stderr + stdout)
  const results = resultsOf(stdout)
  t.is(results.length, countCases(fixtures))
  for (const { case: name, ok, compared } of results) t.true(ok && compared > 0, name)
})

test('bf16: no case is off by more than twice what PyTorch is in bf16', (t) => {
  const { status, stdout, stderr } = parity(fixtures, '--dtype', 'bf16', '--json')
  t.is(status, 0, stderr + stdout)
  for (const { case: name, kind, ok, skipped } of resultsOf(stdout)) {
    t.is(skipped !== undefined, kind === 'model/deem_nano_generate', name)
    t.true(ok || skipped !== undefined, name)
  }
})

test('errors of single outputs and gradients, if asked', (t) => {
  const { stdout } = parity(join(fixtures, 'modules/unet'), '--json', '--tensors')
  const { outputs = {}, gradients = {} } = resultsOf(stdout)[0]?.tensors ?? {}
  t.is(Object.keys(outputs).length, 7)
  t.is(Object.keys(gradients).length, 911)
  t.true(Object.values(outputs).every((v) => v >= 0 && v < 1e-5))
})

test('an error of bf16 over twice PyTorch’s fails the case and says so', (t) =>
  withCopy(
    'modules/text_head',
    (dir) => {
      cpSync(join(fixtures, 'bf16.json'), join(dir, '../../bf16.json'))
      return rewrite(join(dir, 'outputs.safetensors'), (all) => {
        all['logits'] = ops.mulScalar(all['logits'] as Tensor, 1.1)
      })
    },
    (dir) => {
      const { status, stdout } = parity(dir, '--dtype', 'bf16')
      t.is(status, 1)
      t.regex(stdout, /logits: .*twice PyTorch's in bf16/)
      writeFileSync(join(dir, '../../bf16.json'), '{')
      t.regex(parity(dir, '--dtype', 'bf16').stdout, /ERR_FORMAT: .*bf16\.json' is damaged/)
    },
  ))

test('a number stored with much rounding may agree with float64 instead, which the line says', async (t) => {
  const kind = 'model/deem_nano_train'
  const name = 'step3.grad_norm_before_clip'
  const listed = JSON.parse(readFileSync(join(fixtures, 'float64.json'), 'utf8')) as {
    cases: Record<string, Record<string, number>>
  }
  const { tensors } = await readTensors(join(fixtures, kind, 'outputs.safetensors'))
  const stored = tensors[name]?.toFloat32()[0] ?? Number.NaN
  t.true(Math.abs((listed.cases[kind]?.[name] ?? 0) / stored - 1) < 2e-3)
  // Here the stored number is spoiled, and what it was takes the place of float64's: how near to that one rounds is luck.
  await withCopy(
    kind,
    (dir) => {
      cpSync(join(fixtures, 'model/deem_nano'), join(dir, '../deem_nano'), { recursive: true })
      return rewrite(join(dir, 'outputs.safetensors'), (all) => {
        all[name] = ops.mulScalar(all[name] as Tensor, 1.01)
      })
    },
    (dir) => {
      const list = (values: Record<string, number>) =>
        writeFileSync(join(dir, '../../float64.json'), JSON.stringify({ cases: { [kind]: values } }))
      const fails = () => {
        const { status, stdout } = parity(dir)
        t.is(status, 1)
        t.regex(stdout, /step3\.grad_norm_before_clip: abs .*allowed rel 0\.001/)
      }
      fails()
      list({ [name]: stored })
      const { status, stdout } = parity(dir)
      t.is(status, 0, stdout)
      t.regex(stdout, /ok, beside float64: step3\.grad_norm_before_clip/)
      list({ [name]: stored * 0.99 })
      fails()
      list({})
      fails()
    },
  )
})

test('a line a case, and times if asked', (t) => {
  const { status, stdout } = parity(join(fixtures, 'ops/linear'), '--repeat', '2')
  t.is(status, 0)
  t.regex(stdout, /ops\/linear .*outputs .* gradients .* ok/)
  t.regex(stdout, /ms/)
})

/** A copy of a case that may be damaged. */
function withCopy(kind: string, change: (dir: string) => Promise<void> | void, check: (dir: string) => void) {
  const base = mkdtempSync(join(tmpdir(), 'deem-parity-'))
  const dir = join(base, kind)
  cpSync(join(fixtures, kind), dir, { recursive: true })
  return (async () => {
    try {
      await change(dir)
      check(dir)
    } finally {
      rmSync(base, { recursive: true })
    }
  })()
}

async function rewrite(path: string, change: (all: Record<string, Tensor>) => void): Promise<void> {
  const { tensors } = await readTensors(path)
  change(tensors)
  await writeTensors(path, tensors)
}

const damages: { name: string; kind: string; says: RegExp; change: (dir: string) => Promise<void> | void }[] = [
  {
    name: 'a changed output',
    kind: 'ops/rms_norm',
    says: /differ|abs/,
    change: (dir) =>
      rewrite(join(dir, 'outputs.safetensors'), (all) => {
        const [name, x] = Object.entries(all)[0] as [string, Tensor]
        all[name] = ops.addScalar(x, 1e-3)
      }),
  },
  {
    name: 'a changed gradient',
    kind: 'modules/text_head',
    says: /abs|rel/,
    change: (dir) =>
      rewrite(join(dir, 'grads.safetensors'), (all) => {
        const [name, x] = Object.entries(all)[0] as [string, Tensor]
        all[name] = ops.mulScalar(x, 1.01)
      }),
  },
  {
    name: 'an output that is gone',
    kind: 'ops/group_norm_silu',
    says: /case1\.norm_silu.*has a cotangent but is not stored/,
    change: (dir) =>
      rewrite(join(dir, 'outputs.safetensors'), (all) => {
        delete all['case1.norm_silu']
      }),
  },
  {
    name: 'no outputs at all',
    kind: 'modules/clip_text_encoder',
    says: /nothing was compared/,
    change: (dir) =>
      rewrite(join(dir, 'outputs.safetensors'), (all) => {
        for (const name of Object.keys(all)) delete all[name]
      }),
  },
  {
    name: 'a loss of the whole model that is off by a little',
    kind: 'model/deem_nano',
    says: /once\.loss_img: .*allowed rel/,
    change: (dir) => {
      // The order of its gradients is told there.
      cpSync(join(fixtures, 'model/deem_nano_train'), join(dir, '../deem_nano_train'), { recursive: true })
      return rewrite(join(dir, 'outputs.safetensors'), (all) => {
        all['once.loss_img'] = ops.mulScalar(all['once.loss_img'] as Tensor, 1 + 2e-5)
      })
    },
  },
  {
    name: 'a stored output nobody computes',
    kind: 'ops/rope',
    says: /unheard_of/,
    change: (dir) =>
      rewrite(join(dir, 'outputs.safetensors'), (all) => {
        all['unheard_of'] = tensor([1, 2, 3])
      }),
  },
  {
    name: 'a missing weight',
    kind: 'modules/text_head',
    says: /ERR_/,
    change: (dir) =>
      rewrite(join(dir, 'weights.safetensors'), (all) => {
        delete all[Object.keys(all)[0] as string]
      }),
  },
  {
    name: 'a truncated file',
    kind: 'ops/linear',
    says: /ERR_/,
    change: (dir) => truncateSync(join(dir, 'inputs.safetensors'), 100),
  },
  {
    name: 'an unknown configuration key',
    kind: 'modules/text_head',
    says: /ERR_CONFIG.*no_such_key/,
    change: (dir) => {
      const path = join(dir, 'config.json')
      const config = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>
      writeFileSync(path, JSON.stringify({ ...config, no_such_key: 1 }))
    },
  },
]

for (const { name, kind, says, change } of damages)
  test(`${name} fails the case and says so`, (t) =>
    withCopy(kind, change, (dir) => {
      const { status, stdout, stderr } = parity(dir)
      t.is(status, 1)
      t.true(
        stdout.split('\n').some((line) => line.includes(kind) && line.includes('FAIL')),
        stdout,
      )
      t.regex(stdout + stderr, says)
    }))

test('a weight of a stored layout that is not the model’s fails its case alone', (t) =>
  withCopy(
    'hf_layout',
    (dir) => {
      for (const kind of ['model/deem_nano', 'tokenizer'])
        cpSync(join(fixtures, kind), join(dir, '..', kind), { recursive: true })
      return rewrite(join(dir, 'llama/model-00001-of-00002.safetensors'), (all) => {
        all['model.layers.0.input_layernorm.weight'] = ops.full([64], 2, 'bf16')
      })
    },
    (dir) => {
      const { stdout } = parity(dir, '--json')
      const failed = resultsOf(stdout).filter(({ ok }) => !ok)
      t.is(failed.length, 1, stdout)
      t.regex(failed[0]?.failures.join() ?? '', /mm_decoder\.layers\.0\.input_layernorm\.weight/)
    },
  ))

test('an unknown kind fails and is named', (t) =>
  withCopy(
    'ops/linear',
    (dir) => cpSync(dir, join(dir, '../convolve'), { recursive: true }),
    (dir) => {
      const { status, stdout } = parity(join(dir, '..'), '--json')
      t.is(status, 1)
      const results = resultsOf(stdout)
      t.deepEqual(
        results.map(({ ok }) => ok),
        [false, true],
      )
      t.regex(results[0]?.failures.join() ?? '', /ops\/convolve/)
    },
  ))

test('calls that make no sense are refused', (t) => {
  for (const args of [
    [],
    ['/no/such/folder'],
    [fixtures, '--dtype', 'f64'],
    [fixtures, '--device', 'tpu'],
    [fixtures, '--repeat', '-1'],
  ]) {
    const { status, stderr } = parity(...args)
    t.not(status, 0, args.join(' '))
    t.true(stderr.length > 0, args.join(' '))
  }
})
