"""BLIP-2's Q-Former fed with learned queries: the perceiver resampler of DEEM."""

import torch
import torch.nn.functional as F
from torch import nn


class HeadAttention(nn.Module):
    def __init__(self, c, context_width):
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        if c.get("qk_normalization", False):
            self.q_norm = nn.LayerNorm(width // self.heads, eps=c.get("layer_norm_eps", 1e-12))
            self.k_norm = nn.LayerNorm(width // self.heads, eps=c.get("layer_norm_eps", 1e-12))
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x, context, mask):
        def split(t):
            return t.unflatten(-1, (self.heads, -1))

        q = self.q_norm(split(self.query(x))).transpose(1, 2)
        k = self.k_norm(split(self.key(context))).transpose(1, 2)
        v = split(self.value(context)).transpose(1, 2)
        q = q.expand(k.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class AddNorm(nn.Module):
    def __init__(self, inner, c):
        super().__init__()
        self.dense = nn.Linear(inner, c["hidden_size"])
        self.LayerNorm = nn.LayerNorm(c["hidden_size"], eps=c.get("layer_norm_eps", 1e-12))

    def forward(self, x, skip):
        return self.LayerNorm(self.dense(x) + skip)


class AttentionUnit(nn.Module):
    def __init__(self, c, context_width):
        super().__init__()
        self.attention = HeadAttention(c, context_width)
        self.output = AddNorm(c["hidden_size"], c)

    def forward(self, x, context, mask=None):
        return self.output(self.attention(x, context, mask), x)


class Layer(nn.Module):
    def __init__(self, c, crosses):
        super().__init__()
        self.attention = AttentionUnit(c, c["hidden_size"])
        self.crossattention = AttentionUnit(c, c["encoder_hidden_size"]) if crosses else None
        self.intermediate_query = nn.Module()
        self.intermediate_query.dense = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.output_query = AddNorm(c["intermediate_size"], c)

    def forward(self, x, context, mask):
        x = self.attention(x, x)
        if self.crossattention is not None:
            x = self.crossattention(x, context, mask)
        return self.output_query(F.gelu(self.intermediate_query.dense(x)), x)


class Perceiver(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, c["num_queries"], c["hidden_size"]))
        former = self.blip2qformer = nn.Module()
        former.layernorm = nn.LayerNorm(c["hidden_size"], eps=c.get("layer_norm_eps", 1e-12))
        former.encoder = nn.Module()
        every = c["cross_attention_frequency"]
        former.encoder.layer = nn.ModuleList(Layer(c, i % every == 0) for i in range(c["num_hidden_layers"]))

    def forward(self, context, keep=None):
        """keep [B, T], 0 on tokens that are not to be seen."""
        mask = None if keep is None else keep.bool()[:, None, None]
        x = self.blip2qformer.layernorm(self.queries)
        for layer in self.blip2qformer.encoder.layer:
            x = layer(x, context, mask)
        return x
