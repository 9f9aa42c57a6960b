// Samplers beside the stored traces (parity): with a denoiser that knows the picture all of them arrive at it, and mistakes are errors.
import test from 'ava'
import { ops, Sampler, type SamplerConfig, type SamplerName, type Tensor } from 'deem'
import { normals } from '../_harness/model.js'

const scheduler = {
  num_train_timesteps: 1000,
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: 'scaled_linear',
  prediction_type: 'epsilon',
  steps_offset: 1,
  set_alpha_to_one: false,
}
const names: SamplerName[] = ['ddim', 'ddpm', 'pndm', 'dpmpp', 'euler', 'euler_ancestral']
const byLevels = (name: SamplerName) => name === 'dpmpp' || name.startsWith('euler')

/** x = signal * clean + noise * eps as the denoiser sees it at one evaluation. */
async function levels(s: Sampler): Promise<[signal: number, noise: number][]> {
  const { timesteps, sigmas } = await s.plan()
  const tables = await s.call('plan', {}, {}, { grad: false })
  const alphas = (tables['alphas_cumprod'] as Tensor).toFloat32()
  return Array.from(timesteps, (t, i) => {
    if (sigmas.length > 0)
      return [1 / Math.hypot(sigmas[i] as number, 1), (sigmas[i] as number) / Math.hypot(sigmas[i] as number, 1)]
    const a = alphas[t] as number
    return [Math.sqrt(a), Math.sqrt(1 - a)]
  })
}

/** Runs a sampler with a denoiser that knows the picture; the largest distance from it at the end. */
async function distance(config: SamplerConfig, kind: string): Promise<number> {
  using s = await Sampler.build({ ...config, scheduler: { ...scheduler, prediction_type: kind } })
  const clean = normals([2, 3, 4], 1)
  const { initialDeviation } = await s.plan()
  let x = ops.mulScalar(normals([2, 3, 4], 2), initialDeviation)
  for (const [i, [signal, noise]] of (await levels(s)).entries()) {
    const seen = await s.scaleInput(x, i)
    const eps = ops.mulScalar(ops.sub(seen, ops.mulScalar(clean, signal)), 1 / noise)
    const v = ops.sub(ops.mulScalar(eps, signal), ops.mulScalar(clean, noise))
    x = await s.step(x, kind === 'epsilon' ? eps : kind === 'sample' ? clean : v, i, normals([2, 3, 4], 10 + i))
  }
  const [a, b] = [x.toFloat32(), clean.toFloat32()]
  return Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))))
}

for (const sampler of names)
  test(`${sampler} arrives at the picture the denoiser knows`, async (t) => {
    // One step of ddim and pndm starts at the schedule's end, where noise is no start.
    for (const kind of ['epsilon', 'v_prediction', 'sample'])
      for (const karras of byLevels(sampler) ? [false, true] : [false])
        for (const steps of sampler === 'ddim' || sampler === 'pndm' ? [2, 12, 40] : [1, 2, 12, 40]) {
          // Those that end on the schedule's first step leave its noise: sqrt(1 - 0.99915) times 3 deviations. PNDM's first
          // steps are of low order, so it needs some.
          const limit = byLevels(sampler)
            ? 2e-4
            : sampler === 'pndm'
              ? steps < 12
                ? 8
                : 0.3
              : sampler === 'ddpm'
                ? 2e-4
                : 0.15
          const d = await distance({ scheduler, sampler, steps, karras }, kind)
          t.true(d <= limit, `${kind} ${steps} ${karras ? 'karras ' : ''}: ${d}`)
        }
  })

test('ddim with an eta of 1 adds noise at every step and still arrives', async (t) => {
  t.true((await distance({ scheduler, steps: 30, eta: 1 }, 'epsilon')) <= 0.15)
})

test('a run can start in the middle, and a second run knows nothing of the first', async (t) => {
  for (const sampler of names) {
    using s = await Sampler.build({ scheduler, sampler, steps: 6 })
    const x = normals([1, 4], 1)
    const run = async (from: number) => {
      await s.start(from)
      let y = x
      for (let i = from; i < 6; i++) y = await s.step(y, ops.mulScalar(y, 0.3), i, normals([1, 4], i))
      return [...y.toFloat32()]
    }
    const first = await run(2)
    await run(0)
    t.deepEqual(await run(2), first, sampler)
  }
})

test('mistakes', async (t) => {
  const build = (config: Partial<SamplerConfig>) => Sampler.build({ scheduler, ...config })
  await t.throwsAsync(build({ sampler: 'heun' as SamplerName }), { code: 'ERR_CONFIG', message: /heun.*ddim/ })
  await t.throwsAsync(build({ sampler: 'ddim', karras: true }), { code: 'ERR_CONFIG', message: /karras/ })
  await t.throwsAsync(build({ sampler: 'euler', eta: 1 }), { code: 'ERR_CONFIG', message: /eta/ })
  await t.throwsAsync(build({ eta: 2 }), { code: 'ERR_CONFIG', message: /0..1/ })
  for (const steps of [0, -1, 1.5]) await t.throwsAsync(build({ steps }), { code: 'ERR_CONFIG' })
  await t.throwsAsync(build({ steps: 1001 }), { code: 'ERR_VALUE', message: /1..1000/ })
  await t.throwsAsync(build({ colour: 1 } as object), { code: 'ERR_CONFIG', message: /colour/ })

  using s = await build({ sampler: 'ddpm', steps: 3 })
  const x = normals([2, 2], 1)
  await t.throwsAsync(s.step(x, x, 1, x), { code: 'ERR_VALUE', message: /0 is next/ })
  await t.throwsAsync(s.start(3), { code: 'ERR_INDEX' })
  await t.throwsAsync(s.scaleInput(x, -1), { code: 'ERR_INDEX' })
  await t.throwsAsync(s.step(x, normals([2, 3], 1), 0, x), { code: 'ERR_SHAPE' })
  await t.throwsAsync(s.step(x, x, 0), { code: 'ERR_VALUE', message: /noise/ })
  await t.throwsAsync(s.step(x, x, 0, normals([2, 3], 1)), { code: 'ERR_SHAPE', message: /noise/ })
  t.deepEqual((await s.step(x, x, 0, x)).shape, [2, 2], 'and the right call still goes')
})
