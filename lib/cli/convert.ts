/** `deem convert SOURCE TARGET`: weights under other names, in another dtype, in shards of another size. */
import { type Command, InvalidArgumentError, Option } from 'commander'
import { readJson } from '../json.js'
import type { DType } from '../native.js'
import { type Converted, convertFolder } from '../weights/convert.js'
import { type WeightLayout, weightLayouts } from '../weights/layouts.js'
import { megabytes } from './inspect.js'
import { interruptible, StatusLine } from './terminal.js'

interface ConvertFlags {
  layout?: WeightLayout
  dtype?: DType
  maxShardSize: number
  oldAttentionNames?: boolean
  variant?: string
  config?: string
  companions?: string
  force?: boolean
  quantize?: 'int8' | 'int4'
  group: 32 | 64 | 128
  asymmetric?: boolean
  json?: boolean
}

const units: Record<string, number> = { '': 1, KB: 1e3, MB: 1e6, GB: 1e9 }

/** `500MB` in bytes; powers of ten, as Hugging Face has them. */
function size(word: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*([KMG]B|)$/i.exec(word) ?? []
  const bytes = Math.floor(Number(number) * (units[(unit ?? '').toUpperCase()] ?? Number.NaN))
  if (!(bytes > 0)) throw new InvalidArgumentError('needs a size as 5GB or 500MB.')
  return bytes
}

function convertedText({ source, target, kind, layout, tensors, files }: Converted): string {
  const weights = files.filter(({ path }) => path.endsWith('.safetensors'))
  const bytes = weights.reduce((sum, file) => sum + file.bytes, 0)
  const as = kind === layout ? kind : `${kind} as ${layout}`
  const shards = `${weights.length} file${weights.length === 1 ? '' : 's'}`
  return `${source} (${as}): ${tensors} tensors, ${megabytes(bytes)} in ${shards} to ${target}`
}

const help = `
Sources are recognised: a DEEM folder, ours or official (or its weight file, with a config.json beside it); a folder of a LLaMA, of
Stable Diffusion or of open_clip; an open_clip weight file; or an id of the Hugging Face hub. Only a DEEM has other layouts than its own.
The target appears as a whole, or not at all.

Examples:
  $ deem convert official/pytorch_model.bin deem/ --dtype bf16         torch weights as safetensors
  $ deem convert deem/ llama/ --layout llama                           the language model, as transformers reads it
  $ deem convert deem/ sd/ --layout stable-diffusion --companions stable-diffusion-2-1-base/
  $ deem convert lmsys/vicuna-7b-v1.5 vicuna/ --dtype f16 --max-shard-size 2GB
  $ deem convert open_clip_pytorch_model.bin clip/
  $ deem convert deem/ deem-int4/ --quantize int4                      and bf16 or whatever it was for the rest`

export function addConvertCommand(program: Command): void {
  program
    .command('convert')
    .description('writes weights under other names, in another dtype, in shards of another size')
    .argument('<source>', 'folder, file, or id of the hub: org/name or org/name@revision')
    .argument('<target>', 'folder to write')
    .addOption(
      new Option('--layout <name>', 'whose names to write; default: those of the source').choices(weightLayouts),
    )
    .addOption(new Option('--dtype <name>', 'of the weights; default: as they are').choices(['f32', 'bf16', 'f16']))
    .addOption(
      new Option('--max-shard-size <size>', 'weights larger than this are split').argParser(size).default(5e9, '5GB'),
    )
    .option('--old-attention-names', "name the VAE's attention as diffusers did before 0.15")
    .option('--variant <name>', 'read weights as model.fp16.safetensors where the source has them')
    .option('--config <file>', 'config.json of a DEEM that has none beside its weights')
    .option('--companions <folder>', 'copy tokenizer, text encoder and the like from a folder of the same layout')
    .addOption(new Option('--quantize <bits>', 'layers of the language model in few bits').choices(['int8', 'int4']))
    .addOption(
      new Option('--group <n>', 'numbers that share a scale')
        .argParser((word) => {
          if (!['32', '64', '128'].includes(word)) throw new InvalidArgumentError('needs 32, 64 or 128.')
          return Number(word)
        })
        .default(32),
    )
    .option('--asymmetric', 'give every group an offset, too')
    .option('--force', 'replace what the target holds, once all is written')
    .option('--json', 'print one JSON object: what was recognised and written')
    .addHelpText('after', help)
    .action(async (source: string, target: string, flags: ConvertFlags) => {
      const done = await interruptible(async (signal) => {
        using line = new StatusLine(flags.json)
        return await convertFolder(source, target, {
          ...(flags.layout && { layout: flags.layout }),
          ...(flags.dtype && { dtype: flags.dtype }),
          maxShardBytes: flags.maxShardSize,
          oldAttentionNames: flags.oldAttentionNames ?? false,
          variant: flags.variant,
          ...(flags.config !== undefined && { config: await readJson(flags.config) }),
          ...(flags.companions !== undefined && { companionsFrom: flags.companions }),
          force: flags.force ?? false,
          ...(flags.quantize && {
            quantize: { bits: flags.quantize === 'int8' ? 8 : 4, group: flags.group, symmetric: !flags.asymmetric },
          }),
          hub: { onProgress: line.bytes('fetching') },
          onProgress: line.percent('converting'),
          signal,
        })
      })
      console.log(flags.json ? JSON.stringify(done, null, 1) : convertedText(done))
    })
}
