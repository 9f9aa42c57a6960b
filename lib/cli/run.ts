/** Commands that need a model: caption, ask, paint, chat. */
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { encodePng } from '../image/index.js'
import { loadModel } from '../load-model.js'
import type { SamplerName } from '../models/sampler.js'
import { Chat, chatTemplates } from '../pipeline/chat.js'
import type { Pipeline } from '../pipeline/pipeline.js'
import type { TextOptions } from '../pipeline/writer.js'
import { image, text } from '../sequence.js'
import { interruptible, StatusLine } from './terminal.js'

interface Common {
  model: string
  json?: boolean
}
interface TextFlags extends Common {
  maxTokens: number
  temperature: number
  topP: number
  seed: number
  choices?: string[]
}

const number = (lowest: number, whole: boolean) => (word: string) => {
  const n = Number(word)
  if (word.trim() === '' || !Number.isFinite(n) || n < lowest || (whole && !Number.isSafeInteger(n)))
    throw new InvalidArgumentError(`needs a ${whole ? 'whole ' : ''}number of at least ${lowest}.`)
  return n
}

/** Loads the model, says so where somebody looks, and gives it back afterwards. */
async function withModel<T>(
  { model, json }: Common,
  run: (p: Pipeline, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return interruptible(async (signal) => {
    using pipeline = await load(model, signal, json)
    return await run(pipeline, signal)
  })
}

async function load(model: string, signal: AbortSignal, json: boolean | undefined): Promise<Pipeline> {
  using line = new StatusLine(json)
  const hub = { onProgress: line.bytes('fetching') }
  return await loadModel(model, { signal, onProgress: line.percent('loading'), hub })
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
  await withModel(flags, async (p, signal) => {
    const prompt = [image(picture), ...(words === undefined ? [] : [text(words)])]
    if (flags.json) {
      console.log(JSON.stringify(await p.generateText(prompt, textOptions(flags, signal)), null, 1))
      return
    }
    for await (const { text: more } of p.streamText(prompt, textOptions(flags, signal))) process.stdout.write(more)
    process.stdout.write('\n')
  })
}

function withTextFlags(command: Command): Command {
  return command
    .requiredOption('-m, --model <source>', 'checkpoint folder, id of the Hugging Face hub, or deem-nano')
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

  withTextFlags(program.command('ask'))
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
    .option('-o, --output <file>', 'PNG to write', 'picture.png')
    .addOption(
      new Option('--sampler <name>')
        .choices(['ddim', 'ddpm', 'pndm', 'dpmpp', 'euler', 'euler_ancestral'])
        .default('ddim'),
    )
    .option('--steps <n>', 'denoising steps', number(1, true), 20)
    .option('--guidance <w>', 'weight of the words', number(0, false), 3.5)
    .option('--seed <n>', 'of the noise', number(0, true), 0)
    .option('--json', 'print one JSON object')
    .action(
      async (
        words: string,
        flags: Common & { output: string; sampler: SamplerName; steps: number; guidance: number; seed: number },
      ) => {
        await withModel(flags, async (p, signal) => {
          const show = process.stderr.isTTY && !flags.json
          const { sampler, steps, guidance, seed, output } = flags
          const onProgress = show
            ? (done: number, total: number) => process.stderr.write(`\rpainting ${done} of ${total}`)
            : undefined
          const picture = await p.generateImage(words, { sampler, steps, guidance, seed, signal, onProgress })
          if (show) process.stderr.write('\r\x1b[K')
          await writeFile(output, await encodePng(picture))
          const [height, width] = picture.shape
          console.log(flags.json ? JSON.stringify({ output, width, height, seed }) : output)
        })
      },
    )

  withTextFlags(program.command('chat'))
    .description('talks; a line that begins with @FILE shows that picture first, an empty line ends')
    .addOption(new Option('--template <name>').choices(Object.keys(chatTemplates)).default('plain'))
    .action(async (flags: TextFlags & { template: keyof typeof chatTemplates }) => {
      await withModel(flags, async (p, signal) => {
        using chat = new Chat(p, { template: flags.template })
        const lines = createInterface({ input: process.stdin, terminal: false })
        signal.addEventListener('abort', () => lines.close())
        if (process.stdin.isTTY) process.stdout.write('> ')
        for await (const line of lines) {
          if (line.trim() === '') break
          const [, picture, rest] = /^@(\S+)\s*(.*)$/.exec(line) ?? []
          const prompt = picture === undefined ? line : [image(picture), ...(rest ? [text(rest)] : [])]
          for await (const { text: more } of chat.stream(prompt, textOptions(flags, signal)))
            if (!process.stdout.write(more)) await once(process.stdout, 'drain')
          process.stdout.write(process.stdin.isTTY ? '\n> ' : '\n')
        }
        lines.close()
      })
    })
}
