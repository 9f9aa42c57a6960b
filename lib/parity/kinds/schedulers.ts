/** `schedulers`: plans, tables and full traces of every sampler under a linear model; noising of training. */
import { Sampler, type SamplerName } from '../../models/sampler.js'
import { ops } from '../../ops.js'
import { type Tensor, tensor } from '../../tensor.js'
import { type Case, type Json, need } from '../case.js'
import { type Comparison, compare, type Rule } from '../compare.js'

interface Run {
  kind: SamplerName
  prediction_type: string
  steps: number
}

export async function runSchedulers(c: Case): Promise<Comparison[]> {
  const { scheduler_config: scheduler, runs } = c.config as { scheduler_config: Json; runs: Run[] }
  const results: Comparison[] = []
  const put = (name: string, got: Tensor | Float32Array, rule: Rule) => {
    const want = c.outputs[name]
    if (want) results.push(compare(name, got, want, rule, c.dtype))
  }
  const build = (sampler: SamplerName, steps: number, prediction_type = 'epsilon') =>
    Sampler.build({ scheduler: { ...scheduler, prediction_type }, sampler, steps })

  for (const kind of new Set(runs.map((r) => r.kind))) {
    for (const name of Object.keys(c.outputs).filter((n) => n.startsWith(`${kind}.timesteps.`))) {
      using s = await build(kind, Number(name.split('.').at(-1)))
      put(name, (await s.plan()).timesteps, need(c.outputs, name).dtype === 'i64' ? 'exact' : 'op')
    }
    using s = await build(kind, 1)
    const tables = await s.call('plan', {}, {}, { grad: false })
    for (const name of ['betas', 'alphas_cumprod']) put(`${kind}.${name}`, need(tables, name), 'op')
  }

  for (const run of runs) {
    const prefix = `${run.kind}.${run.prediction_type}.`
    using s = await build(run.kind, run.steps, run.prediction_type)
    const { timesteps, sigmas, initialDeviation } = await s.plan()
    put(`${prefix}timesteps`, timesteps, need(c.outputs, `${prefix}timesteps`).dtype === 'i64' ? 'exact' : 'op')
    put(`${prefix}sigmas`, sigmas, 'op')
    put(`${prefix}init_noise_sigma`, Float32Array.of(initialDeviation), 'op')
    const seen: Record<'model_in' | 'model_out' | 'latents', Tensor[]> = { model_in: [], model_out: [], latents: [] }
    let x = ops.mulScalar(need(c.inputs, 'latent'), initialDeviation)
    const noise = c.inputs[`${prefix}noise`]
    for (let i = 0; i < timesteps.length; i++) {
      const input = await s.scaleInput(x, i)
      const told = ops.mulScalar(need(c.inputs, 'vector'), (timesteps[i] as number) / 1000)
      const y = ops.add(ops.linear(input, need(c.inputs, 'matrix'), null, 'none'), told)
      x = await s.step(x, y, i, noise && ops.reshape(ops.slice(noise, 0, i, i + 1), x.shape))
      seen.model_in.push(input)
      seen.model_out.push(y)
      seen.latents.push(x)
    }
    for (const [name, list] of Object.entries(seen))
      put(prefix + name, ops.reshape(ops.cat(list, 0), [list.length, ...x.shape]), 'sampled')
  }

  const x0 = need(c.inputs, 'noising.x0')
  using s = await build('ddim', 1)
  const noised = await s.call(
    'add_noise',
    { latent: x0, noise: need(c.inputs, 'noising.noise'), t: need(c.inputs, 'noising.t') },
    {},
    { grad: false },
  )
  put('noising.noisy', need(noised, 'noisy'), 'op')
  const all = tensor(
    BigInt64Array.from({ length: 1000 }, (_, t) => BigInt(t)),
    [1000],
  )
  put('sniffer_timestep_map', need(await s.call('consistency_timesteps', { t: all }), 't'), 'exact')
  put('noising.velocity', need(noised, 'velocity'), 'op')
  return results
}
