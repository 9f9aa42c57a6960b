/** `convertFolder`: weights from folder to folder, without a model. */
import { readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import { type JsonObject, readJson } from '../json.js'
import type { DType } from '../native.js'
import { Scope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { deemConfig } from './configs.js'
import { checkVariant, isFolder, namesIn, openWeights, type VariantOptions, type WeightFile } from './folder.js'
import { torchNames, type WeightLayout } from './layouts.js'
import { loadDeem } from './load.js'
import { deemNames, derived, type Naming, vaeNames } from './names.js'
import type { QuantizeOption } from './quantization.js'
import { checkFree, contains, writeFolder } from './replace.js'
import {
  asMatrix,
  checkSaveOptions,
  copyNamed,
  type PartContents,
  type SaveDeemOptions,
  saveDeem,
  writeLayout,
  writeParts,
} from './save.js'
import { checkShardOptions } from './shards.js'
import { locate, recognise, type SourceOptions, sourceFiles, sourceParts, transformersStems } from './source.js'

export interface ConvertOptions extends Omit<SaveDeemOptions, 'layout' | 'tokenizer'>, SourceOptions {
  /** Default that of the source; only a DEEM has others. */
  layout?: WeightLayout
  /** Of a DEEM, in place of the config.json beside its weights. */
  config?: object
  /** Whether a target that holds something is replaced, once all is written. Default false. */
  force?: boolean
  /** Of a DEEM's folder: weights of linear layers in 8 or 4 bits. What it leaves in floats is held in memory meanwhile, as f32. */
  quantize?: QuantizeOption
}

export interface Converted {
  source: string
  target: string
  /** What was recognised. */
  kind: WeightLayout
  layout: WeightLayout
  /** How many were written. */
  tensors: number
  /** All files of the target, by their paths in it. */
  files: { path: string; bytes: number }[]
}

/**
 * Writes weights that lie in files under other names, in another dtype or in shards of another size: bit for bit where the dtype stays.
 * What is stored is written, whether or not a model could be made of it, but for tables that any reader computes (`inv_freq`,
 * `position_ids`). No more than one tensor at a time is held in memory.
 *
 * @param source a DEEM folder, ours or official, or its weight file with a config.json beside it: any layout. A folder of a LLaMA, of
 *   Stable Diffusion or of open_clip, or an open_clip weight file: the same as safetensors, with all that belongs to it. Or an id of the hub.
 * @param target appears as a whole or, after an error or an abort, not at all.
 *
 * Throws ERR_IO, also where the target holds something; ERR_FORMAT, ERR_CONFIG and ERR_WEIGHTS like `loadDeem`; ERR_VALUE for numbers
 * beyond the range of the dtype and for layouts that the source has not got.
 */
export async function convertFolder(source: string, target: string, options: ConvertOptions = {}): Promise<Converted> {
  const { layout: wanted, variant, hub, config, force = false, quantize, ...save } = options
  const reading = { variant, signal: save.signal }
  save.signal?.throwIfAborted()
  checkShardOptions(save)
  await checkApart(source, source, target)
  await checkFree(target, force) // also at the end, but this spares a download
  const path = (await locate([{ source, whole: true }], { hub, ...reading }))[0] as string
  await checkApart(source, path, target)
  const folder = (await isFolder(path)) ? path : dirname(path)
  const kind = path === folder && !config ? await recognise(path) : await kindByNames(path, reading)
  const layout = wanted ?? kind
  if (kind !== 'deem' && layout !== kind)
    throw new DeemError('ERR_VALUE', `'${source}' is a ${kind}, which cannot become a ${layout}`)
  if (kind !== 'deem' && (config || save.companionsFrom !== undefined))
    throw new DeemError('ERR_VALUE', `'${source}' is a ${kind}: config and companions are for a DEEM alone`)
  checkSaveOptions({ ...save, layout })

  using reader = new Reader(reading)
  if (quantize !== undefined && (kind !== 'deem' || layout !== 'deem' || config || path !== folder))
    throw new DeemError(
      'ERR_VALUE',
      `'${source}' as ${layout} cannot be quantised: only the folder of a DEEM can, as a DEEM`,
    )
  const write =
    quantize !== undefined
      ? await quantizedWriter(path, quantize, reading, save)
      : kind === 'deem'
        ? await deemWriter(reader, path, folder, config as JsonObject | undefined, { ...save, layout })
        : await pieceWriter(reader, path, folder, kind, save)
  checkVariant(`'${source}'`, reader.files, variant)
  const tensors = await writeFolder(target, force, write)
  return { source, target, kind, layout, tensors, files: await filesOf(target) }
}

/** Fills a folder and gives the number of tensors it wrote. */
type Writer = (fresh: string) => Promise<number>

async function deemWriter(
  reader: Reader,
  path: string,
  folder: string,
  config: JsonObject | undefined,
  save: SaveDeemOptions,
): Promise<Writer> {
  const stored = config ?? (await readJson(join(folder, 'config.json')))
  const parameters = await reader.read(path, transformersStems, deemNames().targets)
  // Only a DEEM can use the tokenizer of a DEEM.
  const companions = save.layout === 'deem' ? { companionsFrom: folder } : {}
  return (fresh) => writeLayout(parameters, deemConfig(stored), fresh, { ...companions, ...save })
}

async function quantizedWriter(
  folder: string,
  quantize: QuantizeOption,
  reading: VariantOptions,
  save: SaveDeemOptions,
): Promise<Writer> {
  const dtypes = (await openWeights(folder, transformersStems, reading)).flatMap((f) => f.tensors.map((t) => t.dtype))
  const dtype = save.dtype ?? dtypes.find((d) => d in torchNames) ?? 'f32'
  return async (fresh) => {
    const { model } = await loadDeem(folder, {
      quantize,
      variant: reading.variant,
      ...(save.signal && { signal: save.signal }),
    })
    try {
      await saveDeem(model, fresh, { companionsFrom: folder, ...save, dtype })
      return model.parameters().length
    } finally {
      model.dispose()
    }
  }
}

async function pieceWriter(
  reader: Reader,
  path: string,
  folder: string,
  kind: WeightLayout,
  { oldAttentionNames = false, ...save }: SaveDeemOptions,
): Promise<Writer> {
  if (kind === 'stable-diffusion') await checkParts(path)
  const vae = vaeNames(oldAttentionNames)
  const parts: PartContents[] = []
  for (const { folder: below, stems, optional = false, bare = false } of sourceParts[kind]) {
    if (optional && !(await namesIn(path)).includes(below)) continue
    const at = below === '' ? path : join(path, below)
    const tensors: Record<string, Tensor> = {}
    if (below === 'vae')
      for (const [parameter, t] of await reader.read(at, stems, vae.targets))
        tensors[vae.stored(parameter) as string] = asMatrix(parameter, t, reader.scope)
    else
      Object.assign(
        tensors,
        Object.fromEntries(await reader.read(at, stems, (name) => (derived.test(name) ? [] : [name]))),
      )
    const config = bare ? undefined : withDtype(await readJson(join(at, 'config.json')), save.dtype, tensors)
    parts.push({ folder: below, stem: stems[0] as string, tensors, ...(config && { config }) })
  }
  return (fresh) => writeParts(parts, fresh, save, () => copyNamed(folder, fresh, sourceFiles[kind], save.signal))
}

/** Maps the tensors of files, and lets go of all of them at the end. */
class Reader implements Disposable {
  readonly scope = new Scope()
  readonly files: WeightFile[] = []
  readonly #options: VariantOptions

  constructor(options: VariantOptions) {
    this.#options = options
  }

  /** By the names they get, which are those that `targets` has for the stored ones. */
  async read(path: string, stems: readonly string[], targets: Naming['targets']): Promise<Map<string, Tensor>> {
    const files = await openWeights(path, stems, this.#options)
    this.files.push(...files)
    const named = new Map<string, Tensor>()
    for (const { path: file } of files) {
      const { tensors } = await mapTensors(file, { signal: this.#options.signal })
      this.scope.keep(tensors)
      for (const [stored, t] of Object.entries(tensors))
        for (const name of targets(stored) ?? []) {
          if (named.has(name)) throw new DeemError('ERR_FORMAT', `'${path}' stores '${name}' twice`)
          named.set(name, t)
        }
    }
    return named
  }

  [Symbol.dispose](): void {
    this.scope[Symbol.dispose]()
  }
}

async function checkApart(source: string, path: string, target: string): Promise<void> {
  if (await contains(target, path))
    throw new DeemError('ERR_VALUE', `'${source}' cannot be converted in place, nor into a folder that holds it`)
}

/** What weights without a config.json are. */
async function kindByNames(path: string, options: VariantOptions): Promise<WeightLayout> {
  const files = await openWeights(path, transformersStems, options)
  const has = (prefix: string) => files.some(({ tensors }) => tensors.some(({ name }) => name.startsWith(prefix)))
  if (has('mm_decoder.') || has('visual_tokenizer.')) return 'deem'
  if (has('visual.')) return 'open-clip'
  throw new DeemError(
    'ERR_FORMAT',
    `the weights of '${path}' are neither those of a DEEM nor of open_clip; of other models, name the folder`,
  )
}

/** transformers casts to what the config says, which the files need not agree with. */
function withDtype(
  config: JsonObject,
  asked: DType | undefined,
  tensors: Readonly<Record<string, Tensor>>,
): JsonObject {
  const stored = new Set(Object.values(tensors).flatMap((t) => (torchNames[t.dtype] ? t.dtype : [])))
  const dtype = asked ?? (stored.size === 1 ? [...stored][0] : undefined)
  if (dtype === undefined) return config
  const keys = ['torch_dtype', 'dtype'].filter((key) => config[key] !== undefined)
  return { ...config, ...Object.fromEntries(keys.map((key) => [key, torchNames[dtype]])) }
}

/** Throws ERR_CONFIG for a pipeline of which we would lose something. */
async function checkParts(folder: string): Promise<void> {
  if (!(await namesIn(folder)).includes('model_index.json')) return
  const known = ['scheduler', 'tokenizer', 'feature_extractor', ...sourceParts['stable-diffusion'].map((p) => p.folder)]
  for (const [part, value] of Object.entries(await readJson(join(folder, 'model_index.json'))))
    if (Array.isArray(value) && value[0] !== null && !known.includes(part))
      throw new DeemError('ERR_CONFIG', `'${folder}' has a part '${part}', which no Stable Diffusion 1 or 2 has`)
}

async function filesOf(folder: string): Promise<Converted['files']> {
  try {
    const files: Converted['files'] = []
    for (const path of (await readdir(folder, { recursive: true })).sort()) {
      const found = await stat(join(folder, path))
      if (found.isFile()) files.push({ path, bytes: found.size })
    }
    return files
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${folder}' cannot be read`)
  }
}
