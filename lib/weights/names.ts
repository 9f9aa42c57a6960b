/** What weights are called: published DEEM names, and those of the models that DEEM is put together from. */

/** Names of one kind of file beside those of DEEM's parameters. */
export interface Naming {
  /** Parameters a stored tensor fills; none for a buffer that is known and not needed; undefined for what is unknown. */
  targets(stored: string): readonly string[] | undefined
  /** Whether such files must hold a value for this parameter. */
  covers(parameter: string): boolean
  /** What a parameter is called in such a file; undefined where it has no place. */
  stored(parameter: string): string | undefined
  /** Whether files hold the original vocabulary's rows of this parameter, which are its first ones. */
  leading?(parameter: string): boolean
}

const llm = 'mm_decoder.'
const unet = 'visual_tokenizer.encoder.unet.'
const vae = 'visual_tokenizer.encoder.vae.'
const tower = 'visual_tokenizer.sniffer.vision_model.'
const head = 'text_decoder.head.weight'
const embeddings = 'mm_decoder.embed_tokens.weight'

/** Tables that old versions of transformers stored beside the weights; who reads them computes them. */
export const derived = /(?:^|\.)(?:rotary_emb\.inv_freq|position_ids)$/

/** diffusers before 0.15 and after. */
const attentionNames = { query: 'to_q', key: 'to_k', value: 'to_v', proj_attn: 'to_out.0' } as const
const oldAttention = /^(.*mid_block\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$/
const newAttention = /^(.*mid_block\.attentions\.\d+\.)(to_q|to_k|to_v|to_out\.0)(\.(?:weight|bias))$/

function modernVae(name: string): string {
  return name.replace(
    oldAttention,
    (_, at: string, key: keyof typeof attentionNames, rest: string) => at + attentionNames[key] + rest,
  )
}

function oldVae(name: string): string {
  const old = Object.fromEntries(Object.entries(attentionNames).map(([was, is]) => [is, was]))
  return name.replace(newAttention, (_, at: string, key: string, rest: string) => `${at}${old[key]}${rest}`)
}

/** Parameters that are matrices here and may be stored as 1x1 convolutions: [C, C, 1, 1]. */
export function mayBeConvolution(parameter: string): boolean {
  return parameter.startsWith(vae) && newAttention.test(parameter)
}

/** Published names as they are; the VAE's attention also by its old ones, which `old` writes. */
export function deemNames(old = false): Naming {
  return {
    targets: (stored) => (derived.test(stored) ? [] : [stored.startsWith(vae) ? modernVae(stored) : stored]),
    covers: () => true,
    stored: (parameter) => (old && parameter.startsWith(vae) ? oldVae(parameter) : parameter),
  }
}

/** `tied`: there is no head, the embeddings serve as one. */
export function llamaNames(tied = false): Naming {
  const isOurs = (p: string) => (p.startsWith(llm) && !p.includes('.llama_cross_attn.')) || p === head
  return {
    targets: (stored) => {
      if (derived.test(stored)) return []
      if (stored === 'lm_head.weight') return [head]
      const bare = stored.startsWith('model.') ? stored.slice('model.'.length) : stored
      if (!/^(?:embed_tokens|layers|norm)\./.test(bare)) return undefined
      return tied && llm + bare === embeddings ? [embeddings, head] : [llm + bare]
    },
    covers: isOurs,
    stored: (p) => (!isOurs(p) ? undefined : p === head ? 'lm_head.weight' : `model.${p.slice(llm.length)}`),
    leading: (p) => p === embeddings || p === head,
  }
}

export const unetNames = prefixed(unet)

/** `old`: writes the attention's names of diffusers before 0.15, as the published files have them. */
export function vaeNames(old = false): Naming {
  const plain = prefixed(vae)
  return {
    ...plain,
    targets: (stored) => [vae + modernVae(stored)],
    stored: (p) => {
      const name = plain.stored(p)
      return old && name !== undefined ? oldVae(name) : name
    },
  }
}

/** open_clip's model besides the image tower. */
const clipText =
  /^(?:positional_embedding|text_projection|logit_scale|logit_bias|attn_mask|(?:token_embedding|ln_final|transformer|text)\..+)$/

export const openClipNames: Naming = {
  targets: (stored) => (clipText.test(stored) ? [] : stored.startsWith('visual.') ? [tower + stored] : undefined),
  covers: (p) => p.startsWith(`${tower}visual.`),
  stored: (p) => (p.startsWith(`${tower}visual.`) ? p.slice(tower.length) : undefined),
}

/** Of the model kind `clip_text`; files may leave the prefix out. */
export const clipTextNames: Naming = {
  targets: (stored) =>
    derived.test(stored) ? [] : [stored.startsWith('text_model.') ? stored : `text_model.${stored}`],
  covers: () => true,
  stored: (p) => p,
}

function prefixed(prefix: string): Naming {
  return {
    targets: (stored) => [prefix + stored],
    covers: (p) => p.startsWith(prefix),
    stored: (p) => (p.startsWith(prefix) ? p.slice(prefix.length) : undefined),
  }
}
