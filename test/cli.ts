// The command line as a process: what it prints, and how it ends.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { encodePng, image, loadModel, type Picture, Session, tensor, text, writeTensors } from 'deem'
import { nano, nanoConfig } from './_harness/nano.js'
import { writeTorchFile } from './_harness/torch-file.js'

const main = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'deem-cli-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

function deem(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return deemWith('', ...args)
}
function deemWith(input: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', input })
  return { status, stdout, stderr }
}

test('doctor says what is there and why cuda is not', (t) => {
  const { status, stdout } = deem('doctor')
  t.is(status, 0)
  t.regex(stdout, /instructions\s+(sse4|avx2|avx512)/)
  t.regex(stdout, /threads\s+\d/)
  t.regex(stdout, /cpu\s+yes/)
  t.regex(stdout, /cuda\s+no: (.|\n)*(CUDA\s+backend|NVIDIA\s+driver)/) // not built, or built and without a GPU
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

/** The smallest whole model as a checkpoint folder, and a picture beside it. */
async function checkpoint(): Promise<{ model: string; picture: string }> {
  const dir = join(folder, 'model')
  if (!existsSync(dir)) {
    mkdirSync(dir)
    const { model } = await nano()
    await model.save(join(dir, 'model.safetensors'))
    model.dispose()
    writeFileSync(join(dir, 'config.json'), JSON.stringify(nanoConfig()))
    const tokenizer = fileURLToPath(new URL('../test/fixtures/tokenizer/tokenizer.json', import.meta.url))
    cpSync(tokenizer, join(dir, 'tokenizer.json'))
    const picture: Picture = { dtype: 'f32', shape: [20, 30, 3], data: new Float32Array(1800).fill(0.5) }
    writeFileSync(join(dir, 'gray.png'), await encodePng(picture))
  }
  return { model: dir, picture: join(dir, 'gray.png') }
}

test.serial('caption, ask and chat print what the pipeline says', async (t) => {
  const { model, picture } = await checkpoint()
  using p = await loadModel(model)
  const want = await p.generateText([image(picture)], { maxTokens: 9 })
  t.is(deem('caption', picture, '-m', model, '--max-tokens', '9').stdout, `${want.text}\n`)
  const drawn = { maxTokens: 9, temperature: 1.5, topP: 0.9, seed: 4 }
  const said = await p.generateText([image(picture), text('What?')], drawn)
  const flags = ['--max-tokens', '9', '--temperature', '1.5', '--top-p', '0.9', '--seed', '4', '--json']
  t.deepEqual(JSON.parse(deem('ask', picture, 'What?', '-m', model, ...flags).stdout), said)
  const chosen = deem('ask', picture, 'yes or no?', '-m', model, '--choices', 'yes', 'no')
  t.regex(chosen.stdout, /^(yes|no)\n$/)
  using chat = new Session(p)
  const first = await chat.ask([image(picture), text('What?')], { maxTokens: 5 })
  const second = await chat.ask('And?', { maxTokens: 5 })
  const talk = deemWith(`@${picture} What?\nAnd?\n\n`, 'chat', '-m', model, '--max-tokens', '5')
  t.is(talk.status, 0, talk.stderr)
  t.is(talk.stdout, `${first.text}\n${second.text}\n`)
})

test.serial('paint writes the picture', async (t) => {
  const { model } = await checkpoint()
  using p = await loadModel(model)
  const output = join(folder, 'painted.png')
  const run = deem(
    'paint',
    'a license',
    '-m',
    model,
    '-o',
    output,
    '--steps',
    '3',
    '--seed',
    '2',
    '--sampler',
    'euler',
    '--json',
  )
  t.deepEqual(JSON.parse(run.stdout), { output, width: 64, height: 64, seed: 2 })
  const want = await p.generateImage('a license', { steps: 3, seed: 2, sampler: 'euler' })
  t.deepEqual(readFileSync(output), await encodePng(want))
})

test.serial('paint takes sizes', async (t) => {
  const { model } = await checkpoint()
  using p = await loadModel(model)
  const output = join(folder, 'wide.png')
  const size = ['--width', '96', '--height', '32', '--tiling', '--json']
  const run = deem('paint', 'a license', '-m', model, '-o', output, '--steps', '2', ...size)
  t.deepEqual(JSON.parse(run.stdout), { output, width: 96, height: 32, seed: 0 })
  const want = await p.generateImage('a license', { steps: 2, width: 96, height: 32 })
  t.deepEqual(readFileSync(output), await encodePng(want))
})

test.serial('ask and chat take templates', async (t) => {
  const { model, picture } = await checkpoint()
  using p = await loadModel(model)
  const jinja = "{% for m in messages %}Q: {{ m['content'] }} A:{% endfor %}"
  const file = join(folder, 'own.jinja')
  writeFileSync(file, jinja)
  for (const [name, template] of [['vqa', 'vqa'] as const, [file, { jinja }] as const]) {
    using chat = new Session(p, { template })
    const want = await chat.ask([image(picture), text('What?')], { maxTokens: 5 })
    const run = deem('ask', picture, 'What?', '-m', model, '--max-tokens', '5', '--json', '--template', name)
    t.deepEqual(JSON.parse(run.stdout), want, name)
  }
  using chat = new Session(p, { template: 'vicuna' })
  const want = await chat.ask('What?', { maxTokens: 5 })
  const flags = ['-m', model, '--max-tokens', '5', '--template', 'vicuna']
  t.is(deemWith('What?\n', 'chat', ...flags).stdout, `${want.text}\n`)
})

test.serial('chat writes the pictures that the model paints, beside those that are there', async (t) => {
  const { model: from } = await checkpoint()
  const model = join(folder, 'painter')
  cpSync(from, model, { recursive: true })
  {
    // One that always wants to show something.
    using p = await loadModel(from)
    const { soi } = p.tokenizer.ids
    const bias = p.model.read('text_decoder.head.bias').toFloat32()
    bias[soi] = 1e3
    p.model.assign('text_decoder.head.bias', tensor(bias, [bias.length]))
    await p.model.save(join(model, 'model.safetensors'))
  }
  using p = await loadModel(model)
  using chat = new Session(p)
  const pictures: Picture[] = []
  for (const turn of ['Paint', 'More'])
    for await (const piece of chat.generate(turn)) if (piece.type === 'image') pictures.push(piece.image)
  const dir = join(folder, 'shown')
  mkdirSync(dir)
  writeFileSync(join(dir, '0001.png'), 'there before')
  const run = deemWith('Paint\nMore\n', 'chat', '-m', model, '--pictures', dir)
  const files = ['0002.png', '0003.png'].map((name) => join(dir, name))
  t.is(run.stdout, files.map((file) => `[${file}]\n`).join(''), run.stderr)
  for (const [i, file] of files.entries()) t.deepEqual(readFileSync(file), await encodePng(pictures[i] as Picture))
  t.is(readFileSync(join(dir, '0001.png'), 'utf8'), 'there before')
  // Without a folder it says nothing, as it has nothing but pictures to say.
  t.is(deemWith('Paint\n', 'chat', '-m', model).stdout, '\n')
})

test.serial('models and pictures that are not there, and flags that make no sense', async (t) => {
  const { model, picture } = await checkpoint()
  const cases: [number, RegExp, string[]][] = [
    [1, /^ERR_IO: .*nowhere/, ['caption', picture, '-m', join(folder, 'nowhere')]],
    [1, /^ERR_(IO|FORMAT): /, ['caption', join(folder, 'nowhere.png'), '-m', model]],
    [2, /--model/, ['caption', picture]],
    [2, /whole number/, ['caption', picture, '-m', model, '--max-tokens', '0']],
    [2, /number of at least 0/, ['ask', picture, 'What?', '-m', model, '--temperature', 'hot']],
    [2, /Allowed choices/, ['paint', 'x', '-m', model, '--sampler', 'heun']],
    [2, /known are plain, vicuna, vqa, own/, ['ask', picture, 'What?', '-m', model, '--template', 'mine']],
    [
      1,
      /^ERR_IO: .*nowhere\.jinja/,
      ['ask', picture, 'What?', '-m', model, '--template', join(folder, 'nowhere.jinja')],
    ],
    [1, /^ERR_CONFIG: .*template/, ['ask', picture, 'What?', '-m', model, '--template', 'own']],
    [1, /^ERR_CONFIG: .*multiple of 8/, ['paint', 'x', '-m', model, '--width', '60', '-o', join(folder, 'no.png')]],
    [1, /^ERR_VALUE: .*1\.\.1000/, ['paint', 'x', '-m', model, '--steps', '1001', '-o', join(folder, 'no.png')]],
  ]
  for (const [status, says, args] of cases) {
    const run = deem(...args)
    t.is(run.status, status, `${args.join(' ')}: ${run.stderr}`)
    t.regex(run.stderr, says, args.join(' '))
  }
  t.false(existsSync(join(folder, 'no.png')))
})
