// Models of the hub, from a server that speaks its API: what is fetched, kept, gone on with, checked and refused.
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import type { ServerResponse } from 'node:http'
import { join } from 'node:path'
import test from 'ava'
import { type Deem, type HubOptions, loadDeem, loadModel } from 'deem'
import { emptyFolder, failure, layout, removeCopies, wholeConfig } from '../_harness/hf-layout.js'
import {
  type Asked,
  type Files,
  folderFiles,
  gitHash,
  HubServer,
  type Misbehaviour,
  sha256,
} from '../_harness/hub-server.js'

for (const name of ['HF_HOME', 'HF_HUB_CACHE', 'HF_ENDPOINT', 'HF_TOKEN', 'HF_HUB_OFFLINE']) delete process.env[name]
let hub: HubServer
let deem: Files
let commit: string
let llamaCommit: string
const weights = 'pytorch_model.bin'

test.before(async () => {
  hub = await HubServer.start()
  const tokenizer = folderFiles(layout('llama'))
  deem = {
    ...folderFiles(layout('deem')),
    'tokenizer.json': tokenizer['tokenizer.json'] as Buffer,
    'README.md': Buffer.from('not needed'),
    'runs/pytorch_model.bin': Buffer.from('not needed'),
  }
  commit = hub.put('org/tiny-deem', 'main', deem)
  llamaCommit = hub.put('org/llama', 'main', {
    ...folderFiles(layout('llama')),
    'pytorch_model.bin': Buffer.from('safetensors are preferred'),
  })
  hub.put('org/sd', 'main', folderFiles(layout('stable_diffusion')))
  hub.put('org/clip', 'v1.0', folderFiles(layout('open_clip')))
})
test.beforeEach(() => hub.forget())
test.after.always(() => {
  hub.stop()
  removeCopies()
})

/** A cache of its own, and the server. */
function fresh(more: HubOptions = {}): { hub: HubOptions & { cacheDir: string } } {
  const cacheDir = emptyFolder()
  return { hub: { endpoint: hub.endpoint, ...more, cacheDir } }
}
const modelIn = (cacheDir: string, name = 'org--tiny-deem') => join(cacheDir, `models--${name}`)
const blobsIn = (cacheDir: string, name?: string) => readdirSync(join(modelIn(cacheDir, name), 'blobs')).sort()
const bodies = () => hub.asked.filter(({ url }) => /^\/[0-9a-f]{64}$/.test(url))
const values = (model: Deem, name: string) => [...model.read(name).toFloat32()]

/** Misbehaves the first `times` times that a body of weights is sent. */
function weightsFail(times: number, how: (asked: Asked, response: ServerResponse) => void): Misbehaviour {
  let left = times
  return (asked, response, part) => {
    if (part !== 'body' || !/^\/[0-9a-f]{64}$/.test(asked.url) || left-- <= 0) return false
    how(asked, response)
    return true
  }
}
const all = () => deem[weights] as Buffer
/** Says it is whole, and breaks off after `bytes`. */
const breaksAfter = (bytes: number) => (_: Asked, response: ServerResponse) => {
  response.writeHead(200, { 'content-length': all().length })
  response.write(all().subarray(0, bytes), () => setTimeout(() => response.destroy(), 20))
}

test.serial('a whole model by its id: what it needs and nothing else, laid out as Python does', async (t) => {
  const told: [number, number][] = []
  const o = fresh({ onProgress: (done, total) => told.push([done, total]) })
  const { model, tokenizer } = await loadDeem('org/tiny-deem', o)
  t.truthy(tokenizer)
  const local = await loadDeem(layout('deem'))
  t.deepEqual(values(model, 'soi_token'), values(local.model, 'soi_token'))

  const root = modelIn(o.hub.cacheDir)
  const snapshot = join(root, 'snapshots', commit)
  t.is(readFileSync(join(root, 'refs/main'), 'utf8'), commit)
  const needed = ['config.json', weights, 'tokenizer.json']
  t.deepEqual(readdirSync(snapshot).sort(), needed)
  t.deepEqual(blobsIn(o.hub.cacheDir), needed.map((n) => (n === weights ? sha256 : gitHash)(deem[n] as Buffer)).sort())
  for (const name of needed) {
    t.deepEqual(readFileSync(join(snapshot, name)), deem[name])
    t.is(join(realpathSync(join(snapshot, name)), '..'), realpathSync(join(root, 'blobs')))
  }
  const total = needed.reduce((sum, name) => sum + (deem[name] as Buffer).length, 0)
  t.true(told.length > 0 && told.every(([done, of]) => of <= total && done <= of))
  t.deepEqual(told.at(-1)?.[0], told.at(-1)?.[1])
})

