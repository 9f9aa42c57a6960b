// The UNet with MMFSNet at sizes it was not trained for, odd ones among them, against PyTorch (test/python/unet_sizes.py).
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { ops, readTensors, type Tensor, tidy, Unet } from 'deem'

const here = (path: string) => fileURLToPath(new URL(`../../test/${path}`, import.meta.url))
const folder = here('fixtures/modules/unet/')
const { note: _note, ...config } = JSON.parse(readFileSync(`${folder}config.json`, 'utf8')) as Record<string, unknown>

async function stored() {
  const model = await Unet.build(config)
  await model.load(`${folder}weights.safetensors`)
  const { tensors } = await readTensors(`${folder}inputs.safetensors`)
  const get = (name: string) => tensors[name] as Tensor
  const told = {
    timesteps: get('timesteps'),
    context: get('text'),
    image_mask: get('mask'),
    ...Object.fromEntries([0, 1, 2, 3].map((i) => [`map.${i}`, ops.permute(get(`map${i}`), [0, 1, 3, 4, 2])])),
  }
  return { model, told }
}

test('every size gives what the reference gives', async (t) => {
  const { model, told } = await stored()
  const { tensors } = await readTensors(here('models/unet-sizes.safetensors'))
  const sizes = Object.keys(tensors).flatMap((name) => (name.endsWith('.sample') ? [name.slice(0, -7)] : []))
  t.is(sizes.length, 7)
  for (const size of sizes) {
    const sample = tidy(() => ops.contiguous(ops.permute(tensors[`${size}.sample`] as Tensor, [0, 2, 3, 1])))
    const y = await model.forward({ ...told, sample }, { grad: false })
    const got = tidy(() => ops.contiguous(ops.permute(y, [0, 3, 1, 2]))).toFloat32()
    const want = (tensors[`${size}.with_mmfs`] as Tensor).toFloat32()
    const off = got.reduce((worst, v, i) => Math.max(worst, Math.abs(v - (want[i] as number))), 0)
    t.true(off < 1e-5, `${size}: ${off}`)
  }
})
