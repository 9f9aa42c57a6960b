/** Commands that need a model: caption, ask, paint, chat. */
import { once } from 'node:events'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { causedBy } from '../errors.js'
import { encodePng, type Picture } from '../image/index.js'
import { loadModel } from '../load-model.js'
import type { SamplerName } from '../models/sampler.js'
import type { Pipeline } from '../pipeline/pipeline.js'
import { Session, type SessionOptions } from '../pipeline/session.js'
import { chatTemplates } from '../pipeline/template.js'
import type { TextOptions } from '../pipeline/writer.js'
import { image, text } from '../sequence.js'
import type { Device } from '../system.js'
import { interruptible, StatusLine } from './terminal.js'

interface Common {
  model: string
  device?: Device
  json?: boolean
}
interface TextFlags extends Common {
  maxTokens: number
  temperature: number
  topP: number
  seed: number
  choices?: string[]
  template?: string
}

const number = (lowest: number, whole: boolean) => (word: string) => {
  const n = Number(word)
  if (word.trim() === '' || !Number.isFinite(n) || n < lowest || (whole && !Number.isSafeInteger(n)))
    throw new InvalidArgumentError(`needs a ${whole ? 'whole ' : ''}number of at least ${lowest}.`)
  return n
}

/** Loads the model, says so where somebody looks, and gives it back afterwards. */
async function withModel<T>(
  { model, json, device }: Common,
  run: (p: Pipeline, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return interruptible(async (signal) => {
    using pipeline = await load(model, device, signal, json)
    return await run(pipeline, signal)
  })
}

async function load(
  model: string,
  device: Device | undefined,
  signal: AbortSignal,
  json: boolean | undefined,
): Promise<Pipeline> {
  using line = new StatusLine(json)
  const hub = { onProgress: line.bytes('fetching') }
  return await loadModel(model, { device, signal, onProgress: line.percent('loading'), hub })
}

const textOptions = (flags: TextFlags, signal: AbortSignal): TextOptions => ({
  maxTokens: flags.maxTokens,
  temperature: flags.temperature,
  topP: flags.topP,
  seed: flags.seed,
  ...(flags.choices && { choices: flags.choices }),
  signal,
})

async function answer(picture: string, words: string | undefined, flags: TextFlags): Promise<void> {
  const template = await templateOf(flags.template)
  await withModel(flags, async (p, signal) => {
    const prompt = [image(picture), ...(words === undefined ? [] : [text(words)])]
    using chat = new Session(p, { template })
    if (flags.json) {
      console.log(JSON.stringify(await chat.ask(prompt, textOptions(flags, signal)), null, 1))
      return
    }
    for await (const { text: more } of chat.stream(prompt, textOptions(flags, signal))) process.stdout.write(more)
    process.stdout.write('\n')
  })
}

const templateFile = /\.(?:jinja2?|j2)$/
const templateNames = [...Object.keys(chatTemplates), 'own'] as (keyof typeof chatTemplates | 'own')[]

/** A template by its name, or from a file. */
async function templateOf(name = 'plain'): Promise<NonNullable<SessionOptions['template']>> {
  const known = templateNames.find((n) => n === name)
  if (known) return known
  try {
    return { jinja: await readFile(name, 'utf8') }
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${name}' cannot be read`)
  }
}

function withTemplateFlag(command: Command): Command {
  const names = templateNames.join(', ')
  const checked = (word: string) => {
    if ((templateNames as string[]).includes(word) || templateFile.test(word)) return word
    throw new InvalidArgumentError(`known are ${names}, and files that end in .jinja.`)
  }
  return command.option('--template <name>', `what stands around turns: ${names}, or a .jinja file`, checked, 'plain')
}

/** Writes pictures as numbered files into a folder and gives their names. */
function pictureWriter(folder: string): (picture: Picture) => Promise<string> {
  let count = 0
  return async (picture) => {
    try {
      await mkdir(folder, { recursive: true })
      for (;;) {
        const file = join(folder, `${String(++count).padStart(4, '0')}.png`)
        try {
          // Pictures of earlier conversations stay.
          await writeFile(file, await encodePng(picture), { flag: 'wx' })
          return file
        } catch (cause) {
          if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause
        }
      }
    } catch (cause) {
      throw causedBy(cause, 'ERR_IO', `pictures cannot be written to '${folder}'`)
    }
  }
}

const deviceFlag = () => new Option('--device <name>', 'cpu, cuda, cuda:1 and so on, or auto: cuda where that works')

function withTextFlags(command: Command): Command {
  return command
    .requiredOption('-m, --model <source>', 'checkpoint folder, id of the Hugging Face hub, or deem-nano')
    .addOption(deviceFlag())
    .option('--max-tokens <n>', 'longest answer', number(1, true), 64)
    .option('--temperature <t>', '0: always the likeliest token', number(0, false), 0)
    .option('--top-p <p>', 'draw among the fewest tokens whose probabilities reach it', number(0, false), 1)
    .option('--seed <n>', 'of the draws', number(0, true), 0)
}

export function addModelCommands(program: Command): void {
  withTextFlags(program.command('caption'))
    .description('describes a picture')
    .argument('<picture>')
    .option('--json', 'print one JSON object: text, ids, log-probabilities')
    .action((picture: string, flags: TextFlags) => answer(picture, undefined, flags))

  withTemplateFlag(withTextFlags(program.command('ask')))
    .description('answers a question about a picture')
    .argument('<picture>')
    .argument('<question>')
    .option('--choices <answers...>', 'the answer is one of these')
    .option('--json', 'print one JSON object: text, ids, log-probabilities')
    .action(answer)

  program
    .command('paint')
    .description('paints a picture from words')
    .argument('<words>')
    .requiredOption('-m, --model <source>', 'checkpoint folder, id of the Hugging Face hub, or deem-nano')
    .addOption(deviceFlag())
    .option('-o, --output <file>', 'PNG to write', 'picture.png')
    .addOption(
      new Option('--sampler <name>')
        .choices(['ddim', 'ddpm', 'pndm', 'dpmpp', 'euler', 'euler_ancestral'])
        .default('ddim'),
    )
    .option('--steps <n>', 'denoising steps', number(1, true), 20)
    .option('--guidance <w>', 'weight of the words', number(0, false), 3.5)
    .option('--seed <n>', 'of the noise', number(0, true), 0)
    .option('--width <px>', 'a multiple of 8; default: as the model was trained', number(1, true))
    .option('--height <px>', 'likewise', number(1, true))
    .option('--tiling', 'decode in tiles, for big pictures in little memory')
    .option('--json', 'print one JSON object')
    .action(
      async (
        words: string,
        flags: Common & {
          output: string
          sampler: SamplerName
          steps: number
          guidance: number
          seed: number
          width?: number
          height?: number
          tiling?: boolean
        },
      ) => {
        await withModel(flags, async (p, signal) => {
          const show = process.stderr.isTTY && !flags.json
          const { sampler, steps, guidance, seed, output, width: w, height: h, tiling = false } = flags
          const size = { ...(w !== undefined && { width: w }), ...(h !== undefined && { height: h }) }
          const onProgress = show
            ? (done: number, total: number) => process.stderr.write(`\rpainting ${done} of ${total}`)
            : undefined
          const how = { sampler, steps, guidance, seed, ...size, tiling, signal, onProgress }
          const picture = await p.generateImage(words, how)
          if (show) process.stderr.write('\r\x1b[K')
          await writeFile(output, await encodePng(picture))
          const [height, width] = picture.shape
          console.log(flags.json ? JSON.stringify({ output, width, height, seed }) : output)
        })
      },
    )

  withTemplateFlag(withTextFlags(program.command('chat')))
    .description('talks; a line that begins with @FILE shows that picture first, an empty line ends')
    .option('--pictures <folder>', 'let the model paint, and write its pictures there; their names stand in the answer')
    .action(async (flags: TextFlags & { pictures?: string }) => {
      const template = await templateOf(flags.template)
      await withModel(flags, async (p, signal) => {
        using chat = new Session(p, { template })
        const write = pictureWriter(flags.pictures ?? '')
        const lines = createInterface({ input: process.stdin, terminal: false })
        signal.addEventListener('abort', () => lines.close())
        if (process.stdin.isTTY) process.stdout.write('> ')
        for await (const line of lines) {
          if (line.trim() === '') break
          const [, picture, rest] = /^@(\S+)\s*(.*)$/.exec(line) ?? []
          const prompt = picture === undefined ? line : [image(picture), ...(rest ? [text(rest)] : [])]
          const options = textOptions(flags, signal)
          const answer = flags.pictures === undefined ? chat.stream(prompt, options) : chat.generate(prompt, options)
          for await (const piece of answer) {
            const shown = piece.type === 'text' ? piece.text : `[${await write(piece.image)}]`
            if (!process.stdout.write(shown)) await once(process.stdout, 'drain')
          }
          process.stdout.write(process.stdin.isTTY ? '\n> ' : '\n')
        }
        lines.close()
      })
    })
}