test.serial('what the cache has is not sent again; without a network the cache alone does', async (t) => {
  const o = fresh()
  await loadDeem('org/tiny-deem', o)
  hub.forget()
  await loadDeem('org/tiny-deem', o)
  await loadDeem(`org/tiny-deem@${commit}`, o)
  t.is(hub.sent, 0)
  t.true(hub.asked.length > 0 && hub.asked.every(({ url }) => url.startsWith('/api/models/org/tiny-deem/')))
  hub.forget()
  await loadDeem('org/tiny-deem', { hub: { ...o.hub, offline: true } })
  t.is(hub.asked.length, 0)
  const nobody = await HubServer.start()
  nobody.stop()
  await loadDeem('org/tiny-deem', { hub: { ...o.hub, endpoint: nobody.endpoint } })
  hub.misbehave = (_, response) => {
    response.writeHead(503, { 'retry-after': '0' }).end()
    return true
  }
  await loadDeem('org/tiny-deem', o)

  for (const [options, says] of [
    [{ ...fresh().hub, offline: true }, /not to be asked/],
    [{ ...fresh().hub, endpoint: nobody.endpoint }, /ECONNREFUSED/],
  ] as const) {
    const error = await failure(loadDeem('org/tiny-deem', { hub: options }))
    t.is(error.code, 'ERR_IO')
    t.regex(error.message, /'org\/tiny-deem'.*'org\/tiny-deem@main'/)
    t.regex(error.message, says)
  }
})

test.serial('a cache that lacks a file says so without a network, and fetches that one with it', async (t) => {
  const o = fresh()
  await loadDeem('org/tiny-deem', o)
  const snapshot = join(modelIn(o.hub.cacheDir), 'snapshots', commit)
  rmSync(realpathSync(join(snapshot, weights)))
  rmSync(join(snapshot, weights))
  const error = await failure(loadDeem('org/tiny-deem', { hub: { ...o.hub, offline: true } }))
  t.is(error.code, 'ERR_IO')
  t.regex(error.message, /not to be asked.*holds no weights/)
  hub.forget()
  await loadDeem('org/tiny-deem', o)
  t.is(hub.sent, all().length)
  // A blob that was cut short behind our back is none.
  writeFileSync(realpathSync(join(snapshot, weights)), 'short')
  await loadDeem('org/tiny-deem', o)
  t.is(statSync(join(snapshot, weights)).size, all().length)
})

test.serial('pieces by their ids, shards by their index, a revision each', async (t) => {
  const o = fresh()
  const config = wholeConfig()
  const { model, tokenizer } = await loadDeem(
    { config, llama: 'org/llama', stableDiffusion: 'org/sd', openClip: 'org/clip@v1.0' },
    o,
  )
  t.truthy(tokenizer)
  const local = await loadDeem({
    config,
    llama: layout('llama'),
    stableDiffusion: layout('stable_diffusion'),
    openClip: layout('open_clip'),
  })
  for (const name of ['mm_decoder.layers.0.mlp.up_proj.weight', 'image_decoder.neg_prompt_embeds'])
    t.deepEqual(values(model, name), values(local.model, name))
  t.false(existsSync(join(modelIn(o.hub.cacheDir, 'org--llama'), 'snapshots', llamaCommit, 'pytorch_model.bin')))
  t.true(existsSync(join(modelIn(o.hub.cacheDir, 'org--clip'), 'refs/v1.0')))
  t.false(hub.asked.some(({ url }) => url.includes('/org/clip/revision/main')))
})

