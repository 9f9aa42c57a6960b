// Tests on the emulated GPU, where `cmake --preset emu && cmake --build --preset emu` has made it; without it they are skipped by name.
// A backend is looked for at the first use of a device, so importing this is early enough.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import test, { type ExecutionContext } from 'ava'

const plugin = fileURLToPath(new URL('../../build-emu/libdeem_cudaemu.so', import.meta.url))
if (process.env['DEEM_CUDA_PLUGIN'] === undefined && existsSync(plugin)) process.env['DEEM_CUDA_PLUGIN'] = plugin
const there = process.env['DEEM_CUDA_PLUGIN'] !== undefined

export function cudaTest(title: string, run: (t: ExecutionContext) => void | Promise<void>): void {
  if (there) test.serial(title, run)
  else test.skip(`${title} (no build-emu/libdeem_cudaemu.so)`, run)
}
