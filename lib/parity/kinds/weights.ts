/**
 * `hf_layout/*`: weights as they lie on disk, against those of `model/deem_nano` beside. What a folder holds is found by looking at
 * it. Everything is compared exactly: values rounded to the file's dtype, the rest as a fresh model has it; then the model is
 * written under the original names, compared with the original file, and loaded again.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { DeemError } from '../../errors.js'
import { mapTensors, readTensors } from '../../files.js'
import { type JsonObject, readJson } from '../../json.js'
import { Deem } from '../../models/deem.js'
import type { DType } from '../../native.js'
import { ops } from '../../ops.js'
import { type Tensor, tensor } from '../../tensor.js'
import type { Tokenizer } from '../../tokenizer/index.js'
import { openWeights } from '../../weights/folder.js'
import type { WeightLayout } from '../../weights/layouts.js'
import { type LoadedDeem, loadDeem } from '../../weights/load.js'
import { deemNames, llamaNames, type Naming, openClipNames, unetNames, vaeNames } from '../../weights/names.js'
import type { DeemPieces } from '../../weights/pieces.js'
import { emptyPrompt } from '../../weights/prompt.js'
import { saveDeem } from '../../weights/save.js'
import { diffusersStems, openClipStems, transformersStems } from '../../weights/source.js'
import { type Case, need, type Tensors } from '../case.js'
import { type Comparison, compare } from '../compare.js'
import type { Timing } from '../program.js'

interface Layout {
  name: WeightLayout
  source: (dir: string) => string | DeemPieces
  /** Folders with weights below the case, and how their tensors are called. */
  parts: { folder: string; stems: readonly string[]; naming: Naming }[]
}

/** A stored tensor and the parameters that it fills. */
interface StoredValue {
  part: string
  name: string
  dtype: DType
  targets: readonly string[]
}

const negativePrompt = 'image_decoder.neg_prompt_embeds'

export async function runLayout(c: Case, _repeat: number, timing: Timing): Promise<Comparison[]> {
  const results: Comparison[] = []
  const exact = (name: string, got: Tensor | Float32Array, want: Tensor) =>
    results.push(compare(name, got, want, 'exact', c.dtype))
  const layout = await layoutOf(c)
  const stored = await storedValues(c.dir, layout)
  const dtypes = new Map(stored.flatMap(({ dtype, targets }) => targets.map((t) => [t, dtype] as const)))

  const start = performance.now()
  const loaded = await loadDeem(layout.source(c.dir), { dtype: c.dtype })
  timing.forward.push(performance.now() - start)
  using model = loaded.model
  using fresh = await Deem.build(loaded.config, { dtype: c.dtype })
  const reference = (await readTensors(join(c.dir, '../../model/deem_nano/weights.safetensors'))).tensors
  const base = (loaded.config['llm'] as JsonObject)['vocab_size'] as number
  const covered = (name: string) => layout.parts.some(({ naming }) => naming.covers(name))

  for (const { name } of model.parameters()) {
    if (name === negativePrompt && layout.name === 'stable-diffusion') continue
    const got = model.read(name)
    if (!covered(name)) {
      exact(`${name} (fresh)`, got, fresh.read(name))
      continue
    }
    const rounded = ops.cast(ops.cast(need(reference, name), dtypes.get(name) ?? 'f32'), c.dtype)
    if (!layout.parts.some(({ naming }) => naming.leading?.(name))) {
      exact(name, got, rounded)
      continue
    }
    const rows = got.shape[0] as number
    exact(`${name} (original rows)`, ops.slice(got, 0, 0, base), ops.slice(rounded, 0, 0, base))
    if (rows > base)
      exact(`${name} (new rows)`, ops.slice(got, 0, base, rows), ops.slice(fresh.read(name), 0, base, rows))
  }
  if (layout.name === 'llama') headOfNewIds(model, base, exact)
  if (layout.name === 'stable-diffusion') results.push(...(await prompts(c, model)))
  if (loaded.tokenizer) results.push(...tokens(c, loaded.tokenizer, loaded.config))
  await roundTrip(c, layout, loaded, stored, exact)
  return results
}

