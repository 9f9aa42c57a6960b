/** Renders one Jinja template in a process of its own. */
import { Script } from 'node:vm'
import { Template } from '@huggingface/jinja'
import type { JinjaJob, JinjaReply } from './jinja.js'

function render({ template, variables, longest, seconds }: JinjaJob): JinjaReply {
  try {
    // What runs longer is ended from outside; this ends it where nobody is left to do that.
    const write = () => new Template(template).render({ ...variables })
    const timeout = 2000 * seconds
    const text = new Script('write()').runInNewContext({ write }, { timeout }) as string
    if (text.length > longest) return { error: `it writes more than ${longest} characters` }
    return { text }
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) }
  }
}

// It waits to be ended: what exits by itself may do so before its answer is read.
process.on('message', (job: JinjaJob) => process.send?.(render(job)))
