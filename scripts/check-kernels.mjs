// Looks into the objects of csrc/cpu/kernels for code that a machine without their instruction set could run: shared inline
// functions (the linker keeps one copy for all) and static initialisers with vector instructions (they run on load).
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const objects = fileURLToPath(new URL('../build-cmake/CMakeFiles', import.meta.url))
const problems = []
let looked = 0

function tool(name, ...args) {
  const { status, stdout } = spawnSync(name, args, { encoding: 'utf8', maxBuffer: 1 << 28 })
  if (status !== 0) throw new Error(`${name} failed on ${args.at(-1)}`)
  return stdout.split('\n')
}

for (const isa of ['avx2', 'avx512', 'avx512bf16']) {
  const folder = join(objects, `deem_kernels_${isa}.dir/csrc/cpu/kernels`)
  if (!existsSync(folder)) continue
  for (const file of readdirSync(folder).filter((f) => f.endsWith('.o'))) {
    looked++
    for (const line of tool('nm', '-C', '--defined-only', join(folder, file)))
      if (/ [WVui] (?!DW\.ref\.)/.test(line)) problems.push(`${isa}/${file}: shared symbol ${line.slice(19)}`)
    // A kernel that this instruction set has no use for leaves nothing to run on load.
    if (!tool('objdump', '-h', join(folder, file)).some((line) => line.includes(' .text.startup '))) continue
    let initialiser = false
    for (const line of tool('objdump', '-d', '--no-show-raw-insn', '--section=.text.startup', join(folder, file))) {
      const name = /^[0-9a-f]+ <(.*)>:$/.exec(line)?.[1]
      if (name) initialiser = name.startsWith('_GLOBAL__sub_I')
      else if (initialiser && /\tv[a-z]|%[yz]mm/.test(line))
        problems.push(`${isa}/${file}: static initialiser uses ${line.trim()}`)
    }
  }
}

for (const p of problems) console.error(p)
if (problems.length > 0) process.exit(1)
console.log(`kernels: nothing of the ${looked} objects can reach a machine that lacks their instructions`)
