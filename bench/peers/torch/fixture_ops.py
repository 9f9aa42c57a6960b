"""The stored cases of operations (test/fixtures/ops) in plain PyTorch: inputs and outputs in the stored layout and under the stored names."""

import torch
import torch.nn.functional as F

from diffusion import resample_table, timestep_embedding
from ops import rotate
from sampling import sample_levels

OPS = {}


def op(f):
    OPS[f.__name__.rstrip("_")] = f
    return f


@op
def activations(x, s):
    v = x["x"]
    quick = v * torch.sigmoid(1.702 * v)
    return {"gelu_erf": F.gelu(v), "gelu_tanh": F.gelu(v, approximate="tanh"), "silu": F.silu(v), "quick_gelu": quick}


@op
def gated(x, s):
    a, b = x["x"].chunk(2, -1)
    return {"geglu": a * F.gelu(b), "swiglu": F.silu(a) * b}


@op
def layer_norm(x, s):
    return {"y": F.layer_norm(x["x"], x["weight"].shape, x["weight"], x["bias"], s["eps"])}


@op
def rms_norm(x, s):
    return {"y": F.rms_norm(x["x"], x["weight"].shape, x["weight"], s["eps"])}


@op
def group_norm_silu(x, s):
    y = F.group_norm(x["x"], s["groups"], x["weight"], x["bias"], s["eps"])
    return {"norm": y, "norm_silu": F.silu(y)}


@op
def linear(x, s):
    return {"y": F.linear(x["x"], x["weight"], x.get("bias"))}


@op
def conv2d(x, s):
    groups = x["x"].shape[1] if s["depthwise"] else 1
    padded = F.pad(x["x"], s["pad_left_right_top_bottom"])
    return {"y": F.conv2d(padded, x["weight"], x.get("bias"), s["stride"], groups=groups)}


@op
def attention(x, s):
    q, k, v = x["q"], x["k"], x["v"]
    rows, keys = q.shape[2], k.shape[2]
    seen = torch.ones(rows, keys, dtype=torch.bool)
    if s["kind"].startswith("causal"):
        seen = seen.tril(keys - rows)
    if "keep" in x:
        seen = seen & x["keep"].bool()[:, None, None]
    # A row that sees nothing is the mean of all values, as published: equal scores give that.
    blind = ~seen.any(-1, keepdim=True)
    q = torch.where(blind, torch.zeros_like(q), q)
    return {"y": F.scaled_dot_product_attention(q, k, v, attn_mask=seen | blind, scale=s["scale"])}


@op
def rope(x, s):
    size = x["q"].shape[-1]
    angle = x["positions"][:, None, :, None] * s["base"] ** (-torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], -1)
    cos, sin = angle.cos().to(x["q"].dtype), angle.sin().to(x["q"].dtype)
    return {"q_rot": rotate(x["q"], cos, sin), "k_rot": rotate(x["k"], cos, sin)}


@op
def softmax_cross_entropy(x, s):
    loss = F.cross_entropy(x["logits"], x["labels"], ignore_index=s["ignore_index"])
    return {"loss": loss, "log_probs": x["logits"].log_softmax(-1)}


@op
def embedding(x, s):
    ids = x["ids"]
    y = F.embedding(ids, x["table"])
    slots = (ids == s["image_token_id"])[..., None].expand_as(y)
    return {"y": y.masked_scatter(slots, x["image_embeds"]) + (ids == s["soi_token_id"])[..., None] * x["soi_token"]}


@op
def ms_deform_attn(x, s):
    return {"y": sample_levels(x["value"], s["level_shapes_hw"], x["locations"], x["weights"])}


@op
def bicubic_table(x, s):
    return {"y": resample_table(x["table"], s["target_side"] ** 2 + bool(s["leading_cls_row"]))}


@op
def bilinear_mask(x, s):
    y = F.interpolate(x["mask"], tuple(s["size"]), mode="bilinear", align_corners=False)
    return {"resized": y, "positive": (y > 0).to(y.dtype)}


@op
def nearest_upsample(x, s):
    return {"y": F.interpolate(x["x"], tuple(s["out_size"]), mode="nearest")}


@op
def timestep_embedding_(x, s):
    return {"y": timestep_embedding(x["t"], s["dim"])}
