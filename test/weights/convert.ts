// `deem convert` as people call it: every layout there and back to the same bits, what comes along, what is refused, and that a target
// is whole or not there.
import { spawn } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { convertFolder, loadDeem, mapTensors, ops, type Tensor, tensor, writeTensors } from 'deem'
import {
  copyOf,
  editJson,
  editWeights,
  emptyFolder,
  failure,
  json,
  layout,
  removeCopies,
  wholeConfig,
} from '../_harness/hf-layout.js'
import { folderFiles, HubServer, sha256 } from '../_harness/hub-server.js'

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
let hub: HubServer
const cache = emptyFolder()
test.before(async () => {
  hub = await HubServer.start()
})
test.after.always(() => {
  hub.stop()
  removeCopies()
})

interface Ended {
  status: number | null
  stdout: string
  stderr: string
}
/** Runs the program beside this one, which serves what it asks for. */
function deem(args: string[], meanwhile?: (kill: () => void) => void): Promise<Ended> {
  const env = { ...process.env, HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: cache }
  const child = spawn(process.execPath, [main, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  const said = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream].setEncoding('utf8').on('data', (more: string) => {
      said[stream] += more
    })
  meanwhile?.(() => child.kill('SIGINT'))
  return new Promise((done) => child.once('close', (status) => done({ status, ...said })))
}
async function convert(source: string, ...flags: string[]): Promise<string> {
  const target = emptyFolder()
  const { status, stderr } = await deem(['convert', source, target, ...flags])
  if (status !== 0) throw new Error(`${flags.join(' ')}: ${status} ${stderr}`)
  return target
}

const bytes = (x: Tensor) => {
  const a = x.read()
  return Buffer.from(a.buffer, a.byteOffset, a.byteLength)
}
const isWeights = (name: string) => /\.(?:safetensors|bin)$/.test(name)
const derived = /inv_freq$|position_ids$/
/** Every tensor below a folder by part and name, as `dtype shape checksum`. */
async function stored(folder: string): Promise<Record<string, string>> {
  const out: Record<string, string> = {}
  for (const path of readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(isWeights))
    for (const [name, x] of Object.entries((await mapTensors(join(folder, path))).tensors))
      if (!derived.test(name)) out[join(dirname(path), name)] = `${x.dtype} ${x.shape} ${sha256(bytes(x))}`
  return out
}
const files = (folder: string) => readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort()

for (const [name, its, ...more] of [
  ['deem', 'f16', '--old-attention-names'],
  ['llama', 'bf16'],
  ['llama_bin_fp16', 'f16'],
  ['stable_diffusion', 'f32', '--old-attention-names'],
  ['open_clip', 'f32'],
] as const)
  test(`${name}: as it is, through f32 and back, in shards and back: the same bits`, async (t) => {
    const source = layout(name)
    const want = await stored(source)
    t.true(Object.keys(want).length > 0)
    const flags = [...more]
    const same = await stored(await convert(source, ...flags))
    if (name === 'deem') {
      // The stored one has the new names of the VAE's attention.
      t.is(Object.keys(same).filter((key) => /vae.*mid_block.attentions.0.query.weight$/.test(key)).length, 2)
      t.deepEqual(await stored(await convert(await convert(source, ...flags))), want)
    } else t.deepEqual(same, want)
    const wide = await convert(source, '--dtype', 'f32', '--max-shard-size', '60KB')
    t.true(files(wide).filter(isWeights).length > files(source).filter(isWeights).length)
    t.true(Object.values(await stored(wide)).every((x) => /^(f32|i64) /.test(x)))
    const back = await convert(wide, '--dtype', its, ...(name === 'deem' ? [] : flags))
    t.deepEqual(await stored(back), want)
  })

test('what belongs to a model comes along, and its config says the new dtype', async (t) => {
  const llama = await convert(layout('llama'), '--dtype', 'f16')
  t.deepEqual(files(llama), [
    'config.json',
    'model.safetensors',
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
  ])
  t.deepEqual(json(join(llama, 'config.json')), {
    ...json(join(layout('llama'), 'config.json')),
    torch_dtype: 'float16',
  })

  // The stored one says bfloat16.
  t.is(json(join(await convert(layout('llama_bin_fp16')), 'config.json'))['torch_dtype'], 'float16')

  const sd = await convert(layout('stable_diffusion'), '--dtype', 'bf16')
  t.deepEqual(files(sd), files(layout('stable_diffusion')))
  t.is(json(join(sd, 'text_encoder/config.json'))['torch_dtype'], 'bfloat16')
  t.deepEqual(json(join(sd, 'vae/config.json')), json(join(layout('stable_diffusion'), 'vae/config.json')))
  const names = Object.keys(await stored(sd))
  t.true(
    names.includes('vae/decoder.mid_block.attentions.0.to_out.0.bias') && !names.some((n) => n.includes('.query.')),
  )

  const clip = copyOf('open_clip')
  writeFileSync(join(clip, 'open_clip_config.json'), '{"model_cfg": {}}')
  for (const source of [clip, join(clip, 'open_clip_pytorch_model.bin')])
    t.deepEqual(files(await convert(source)), ['open_clip_config.json', 'open_clip_model.safetensors'])

  const whole = copyOf('deem')
  cpSync(join(layout('llama'), 'tokenizer.json'), join(whole, 'tokenizer.json'))
  t.deepEqual(files(await convert(whole)), ['config.json', 'model.safetensors', 'tokenizer.json'])
  t.deepEqual(files(await convert(whole, '--layout', 'llama', '--companions', layout('llama'))), files(llama))
  const painter = ['--layout', 'stable-diffusion', '--companions', layout('stable_diffusion')]
  t.deepEqual(files(await convert(whole, ...painter)), files(sd))

  const checked = copyOf('stable_diffusion')
  cpSync(join(checked, 'text_encoder'), join(checked, 'safety_checker'), { recursive: true })
  editJson(join(checked, 'model_index.json'), (index) => ({ ...index, safety_checker: ['x', 'y'] }))
  t.true(existsSync(join(await convert(checked), 'safety_checker/model.safetensors')))
})

test('pieces that were converted make the same model', async (t) => {
  const from = async (source: (name: string) => Promise<string> | string) => {
    const [llama, stableDiffusion, openClip] = await Promise.all(['llama', 'stable_diffusion', 'open_clip'].map(source))
    return (await loadDeem({ config: wholeConfig(), llama, stableDiffusion, openClip } as never)).model
  }
  using a = await from(layout)
  using b = await from((name) => convert(layout(name)))
  t.deepEqual(
    a.parameters().filter(({ name }) => !bytes(a.read(name)).equals(bytes(b.read(name)))),
    [],
  )
})

test('a single file of a whole DEEM, its config beside it or named', async (t) => {
  const want = await stored(layout('deem'))
  t.deepEqual(await stored(await convert(join(layout('deem'), 'pytorch_model.bin'))), want)
  const bare = emptyFolder()
  mkdirSync(bare)
  cpSync(join(layout('deem'), 'pytorch_model.bin'), join(bare, 'pytorch_model.bin'))
  const error = await failure(convertFolder(bare, emptyFolder()))
  t.is(error.code, 'ERR_IO')
  const config = join(layout('deem'), 'config.json')
  for (const source of [bare, join(bare, 'pytorch_model.bin')]) {
    const target = await convert(source, '--config', config)
    t.deepEqual(await stored(target), want)
    t.deepEqual(json(join(target, 'config.json')), wholeConfig())
  }
})

test('what it prints', async (t) => {
  const target = emptyFolder()
  const { stdout, stderr } = await deem(['convert', layout('deem'), target, '--layout', 'open-clip', '--json'])
  t.is(stderr, '')
  const found = [
    { path: 'open_clip_model.safetensors', bytes: statSync(join(target, 'open_clip_model.safetensors')).size },
  ]
  const want = { source: layout('deem'), target, kind: 'deem', layout: 'open-clip', tensors: 66, files: found }
  t.deepEqual(JSON.parse(stdout), want)
  const plain = await deem(['convert', layout('llama'), target, '--force'])
  t.regex(plain.stdout, /^\S+ \(llama\): 21 tensors, 0\.3 MB in 1 file to \S+\n$/)
  t.false(existsSync(join(target, 'open_clip_model.safetensors')))
  const help = await deem(['convert', '--help'])
  t.is(help.status, 0)
  t.regex(help.stdout, /--max-shard-size[\s\S]*Examples:/)
})

test('mistakes end with 1 and a code, misuse with 2, and neither leaves anything', async (t) => {
  const place = emptyFolder()
  mkdirSync(place)
  const full = join(place, 'full')
  mkdirSync(full)
  writeFileSync(join(full, 'precious.txt'), 'kept')
  writeFileSync(join(place, 'file'), 'kept')
  const big = copyOf('deem')
  await editWeights(big, 'model', (all) => {
    all['soi_token'] = tensor(new Float32Array(64).fill(1e6), [1, 64])
  })
  const extra = copyOf('stable_diffusion')
  editJson(join(extra, 'model_index.json'), (index) => ({ ...index, image_encoder: ['x', 'y'] }))
  const other = copyOf('llama')
  editJson(join(other, 'config.json'), (config) => ({ ...config, model_type: 'mistral' }))
  const nothing = emptyFolder()
  mkdirSync(nothing)
  const text = join(nothing, 'x.safetensors')
  await writeTensors(text, { 'text_model.x': tensor([1]) })
  const target = join(place, 'a/b/target')
  const cases: [number, RegExp, string[]][] = [
    [1, /^ERR_IO: .*full' is not empty \(precious\.txt\)/, [layout('deem'), full]],
    [1, /^ERR_IO: .*file' cannot be written/, [layout('deem'), join(place, 'file')]],
    [1, /^ERR_IO: .*no path that exists/, [join(place, 'nowhere'), target]],
    [1, /^ERR_IO: .*'org\/nothing'.*hub/, ['org/nothing', target]],
    [1, /^ERR_IO: .*holds no model/, [full, target]],
    [1, /^ERR_VALUE: .*'soi_token'.*1e\+06 is beyond the range of f16/, [big, target, '--dtype', 'f16']],
    [1, /^ERR_VALUE: .*is a llama, which cannot become a deem/, [layout('llama'), target, '--layout', 'deem']],
    [1, /^ERR_VALUE: .*oldAttentionNames/, [layout('llama'), target, '--old-attention-names']],
    [1, /^ERR_VALUE: .*companions are for a DEEM/, [layout('llama'), target, '--companions', full]],
    [1, /^ERR_VALUE: .*in place/, [big, big, '--force']],
    [1, /^ERR_VALUE: .*in place, nor into a folder that holds it/, [big, dirname(big), '--force']],
    [1, /^ERR_VALUE: a variant is a word/, [big, target, '--variant', '../x']],
    [1, /^ERR_IO: .*no weights of the variant 'fp16'/, [big, target, '--variant', 'fp16']],
    [1, /^ERR_CONFIG: .*image_encoder/, [extra, target]],
    [1, /^ERR_CONFIG: .*mistral/, [other, target]],
    [1, /^ERR_FORMAT: .*neither those of a DEEM nor of open_clip/, [text, target]],
    [1, /^ERR_IO: .*nowhere/, [big, target, '--companions', join(place, 'nowhere')]],
    [2, /Allowed choices are f32, bf16, f16/, [big, target, '--dtype', 'int4']],
    [2, /needs a size/, [big, target, '--max-shard-size', '5 apples']],
    [2, /needs a size/, [big, target, '--max-shard-size', '0']],
    [2, /missing required argument/, [big]],
    [2, /unknown option/, [big, target, '--colour']],
  ]
  for (const [status, says, args] of cases) {
    const run = await deem(['convert', ...args])
    t.is(run.status, status, `${args.join(' ')}: ${run.stderr}`)
    t.regex(run.stderr, says)
  }
  t.deepEqual(files(place), ['file', 'full', 'full/precious.txt'])
})

test('force replaces at the end only; an empty folder and a link to one are filled', async (t) => {
  const place = emptyFolder()
  const target = join(place, 'target')
  mkdirSync(target, { recursive: true })
  await convertFolder(layout('llama'), target)
  const before = await stored(target)
  const stop = new AbortController()
  const reason = new Error('enough')
  const running = convertFolder(layout('deem'), target, {
    force: true,
    maxShardBytes: 200_000,
    signal: stop.signal,
    onProgress: () => stop.abort(reason),
  })
  t.is(await running.catch((e: unknown) => e), reason)
  t.deepEqual(await stored(target), before)
  const link = emptyFolder()
  symlinkSync(target, link)
  await convertFolder(layout('open_clip'), link, { force: true })
  t.deepEqual(files(target), ['open_clip_model.safetensors'])
  t.deepEqual(readdirSync(place), ['target'])
})

test.serial('sources of the hub, all of their parts, and Ctrl-C while they come', async (t) => {
  const { 'text_encoder/model.safetensors': text, ...sd } = folderFiles(layout('stable_diffusion'))
  hub.put('org/sd', 'main', {
    ...sd,
    'text_encoder/model.fp16.safetensors': text as Buffer,
    'text_encoder/model.safetensors': Buffer.from('the variant is preferred'),
    'safety_checker/config.json': sd['unet/config.json'] as Buffer,
    'safety_checker/model.safetensors': text as Buffer,
    'image_encoder/model.safetensors': Buffer.from('unknown parts stay where they are'),
  })
  const target = await convert('org/sd', '--variant', 'fp16', '--old-attention-names')
  t.true(existsSync(join(target, 'safety_checker/model.safetensors')))
  rmSync(join(target, 'safety_checker'), { recursive: true })
  t.deepEqual(await stored(target), await stored(layout('stable_diffusion')))
  t.false(existsSync(join(target, 'image_encoder')))

  hub.put('org/llama', 'v1', folderFiles(layout('llama')))
  hub.put('org/twice', 'main', folderFiles(layout('llama')))
  for (const one of await Promise.all([convert('org/twice'), convert('org/twice'), convert('org/twice')]))
    t.deepEqual(await stored(one), await stored(layout('llama')), 'three processes at once')
  t.true(readdirSync(join(cache, 'models--org--twice/blobs')).every((name) => /^[0-9a-f]+$/.test(name)))
  rmSync(cache, { recursive: true })
  hub.misbehave = (asked) => /^\/[0-9a-f]{64}$/.test(asked.url)
  const stopped = emptyFolder()
  const run = await deem(['convert', 'org/llama@v1', stopped], (kill) => {
    const waiting = setInterval(() => {
      if (!hub.asked.some(({ url }) => /^\/[0-9a-f]{64}$/.test(url))) return
      clearInterval(waiting)
      kill()
    }, 20)
    hub.asked.length = 0
  })
  hub.forget()
  t.is(run.status, 130, run.stderr)
  t.false(existsSync(stopped))
})

test('variants: read where they are asked for, named where they are all there is', async (t) => {
  const sd = copyOf('stable_diffusion')
  const want = await loadDeem({ config: wholeConfig(), stableDiffusion: sd })
  const file = 'diffusion_pytorch_model'
  renameSync(join(sd, 'unet', `${file}.safetensors`), join(sd, 'unet', `${file}.fp16.safetensors`))
  const error = await failure(loadDeem({ config: wholeConfig(), stableDiffusion: sd }))
  t.is(error.code, 'ERR_IO')
  t.regex(error.message, /unet' holds no weights.*only the variant fp16: ask for it/)

  // Shards, named as diffusers and as transformers name them.
  const whole = (await mapTensors(join(sd, 'vae', `${file}.safetensors`))).tensors
  const names = Object.keys(whole)
  const shards = [`${file}-00001-of-00002.fp16.safetensors`, `${file}.fp16-00002-of-00002.safetensors`] as const
  const half = (i: number) => names.filter((_, n) => n % 2 === i)
  for (const [i, shard] of shards.entries())
    await writeTensors(
      join(sd, 'vae', shard),
      Object.fromEntries(half(i).map((n) => [n, ops.cast(whole[n] as Tensor, 'f32')])),
    )
  rmSync(join(sd, 'vae', `${file}.safetensors`))
  const map = Object.fromEntries(names.map((n, i) => [n, shards[i % 2]]))
  writeFileSync(join(sd, 'vae', `${file}.safetensors.index.fp16.json`), JSON.stringify({ weight_map: map }))
  t.regex(
    (await failure(convertFolder(join(sd, 'vae'), emptyFolder()))).message,
    /neither that of a DEEM nor of a LLaMA/,
  )

  const { model } = await loadDeem({ config: wholeConfig(), stableDiffusion: sd }, { variant: 'fp16' })
  const its = model.parameters().filter(({ name }) => /encoder\.(unet|vae)\./.test(name))
  t.true(its.length > 500)
  for (const { name } of its) t.true(bytes(model.read(name)).equals(bytes(want.model.read(name))), name)

  // Preferred to what else there is, needed in one part at least.
  const llama = copyOf('llama')
  await editWeights(llama, 'model.fp16', (all) => {
    all['model.norm.weight'] = ops.full([64], 7, 'f32')
  })
  cpSync(join(layout('llama'), 'model-00001-of-00002.safetensors'), join(llama, 'model.safetensors'))
  const norm = async (variant: string) =>
    (await loadDeem({ config: wholeConfig(), llama }, { variant })).model.read('mm_decoder.norm.weight').toFloat32()[0]
  t.is(await norm('fp16'), 7)
  t.regex((await failure(norm('fp8'))).message, /no weights of the variant 'fp8'|missing/)
  rmSync(join(llama, 'model.safetensors'))
  renameSync(join(llama, 'model.fp16.safetensors'), join(llama, 'model.bf16-00001-of-00001.safetensors'))
  cpSync(join(llama, 'model.bf16-00001-of-00001.safetensors'), join(llama, 'model.fp8.safetensors'))
  t.regex((await failure(norm('int4'))).message, /only the variants bf16, fp8: ask for one/)
})

// Alone: other tests start processes and keep the disk busy, which is not what this measures.
test.serial('an abort stops within 100 ms, before, while and after it reads', async (t) => {
  const source = emptyFolder()
  mkdirSync(source)
  cpSync(join(layout('deem'), 'config.json'), join(source, 'config.json'))
  const rows = (n: number) => ops.full([n, 1024], 0.5, 'f32')
  const parts = Object.fromEntries(Array.from({ length: 24 }, (_, i) => [`mm_decoder.x${i}`, rows(1024)]))
  await writeTensors(join(source, 'model.safetensors'), parts)
  t.is(readFileSync(join(source, 'config.json')).length > 0, true)
  const place = emptyFolder()
  mkdirSync(place)
  const target = join(place, 'target')
  for (const after of [0, 5, 20, 40, 60]) {
    // The quickest of three, because other programs may hold this one up.
    const took: number[] = []
    for (let i = 0; i < 3; i++) {
      const stop = new AbortController()
      const reason = new Error('enough')
      const options = { dtype: 'bf16', maxShardBytes: 2 << 20, signal: stop.signal } as const
      const running = convertFolder(source, target, options).then(
        () => undefined,
        (e: unknown) => e,
      )
      await new Promise((done) => setTimeout(done, after))
      const start = performance.now()
      stop.abort(reason)
      const ended = await running
      took.push(performance.now() - start)
      if (ended === undefined) rmSync(target, { recursive: true })
      else t.is(ended, reason)
      t.deepEqual(readdirSync(place), [])
    }
    t.true(Math.min(...took) < 100, `aborted after ${after} ms, took ${took}`)
  }
})
