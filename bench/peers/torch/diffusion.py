"""UNet and VAE in Stable Diffusion's layout and names, and MMFSNet beside the UNet. Maps are channels last throughout."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sampling import Mmfs, relative_index


class ResnetBlock(nn.Module):
    def __init__(self, before, width, time, groups, eps):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, width) if time else None
        self.norm2 = nn.GroupNorm(groups, width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, x, time=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    def __init__(self, width, context, heads, bias):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context, width, bias=bias)
        self.to_v = nn.Linear(context, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x, context):
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(width, 8 * width)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x):
        a, b = self.net[0].proj(x).chunk(2, -1)
        return self.net[2](a * F.gelu(b))


class TransformerBlock(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, width, heads, False)
        self.attn2 = Attention(width, context, heads, False)
        self.ff = FeedForward(width)

    def forward(self, x, context):
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width, context, heads, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])
        self.proj_out = nn.Linear(width, width)

    def forward(self, x, context):
        h = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        h = self.proj_out(self.transformer_blocks[0](h, context))
        return x + h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Resnets, attentions where the block has them, and a convolution that halves or doubles the side."""

    def __init__(self, resnets, attentions, resampler, conv):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        if conv is not None:
            inner = nn.Module()
            inner.conv = conv
            setattr(self, resampler, nn.ModuleList([inner]))
        self.resampler = resampler if conv is not None else None

    def resample(self, x):
        return getattr(self, self.resampler)[0].conv(x)

    def layer(self, i, x, time, context):
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context) if i < len(self.attentions) else x


def timestep_embedding(t, width):
    half = width // 2
    angle = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angle.cos(), angle.sin()], -1)


