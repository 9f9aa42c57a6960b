"""The stored cases of modules and of the whole model (test/fixtures/modules, model/deem_nano) on the plain PyTorch parts of the bench."""

import types

import torch
import torch.nn.functional as F
from torch import nn

from convnext import ConvNext
from deem import Deem
from diffusion import MmfsNet, Unet, Vae
from llama import Llama, TextHead
from qformer import Perceiver
from sampling import Mmfs, relative_index

nhwc = lambda x: x.permute(0, 2, 3, 1)
nchw = lambda x: x.permute(0, 3, 1, 2)


def convnext_encoder(m, x, c):
    tokens, maps = m(nhwc(x["pixels"]))
    return {"tokens": tokens, **{f"c{i + 2}": nchw(y) for i, y in enumerate(maps)}}


def make_mmfs(c):
    return Mmfs(
        c["d_query"],
        c["d_value"],
        c["d_out"],
        c["value_width"],
        c["n_heads"],
        c["n_points"],
        c["level_sides"],
        c["base_side"],
        c["max_images"],
    )


def mmfs(m, x, c):
    sides = [(s, s) for s in c["level_sides"]]
    relative = relative_index(x["mask"], x["query"].shape[1])
    return {"y": m(x["query"], x["reference_points"], x["features"], sides, relative)}


def perceiver(m, x, c):
    return {"y": m(x["context"], x.get("context_mask"))}


def llama_layers(m, x, features, image_mask, keep, positions):
    """Inputs of the layers, what comes out, and keys and values of the first layer; padding may be on either side."""
    batch, length = x.shape[:2]
    size = m.c["hidden_size"] // m.c["num_attention_heads"]
    angle = positions[..., None, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], -1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    # A row that sees nothing is padding that nobody reads; its own place keeps it finite.
    mask = torch.ones(length, length, dtype=torch.bool).tril() & keep.bool()[:, None, None]
    mask = mask | (~mask.any(-1, keepdim=True) & torch.eye(length, dtype=torch.bool))
    relative = None if features is None else relative_index(image_mask, length)
    cache = types.SimpleNamespace()

    def extend(k, v):
        cache.k, cache.v = k, v
        return k, v

    cache.extend = extend
    inputs = []
    for i, layer in enumerate(m.layers):
        inputs.append(x)
        x = layer(x, features, relative, cos, sin, mask, cache if i == 0 else None)
    return inputs, m.norm(x), cache


def llama_mmfs(m, x, c):
    embeds, features = x["embeds"], x["features"]
    batch, length = embeds.shape[:2]
    at = torch.arange(length).expand(batch, -1)
    inputs, hidden, _ = llama_layers(m, embeds, features, x["image_mask"], x["keep"], at)
    out = {"last_hidden": hidden, **{f"layer_in.{i}": y for i, y in enumerate(inputs)}}
    with torch.no_grad():
        out["no_image_hidden"] = llama_layers(m, embeds, None, None, x["keep"], at)[1]
        # Token by token is the same as at once.
        prompt = c["cached_prompt_length"]
        keep = torch.cat([x["cached.keep"], torch.ones(batch, length - prompt, dtype=torch.long)], 1)
        rest = x["cached.image_mask"][:, -1:].expand(-1, length - prompt, -1)
        mask = torch.cat([x["cached.image_mask"], rest], 1)
        positions = torch.cat([x["cached.positions"], keep.cumsum(1)[:, prompt:] - 1], 1)
        _, y, cache = llama_layers(m, embeds, features, mask, keep, positions)
        out["cached.prompt_hidden"] = y[:, :prompt] * x["cached.keep"][..., None].to(y.dtype)
        for i in range(prompt, length):
            out[f"cached.step{i - prompt}_hidden"] = y[:, i : i + 1]
        out["cached.key_layer0"], out["cached.value_layer0"] = cache.k, cache.v
    return out


class UnetWithMaps(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.unet = Unet(c["unet"])
        self.mmfs_module = MmfsNet(c["mmfs"], self.unet.residual_widths(), c["mmfs"]["feature_dim"])
        s = c["scheduler"]
        betas = torch.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, s["num_train_timesteps"]) ** 2
        self.alphas = (1 - betas).double().cumprod(0).float()


def unet(m, x, c):
    maps = [x[f"map{i}"].permute(0, 1, 3, 4, 2) for i in range(4)]
    over = m.mmfs_module.over(maps, x["mask"])
    t, text = x["timesteps"], x["text"]
    sample, latent, noise = (nhwc(x[name]) for name in ("sample", "latent", "noise"))
    out = {"with_mmfs": nchw(m.unet(sample, t, text, over))}
    with torch.no_grad():
        out["plain"] = nchw(m.unet(sample, t, text))
        a = m.alphas[t].view(-1, 1, 1, 1)
        signal, dev = a.sqrt().to(latent.dtype), (1 - a).sqrt().to(latent.dtype)
        noisy, velocity = latent * signal + noise * dev, noise * signal - latent * dev
        pred = m.unet(noisy, t, text, over)
        out |= {"noisy": nchw(noisy), "noisy_pred": nchw(pred), "velocity_target": nchw(velocity)}
        out |= {"loss_epsilon": F.mse_loss(pred, noise), "loss_v_prediction": F.mse_loss(pred, velocity)}
    return out


