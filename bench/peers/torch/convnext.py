"""ConvNeXt (Liu et al. 2022) with timm's parameter names, and the adapters DEEM reads its four maps through."""

import torch
import torch.nn.functional as F
from torch import nn


class MapNorm(nn.LayerNorm):
    """Over the channels of a map that lies channels last: permuting is free."""

    def __init__(self, width):
        super().__init__(width, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self, width, inner, out, bias=True):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, out, bias=bias)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, before, width, depth):
        super().__init__()
        self.downsample = nn.Sequential(MapNorm(before), nn.Conv2d(before, width, 2, 2)) if before else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.downsample(x))


class Trunk(nn.Module):
    def __init__(self, depths, dims, patch):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], patch, patch), MapNorm(dims[0]))
        befores = [0, *dims[:-1]]
        self.stages = nn.ModuleList(Stage(b, w, d) for b, w, d in zip(befores, dims, depths))
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(dims[-1], eps=1e-6)


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.checkpointed = False
        for i, width in enumerate(c["dims"]):
            setattr(self, f"adapter_c{i + 2}", nn.Linear(width, c["adapter_dim"]))
        last = c["dims"][-1]
        self.adapter_cls = nn.Linear(last, c["adapter_dim"])
        self.visual = nn.Module()
        self.visual.trunk = Trunk(c["depths"], c["dims"], c.get("patch_size", 4))
        self.visual.head = nn.Module()
        self.visual.head.mlp = Mlp(last, 2 * c["embed_dim"], c["embed_dim"], bias=False)

    def forward(self, pixels):
        """[N, H, W, 3] -> tokens [N, 1 + h * w, D] and four maps [N, h, w, D]."""
        trunk = self.visual.trunk
        x = trunk.stem(pixels.permute(0, 3, 1, 2))
        maps = []
        for i, stage in enumerate(trunk.stages):
            if self.checkpointed:
                x = torch.utils.checkpoint.checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
            maps.append(getattr(self, f"adapter_c{i + 2}")(x.permute(0, 2, 3, 1)))
        cls = self.adapter_cls(trunk.head.norm(x.mean((2, 3))))
        return torch.cat([cls[:, None], maps[2].flatten(1, 2)], 1), maps


class ConvNext(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.vision_model = Vision(c)

    def forward(self, pixels):
        return self.vision_model(pixels)