async function layoutOf({ dir, config }: Case): Promise<Layout> {
  if ('llm' in config)
    return {
      name: 'deem',
      source: (at) => at,
      parts: [{ folder: '', stems: transformersStems, naming: deemNames() }],
    }
  const whole = await readJson(join(dir, '../deem/config.json'))
  // What the piece knows of itself is left out, so that it has to be found there.
  const without = (key: string, known: readonly string[]): JsonObject => ({
    ...whole,
    [key]: Object.fromEntries(Object.entries(whole[key] as JsonObject).filter(([k]) => !known.includes(k))),
  })
  if (config['model_type'] === 'llama') {
    const rest = without('llm', [
      'hidden_size',
      'num_attention_heads',
      'intermediate_size',
      'num_hidden_layers',
      'vocab_size',
    ])
    return {
      name: 'llama',
      source: (llama) => ({ llama, config: rest }),
      parts: [{ folder: '', stems: transformersStems, naming: llamaNames() }],
    }
  }
  if (existsSync(join(dir, 'unet'))) {
    const rest = without('sd', ['unet', 'vae', 'scheduler'])
    return {
      name: 'stable-diffusion',
      source: (stableDiffusion) => ({ stableDiffusion, config: rest }),
      parts: [
        { folder: 'unet', stems: diffusersStems, naming: unetNames },
        { folder: 'vae', stems: diffusersStems, naming: vaeNames() },
      ],
    }
  }
  const rest = without('convnext', ['depths', 'dims', 'embed_dim'])
  return {
    name: 'open-clip',
    source: (openClip) => ({ openClip, config: rest }),
    parts: [{ folder: '', stems: openClipStems, naming: openClipNames }],
  }
}

async function storedValues(dir: string, layout: Layout): Promise<StoredValue[]> {
  const out: StoredValue[] = []
  for (const { folder, stems, naming } of layout.parts)
    for (const { tensors } of await openWeights(join(dir, folder), stems))
      for (const { name, dtype } of tensors)
        out.push({ part: folder, name, dtype, targets: naming.targets(name) ?? [] })
  if (out.every(({ targets }) => targets.length === 0))
    throw new DeemError('ERR_FORMAT', `'${dir}' holds no weights that DEEM knows`)
  return out
}

type Exact = (name: string, got: Tensor | Float32Array, want: Tensor) => void

/** The first head is silent about added ids. */
function headOfNewIds(model: Deem, base: number, exact: Exact): void {
  const bias = model.read('text_decoder.head.bias')
  const silent = Float32Array.from({ length: bias.size }, (_, id) => (id < base ? 0 : -100))
  exact('text_decoder.head.bias of a new model', bias, tensor(silent))
  const weight = model.read('text_decoder.head.weight')
  const [rows, width] = weight.shape as [number, number]
  if (rows > base)
    exact(
      'text_decoder.head.weight of new ids',
      ops.slice(weight, 0, base, rows),
      ops.full([rows - base, width], 0, 'f32'),
    )
}

async function prompts(c: Case, model: Deem): Promise<Comparison[]> {
  const { tensors: expected } = await readTensors(join(c.dir, '../expected.safetensors'))
  const { ids, embeds } = await emptyPrompt(c.dir)
  const start = model.read(negativePrompt)
  return [
    compare('negative_prompt_ids', ids, need(expected, 'negative_prompt_ids'), 'exact', c.dtype),
    compare('negative_prompt_embeds', embeds, need(expected, 'negative_prompt_embeds'), 'module', c.dtype),
    compare(negativePrompt, start, need(expected, 'negative_prompt_embeds'), 'module', c.dtype),
  ]
}

