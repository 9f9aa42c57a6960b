/** Operations and weights of the models, by their configurations. One picture or row; a multiply and an add are two operations. */

export interface Widths {
  block_out_channels: number[]
  layers_per_block: number
}

/** Adds up what a forward pass does. */
export class Count {
  /** Operations of matrix products and convolutions. */
  products = 0
  /** Operations of attention scores and their sums. */
  attention = 0
  weights = 0

  linear(rows: number, from: number, to: number): void {
    this.products += 2 * rows * from * to
    this.weights += from * to
  }
  /** `side` of the result. */
  conv(side: number, from: number, to: number, kernel: number): void {
    this.products += 2 * side * side * from * to * kernel * kernel
    this.weights += from * to * kernel * kernel
  }
  attend(queries: number, keys: number, width: number): void {
    this.attention += 4 * queries * keys * width
  }

  get forward(): number {
    return this.products + this.attention
  }
  /** Forward, then gradients of the inputs and, where `trained`, of the weights. */
  backward(trained: boolean): number {
    return (trained ? 3 : 2) * this.products + 3.5 * this.attention
  }
}

export function countConvNext(c: { depths: number[]; dims: number[]; adapter_dim: number }, side: number): Count {
  const n = new Count()
  const [first] = c.dims as [number]
  n.conv(side / 4, 3, first, 4)
  for (const [i, width] of c.dims.entries()) {
    const at = side / (4 << i)
    if (i > 0) n.conv(at, c.dims[i - 1] as number, width, 2)
    for (let b = 0; b < (c.depths[i] as number); b++) {
      n.products += 2 * at * at * width * 49
      n.weights += 49 * width
      n.linear(at * at, width, 4 * width)
      n.linear(at * at, 4 * width, width)
    }
    n.linear(at * at, width, c.adapter_dim)
  }
  return n
}

export function countPerceiver(
  c: {
    num_queries: number
    hidden_size: number
    encoder_hidden_size: number
    intermediate_size: number
    num_hidden_layers: number
    cross_attention_frequency: number
  },
  tokens: number,
): Count {
  const n = new Count()
  const { num_queries: q, hidden_size: h } = c
  const attend = (keys: number, width: number) => {
    n.linear(q, h, h)
    n.linear(keys, width, h)
    n.linear(keys, width, h)
    n.attend(q, keys, h)
    n.linear(q, h, h)
  }
  for (let i = 0; i < c.num_hidden_layers; i++) {
    attend(q, h)
    if (i % c.cross_attention_frequency === 0) attend(tokens, c.encoder_hidden_size)
    n.linear(q, h, c.intermediate_size)
    n.linear(q, c.intermediate_size, h)
  }
  return n
}

/** One layer with MMFS over `images`; causal attention does half of the square. */
export function countLlamaLayer(
  c: {
    hidden_size: number
    intermediate_size: number
    image_embed_dim: number
    mmfs_heads: number
    mmfs_points: number
    spatial_shapes: number[]
  },
  length: number,
  images: number,
): Count {
  const n = new Count()
  const { hidden_size: h, image_embed_dim: d, mmfs_heads: heads, mmfs_points: points } = c
  const levels = c.spatial_shapes.length
  for (let i = 0; i < 4; i++) n.linear(length, h, h)
  n.attend(length, (length + 1) / 2, h)
  n.linear(length, h, h) // queries of MMFS
  n.linear(length, h, heads * points * 2)
  n.linear(length, h, heads * levels * (points + 1))
  n.linear(images * c.spatial_shapes.reduce((sum, s) => sum + s * s, 0), d, d)
  n.linear(length, d, h)
  for (let i = 0; i < 3; i++) n.linear(length, h, c.intermediate_size)
  return n
}

function resnet(n: Count, side: number, from: number, to: number, time: number): void {
  n.conv(side, from, to, 3)
  n.conv(side, to, to, 3)
  if (time > 0) n.linear(1, time, to)
  if (from !== to) n.conv(side, from, to, 1)
}