test.serial('a commit, a branch and the option pin the revision', async (t) => {
  const other = { ...deem, 'tokenizer.json': Buffer.from('{"model": {}}') }
  const old = hub.put('org/pinned', 'main', deem)
  const now = hub.put('org/pinned', 'refs/pr/1', other)
  const o = fresh()
  await loadDeem(`org/pinned@${old}`, o)
  t.regex((await failure(loadDeem('org/pinned@refs/pr/1', o))).message, /tokenizer/)
  t.is(readFileSync(join(modelIn(o.hub.cacheDir, 'org--pinned'), 'refs/refs/pr/1'), 'utf8'), now)
  t.false(existsSync(join(modelIn(o.hub.cacheDir, 'org--pinned'), 'refs/main')))
  await failure(loadDeem('org/pinned', { hub: { ...o.hub, revision: 'refs/pr/1' } }))
  await loadDeem('org/pinned@main', { hub: { ...o.hub, revision: 'refs/pr/1' } })
  t.is(readFileSync(join(modelIn(o.hub.cacheDir, 'org--pinned'), 'refs/main'), 'utf8'), old)
})

test.serial(
  'the environment of the Hugging Face libraries is honoured, and the token stays with the hub',
  async (t) => {
    const home = emptyFolder()
    Object.assign(process.env, { HF_ENDPOINT: `${hub.endpoint}/`, HF_HOME: home, HF_TOKEN: 'secret' })
    try {
      using pipeline = await loadModel('org/tiny-deem')
      t.truthy(pipeline)
      t.true(existsSync(modelIn(join(home, 'hub'))))
      const given = (asked: Asked[]) => [...new Set(asked.map(({ authorization }) => authorization))]
      t.deepEqual(given(bodies()), [undefined])
      t.deepEqual(given(hub.asked.filter((asked) => !bodies().includes(asked))), ['Bearer secret'])
      Object.assign(process.env, { HF_HUB_CACHE: join(home, 'elsewhere') })
      await loadDeem('org/tiny-deem', { hub: { token: 'another' } })
      t.true(existsSync(modelIn(join(home, 'elsewhere'))))
      t.is(hub.asked.at(-1)?.authorization ?? 'Bearer another', 'Bearer another')
    } finally {
      for (const name of ['HF_ENDPOINT', 'HF_HOME', 'HF_TOKEN', 'HF_HUB_CACHE']) delete process.env[name]
    }
  },
)

test.serial('a connection that breaks midway is gone on with, in the same call and in the next', async (t) => {
  const size = all().length
  const o = fresh()
  hub.misbehave = weightsFail(2, (asked, response) =>
    asked.range ? response.destroy() : breaksAfter(500_000)(asked, response),
  )
  await loadDeem('org/tiny-deem', o)
  t.deepEqual(
    bodies().map(({ range }) => range),
    [undefined, 'bytes=500000-', 'bytes=500000-'],
  )
  t.is(
    hub.sent - size,
    -500_000 + ['config.json', 'tokenizer.json'].reduce((n, f) => n + (deem[f] as Buffer).length, 0),
  )

  hub.forget()
  const again = fresh()
  hub.misbehave = (asked, response, part) => {
    if (part !== 'body' || !/^\/[0-9a-f]{64}$/.test(asked.url)) return false
    if (asked.range) response.writeHead(400).end()
    else breaksAfter(700_000)(asked, response)
    return true
  }
  const error = await failure(loadDeem('org/tiny-deem', again))
  t.is(error.code, 'ERR_IO')
  t.regex(error.message, /'org\/tiny-deem@main', 'pytorch_model\.bin'.*400/)
  t.false(existsSync(join(modelIn(again.hub.cacheDir), 'snapshots', commit, weights)))
  hub.forget()
  const told: number[] = []
  await loadDeem('org/tiny-deem', { hub: { ...again.hub, onProgress: (done) => told.push(done) } })
  t.deepEqual(
    bodies().map(({ range }) => range),
    ['bytes=700000-'],
  )
  t.true(told.every((done) => done >= 700_000))
  t.true(blobsIn(again.hub.cacheDir).every((name) => /^[0-9a-f]+$/.test(name)))
})

test.serial('servers that cannot go on, or say so and do not', async (t) => {
  const cases: [string, (asked: Asked, response: ServerResponse) => void][] = [
    ['the whole', (_, response) => response.writeHead(200).end(all())],
    ['416', (_, response) => response.writeHead(416).end()],
    [
      'another part',
      (_, response) => {
        response.writeHead(206, { 'content-range': `bytes 0-9/${all().length}` })
        response.end(all().subarray(0, 10))
      },
    ],
    [
      'wrong bytes',
      (_, response) => {
        const rest = Buffer.alloc(all().length - 600_000, 1)
        response.writeHead(206, { 'content-range': `bytes 600000-${all().length - 1}/${all().length}` }).end(rest)
      },
    ],
  ]
  for (const [title, answer] of cases) {
    hub.forget()
    const o = fresh()
    hub.misbehave = weightsFail(2, (asked, response) =>
      asked.range ? answer(asked, response) : breaksAfter(600_000)(asked, response),
    )
    await t.notThrowsAsync(loadDeem('org/tiny-deem', o), title)
    t.true(
      blobsIn(o.hub.cacheDir).every((name) => /^[0-9a-f]+$/.test(name)),
      title,
    )
  }
})

