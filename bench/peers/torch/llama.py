"""LLaMA whose layers, at a given frequency, also sample image maps by MMFS; with a cache of fixed size for decoding."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ops import rope_tables, rotate
from sampling import Mmfs, relative_index


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c["hidden_size"]
        self.heads, self.shared = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
        size = width // self.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, size * self.shared, bias=False)
        self.v_proj = nn.Linear(width, size * self.shared, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin, mask, cache):
        q = rotate(self.q_proj(x).unflatten(-1, (self.heads, -1)), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).unflatten(-1, (self.shared, -1)), cos, sin).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.shared, -1)).transpose(1, 2)
        causal = mask is None and x.shape[1] > 1
        if cache is not None:
            k, v = cache.extend(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.shared != self.heads
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, inner = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Cross(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, features = c["hidden_size"], c["image_embed_dim"]
        self.sides = [(s, s) for s in c["spatial_shapes"]]
        self.gate = nn.Parameter(torch.zeros(1))
        self.attn = Mmfs(
            width,
            features,
            width,
            features,
            c.get("mmfs_heads", 16),
            c.get("mmfs_points", 8),
            c["spatial_shapes"],
            c.get("mmfs_base_side", 16),
            c.get("mmfs_max_images", 50),
        )
        self.norm1 = nn.RMSNorm(width, c["rms_norm_eps"])
        self.norm2 = nn.RMSNorm(features, c["rms_norm_eps"])

    def forward(self, x, features, relative):
        centre = torch.full((1, 2), 0.5)
        y = self.attn(self.norm1(x), centre, self.norm2(features), self.sides, relative)
        return y * self.gate.tanh()


class Layer(nn.Module):
    def __init__(self, c, crosses):
        super().__init__()
        self.self_attn = Attention(c)
        self.llama_cross_attn = Cross(c) if crosses else None
        self.mlp = Mlp(c)
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, features, relative, cos, sin, mask, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        if self.llama_cross_attn is not None and features is not None:
            x = x + self.llama_cross_attn(x, features, relative)
        return x + self.mlp(self.post_attention_layernorm(x))


class Cache:
    """Keys and values of one layer in buffers that are long enough from the start."""

    def __init__(self, shared, size, room, dtype):
        self.keys = torch.zeros(1, shared, room, size, dtype=dtype)
        self.values = torch.zeros(1, shared, room, size, dtype=dtype)
        self.length = 0

    def extend(self, k, v):
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.checkpointed = c, False
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        every = c["cross_attention_frequency"]
        self.layers = nn.ModuleList(Layer(c, i % every == 0) for i in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def make_caches(self, room, dtype):
        c = self.c
        size = c["hidden_size"] // c["num_attention_heads"]
        shared = c.get("num_key_value_heads", c["num_attention_heads"])
        return [Cache(shared, size, room, dtype) for _ in self.layers]

    def forward(self, x, features=None, image_mask=None, keep=None, caches=None):
        """x [B, T, C]; features [B, N, S, D]; image_mask [B, T, N]; keep [B, T] of 0 and 1. A cache takes no padding."""
        length = x.shape[1]
        begin = caches[0].length if caches else 0
        size = self.c["hidden_size"] // self.c["num_attention_heads"]
        cos, sin = (t[begin : begin + length, None] for t in rope_tables(size, x.dtype))
        relative = None if features is None else relative_index(image_mask, length)
        mask = None
        if keep is not None and not bool(keep.all()):
            mask = torch.ones(length, length, dtype=torch.bool).tril() & keep.bool()[:, None, None]
        for i, layer in enumerate(self.layers):
            args = (x, features, relative, cos, sin, mask)
            if self.checkpointed:
                x = checkpoint(layer, *args, use_reentrant=False)
            else:
                x = layer(*args, caches[i] if caches else None)
        return self.norm(x)


class TextHead(nn.Module):
    """A frozen head over all ids, and a trained one that is added on the new ids."""

    def __init__(self, width, all_ids, base_ids):
        super().__init__()
        self.base = base_ids
        self.head = nn.Linear(width, all_ids)
        self.head_new = nn.Linear(width, all_ids - base_ids) if all_ids > base_ids else None

    def forward(self, x):
        if self.head_new is None:
            return self.head(x)
        base = self.base
        kept = F.linear(x, self.head.weight[:base], self.head.bias[:base])
        weight = self.head.weight[base:] + self.head_new.weight
        return torch.cat([kept, F.linear(x, weight, self.head.bias[base:] + self.head_new.bias)], -1)
