// Every example runs on the model that comes with the package, and says what it should.
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import test from 'ava'

const root = fileURLToPath(new URL('..', import.meta.url))
const names = readdirSync(join(root, 'examples'))
  .filter((name) => name.endsWith('.ts'))
  .map((name) => name.slice(0, -3))
const compiled = (name: string) => join(root, '.example-build', `${name}.js`)
const picture = join(root, 'examples/pictures/fox.png')

function run(name: string, ...args: string[]): string {
  const { stdout, stderr, status } = spawnSync(process.execPath, [compiled(name), ...args], {
    cwd: root,
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`${name} ended with ${status}: ${stderr}`)
  return stdout
}

function withFolder(use: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), 'deem-examples-'))
  try {
    use(folder)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** One check an example; a new one has to add its own. */
const checks: Record<string, (t: { regex: (s: string, r: RegExp) => void; true: (v: boolean) => void }) => void> = {
  '01-ask': (t) =>
    t.regex(run('01-ask'), /^is there a fox\? yes.*\none of yes, no: yes\nyes \d+\.\d %\nno {2}\d+\.\d %\n$/),
  '02-stream': (t) => t.regex(run('02-stream'), /^a blue background, .*\n$/),
  '03-paint': (t) =>
    withFolder((folder) => {
      run('03-paint', 'a blue background, an apple in the top left.', folder)
      for (const file of ['step-5.png', 'painting.png', 'variation.png', 'repainted.png'])
        t.true(existsSync(join(folder, file)))
    }),
  '04-interleave': (t) =>
    withFolder((folder) => {
      t.regex(run('04-interleave', 'a red background, a cat in the top right.', folder), /\n[12] pictures\n$/)
      t.true(existsSync(join(folder, 'story-1.png')))
    }),
  '05-region': (t) => t.regex(run('05-region'), /^everywhere: yes\nleft half: (yes|no)\nright half: (yes|no)\n/),
}

for (const [name, check] of Object.entries(checks)) test(name, (t) => check(t))

test('06-embed', async (t) => {
  const child = spawn(process.execPath, [compiled('06-embed'), '0'], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    const [url] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
    const ask = async (body: Buffer) => {
      const response = await fetch(`${url}?question=is+there+a+fox?`, { method: 'POST', body })
      return { status: response.status, ...((await response.json()) as { answer?: string; error?: string }) }
    }
    t.like(await ask(readFileSync(picture)), { status: 200, answer: 'yes' })
    const broken = await ask(Buffer.from('no picture'))
    t.is(broken.status, 400)
    t.regex(broken.error ?? '', /picture|image/i)
  } finally {
    child.kill()
  }
})

test('every example is short and checked', (t) => {
  t.deepEqual(
    names.filter((name) => !(name in checks) && name !== '06-embed'),
    [],
  )
  for (const name of names) {
    const lines = readFileSync(join(root, 'examples', `${name}.ts`), 'utf8')
      .trimEnd()
      .split('\n').length
    t.true(lines < 60, `${name} has ${lines} lines`)
  }
})
