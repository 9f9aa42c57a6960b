/** Renders one Jinja template in a thread of its own, which can be ended. */
import { parentPort, workerData } from 'node:worker_threads'
import { Template } from '@huggingface/jinja'
import type { JinjaJob, JinjaReply } from './jinja.js'

const { template, variables, longest } = workerData as JinjaJob

function render(): JinjaReply {
  try {
    const text = new Template(template).render({ ...variables })
    if (text.length > longest) return { error: `it writes more than ${longest} characters` }
    return { text }
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) }
  }
}

parentPort?.postMessage(render())
