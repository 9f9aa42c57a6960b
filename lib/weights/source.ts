/** Where weights come from: paths, or models of the Hugging Face hub, of which what is needed is fetched first. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { isJsonObject, type JsonObject, readJson } from '../json.js'
import { bundledFolder } from './bundled.js'
import { chooseWeights, namesIn, shardsOf, type VariantOptions } from './folder.js'
import type { HubId, HubOptions, HubRepo } from './hub.js'
import type { WeightLayout } from './layouts.js'

export interface SourceOptions extends VariantOptions {
  /** For sources that are ids of the hub. */
  hub?: HubOptions | undefined
}

interface SourcePart {
  /** Below the source; '' is the source itself. */
  folder: string
  /** What weight files begin with; the first is what we write. */
  stems: readonly string[]
  /** Not needed to load, and not always there. */
  optional?: boolean
  /** Without a config.json. */
  bare?: boolean
}

export const openClipStems = ['open_clip_model', 'open_clip_pytorch_model', 'model', 'pytorch_model']
export const diffusersStems = ['diffusion_pytorch_model']
export const transformersStems = ['model', 'pytorch_model']

/** The parts of a source that hold weights. */
export const sourceParts: Record<WeightLayout, readonly SourcePart[]> = {
  deem: [{ folder: '', stems: transformersStems }],
  llama: [{ folder: '', stems: transformersStems }],
  'stable-diffusion': [
    { folder: 'unet', stems: diffusersStems },
    { folder: 'vae', stems: diffusersStems },
    { folder: 'text_encoder', stems: transformersStems },
    { folder: 'safety_checker', stems: transformersStems, optional: true },
  ],
  'open-clip': [{ folder: '', stems: openClipStems, bare: true }],
}

const tokenizerFiles = ['tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json']

/** Files of a source besides weights and their config.json, where it has them. */
export const sourceFiles: Record<WeightLayout, readonly string[]> = {
  deem: tokenizerFiles,
  llama: [...tokenizerFiles, 'added_tokens.json', 'generation_config.json'],
  'stable-diffusion': [
    'model_index.json',
    'scheduler/scheduler_config.json',
    'feature_extractor/preprocessor_config.json',
    ...['vocab.json', 'merges.txt', ...tokenizerFiles].map((name) => `tokenizer/${name}`),
  ],
  'open-clip': ['open_clip_config.json'],
}

interface Wanted {
  source: string
  /** What it must be; undefined: what it turns out to be. */
  kind?: WeightLayout
  /** Whether optional parts are wanted, too. */
  whole?: boolean
}

/**
 * Where sources lie on this machine: paths as they are, models of the hub in its cache, after what they need was fetched. Throws ERR_IO
 * for what is neither, and all that the hub's errors are.
 */
export async function locate(wanted: readonly Wanted[], options: SourceOptions = {}): Promise<string[]> {
  const found: Found[] = []
  for (const one of wanted) found.push(await find(one, options))
  const fetched = found.flatMap(({ fetch }) => fetch ?? [])
  if (fetched.length > 0) {
    const { signal } = options
    await (await hub()).fetchFiles(fetched, { signal, onProgress: options.hub?.onProgress })
  }
  return found.map(({ path }) => path)
}

/** `org/name` or `org/name@revision`; undefined for what cannot be one. */
function parseHubId(source: string): HubId | undefined {
  const [, name, revision] = /^(\w[\w.-]{0,95}\/\w[\w.-]{0,95})(?:@(.+))?$/.exec(source) ?? []
  if (name === undefined || /--|\.\./.test(name)) return undefined
  return { name, ...(revision !== undefined && { revision }) }
}

// Most programs read folders, and it takes long to load.
const hub = () => import('./hub.js')

interface Found {
  path: string
  fetch?: { repo: HubRepo; paths: string[] }
}