class Unet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.checkpointed = c, False
        widths, layers, context = c["block_out_channels"], c["layers_per_block"], c["cross_attention_dim"]
        groups, eps, heads = c.get("norm_num_groups", 32), c.get("norm_eps", 1e-5), c["attention_head_dim"]
        time = 4 * widths[0]
        self.conv_in = nn.Conv2d(c["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(widths[0], time)
        self.time_embedding.linear_2 = nn.Linear(time, time)
        looks = lambda width, h, kind, n: [Transformer(width, context, h, groups) for _ in range(n if "Cross" in kind else 0)]
        skips, before, down = [widths[0]], widths[0], []
        for i, width in enumerate(widths):
            last = i + 1 == len(widths)
            resnets = [ResnetBlock(before if l == 0 else width, width, time, groups, eps) for l in range(layers)]
            conv = None if last else nn.Conv2d(width, width, 3, 2, 1)
            down.append(Block(resnets, looks(width, heads[i], c["down_block_types"][i], layers), "downsamplers", conv))
            skips += [width] * (layers + (not last))
            before = width
        self.down_blocks = nn.ModuleList(down)
        middle = [ResnetBlock(before, before, time, groups, eps) for _ in range(2)]
        self.mid_block = Block(middle, [Transformer(before, context, heads[-1], groups)], "", None)
        up = []
        for i, width in enumerate(reversed(widths)):
            resnets = []
            for _ in range(layers + 1):
                resnets.append(ResnetBlock(before + skips.pop(), width, time, groups, eps))
                before = width
            conv = None if i + 1 == len(widths) else nn.Conv2d(width, width, 3, padding=1)
            attentions = looks(width, heads[len(widths) - 1 - i], c["up_block_types"][i], layers + 1)
            up.append(Block(resnets, attentions, "upsamplers", conv))
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps)
        self.conv_out = nn.Conv2d(widths[0], c.get("out_channels", c["in_channels"]), 3, padding=1)

    def layer(self, block, i, x, time, context):
        if self.checkpointed:
            return checkpoint(block.layer, i, x, time, context, use_reentrant=False)
        return block.layer(i, x, time, context)

    def forward(self, sample, timesteps, context, mmfs=None):
        """sample [N, h, w, C] -> prediction of the same shape. mmfs: rewrites the middle and the skips."""
        embedding = timestep_embedding(timesteps, self.c["block_out_channels"][0]).to(sample.dtype)
        time = self.time_embedding.linear_2(F.silu(self.time_embedding.linear_1(embedding)))
        time = F.silu(time)  # what every resnet does first
        x = self.conv_in(sample.permute(0, 3, 1, 2))
        skips = [x]
        for block in self.down_blocks:
            for i in range(len(block.resnets)):
                x = self.layer(block, i, x, time, context)
                skips.append(x)
            if block.resampler:
                x = block.resample(x)
                skips.append(x)
        x = self.layer(self.mid_block, 0, x, time, context)
        x = self.mid_block.resnets[1](x, time)
        if mmfs is not None:
            x, skips = mmfs(x, skips)
        for block in self.up_blocks:
            for i in range(len(block.resnets)):
                x = self.layer(block, i, torch.cat([x, skips.pop()], 1), time, context)
            if block.resampler:
                x = block.resample(F.interpolate(x, skips[-1].shape[2:], mode="nearest"))
        return self.conv_out(F.silu(self.conv_norm_out(x))).permute(0, 2, 3, 1)

    def residual_widths(self):
        widths, layers = self.c["block_out_channels"], self.c["layers_per_block"]
        out = [widths[0]]
        for i, width in enumerate(widths):
            out += [width] * (layers + (i + 1 < len(widths)))
        return out


def resample_table(table, count):
    """[S * S (+ 1), C] -> [count, C], bicubic; a leading cls row is copied."""
    side = math.isqrt(table.shape[0])
    lead, grid = (table[:0], table) if side * side == table.shape[0] else (table[:1], table[1:])
    target = math.isqrt(count - len(lead))
    if target == side:
        return table
    maps = grid.float().T.reshape(1, -1, side, side)
    out = F.interpolate(maps, (target, target), mode="bicubic", align_corners=False)
    return torch.cat([lead, out.flatten(2)[0].T.to(table.dtype)])


class MmfsBlock(nn.Module):
    def __init__(self, width, features, c, base_side):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.feat_norm = nn.LayerNorm(features, eps=1e-6)
        self.mmfs = Mmfs(
            width,
            features,
            width,
            c["attn_dim"],
            c["heads"],
            c["points"],
            c["value_sides"],
            base_side,
            c.get("max_images", 10),
        )
        self.pos_embed = nn.Parameter(torch.zeros(c["grid"] ** 2, width), requires_grad=False)
        self.conv = nn.Conv2d(width, width, 1)
        self.tables = {}

    def table(self, h, w):
        """Positions and pixel centres of an h x w map; neither ever changes."""
        if (h, w) not in self.tables:
            with torch.inference_mode(False):
                y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
                centres = torch.stack([x, y], -1).view(-1, 2)
                self.tables[h, w] = resample_table(self.pos_embed.detach(), h * w), centres
        return self.tables[h, w]

    def forward(self, x, features, sides, mask):
        h, w = x.shape[2:]
        positions, centres = self.table(h, w)
        query = self.query_norm(x.permute(0, 2, 3, 1).flatten(1, 2)) + positions
        y = self.mmfs(query, centres, self.feat_norm(features), sides, relative_index(mask, h * w))
        return self.conv(y.unflatten(1, (h, w)).permute(0, 3, 1, 2))


class MmfsNet(nn.Module):
    """A block for every skip of the UNet and one for its middle."""

    def __init__(self, c, widths, features):
        super().__init__()
        bases = c["base_sides"]
        base = lambda i: bases[min(i // 3, len(bases) - 1)]
        self.mmfs_down_blocks = nn.ModuleList(MmfsBlock(w, features, c, base(i)) for i, w in enumerate(widths))
        self.mmfs_mid_block = MmfsBlock(widths[-1], features, c, bases[-1])

    def over(self, maps, mask):
        """maps: [N, K, h, w, D] each. Gives what the UNet calls with its middle and skips."""
        sides = [tuple(m.shape[2:4]) for m in maps]
        features = torch.cat([m.flatten(2, 3) for m in maps], 2)

        def rewrite(middle, skips):
            skips = [s + block(s, features, sides, mask) for s, block in zip(skips, self.mmfs_down_blocks)]
            return middle + self.mmfs_mid_block(middle, features, sides, mask), skips

        return rewrite


class VaeAttention(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        h = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (f(h)[:, None] for f in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Half(nn.Module):
    def __init__(self, c, encoder):
        super().__init__()
        self.encoder = encoder
        widths, groups, eps = c["block_out_channels"], c.get("norm_num_groups", 32), 1e-6
        latent = c.get("latent_channels", 4)
        order = widths if encoder else widths[::-1]
        layers = c.get("layers_per_block", 1) + (not encoder)
        self.conv_in = nn.Conv2d(c.get("in_channels", 3) if encoder else latent, order[0], 3, padding=1)
        blocks, before = [], order[0]
        for i, width in enumerate(order):
            resnets = [ResnetBlock(before if l == 0 else width, width, 0, groups, eps) for l in range(layers)]
            last = i + 1 == len(order)
            conv = None if last else nn.Conv2d(width, width, 3, 2 if encoder else 1, 0 if encoder else 1)
            blocks.append(Block(resnets, [], "downsamplers" if encoder else "upsamplers", conv))
            before = width
        setattr(self, "down_blocks" if encoder else "up_blocks", nn.ModuleList(blocks))
        top = widths[-1]
        self.mid_block = nn.Module()
        self.mid_block.resnets = nn.ModuleList(ResnetBlock(top, top, 0, groups, eps) for _ in range(2))
        self.mid_block.attentions = nn.ModuleList([VaeAttention(top, groups)])
        self.conv_norm_out = nn.GroupNorm(groups, order[-1], eps)
        self.conv_out = nn.Conv2d(order[-1], 2 * latent if encoder else c.get("out_channels", 3), 3, padding=1)

    def middle(self, x):
        m = self.mid_block
        return m.resnets[1](m.attentions[0](m.resnets[0](x)))

    def forward(self, x):
        x = self.conv_in(x)
        if not self.encoder:
            x = self.middle(x)
        for block in self.down_blocks if self.encoder else self.up_blocks:
            for resnet in block.resnets:
                x = resnet(x)
            if block.resampler and self.encoder:
                x = block.resample(F.pad(x, (0, 1, 0, 1)))
            elif block.resampler:
                x = block.resample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.encoder:
            x = self.middle(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Vae(nn.Module):
    """Pictures and latents are [N, H, W, C] outside."""

    def __init__(self, c):
        super().__init__()
        self.scale = c.get("scaling_factor", 0.18215)
        latent = c.get("latent_channels", 4)
        self.encoder, self.decoder = Half(c, True), Half(c, False)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, image):
        moments = self.quant_conv(self.encoder(image.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        mean, logvar = moments.chunk(2, -1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latent):
        x = self.post_quant_conv(latent.permute(0, 3, 1, 2) / self.scale)
        return self.decoder(x).permute(0, 2, 3, 1)