def vae(m, x, c):
    with torch.no_grad():
        mean, logvar = m.encode(nhwc(x["image"]))
        sample = (mean + (0.5 * logvar).exp() * nhwc(x["eps"])) * m.scale
        y = {"mean": mean, "logvar": logvar, "sample_scaled": sample, "decoded": m.decode(nhwc(x["latent"]))}
    return {name: nchw(t) for name, t in y.items()}


def text_head(m, x, c):
    return {"logits": m(x["hidden"])}


class ClipText(nn.Module):
    """The text tower of CLIP: pre-norm, causal, exact gelu."""

    def __init__(self, c):
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        t = self.text_model = nn.Module()
        t.embeddings = nn.Module()
        t.embeddings.token_embedding = nn.Embedding(c["vocab_size"], width)
        t.embeddings.position_embedding = nn.Embedding(c["max_position_embeddings"], width)
        t.encoder = nn.Module()
        t.encoder.layers = nn.ModuleList(self.layer(c, width) for _ in range(c["num_hidden_layers"]))
        t.final_layer_norm = nn.LayerNorm(width, c["layer_norm_eps"])

    def layer(self, c, width):
        l = nn.Module()
        l.layer_norm1, l.layer_norm2 = (nn.LayerNorm(width, c["layer_norm_eps"]) for _ in range(2))
        l.self_attn, l.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(l.self_attn, name, nn.Linear(width, width))
        l.mlp.fc1, l.mlp.fc2 = nn.Linear(width, c["intermediate_size"]), nn.Linear(c["intermediate_size"], width)
        return l

    def forward(self, ids):
        t = self.text_model
        x = t.embeddings.token_embedding(ids) + t.embeddings.position_embedding.weight[: ids.shape[1]]
        for l in t.encoder.layers:
            h, a = l.layer_norm1(x), l.self_attn
            q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + a.out_proj(y.transpose(1, 2).flatten(2))
            x = x + l.mlp.fc2(F.gelu(l.mlp.fc1(l.layer_norm2(x))))
        return t.final_layer_norm(x)


def clip_text_encoder(m, x, c):
    with torch.no_grad():
        return {"last_hidden_state": m(x["input_ids"])}


MODULES = {
    "convnext_encoder": (ConvNext, convnext_encoder),
    "mmfs": (make_mmfs, mmfs),
    "perceiver_qknorm": (Perceiver, perceiver),
    "perceiver_masked": (Perceiver, perceiver),
    "llama_mmfs": (Llama, llama_mmfs),
    "unet": (UnetWithMaps, unet),
    "vae": (Vae, vae),
    "text_head": (lambda c: TextHead(c["hidden_size"], c["txt_vocab_size"], c["orig_txt_vocab_size"]), text_head),
    "clip_text_encoder": (ClipText, clip_text_encoder),
}


# ---- the whole model ---------------------------------------------------------------------------------------------------


def batch_of(inputs, draws, dtype):
    """A stored batch as Deem takes it."""
    x = {name: inputs[name] for name in ("text_ids", "attention_mask", "num_image_per_seq", "nearest_bos_idxs")}
    for name in ("image_tensors", "image_tensors_dec", "image_tensors_mask"):
        x[name] = nhwc(inputs[name]).to(dtype)
    for name in ("sniffer_eps", "sniffer_noise", "img_eps", "img_noise"):
        x[name] = nhwc(draws[name]).to(dtype)
    return x | {name: draws[name] for name in ("sniffer_t", "img_t", "uncond_rand")}


def deem_step(m, x):
    """Losses and, from hooks, what lies between; the loss keeps its graph."""
    out, hooks, denoised = {}, [], []
    keep = lambda name, t: out.__setitem__(name, t.detach())

    def watch(part, f):
        hooks.append(part.register_forward_hook(lambda _, given, got: f(given, got)))

    visual = m.visual_tokenizer
    watch(visual.sniffer, lambda _, got: keep("sniffer_tokens", got[0]))
    watch(visual.perceiver_resampler, lambda _, got: keep("query_embeds", got))
    for i, layer in enumerate(m.mm_decoder.layers):
        watch(layer, lambda given, _, i=i: keep(f"hidden.{i}", given[0]))
    watch(m.mm_decoder, lambda _, got: keep(f"hidden.{len(m.mm_decoder.layers)}", got))
    watch(m.text_decoder, lambda _, got: keep("logits", got))
    watch(m.image_decoder.perceiver_resampler, lambda given, _: keep("context_features", given[0]))
    watch(visual.encoder.unet, lambda given, got: denoised.append((given[0].detach(), got.detach(), given[2].detach())))
    look = visual.look

    def looking(*args):
        seen = look(*args)
        for i, t in enumerate(seen[1]):
            keep(f"map.c{i + 2}", nchw(t))
        return seen

    visual.look = looking
    losses = m.losses(x)
    visual.look = look
    for h in hooks:
        h.remove()
    out["mm_embeds"] = out.pop("hidden.0")
    for name, (noisy, pred, _) in zip(("sniffer", "img"), denoised):
        keep(f"{name}_noisy", nchw(noisy))
        keep(f"{name}_pred", nchw(pred))
    keep("image_cond", denoised[1][2])
    return losses["loss"], out | {name: t.detach() for name, t in losses.items()}


def make_deem(config):
    return Deem(config)