function transformer(n: Count, side: number, width: number, tokens: number, context: number): void {
  const rows = side * side
  for (let i = 0; i < 7; i++) n.linear(rows, width, width) // in, out, q, k, v, out; q, of both attentions
  n.linear(rows, width, width)
  n.attend(rows, rows, width)
  n.linear(tokens, context, width)
  n.linear(tokens, context, width)
  n.attend(rows, tokens, width)
  n.linear(rows, width, 8 * width)
  n.linear(rows, 4 * width, width)
}

export function countUnet(
  c: Widths & {
    in_channels: number
    cross_attention_dim: number
    down_block_types: string[]
    up_block_types: string[]
  },
  latent: number,
  tokens: number,
): Count {
  const n = new Count()
  const widths = c.block_out_channels
  const [first] = widths as [number]
  const time = 4 * first
  const attends = (type: string | undefined) => type?.startsWith('CrossAttn') ?? false
  const look = (side: number, width: number) => transformer(n, side, width, tokens, c.cross_attention_dim)
  n.conv(latent, c.in_channels, first, 3)
  n.linear(1, first, time)
  n.linear(1, time, time)
  const skips = [first]
  let from = first
  let side = latent
  for (const [i, width] of widths.entries()) {
    for (let l = 0; l < c.layers_per_block; l++) {
      resnet(n, side, from, width, time)
      if (attends(c.down_block_types[i])) look(side, width)
      from = width
      skips.push(width)
    }
    if (i + 1 < widths.length) {
      side /= 2
      n.conv(side, width, width, 3)
      skips.push(width)
    }
  }
  resnet(n, side, from, from, time)
  look(side, from)
  resnet(n, side, from, from, time)
  for (const [i, width] of [...widths].reverse().entries()) {
    for (let l = 0; l <= c.layers_per_block; l++) {
      resnet(n, side, from + (skips.pop() as number), width, time)
      if (attends(c.up_block_types[i])) look(side, width)
      from = width
    }
    if (i + 1 < widths.length) {
      side *= 2
      n.conv(side, width, width, 3)
    }
  }
  n.conv(latent, first, c.in_channels, 3)
  return n
}

function vaeMiddle(n: Count, side: number, width: number): void {
  resnet(n, side, width, width, 0)
  for (let i = 0; i < 4; i++) n.linear(side * side, width, width)
  n.attend(side * side, side * side, width)
  resnet(n, side, width, width, 0)
}

/** `side` of the picture. */
export function countVae(c: Widths & { latent_channels: number }, side: number, half: 'encode' | 'decode'): Count {
  const n = new Count()
  const widths = half === 'encode' ? c.block_out_channels : [...c.block_out_channels].reverse()
  const [first] = widths as [number]
  const last = widths.at(-1) as number
  let at = half === 'encode' ? side : side / 2 ** (widths.length - 1)
  n.conv(at, half === 'encode' ? 3 : c.latent_channels, first, 3)
  if (half === 'decode') vaeMiddle(n, at, first)
  let from = first
  for (const [i, width] of widths.entries()) {
    for (let l = 0; l < c.layers_per_block + (half === 'decode' ? 1 : 0); l++, from = width)
      resnet(n, at, from, width, 0)
    if (i + 1 === widths.length) break
    at = half === 'encode' ? at / 2 : at * 2
    n.conv(at, width, width, 3)
  }
  if (half === 'encode') vaeMiddle(n, at, last)
  n.conv(at, last, half === 'encode' ? 2 * c.latent_channels : 3, 3)
  return n
}

/** Weights that every new token reads. */
export function decodeWeights(c: {
  hidden_size: number
  num_attention_heads: number
  num_key_value_heads: number
  intermediate_size: number
  num_hidden_layers: number
  vocab_size: number
}): number {
  const shared = (c.hidden_size / c.num_attention_heads) * c.num_key_value_heads
  const layer = 2 * c.hidden_size * (c.hidden_size + shared) + 3 * c.hidden_size * c.intermediate_size
  return c.num_hidden_layers * layer + c.hidden_size * c.vocab_size
}
