/** What a result depends on and nobody can be identified by. */
import { readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os'
import { isa } from 'deem'

export function machine(): Record<string, string | number> {
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
    version: string
  }
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform} ${process.arch}`,
    isa: isa(),
    deem: version,
    node: process.version,
    // Processes that wanted a core during the last minute; ours come on top.
    loadBefore: Math.round(10 * (loadavg()[0] as number)) / 10,
  }
}

/** The largest resident memory of this process since {@link resetResidentPeak}, in bytes; undefined where the system does not tell. */
export function residentPeak(): number | undefined {
  return statusBytes('VmHWM')
}
/** Starts a new peak at what is resident now. Gives whether the system lets us. */
export function resetResidentPeak(): boolean {
  if (process.platform !== 'linux') return false
  try {
    writeFileSync('/proc/self/clear_refs', '5')
    return true
  } catch {
    return false // a kernel or a sandbox without it
  }
}
export function resident(): number | undefined {
  return statusBytes('VmRSS')
}

function statusBytes(field: string): number | undefined {
  if (process.platform !== 'linux') return undefined
  const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))
  return line ? 1024 * Number(line[1]) : undefined
}