test.serial('bytes that are not those of the checksum are an error and do not stay', async (t) => {
  const changed = Buffer.from(all())
  changed[1000] = (changed[1000] as number) ^ 1
  const o = fresh()
  hub.misbehave = weightsFail(1, (_, response) => response.writeHead(200).end(changed))
  const error = await failure(loadDeem('org/tiny-deem', o))
  t.is(error.code, 'ERR_FORMAT')
  t.regex(
    error.message,
    new RegExp(`'pytorch_model\\.bin'.*SHA-256 is ${sha256(changed)} but must be ${sha256(all())}`),
  )
  t.false(blobsIn(o.hub.cacheDir).some((name) => name.startsWith(sha256(all()))))
  await loadDeem('org/tiny-deem', o)

  const small = fresh()
  hub.misbehave = (asked, response, part) => {
    if (part !== 'file' || !asked.url.endsWith('/config.json')) return false
    response.writeHead(200).end(Buffer.alloc((deem['config.json'] as Buffer).length, 32))
    return true
  }
  const config = await failure(loadDeem('org/tiny-deem', small))
  t.is(config.code, 'ERR_FORMAT')
  t.regex(config.message, /'config\.json'.*git SHA-1/)
  t.deepEqual(blobsIn(small.hub.cacheDir), [])

  hub.misbehave = weightsFail(1, (_, response) => response.writeHead(200).end(Buffer.concat([all(), Buffer.of(1)])))
  t.regex((await failure(loadDeem('org/tiny-deem', fresh()))).message, /more than the \d+ bytes/)
})

test.serial('a partial file of a process that died is taken over, that of a living one is not', async (t) => {
  const o = fresh()
  const blobs = join(modelIn(o.hub.cacheDir), 'blobs')
  mkdirSync(blobs, { recursive: true })
  const left = join(blobs, `${sha256(all())}.dead.deem`)
  writeFileSync(left, all().subarray(0, 300_000))
  const living = join(blobs, `${sha256(all())}.living.deem`)
  writeFileSync(living, 'x')
  utimesSync(left, new Date(0), new Date(0))
  await loadDeem('org/tiny-deem', o)
  t.deepEqual(
    bodies().map(({ range }) => range),
    ['bytes=300000-'],
  )
  t.false(existsSync(left))
  t.is(readFileSync(living, 'utf8'), 'x')
})

test.serial('two at once come to the same files', async (t) => {
  const o = fresh()
  const loaded = await Promise.all([1, 2, 3].map(() => loadDeem('org/tiny-deem', o)))
  for (const { model } of loaded) t.deepEqual(values(model, 'soi_token'), values(loaded[0]?.model as Deem, 'soi_token'))
  t.is(blobsIn(o.hub.cacheDir).length, 3)
  t.deepEqual(readFileSync(join(modelIn(o.hub.cacheDir), 'blobs', sha256(all()))), all())
})

const json = (value: unknown) => (_: Asked, response: ServerResponse) =>
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value))
const status = (code: number) => (_: Asked, response: ServerResponse) => response.writeHead(code).end('{}')
const only = (wanted: string, answer: (asked: Asked, response: ServerResponse) => void): Misbehaviour => {
  return (asked, response, part) => {
    if (part !== wanted) return false
    answer(asked, response)
    return true
  }
}

