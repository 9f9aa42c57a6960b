/** `convertFolder`: weights from folder to folder, without a model. */
import { readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import { type JsonObject, readJson } from '../json.js'
import { Scope } from '../scope.js'
import type { CallOptions } from '../task.js'
import type { Tensor } from '../tensor.js'
import { deemConfig } from './configs.js'
import { checkVariant, isFolder, namesIn, openWeights, type WeightFile } from './folder.js'
import { torchNames, type WeightLayout } from './layouts.js'
import { deemNames, vaeNames } from './names.js'
import { checkFree, contains, writeFolder } from './replace.js'
import {
  asMatrix,
  checkSaveOptions,
  copyNamed,
  type PartContents,
  type SaveDeemOptions,
  writeLayout,
  writeParts,
} from './save.js'
import { locate, recognise, type SourceOptions, sourceFiles, sourceParts, transformersStems } from './source.js'

export interface ConvertOptions extends Omit<SaveDeemOptions, 'layout' | 'tokenizer'>, SourceOptions {
  /** Default that of the source; only a DEEM has others. */
  layout?: WeightLayout
  /** Of a DEEM, in place of the config.json beside its weights. */
  config?: object
  /** Whether a target that holds something is replaced, once all is written. Default false. */
  force?: boolean
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
 * What is stored is written, whether or not a model could be made of it; no more than one tensor at a time is held in memory.
 *
 * @param source a DEEM folder, ours or official, or its weight file with a config.json beside it: any layout. A folder of a LLaMA, of
 *   Stable Diffusion or of open_clip, or an open_clip weight file: the same as safetensors, with all that belongs to it. Or an id of the hub.
 * @param target appears as a whole or, after an error or an abort, not at all.
 *
 * Throws ERR_IO, also where the target holds something; ERR_FORMAT, ERR_CONFIG and ERR_WEIGHTS like `loadDeem`; ERR_VALUE for numbers
 * beyond the range of the dtype and for layouts that the source has not got.
 */
export async function convertFolder(source: string, target: string, options: ConvertOptions = {}): Promise<Converted> {
  const { layout: wanted, variant, hub, config, force = false, ...save } = options
  const { signal } = save
  const call: CallOptions = signal ? { signal } : {}
  signal?.throwIfAborted()
  checkSaveOptions(wanted === undefined ? { ...save, layout: 'deem' } : { ...save, layout: wanted })
  await checkApart(source, source, target)
  await checkFree(target, force) // also at the end, but this spares a download
  const path = (await locate([{ source, whole: true }], { variant, hub, ...call }))[0] as string
  await checkApart(source, path, target)
  const folder = (await isFolder(path)) ? path : dirname(path)
  const kind = config ? 'deem' : await kindOf(path, folder, call)
  const layout = wanted ?? kind
  if (kind !== 'deem' && layout !== kind)
    throw new DeemError('ERR_VALUE', `'${source}' is a ${kind}, which cannot become a ${layout}`)
  checkSaveOptions({ ...save, layout })

  using scope = new Scope()
  let tensors = 0
  const opened: WeightFile[] = []
  const open = async (
    at: string,
    stems: readonly string[],
    names: (stored: string) => readonly string[] | undefined,
  ) => {
    const files = await openWeights(at, stems, { variant, ...call })
    opened.push(...files)
    const named = await mapAll(scope, files, names, call)
    tensors += named.size
    return named
  }
  let write: (fresh: string) => Promise<void>
  if (kind === 'deem') {
    const stored = (config as JsonObject | undefined) ?? (await readJson(join(folder, 'config.json')))
    const parameters = await open(path, transformersStems, deemNames().targets)
    // Only a DEEM can use the tokenizer of a DEEM.
    const companions = layout === 'deem' ? { companionsFrom: folder } : {}
    write = (fresh) => writeLayout(parameters, deemConfig(stored), fresh, { ...companions, ...save, layout })
  } else {
    if (kind === 'stable-diffusion') await checkParts(path)
    const parts: PartContents[] = []
    for (const { folder: below, stems, optional = false, bare = false } of sourceParts[kind]) {
      const at = below === '' ? path : join(path, below)
      if (optional && !(await namesIn(path)).includes(below)) continue
      const isVae = below === 'vae'
      const named = await open(at, stems, (stored) => (isVae ? vae.targets(stored) : [stored]))
      parts.push({
        folder: below,
        stem: stems[0] as string,
        tensors: isVae ? vaeTensors(named, save.oldAttentionNames ?? false, scope) : Object.fromEntries(named),
        ...(!bare && { config: withDtype(await readJson(join(at, 'config.json')), save) }),
      })
    }
    write = (fresh) => writeParts(parts, fresh, save, () => copyNamed(folder, fresh, sourceFiles[kind], signal))
  }
  checkVariant(`'${source}'`, opened, variant)
  await writeFolder(target, force, write)
  return { source, target, kind, layout, tensors, files: await filesOf(target) }
}

async function checkApart(source: string, path: string, target: string): Promise<void> {
  if (await contains(target, path))
    throw new DeemError('ERR_VALUE', `'${source}' cannot be converted in place, nor into a folder that holds it`)
}

async function kindOf(path: string, folder: string, call: CallOptions): Promise<WeightLayout> {
  if (path === folder) return recognise(path)
  const [file] = await openWeights(path, [], call)
  const has = (prefix: string) => file?.tensors.some(({ name }) => name.startsWith(prefix))
  if (has('mm_decoder.') || has('visual_tokenizer.')) return 'deem'
  if (has('visual.')) return 'open-clip'
  throw new DeemError(
    'ERR_FORMAT',
    `'${path}' holds neither a DEEM nor a model of open_clip; of others, name the folder`,
  )
}

/** The tensors of files where they lie, by the names they get. */
async function mapAll(
  scope: Scope,
  files: readonly WeightFile[],
  names: (stored: string) => readonly string[] | undefined,
  call: CallOptions,
): Promise<Map<string, Tensor>> {
  const named = new Map<string, Tensor>()
  for (const { path } of files) {
    const { tensors } = await mapTensors(path, call)
    scope.keep(tensors)
    for (const [stored, t] of Object.entries(tensors))
      for (const name of names(stored) ?? []) {
        if (named.has(name)) throw new DeemError('ERR_FORMAT', `'${path}' stores '${name}' a second time`)
        named.set(name, t)
      }
  }
  return named
}

const vae = vaeNames()

function vaeTensors(named: ReadonlyMap<string, Tensor>, old: boolean, scope: Scope): Record<string, Tensor> {
  const { stored } = vaeNames(old)
  return Object.fromEntries([...named].map(([name, t]) => [stored(name) ?? name, scope.keep(asMatrix(name, t))]))
}

/** What transformers makes of the weights where nobody says otherwise. */
function withDtype(config: JsonObject, { dtype }: SaveDeemOptions): JsonObject {
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
