// What a device records and replays, on an emulated GPU (_harness/emulated.ts): the same bits as without.
import type { ExecutionContext } from 'ava'
import { PictureSession, type SamplerName, setDefaultDevice, TextSession } from 'deem'
import { cudaTest } from '../_harness/emulated.js'
import { whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

function cuda(title: string, run: (t: ExecutionContext) => Promise<void>): void {
  cudaTest(title, async (t) => {
    setDefaultDevice('cuda')
    try {
      await run(t)
    } finally {
      setDefaultDevice('cpu')
      delete process.env['DEEM_GRAPHS']
    }
  })
}

/** What f gives without graphs, then with them. */
async function bothWays<T>(f: () => Promise<T>): Promise<[T, T]> {
  process.env['DEEM_GRAPHS'] = '0'
  const plain = await f()
  delete process.env['DEEM_GRAPHS']
  return [plain, await f()]
}

cuda(
  'steps of decoding, with pictures in sight, beyond the room first asked for, after one is taken back',
  async (t) => {
    const { model, inputs } = await nano()
    const prompt = prompts(inputs)
    const [plain, replayed] = await bothWays(async () => {
      using session = await TextSession.open(model, prompt, { reserve: 6 })
      const rows = prompt.text_ids.shape[0] as number
      const out: Float32Array[] = []
      const feed = async (id: number) => out.push(await session.logits(Array<number>(rows).fill(id)))
      for (let id = 10; id < 20; id++) await feed(id)
      await session.truncate((await session.length()) - 3)
      for (let id = 30; id < 34; id++) await feed(id)
      return out
    })
    t.deepEqual(replayed, plain)
    model.dispose()
  },
)

cuda('passes of the denoiser by every sampler', async (t) => {
  const { model, inputs } = await nano()
  const x = { ...prompts(inputs), which: whole([1, 3], [2]) }
  for (const sampler of ['ddim', 'pndm', 'euler_ancestral'] satisfies SamplerName[])
    for (const guidance of [1, 3]) {
      const [plain, replayed] = await bothWays(async () => {
        using session = await PictureSession.open(model, 'picture', x, { sampler, steps: 4, guidance, seed: [5, 8] })
        using latent = await session.advance()
        return latent.toFloat32()
      })
      t.deepEqual(replayed, plain, `${sampler}, guidance ${guidance}`)
    }
  model.dispose()
})
