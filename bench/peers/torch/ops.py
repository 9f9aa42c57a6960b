"""Operations by the names of the cases. Tensors come and go in the engine's layout: [N, H, W, C], [B, T, H, D]."""

import functools

import torch
import torch.nn.functional as F

from sampling import mmfs_attention, sample_levels

PROGRAMS = {}


def program(f):
    PROGRAMS[f.__name__.rstrip("_")] = f
    return f


def nchw(x):
    """A view of [N, H, W, C] that torch knows as channels last."""
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


for name, f in {
    "tanh": torch.tanh,
    "exp": torch.exp,
    "square": torch.square,
    "silu": F.silu,
    "gelu": F.gelu,
    "quickGelu": lambda x: x * torch.sigmoid(1.702 * x),
    "softmax": lambda x: x.softmax(-1),
    "logSoftmax": lambda x: x.log_softmax(-1),
    "argmax": lambda x: x.argmax(-1),
    "norm": lambda x: torch.linalg.vector_norm(x).view(1),
    "mulScalar": lambda x: x * 1.25,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "cast": lambda x: x.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32),
    "dropout": lambda x: F.dropout(x, 0.1, True),
    "transpose": lambda x: x.transpose(1, 2).contiguous(),
    "geglu": lambda x: (lambda a, b: a * F.gelu(b))(*x.chunk(2, -1)),
    "swiglu": lambda x: (lambda a, b: F.silu(a) * b)(*x.chunk(2, -1)),
}.items():
    PROGRAMS[name] = lambda x, s, f=f: f(x["x"])

for name, f in {"add": torch.add, "mul": torch.mul, "div": torch.div, "mseLoss": F.mse_loss}.items():
    PROGRAMS[name] = lambda x, s, f=f: f(x["a"], x["b"])


@program
def where(x, s):
    return torch.where(x["mask"].view(torch.bool), x["a"], x["b"])


@program
def sum_(x, s):
    return x["x"].sum(s["axes"]) if s["axes"] else x["x"].sum()


@program
def mean(x, s):
    return x["x"].mean(s["axes"])


@program
def cat(x, s):
    return torch.cat([x["a"], x["b"]], 3)


@program
def randn(x, s):
    return torch.randn(s["count"])


@program
def linear(x, s):
    y = F.linear(x["x"], x["weight"], x["bias"])
    return F.gelu(y) if s["activation"] == "gelu" else y


@program
def addLinear(x, s):
    return x["residual"] + F.linear(x["x"], x["weight"], x["bias"]) * x["scale"]


@program
def matmul(x, s):
    return x["a"] @ x["b"]


@program
def conv2d(x, s):
    return nhwc(F.conv2d(nchw(x["x"]), nchw(x["weight"]), x["bias"], s["stride"], s["pad"], 1, s["groups"]))


@program
def layerNorm(x, s):
    return F.layer_norm(x["x"], x["weight"].shape, x["weight"], x["bias"], 1e-6)


@program
def rmsNorm(x, s):
    return F.rms_norm(x["x"], x["weight"].shape, x["weight"], 1e-5)


@program
def groupNorm(x, s):
    y = F.group_norm(nchw(x["x"]), s["groups"], x["weight"], x["bias"], 1e-6)
    return nhwc(F.silu(y) if s["silu"] else y)


@program
def attention(x, s):
    q, k, v = (x[name].transpose(1, 2) for name in "qkv")
    causal = s["causal"] and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=s["grouped"]).transpose(1, 2)


@functools.lru_cache(maxsize=4)
def rope_tables(size, dtype, length=2048, base=10000.0):
    with torch.inference_mode(False):
        angle = torch.arange(length)[:, None] * (1.0 / base ** (torch.arange(0, size, 2) / size))  # as published
        angle = torch.cat([angle, angle], -1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@program
def rope(x, s):
    cos, sin = rope_tables(x["x"].shape[-1], x["x"].dtype)
    return rotate(x["x"], cos[x["positions"]][:, :, None], sin[x["positions"]][:, :, None])


@program
def crossEntropy(x, s):
    return F.cross_entropy(x["logits"], x["labels"])


@program
def embedding(x, s):
    return F.embedding(x["ids"], x["table"])


@program
def gatherRows(x, s):
    return x["x"].index_select(0, x["index"])


@program
def msDeformAttn(x, s):
    return sample_levels(x["value"], [(n, n) for n in s["sides"]], x["locations"], x["weights"])


@program
def mmfsAttention(x, s):
    names = ["value", "offsets", "offset_table", "logits", "logit_table", "relative", "reference", "ignore_token"]
    sides = [(n, n) for n in s["sides"]]
    return mmfs_attention(*(x[name] for name in names), s["heads"], s["points"], sides, s["ratios"])


@program
def resampleTable(x, s):
    rows, width = x["x"].shape
    side, target = int(rows**0.5), int(s["target"] ** 0.5)
    table = nchw(x["x"].view(1, side, side, width))
    return nhwc(F.interpolate(table, (target, target), mode="bicubic", align_corners=False)).reshape(-1, width)


@program
def resizeBilinear(x, s):
    return nhwc(F.interpolate(nchw(x["x"]), (s["side"],) * 2, mode="bilinear", align_corners=False))


@program
def resizeNearest(x, s):
    return nhwc(F.interpolate(nchw(x["x"]), (s["side"],) * 2, mode="nearest"))