test.serial('bad answers', async (t) => {
  const cases: [string, string, RegExp, Misbehaviour][] = [
    ['private', 'ERR_IO', /private or does not exist.*401/, only('info', status(401))],
    ['gated', 'ERR_IO', /gated.*403/, only('info', status(403))],
    ['gated file', 'ERR_IO', /'[\w.]+': .*403/, only('file', status(403))],
    ['gone', 'ERR_IO', /does not have it.*404/, only('file', status(404))],
    ['a teapot', 'ERR_IO', /418/, only('tree', status(418))],
    ['no JSON', 'ERR_FORMAT', /makes no sense/, only('info', (_, r) => r.writeHead(200).end('<html>'))],
    ['null', 'ERR_FORMAT', /makes no sense/, only('info', json(null))],
    ['no commit', 'ERR_FORMAT', /names the commit undefined/, only('info', json({}))],
    ['a commit that is a path', 'ERR_FORMAT', /names the commit "\.\.\/\.\."/, only('info', json({ sha: '../..' }))],
    ['no list', 'ERR_FORMAT', /makes no sense/, only('tree', json({ error: 'x' }))],
    ['a list of nothing', 'ERR_FORMAT', /makes no sense/, only('tree', json([null]))],
    ['an empty model', 'ERR_IO', /holds no model/, only('tree', json([]))],
    [
      'an answer without end',
      'ERR_FORMAT',
      /longer than/,
      only('tree', (_, r) => void r.writeHead(200).end(Buffer.alloc(33 << 20, 32))),
    ],
    [
      'the next page elsewhere',
      'ERR_FORMAT',
      /goes on at http:\/\/evil/,
      only('tree', (_, r) => r.writeHead(200, { link: '<http://evil.example/x>; rel="next"' }).end('[]')),
    ],
    [
      'pages without end',
      'ERR_FORMAT',
      /goes on at/,
      only('tree', (a, r) => r.writeHead(200, { link: `<${hub.endpoint}${a.url}>; rel="next"` }).end('[]')),
    ],
  ]
  for (const [title, code, says, misbehave] of cases) {
    hub.forget()
    hub.misbehave = misbehave
    const o = fresh()
    const error = await failure(loadDeem('org/tiny-deem', o))
    t.is(error.code, code, `${title}: ${error.message}`)
    t.regex(error.message, says, title)
    t.true(error.message.includes("'org/tiny-deem@main'"), title)
  }
  hub.forget()
  for (const [source, code, says] of [
    ['org/nothing', 'ERR_IO', /no path that exists.*the hub does not have it/],
    ['org/tiny-deem@gone', 'ERR_IO', /'org\/tiny-deem@gone': the hub has no such revision/],
    ['org/tiny-deem@../x', 'ERR_VALUE', /no branch, tag or commit/],
    ['a/b/c', 'ERR_IO', /no path that exists, no model of the package, and no id of the hub/],
    ['../no-such-model', 'ERR_IO', /no path that exists, no model of the package, and no id of the hub/],
    ['nothing', 'ERR_IO', /no path that exists, no model of the package, and no id of the hub/],
    ['', 'ERR_IO', /no path that exists, no model of the package, and no id of the hub/],
  ] as const) {
    const error = await failure(loadDeem(source, fresh()))
    t.is(error.code, code, error.message)
    t.regex(error.message, says, source)
  }
  for (const options of [{ endpoint: 'ftp://x' }, { cacheDir: 3 }, { tokens: 'x' }, { token: 'a\nb' }]) {
    const error = await failure(loadDeem('org/tiny-deem', { hub: options as never }))
    t.is(error.code, 'ERR_CONFIG', error.message)
    t.regex(error.message, new RegExp(Object.keys(options)[0] as string))
  }
})