async function find({ source, kind, whole = false }: Wanted, options: SourceOptions): Promise<Found> {
  const bundled = kind === undefined || kind === 'deem' ? bundledFolder(source) : undefined
  if (bundled !== undefined) return { path: bundled }
  if (await exists(source)) return { path: source }
  const id = parseHubId(source)
  if (!id)
    throw new DeemError(
      'ERR_IO',
      `'${source}' is no path that exists, no model of the package, and no id of the hub (org/name or org/name@revision)`,
    )
  let repo: HubRepo
  try {
    const { openRepo } = await hub()
    repo = await openRepo(id, options.hub, options.signal)
  } catch (cause) {
    options.signal?.throwIfAborted()
    if (!DeemError.isInstance(cause)) throw cause
    throw causedBy(cause, cause.code, `'${source}' is no path that exists, and fetching it from the hub failed`)
  }
  return { path: repo.folder, fetch: { repo, paths: await neededFiles(repo, kind, whole, options) } }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return false
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be read`)
  }
}

/** Paths in a model of the hub, all of them names we know or shards beside their index. */
async function neededFiles(
  repo: HubRepo,
  wanted: WeightLayout | undefined,
  whole: boolean,
  { variant, signal }: SourceOptions,
): Promise<string[]> {
  const names = new Set(repo.names)
  const read = async (path: string) => {
    await (await hub()).fetchFiles([{ repo, paths: [path] }], { signal })
    return readJson(join(repo.folder, path))
  }
  const top = [...new Set(repo.names.map((name) => name.replace(/\/.*/s, '')))]
  const kind = wanted === 'deem' || wanted === undefined ? await kindOf(repo.what, top, read) : wanted
  if (wanted === 'deem' && kind !== 'deem') throw notDeem(repo.what, kind)
  const paths = sourceFiles[kind].filter((name) => names.has(name))
  for (const { folder, stems, optional = false, bare = false } of sourceParts[kind]) {
    const below = folder === '' ? '' : `${folder}/`
    const config = `${below}config.json`
    if (optional && !(whole && names.has(config))) continue
    if (!bare && !names.has(config)) throw new DeemError('ERR_IO', `${repo.what} lacks '${config}'`)
    if (!bare) paths.push(config)
    const inside = repo.names.filter((name) => name.startsWith(below)).map((name) => name.slice(below.length))
    const { file, index } = chooseWeights(`${repo.what}/${folder}`, inside, stems, variant)
    if (file !== undefined) paths.push(below + file)
    if (index === undefined) continue
    const shards = shardsOf(index, await read(below + index))
    paths.push(below + index, ...[...shards.keys()].map((shard) => below + shard))
    const lost = [...shards.keys()].find((shard) => !names.has(below + shard))
    if (lost !== undefined) throw new DeemError('ERR_IO', `${repo.what} lacks '${below}${lost}', which ${index} names`)
  }
  return paths
}

/** What lies in a folder or a file. Throws ERR_FORMAT or ERR_CONFIG for what it cannot tell. */
export async function recognise(path: string): Promise<WeightLayout> {
  return kindOf(`'${path}'`, await namesIn(path), (name) => readJson(join(path, name)))
}

async function kindOf(
  what: string,
  names: readonly string[],
  read: (name: string) => Promise<JsonObject>,
): Promise<WeightLayout> {
  if (names.includes('model_index.json') || (names.includes('unet') && names.includes('vae'))) return 'stable-diffusion'
  if (names.some((name) => name.startsWith('open_clip_'))) return 'open-clip'
  if (!names.includes('config.json'))
    throw new DeemError(
      'ERR_IO',
      `${what} holds no model: neither config.json nor model_index.json nor open_clip's files`,
    )
  const config = await read('config.json')
  const { llm, sd, model_type: type, hidden_size: width } = config
  if (isJsonObject(llm) || isJsonObject(sd)) return 'deem'
  if (type === 'llama' || (type === undefined && width !== undefined)) return 'llama'
  throw new DeemError(
    'ERR_CONFIG',
    `${what}: config.json is neither that of a DEEM nor of a LLaMA (model_type ${JSON.stringify(type)})`,
  )
}

const titles: Record<WeightLayout, string> = {
  deem: 'a DEEM',
  llama: 'a LLaMA, not a DEEM: load it as { llama: folder }',
  'stable-diffusion': 'a Stable Diffusion, not a DEEM: load it as { stableDiffusion: folder }',
  'open-clip': 'weights of open_clip, not a DEEM: load them as { openClip: folder }',
}

/** Where a DEEM was expected. */
export function notDeem(what: string, kind: WeightLayout): DeemError {
  return new DeemError('ERR_CONFIG', `${what} is ${titles[kind]}`)
}
