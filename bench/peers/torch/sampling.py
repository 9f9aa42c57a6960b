"""Deformable sampling (Zhu et al., Deformable DETR) by grid_sample, and MMFS on top of it."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def sample_levels(value, sides, locations, weights):
    """value [B, S, H, D], locations [B, Q, H, L, P, 2] in 0..1, weights [B, Q, H, L, P] -> [B, Q, H * D].

    In f32: grid_sample has no bf16, and positions need more than eight bits.
    """
    batch, _, heads, size = value.shape
    queries = locations.shape[1]
    levels = value.float().split([h * w for h, w in sides], dim=1)
    grid = locations.float() * 2 - 1
    total = 0
    for i, (h, w) in enumerate(sides):
        plane = levels[i].permute(0, 2, 3, 1).reshape(batch * heads, size, h, w)
        at = grid[:, :, :, i].transpose(1, 2).flatten(0, 1)
        seen = F.grid_sample(plane, at, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, i].transpose(1, 2).reshape(batch * heads, 1, queries, -1).float()
        total = total + (seen * weight).sum(-1)
    return total.view(batch, heads * size, queries).transpose(1, 2).to(value.dtype)


def mmfs_attention(value, offsets, offset_table, logits, logit_table, relative, reference, ignore, heads, points, sides, ratios):
    """value [B, N, S, H * D]; the query's own offsets and logits plus those of the relative image index -> [B, Q, H * D]."""
    batch, images, positions, width = value.shape
    queries, levels = offsets.shape[1], len(sides)
    shift = (offsets[:, None] + F.embedding(relative, offset_table)).float()
    shift = shift.view(batch, images, queries, heads, 1, points, 2)
    scale = torch.tensor([[r / w, r / h] for r, (h, w) in zip(ratios, sides)]).view(1, 1, 1, 1, levels, 1, 2)
    locations = reference.float().view(1, 1, -1, 1, 1, 1, 2) + shift * scale
    scores = (logits[:, None] + F.embedding(relative, logit_table)).float()
    scores = scores.view(batch, images, queries, heads, levels, points + 1)
    hidden = (relative == 0)[..., None, None, None]
    kept = torch.where(hidden, scores[..., :-1] - 10000.0, scores[..., :-1])
    sink = torch.full_like(scores[..., -1:], -math.log(images * levels))
    order = torch.cat([kept, sink], -1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    weights = order.softmax(-1).view(batch, queries, heads, images, levels, points + 1)
    ignored = weights[..., -1].sum((3, 4))
    # Images go into the batch: one call a level.
    folded = sample_levels(
        value.reshape(batch * images, positions, heads, width // heads),
        sides,
        locations.flatten(0, 1),
        weights[..., :-1].permute(0, 3, 1, 2, 4, 5).flatten(0, 1),
    )
    sampled = folded.view(batch, images, queries, width).sum(1)
    return sampled + (ignored[..., None] * ignore.view(heads, -1).float()).flatten(2).to(value.dtype)


def relative_index(mask, queries):
    """mask [B, N] or [B, Q, N] of 0 and 1 -> [B, N, Q]: visible images count 1 (the nearest) upward, hidden ones are 0."""
    m = mask.long()
    index = (m.sum(-1, keepdim=True) + 1 - m.cumsum(-1)) * m
    if mask.ndim == 2:
        return index[:, :, None].expand(-1, -1, queries)
    return (index if mask.shape[1] == queries else index[:, -1:]).transpose(1, 2)


class Mmfs(nn.Module):
    def __init__(self, query, value, out, width, heads, points, level_sides, base_side, max_images):
        super().__init__()
        self.heads, self.points = heads, points
        self.ratios = [s / base_side for s in level_sides]
        self.ignore_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.sampling_offsets = nn.Linear(query, heads * points * 2)
        self.dynamic_offset_mask = nn.Linear(query, query)
        self.attention_weights = nn.Linear(query, heads * len(level_sides) * (points + 1))
        self.value_proj = nn.Linear(value, width)
        self.output_proj = nn.Linear(width, out)
        self.query_relpos = nn.Embedding(max_images, query)

    def forward(self, query, reference, features, sides, relative):
        q = self.dynamic_offset_mask(query)
        table = self.query_relpos.weight
        # Both linears of (query + index) are sums of two linears, and the index has few values.
        sampled = mmfs_attention(
            self.value_proj(features),
            self.sampling_offsets(q),
            F.linear(table, self.sampling_offsets.weight),
            self.attention_weights(q),
            F.linear(table, self.attention_weights.weight),
            relative,
            reference,
            self.ignore_token,
            self.heads,
            self.points,
            sides,
            self.ratios,
        )
        return self.output_proj(sampled)