test.serial('names and descriptions from the server lead nowhere else', async (t) => {
  const evil = { 'model.safetensors.index.json': Buffer.from(JSON.stringify({ weight_map: { x: '../../evil.bin' } })) }
  const { [weights]: _, ...rest } = deem
  hub.put('org/evil', 'main', { ...rest, ...evil })
  t.regex((await failure(loadDeem('org/evil', fresh()))).message, /no shard's name/)
  const lost = {
    'model.safetensors.index.json': Buffer.from(JSON.stringify({ weight_map: { x: 'lost.safetensors' } })),
  }
  hub.put('org/lost', 'main', { ...rest, ...lost })
  t.regex((await failure(loadDeem('org/lost', fresh()))).message, /lacks 'lost\.safetensors'/)
  hub.put('org/config', 'main', { [weights]: all() })
  t.regex((await failure(loadDeem('org/config', fresh()))).message, /holds no model/)
  hub.put('org/names', 'main', {
    ...deem,
    '../../../../evil.json': Buffer.from('x'),
    'tokenizer/../../x': Buffer.from('x'),
  })
  const o = fresh()
  await loadDeem('org/names', o)
  t.deepEqual(readdirSync(o.hub.cacheDir), ['models--org--names'])

  const claims: [object, RegExp][] = [
    [{ lfs: { oid: '../../../evil', size: all().length } }, /description of 'pytorch_model\.bin'/],
    [{ lfs: { oid: 'a'.repeat(64), size: -1 } }, /description of/],
    [{ lfs: undefined, oid: '/etc/passwd' }, /description of/],
    [{ lfs: undefined, xetHash: 'a'.repeat(64) }, /description of/],
    [{ lfs: { oid: 'a'.repeat(64), size: 1e300 } }, /description of/],
  ]
  for (const [claim, says] of claims) {
    hub.claims = { [weights]: claim }
    const error = await failure(loadDeem('org/tiny-deem', fresh()))
    t.is(error.code, 'ERR_FORMAT')
    t.regex(error.message, says)
  }
  hub.claims = { 'config.json': { size: 1e9 } }
  t.regex((await failure(loadDeem('org/tiny-deem', fresh()))).message, /'config\.json' has 1000000000 bytes/)
})

test.serial('other models than what was asked for are refused before their weights come', async (t) => {
  for (const [id, says] of [
    ['org/llama', /is a LLaMA.*\{ llama: folder \}/],
    ['org/sd', /is a Stable Diffusion/],
    ['org/clip@v1.0', /open_clip/],
  ] as const) {
    const error = await failure(loadDeem(id, fresh()))
    t.is(error.code, 'ERR_CONFIG')
    t.regex(error.message, says)
  }
  t.is(bodies().length, 0)
})

test.serial('an abort stops within 100 ms, wherever it comes; the next call goes on', async (t) => {
  const o = fresh()
  const silent = (wanted: string): Misbehaviour => only(wanted, () => undefined)
  /** Sends up to byte 400,000 and then nothing more. */
  const trickles = () =>
    weightsFail(1, ({ range }, response) => {
      if (range) return
      response.writeHead(200, { 'content-length': all().length })
      response.write(all().subarray(0, 400_000))
    })
  const failing: Misbehaviour = (_, response) => {
    response.writeHead(503, { 'retry-after': '20' }).end()
    return true
  }
  for (const misbehaves of [
    () => silent('info'),
    () => silent('tree'),
    () => silent('file'),
    () => silent('body'),
    trickles,
    () => failing,
  ]) {
    // The quickest of three, because other programs may hold this one up.
    const took: number[] = []
    for (let i = 0; i < 3; i++) {
      hub.forget()
      hub.misbehave = misbehaves()
      const stop = new AbortController()
      const reason = new Error('enough')
      const running = loadDeem('org/tiny-deem', { ...o, signal: stop.signal }).catch((e: unknown) => e)
      await new Promise((done) => setTimeout(done, 200))
      const start = performance.now()
      stop.abort(reason)
      t.is(await running, reason)
      took.push(performance.now() - start)
    }
    t.true(Math.min(...took) < 100, `${took} ms`)
  }
  hub.forget()
  await loadDeem('org/tiny-deem', o)
  t.deepEqual(
    bodies().map(({ range }) => range),
    ['bytes=400000-'],
  )
  const stop = AbortSignal.abort(new Error('before'))
  t.is((await failure(loadDeem('org/tiny-deem', { ...o, signal: stop }))).message.includes('before'), true)
})

test.serial('an abort also ends what fetch leaves pending', async (t) => {
  const fetched = globalThis.fetch
  for (const pending of [
    () => new Promise<Response>(() => undefined),
    async () => new Response(new ReadableStream({ pull: () => new Promise(() => undefined) })),
  ]) {
    const called = new Promise<void>((done) => {
      globalThis.fetch = () => {
        done()
        return pending()
      }
    })
    try {
      const stop = new AbortController()
      const reason = new Error('enough')
      const running = loadDeem('org/tiny-deem', { ...fresh(), signal: stop.signal }).catch((e: unknown) => e)
      await called
      await new Promise((done) => setTimeout(done, 50))
      stop.abort(reason)
      t.is(await running, reason)
    } finally {
      globalThis.fetch = fetched
    }
  }
})

test.serial('what onProgress throws ends the call', async (t) => {
  const reason = new Error('no more')
  let told = 0
  const onProgress = () => {
    told++
    throw reason
  }
  t.is(await loadDeem('org/tiny-deem', fresh({ onProgress })).catch((e: unknown) => e), reason)
  t.is(told, 1)
})