/** Ids of DEEM's tokens, and of the strings of the tokenizer's own case where that lies beside. */
function tokens(c: Case, tokenizer: Tokenizer, config: JsonObject): Comparison[] {
  const { bos, eos, pad, soi, image } = tokenizer.ids
  const named: JsonObject = {
    bos_token_id: bos,
    eos_token_id: eos,
    pad_token_id: pad,
    soi_token_id: soi,
    image_token_id: image,
  }
  const wanted = config['special_token_dict'] as JsonObject
  const same = (name: string, got: unknown, want: unknown): Comparison => {
    const ok = JSON.stringify(got) === JSON.stringify(want)
    const difference = ok ? 0 : 1
    return {
      name,
      gradient: false,
      maxAbs: difference,
      maxRel: difference,
      error: difference,
      ok,
      allowed: `${want}, is ${got}`,
    }
  }
  const results = Object.keys(named).map((key) => same(key, named[key], wanted[key]))
  const beside = join(dirname(c.dir), '../tokenizer/expected.json')
  if (!existsSync(beside)) return results
  const { strings, vocab_size } = JSON.parse(readFileSync(beside, 'utf8')) as {
    vocab_size: number
    strings: { text: string; ids: number[] }[]
  }
  results.push(same('vocabulary', tokenizer.vocabSize, vocab_size))
  for (const [i, { text, ids }] of strings.entries())
    results.push(same(`ids ${i}`, tokenizer.encode(text, { bos: true }), ids))
  return results
}

/** Written under the original names, the files hold what the original ones hold; loaded again, the model is the same. */
async function roundTrip(
  c: Case,
  layout: Layout,
  loaded: LoadedDeem,
  stored: StoredValue[],
  exact: Exact,
): Promise<void> {
  const kept = stored.filter(({ targets }) => targets.length > 0)
  const dtypes = [...new Set(kept.map(({ dtype }) => dtype))]
  // In the dtype of the files where they agree on one, so that bits can be compared; in the model's where that has fewer.
  const dtype = c.dtype === 'f32' && dtypes.length === 1 ? (dtypes[0] as DType) : c.dtype
  const place = mkdtempSync(join(tmpdir(), 'deem-weights-'))
  try {
    await saveDeem(loaded.model, place, {
      layout: layout.name,
      dtype,
      maxShardBytes: 100_000,
      companionsFrom: c.dir,
      oldAttentionNames: kept.some(({ name }) => /mid_block\.attentions\.\d+\.query\./.test(name)),
    })
    const written = await allWritten(place, layout)
    if (c.dtype === 'f32')
      for (const part of layout.parts) {
        const original = await mapped(c.dir, part)
        for (const { name } of kept.filter((s) => s.part === part.folder))
          exact(`written ${name}`, need(written, join(part.folder, name)), ops.cast(need(original, name), dtype))
      }
    const extra = Object.keys(written).filter((path) => !kept.some(({ part, name }) => join(part, name) === path))
    if (extra.length > 0) throw new DeemError('ERR_WEIGHTS', `written but not in the original: ${extra.join(', ')}`)
    using again = (await loadDeem(layout.source(place), { dtype: c.dtype })).model
    for (const { name } of again.parameters())
      exact(`${name} (loaded again)`, again.read(name), loaded.model.read(name))
  } finally {
    rmSync(place, { recursive: true })
  }
}

async function allWritten(place: string, layout: Layout): Promise<Tensors> {
  const out: Tensors = {}
  for (const part of layout.parts)
    for (const [name, t] of Object.entries(await mapped(place, part))) out[join(part.folder, name)] = t
  return out
}

async function mapped(dir: string, { folder, stems }: Layout['parts'][number]): Promise<Tensors> {
  const out: Tensors = {}
  for (const { path } of await openWeights(join(dir, folder), stems))
    Object.assign(out, (await mapTensors(path)).tensors)
  return out
}
