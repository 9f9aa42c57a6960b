/** The common shape of a case: a forward pass with named outputs, then gradients of named leaves. */
import { DeemError } from '../errors.js'
import { ops } from '../ops.js'
import { backward, type Tensor } from '../tensor.js'
import { need, type Tensors } from './case.js'
import { type Comparison, type ComputeType, compare, type Rule } from './compare.js'

export interface Program {
  /** Outputs under their stored names and layouts. */
  forward: () => Promise<Tensors> | Tensors
  /** The gradient of what a stored gradient's name says, in the stored layout; null if there is none. */
  gradient?: (name: string) => Tensor | null
  /** Called before each forward pass. */
  reset?: () => void
  /** How outputs are judged; default the rule for all. */
  rule: Rule | ((output: string) => Rule)
  gradientRule: Rule
}

export interface Timing {
  forward: number[]
  backward: number[]
}

/** Runs a program, compares everything stored, times it if asked. A stored tensor that nobody computes is a failure. */
export async function check(
  program: Program,
  stored: { inputs: Tensors; outputs: Tensors; grads: Tensors },
  dtype: ComputeType,
  prefix: string,
  repeat: number,
  timing: Timing,
): Promise<Comparison[]> {
  const results: Comparison[] = []
  for (let i = 0; i < Math.max(1, repeat); i++) {
    program.reset?.()
    const start = performance.now()
    const outputs = await program.forward()
    timing.forward.push(performance.now() - start)
    const first = i === 0
    if (first)
      for (const [name, want] of Object.entries(stored.outputs)) {
        const got = outputs[name]
        const rule = typeof program.rule === 'function' ? program.rule(name) : program.rule
        results.push(got ? compare(prefix + name, got, want, rule, dtype) : absent(prefix + name, false))
      }
    if (Object.keys(stored.grads).length === 0) continue
    const roots = Object.entries(outputs).filter(([name, y]) => stored.inputs[`ct.${name}`] && y.tracked)
    if (roots.length === 0)
      throw new DeemError('ERR_FORMAT', 'the case stores gradients but no cotangent fits an output')
    const seeds = roots.map(([name, y]) => {
      const ct = need(stored.inputs, `ct.${name}`)
      return ct.dtype === y.dtype ? ct : ops.cast(ct, y.dtype)
    })
    const begin = performance.now()
    await backward(
      roots.map(([, y]) => y),
      seeds,
    )
    timing.backward.push(performance.now() - begin)
    if (first)
      for (const [name, want] of Object.entries(stored.grads)) {
        const got = program.gradient?.(name)
        results.push(compareGradient(prefix + name, got ?? null, want, program.gradientRule, dtype))
      }
  }
  return results
}

/** No gradient at all is a gradient of zeros: of parameters that are stored and take no part. */
export function compareGradient(
  name: string,
  got: Tensor | null,
  want: Tensor,
  rule: Rule,
  dtype: ComputeType,
): Comparison {
  return compare(name, got ?? new Float32Array(want.size), want, rule, dtype)
}

export function absent(name: string, gradient: boolean): Comparison {
  return {
    name,
    gradient,
    maxAbs: Number.NaN,
    maxRel: Number.NaN,
    error: Number.NaN,
    ok: false,
    allowed: 'it was not computed',
  }
}
