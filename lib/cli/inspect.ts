/** `deem inspect FILE`: what a weight file holds. */
import { mapTensors } from '../files.js'
import { isTorchFile, readTorchLayout } from '../weights/torch-zip.js'

export interface Inspected {
  file: string
  tensors: { name: string; dtype: string; shape: readonly number[]; bytes: number }[]
  metadata: Record<string, string>
}

const width: Record<string, number> = { f64: 8, i64: 8, f32: 4, i32: 4, bf16: 2, f16: 2, i16: 2, u8: 1, i8: 1 }

/** Reads the directory of a file; no tensor is loaded. */
export async function inspect(file: string): Promise<Inspected> {
  const sized = (t: { name: string; dtype: string; shape: readonly number[] }) => ({
    name: t.name,
    dtype: t.dtype,
    shape: t.shape,
    bytes: t.shape.reduce((a, n) => a * n, width[t.dtype] ?? 0),
  })
  if (isTorchFile(file)) return { file, tensors: (await readTorchLayout(file)).map(sized), metadata: {} }
  const { tensors, metadata } = await mapTensors(file)
  const list = Object.entries(tensors).map(([name, t]) => sized({ name, dtype: t.dtype, shape: t.shape }))
  for (const t of Object.values(tensors)) t.dispose()
  return { file, tensors: list, metadata }
}

export function inspectedText({ tensors, metadata }: Inspected): string {
  const longest = Math.max(0, ...tensors.map((t) => t.name.length))
  const lines = tensors.map((t) => `${t.name.padEnd(longest)}  ${t.dtype.padEnd(4)}  [${t.shape.join(', ')}]`)
  const byType = new Map<string, number>()
  for (const t of tensors) byType.set(t.dtype, (byType.get(t.dtype) ?? 0) + t.bytes)
  const parameters = tensors.reduce((sum, t) => sum + t.shape.reduce((a, n) => a * n, 1), 0)
  const sizes = [...byType].map(([dtype, bytes]) => `${dtype} ${megabytes(bytes)}`).join(', ')
  const notes = Object.entries(metadata).map(([key, value]) => `${key}: ${value}`)
  return [...lines, ...notes, `${tensors.length} tensors, ${parameters} numbers, ${sizes || 'no bytes'}`].join('\n')
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}
