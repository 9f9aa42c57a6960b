/** Puts stored tensors into a model: matched by name and shape first, then moved file by file. */
import { DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import type { Module, ParameterInfo } from '../module.js'
import { ops } from '../ops.js'
import { Scope } from '../scope.js'
import type { CallOptions } from '../task.js'
import type { Tensor } from '../tensor.js'
import type { Stored, WeightFile } from './folder.js'
import { mayBeConvolution, type Naming } from './names.js'

/** What did not fit, by name. */
export interface WeightsReport {
  /** Parameters that the files should hold and do not. */
  missing: string[]
  /** Stored tensors that the model has no place for. */
  unexpected: string[]
  /** Parameters whose stored value has another shape or is not floating. */
  misshapen: { name: string; shape: number[]; stored: number[]; dtype: string }[]
}

/** Files whose tensors are named by one rule. */
export interface WeightSource {
  files: readonly WeightFile[]
  naming: Naming
  /** Rows of the original vocabulary, where the files hold those only. */
  vocabulary?: number
}

interface Move {
  stored: string
  target: ParameterInfo
  /** Shape to read the stored values in, where it differs from the stored one. */
  reshape?: number[]
}
interface FileMoves {
  path: string
  moves: Move[]
  /** Second values of parameters: of shared tensors, which are stored under both names. */
  repeats: Move[]
}
export interface Plan {
  files: FileMoves[]
  /** Parameters that keep a starting value, or rows of one. */
  fresh: string[]
  report: WeightsReport
}

/** What of the sources goes where. Nothing is moved. */
export function planAssignment(model: Module, sources: readonly WeightSource[]): Plan {
  const parameters = new Map(model.parameters().map((p) => [p.name, p]))
  // Floats for a weight in few bits come under its own name.
  const codes = new Map([...parameters.values()].flatMap((p) => (p.quantized ? [[p.quantized.name, p] as const] : [])))
  const aliases = model.aliases()
  const report: WeightsReport = { missing: [], unexpected: [], misshapen: [] }
  const filled = new Set<string>()
  const whole = new Set<string>()
  const files: FileMoves[] = []
  for (const source of sources)
    for (const { path, tensors } of source.files) {
      const file: FileMoves = { path, moves: [], repeats: [] }
      files.push(file)
      for (const tensor of tensors) {
        const targets = source.naming.targets(tensor.name)
        if (!targets) report.unexpected.push(tensor.name)
        for (const name of targets ?? []) {
          const own = aliases[name] ?? name
          const few = codes.get(own)
          const target = few?.quantized ? { ...few, ...few.quantized, dtype: 'f32' as const } : parameters.get(own)
          if (!target) {
            report.unexpected.push(tensor.name)
            continue
          }
          const shape = wantedShape(target, source)
          const move = moveOf(tensor, target, shape)
          if (!move) report.misshapen.push({ name, shape, stored: tensor.shape, dtype: tensor.dtype })
          else (filled.has(few?.name ?? own) ? file.repeats : file.moves).push(move)
          if (move && shape[0] === target.shape[0]) whole.add(few?.name ?? own)
          filled.add(few?.name ?? own)
        }
      }
    }
  for (const name of parameters.keys())
    if (!filled.has(name) && sources.some((s) => s.naming.covers(name))) report.missing.push(name)
  return { files, fresh: [...parameters.keys()].filter((name) => !whole.has(name)), report }
}

/** Shape in which a parameter is stored. */
function wantedShape({ name, shape }: ParameterInfo, { naming, vocabulary }: WeightSource): number[] {
  return vocabulary !== undefined && naming.leading?.(name) ? [vocabulary, ...shape.slice(1)] : shape
}

function moveOf(tensor: Stored, target: ParameterInfo, want: readonly number[]): Move | undefined {
  if (!(target.dtype === 'u8' ? ['u8'] : ['f32', 'f16', 'bf16']).includes(tensor.dtype)) return undefined
  const move = { stored: tensor.name, target }
  if (`${tensor.shape}` === `${want}`) return move
  return mayBeConvolution(target.name) && `${tensor.shape}` === `${[...want, 1, 1]}`
    ? { ...move, reshape: [...want] }
    : undefined
}

export function isClean({ missing, unexpected, misshapen }: WeightsReport): boolean {
  return missing.length + unexpected.length + misshapen.length === 0
}

const mostNames = 20

/** ERR_WEIGHTS with all that is wrong, at most 20 names of each kind. */
export function weightsError(where: string, report: WeightsReport): DeemError {
  const listed = (title: string, names: string[]) =>
    names.length === 0
      ? []
      : [`${names.length} ${title}: ${names.slice(0, mostNames).join(', ')}${names.length > mostNames ? ', ...' : ''}`]
  const parts = [
    ...listed('missing', report.missing),
    ...listed('unexpected', report.unexpected),
    ...listed(
      'misshapen',
      report.misshapen.map(({ name, shape, stored, dtype }) => `${name} needs [${shape}] but is ${dtype} [${stored}]`),
    ),
  ]
  return new DeemError('ERR_WEIGHTS', `${where} does not fit the model; ${parts.join('; ')}`)
}

/**
 * Moves the values, one file after another. Progress counts tensors. Throws ERR_WEIGHTS where a parameter is stored twice with
 * different values; the model is then partly filled.
 */
export async function assignPlan(model: Module, plan: Plan, { signal, onProgress }: CallOptions = {}): Promise<void> {
  const total = plan.files.reduce((sum, { moves }) => sum + moves.length, 0)
  let done = 0
  for (const { path, moves, repeats } of plan.files) {
    signal?.throwIfAborted()
    if (moves.length + repeats.length === 0) continue
    using scope = new Scope()
    const { tensors } = await mapTensors(path, signal && { signal })
    scope.keep(tensors)
    const value = ({ stored, reshape }: Move): Tensor => {
      const t = tensors[stored]
      if (!t) throw new DeemError('ERR_IO', `'${path}' changed while it was read: '${stored}' is gone`)
      return reshape ? scope.keep(ops.reshape(t, reshape)) : t
    }
    const before = done
    await model.assignAll(Object.fromEntries(moves.map((m) => [m.target.name, value(m)])), {
      leading: true,
      ...(signal && { signal }),
      ...(onProgress && { onProgress: (n: number) => onProgress(before + n, total) }),
    })
    done += moves.length
    for (const m of repeats) compareRepeat(model, m, value(m), path)
    onProgress?.(done, total)
  }
}

function compareRepeat(model: Module, { stored, target }: Move, value: Tensor, path: string): void {
  using held = model.read(target.name)
  using again = ops.cast(value, target.dtype)
  const [a, b] = [held.read(), again.read()]
  if (Buffer.compare(bytes(a), bytes(b)) !== 0)
    throw new DeemError(
      'ERR_WEIGHTS',
      `'${path}': '${stored}' and '${target.name}' are one tensor but their values differ`,
    )
}

function bytes(a: ArrayBufferView): Uint8Array {
  return new Uint8Array(a.buffer, a.byteOffset, a.byteLength)
}
