"""Writes test/models/unet-sizes.safetensors: what PyTorch says of the stored UNet at sizes it was not stored for.

    python3 test/python/unet_sizes.py REFERENCE OUTPUT

REFERENCE holds the reference implementation `deem_ref`, whose MMFS and position tables are used. The UNet around them is written
out here, since diffusers may not be installable; it is held against the stored 8 x 8 case first. Needs torch and safetensors.
"""
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

CASE = Path(__file__).parents[1] / "fixtures/modules/unet"
SIZES = [(12, 12), (4, 4), (8, 16), (9, 9), (7, 5), (3, 13), (1, 1)]


def part(folder, name):
    """A file of the reference, without its package, which wants diffusers."""
    sys.modules.setdefault("deem_ref", types.ModuleType("deem_ref"))
    spec = importlib.util.spec_from_file_location(f"deem_ref.{name}", Path(folder) / "deem_ref" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Net:
    def __init__(self, config, weights, positions, mmfs):
        self.c, self.w, self.positions, self.mmfs = config, weights, positions, mmfs
        self.groups = config["unet"]["norm_num_groups"]

    def linear(self, x, n):
        return F.linear(x, self.w[f"{n}.weight"], self.w.get(f"{n}.bias"))

    def conv(self, x, n, **how):
        return F.conv2d(x, self.w[f"{n}.weight"], self.w[f"{n}.bias"], **how)

    def group_norm(self, x, n, eps):
        return F.group_norm(x, self.groups, self.w[f"{n}.weight"], self.w[f"{n}.bias"], eps)

    def layer_norm(self, x, n, eps):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{n}.weight"], self.w[f"{n}.bias"], eps)

    def resnet(self, x, time, n):
        eps = self.c["unet"]["norm_eps"]
        h = self.conv(F.silu(self.group_norm(x, f"{n}.norm1", eps)), f"{n}.conv1", padding=1)
        h = h + self.linear(F.silu(time), f"{n}.time_emb_proj")[:, :, None, None]
        h = self.conv(F.silu(self.group_norm(h, f"{n}.norm2", eps)), f"{n}.conv2", padding=1)
        return h + (self.conv(x, f"{n}.conv_shortcut") if f"{n}.conv_shortcut.weight" in self.w else x)

    def attention(self, x, context, n, heads):
        q, k, v = (
            self.linear(s, f"{n}.{p}").unflatten(2, (heads, -1)).transpose(1, 2)
            for s, p in ((x, "to_q"), (context, "to_k"), (context, "to_v"))
        )
        y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
        return self.linear(y.transpose(1, 2).flatten(2), f"{n}.to_out.0")

    def transformer(self, x, text, n, heads):
        b, (h, w) = f"{n}.transformer_blocks.0", x.shape[-2:]
        y = self.linear(self.group_norm(x, f"{n}.norm", 1e-6).flatten(2).transpose(1, 2), f"{n}.proj_in")
        z = self.layer_norm(y, f"{b}.norm1", 1e-5)
        y = y + self.attention(z, z, f"{b}.attn1", heads)
        y = y + self.attention(self.layer_norm(y, f"{b}.norm2", 1e-5), text, f"{b}.attn2", heads)
        a, gate = self.linear(self.layer_norm(y, f"{b}.norm3", 1e-5), f"{b}.ff.net.0.proj").chunk(2, -1)
        y = self.linear(y + self.linear(a * F.gelu(gate), f"{b}.ff.net.2"), f"{n}.proj_out")
        return x + y.transpose(1, 2).unflatten(2, (h, w))

    def table(self, table, h, w):
        if h == w:
            return self.positions.resample_table(table, h * w)
        # The reference knows squares only; the same resampling to a rectangle.
        side = math.isqrt(len(table))
        grid = table.t().reshape(1, -1, side, side)
        return F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False).flatten(2)[0].t()

    def look(self, x, maps, mask, n, base):
        m, (h, w) = self.c["mmfs"], x.shape[-2:]
        feats = torch.cat([v.flatten(3).transpose(2, 3) for v in maps], 2)
        block = self.mmfs.MMFS(m["attn_dim"], x.shape[1], feats.shape[-1], x.shape[1], m["attn_dim"], m["heads"],
                               m["points"], m["value_sides"], base, m["max_images"])
        own = f"{n}.mmfs."
        block.load_state_dict({k[len(own):]: v for k, v in self.w.items() if k.startswith(own)})
        query = self.layer_norm(x.flatten(2).transpose(1, 2), f"{n}.query_norm", 1e-6)
        query = query + self.table(self.w[f"{n}.pos_embed"], h, w)
        ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        places = torch.stack([xs, ys], -1).flatten(0, 1)
        shapes = [tuple(v.shape[-2:]) for v in maps]
        y = block(query, places, self.layer_norm(feats, f"{n}.feat_norm", 1e-6), shapes, mask)
        return x + self.conv(y.transpose(1, 2).unflatten(2, (h, w)), f"{n}.conv")

    def __call__(self, x, t, text, maps=None, mask=None):
        u = self.c["unet"]
        widths, heads, layers = u["block_out_channels"], u["attention_head_dim"], u["layers_per_block"]
        half = widths[0] // 2
        angle = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.linear(torch.cat([angle.cos(), angle.sin()], -1), "unet.time_embedding.linear_1")
        time = self.linear(F.silu(time), "unet.time_embedding.linear_2")

        def layer(x, block, i, kind, count):
            x = self.resnet(x, time, f"{block}.resnets.{i}")
            return self.transformer(x, text, f"{block}.attentions.{i}", count) if "Cross" in kind else x

        odd = any(side % 2 ** (len(widths) - 1) for side in x.shape[-2:])
        x = self.conv(x, "unet.conv_in", padding=1)
        skips = [x]
        for i, kind in enumerate(u["down_block_types"]):
            block = f"unet.down_blocks.{i}"
            for j in range(layers):
                skips.append(x := layer(x, block, j, kind, heads[i]))
            if i + 1 < len(widths):
                skips.append(x := self.conv(x, f"{block}.downsamplers.0.conv", stride=2, padding=1))
        x = layer(x, "unet.mid_block", 0, "Cross", heads[-1])
        x = self.resnet(x, time, "unet.mid_block.resnets.1")
        if maps is not None:
            bases = self.c["mmfs"]["base_sides"]
            skips = [self.look(s, maps, mask, f"mmfs_module.mmfs_down_blocks.{i}", bases[i // 3])
                     for i, s in enumerate(skips)]
            x = self.look(x, maps, mask, "mmfs_module.mmfs_mid_block", bases[-1])
        for i, kind in enumerate(u["up_block_types"]):
            block = f"unet.up_blocks.{i}"
            for j in range(layers + 1):
                x = layer(torch.cat([x, skips.pop()], 1), block, j, kind, heads[::-1][i])
            if i + 1 < len(widths):
                to = dict(size=skips[-1].shape[2:]) if odd else dict(scale_factor=2.0)
                x = self.conv(F.interpolate(x, mode="nearest", **to), f"{block}.upsamplers.0.conv", padding=1)
        return self.conv(F.silu(self.group_norm(x, "unet.conv_norm_out", u["norm_eps"])), "unet.conv_out", padding=1)


@torch.no_grad()
def main(reference, output):
    config = json.loads((CASE / "config.json").read_text())
    inputs, stored = load_file(CASE / "inputs.safetensors"), load_file(CASE / "outputs.safetensors")
    net = Net(config, load_file(CASE / "weights.safetensors"), part(reference, "positions"), part(reference, "mmfs"))
    told = (inputs["timesteps"], inputs["text"])
    seen = ([inputs[f"map{i}"] for i in range(4)], inputs["mask"])
    for name, more in (("plain", ()), ("with_mmfs", seen)):
        off = (net(inputs["sample"], *told, *more) - stored[name]).abs().max().item()
        print(f"8x8 {name}: {off:.1e} from the stored case")
        assert off < 1e-5
    draw = torch.Generator().manual_seed(20)
    out = {}
    for h, w in SIZES:
        x = torch.randn(2, 4, h, w, generator=draw)
        out |= {f"{h}x{w}.sample": x, f"{h}x{w}.with_mmfs": net(x, *told, *seen)}
    save_file({name: t.contiguous() for name, t in out.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
