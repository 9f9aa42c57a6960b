/** `deem doctor`: what this machine offers and what is used of it. */
import { freemem, totalmem } from 'node:os'
import { addonPath } from '../native.js'
import { devices, isa, memory, threads } from '../system.js'
import { megabytes } from './inspect.js'

export interface Diagnosis {
  node: string
  platform: string
  addon: string
  instructions: string
  threads: number
  memory: { total: number; free: number; limit: number }
  devices: { name: string; usable: boolean; why: string }[]
}

export function diagnose(): Diagnosis {
  return {
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    addon: addonPath,
    instructions: isa(),
    threads: threads(),
    memory: { total: totalmem(), free: freemem(), limit: memory({ device: 'cpu' }).limit },
    devices: devices().map(({ device, usable, why, name, capability, totalBytes }) => ({
      name: device,
      usable,
      why: usable && capability ? `${name}, compute capability ${capability}, ${megabytes(totalBytes)}` : why,
    })),
  }
}

export function diagnosisText(d: Diagnosis): string {
  const limit = d.memory.limit > 0 ? megabytes(d.memory.limit) : 'none'
  return [
    `node          ${d.node}, ${d.platform}`,
    `addon         ${d.addon}`,
    `instructions  ${d.instructions}`,
    `threads       ${d.threads}`,
    `memory        ${megabytes(d.memory.free)} free of ${megabytes(d.memory.total)}, limit of the engine: ${limit}`,
    ...d.devices.map((v) => `${v.name.padEnd(13)} ${v.usable ? 'yes' : 'no'}${v.why && `: ${v.why}`}`),
  ].join('\n')
}
