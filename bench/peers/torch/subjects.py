"""What a case is on this side: one pass to time, and named results to compare."""

import torch
from torch import nn

from convnext import ConvNext
from deem import Deem
from diffusion import MmfsNet, Unet, Vae
from llama import Llama, TextHead
from ops import PROGRAMS
from qformer import Perceiver
from tensor_file import read

COMPARED = 1 << 16


class Unsupported(Exception):
    """This case is none for this peer."""


def tensor_gradients(tensors, prefix):
    return {f"{prefix}{name}": t.grad for name, t in tensors.items() if t.grad is not None}


def split_cotangents(inputs):
    cotangents = {name.removeprefix("cotangent."): t for name, t in inputs.items() if name.startswith("cotangent.")}
    return {name: t for name, t in inputs.items() if not name.startswith("cotangent.")}, cotangents


class Op:
    def __init__(self, case, inputs, wrap):
        self.case = case
        if case["program"] not in PROGRAMS:
            raise Unsupported(f"there is no program '{case['program']}'")
        self.f = wrap(PROGRAMS[case["program"]])
        self.x, self.cotangents = split_cotangents(inputs)
        for name in case["wants"]:
            self.x[name].requires_grad_(True)
        self.backward = case["pass"] == "backward"

    def forget(self):
        for t in self.x.values():
            t.grad = None

    def step(self):
        if not self.backward:
            with torch.inference_mode():
                return {"y": self.f(self.x, self.case["settings"])}
        y = self.f(self.x, self.case["settings"])
        y.backward(self.cotangents["y"].to(y.dtype))
        return {"y": y.detach()}

    def results(self):
        self.forget()
        return {**self.step(), **tensor_gradients(self.x, "grad.")}


class AdamW:
    def __init__(self, case, inputs, wrap):
        s = case["settings"]
        self.parameters = {}
        for name, t in inputs.items():
            if name.startswith("p"):
                self.parameters[name] = nn.Parameter(t)
                self.parameters[name].grad = inputs["g" + name[1:]]
        self.gradients = [p.grad for p in self.parameters.values()]
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=s["lr"], weight_decay=s["decay"], fused=True)

    # As deem's step does, which gives the norm of the gradients and changes nothing where one is not finite.
    def step(self):
        self.norm = nn.utils.get_total_norm(self.gradients, error_if_nonfinite=True)
        self.optimizer.step()

    def forget(self):
        pass

    def results(self):
        self.step()
        return {"p0": self.parameters["p0"].detach().clone()}


class UnetPart(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.unet = Unet(c["unet"])
        if "mmfs" in c:
            self.mmfs_module = MmfsNet(c["mmfs"], self.unet.residual_widths(), c["mmfs"]["feature_dim"])

    def forward(self, x, s):
        maps = [x[f"map.{i}"] for i in range(sum(name.startswith("map.") for name in x))]
        mmfs = self.mmfs_module.over(maps, x["image_mask"]) if maps else None
        return {"pred": self.unet(x["sample"], x["timesteps"], x["context"], mmfs)}


class ConvNextPart(ConvNext):
    def forward(self, x, s):
        tokens, maps = super().forward(x["pixels"])
        return {"tokens": tokens, **{f"c{i + 2}": m for i, m in enumerate(maps)}}


class PerceiverPart(Perceiver):
    def forward(self, x, s):
        return {"y": super().forward(x["context"])}


class LlamaPart(Llama):
    def forward(self, x, s):
        return {"last_hidden": super().forward(x["embeds"], x["features"], x["image_mask"])}


class VaePart(Vae):
    def forward(self, x, s):
        if s["half"] == "decode":
            return {"image": self.decode(x["latent"])}
        mean, logvar = self.encode(x["image"])
        return {"mean": mean, "logvar": logvar}


PARTS = {"convnext": ConvNextPart, "perceiver": PerceiverPart, "llama": LlamaPart, "unet": UnetPart, "vae": VaePart}


def load(module, path, dtype):
    """Published weights in, channels last, nothing trained."""
    own = dict(module.named_parameters())
    stored = read(path)
    missing, unknown = own.keys() - stored.keys(), stored.keys() - own.keys()
    if missing or unknown:
        raise ValueError(f"weights missing: {sorted(missing)[:5]}, unknown: {sorted(unknown)[:5]}")
    values = {}
    for name, p in own.items():
        value = stored[name].to(dtype).view(p.shape)
        values[name] = value.clone(memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format)
    module.load_state_dict(values, assign=True)
    module.requires_grad_(False)
    return module.eval()


def on_meta(make, config):
    """Built without memory; `load` gives every parameter its value."""
    with torch.device("meta"):
        return make(config)


class Part:
    def __init__(self, case, inputs, module, wrap):
        self.case, self.module = case, module
        s = case["settings"]
        self.backward = case["pass"] == "backward"
        self.module.requires_grad_(self.backward and s["trains"])
        for part in self.module.modules():
            if hasattr(part, "checkpointed"):
                part.checkpointed = bool(s.get("checkpoint"))
        self.f = wrap(self.module)
        self.x, self.cotangents = split_cotangents(inputs)
        for name in case["wants"]:
            self.x[name].requires_grad_(True)

    def forget(self):
        self.module.zero_grad(set_to_none=True)
        for t in self.x.values():
            t.grad = None

    def step(self):
        if not self.backward:
            with torch.inference_mode():
                return self.f(self.x, self.case["settings"])
        y = self.f(self.x, self.case["settings"])
        torch.autograd.backward(list(y.values()), [self.cotangents[name] for name in y])
        return {name: t.detach() for name, t in y.items()}

    def results(self):
        self.forget()
        y = self.step()
        parameters = tensor_gradients(dict(self.module.named_parameters()), "grad.w.")
        some = {name: g.reshape(-1)[:COMPARED] for name, g in parameters.items()}
        return {**y, **tensor_gradients(self.x, "grad."), **some}


class Train:
    """A step of the whole model: losses, gradients, clipping, fused AdamW."""

    def __init__(self, case, inputs, module, wrap):
        s = case["settings"]
        dtype = next(module.parameters()).dtype
        self.x = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
        self.module = module
        self.f = wrap(module.losses)
        parameters = dict(module.named_parameters())
        groups = []
        for entry in s["parameters"]:
            p = parameters[entry["name"]].requires_grad_(True)
            groups.append({"params": [p], "lr": entry["lr"], "weight_decay": entry["weightDecay"]})
        o = s["optimizer"]
        self.trained = [g["params"][0] for g in groups]
        # Few groups: the fused step is one call for each of them.
        merged = {}
        for g in groups:
            merged.setdefault((g["lr"], g["weight_decay"]), []).extend(g["params"])
        groups = [{"params": p, "lr": lr, "weight_decay": wd} for (lr, wd), p in merged.items()]
        self.optimizer = torch.optim.AdamW(groups, betas=o["betas"], eps=o["eps"], fused=True)
        self.limit = o["maxGradNorm"]

    def forget(self):
        pass

    def step(self):
        losses = self.f(self.x)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**losses, "grad_norm": norm}

    def results(self):
        return {name: t.detach().float().view(1) for name, t in self.step().items()}


class Generate:
    def __init__(self, case, inputs, module, wrap):
        self.case, self.module, self.x = case, module, inputs
        if case["program"] == "deemPaint":
            module.visual_tokenizer.encoder.unet.forward = wrap(module.visual_tokenizer.encoder.unet.forward)

    def forget(self):
        pass

    def step(self):
        s = self.case["settings"]
        with torch.inference_mode():
            if self.case["program"] == "deemPaint":
                return {"picture": self.module.paint(self.x, s["steps"], s["guidance"])}
            return {"ids": self.module.caption(self.x, s["count"], s["banned"])}

    def results(self):
        return self.step()


class LanguageModel(nn.Module):
    """The language model of a DEEM alone, under its names there."""

    def __init__(self, c):
        super().__init__()
        self.mm_decoder = Llama({**c, "image_embed_dim": 8, "cross_attention_frequency": 1000, "spatial_shapes": [1]})
        self.text_decoder = TextHead(c["hidden_size"], c["vocab_size"], c["vocab_size"])


class Decode:
    """Tokens one by one after a prompt that stays in the cache."""

    def __init__(self, case, inputs, module, wrap):
        s = self.s = case["settings"]
        self.module = module
        ids = inputs["text_ids"]
        self.prompt = ids.shape[1]
        dtype = module.text_decoder.head.weight.dtype
        self.caches = module.mm_decoder.make_caches(self.prompt + s["tokens"], dtype)
        with torch.inference_mode():
            module.mm_decoder(module.mm_decoder.embed_tokens(ids), caches=self.caches)
        self.f = wrap(self.next)

    def next(self, token):
        m = self.module
        logits = m.text_decoder(m.mm_decoder(m.mm_decoder.embed_tokens(token), caches=self.caches))
        logits[..., self.s["banned"]] = -torch.inf
        return logits.argmax(-1)

    def forget(self):
        pass

    def step(self):
        for cache in self.caches:
            cache.length = self.prompt
        out = []
        with torch.inference_mode():
            token = torch.tensor([[self.s["first"]]])
            for _ in range(self.s["tokens"]):
                token = self.f(token)
                out.append(token)
        return {"ids": torch.cat(out, 1)}

    def results(self):
        return self.step()


def make_module(case, path, dtype):
    program, s = case["program"], case["settings"]
    if program == "decode":
        module = on_meta(LanguageModel, s["config"])
        # The file holds a whole DEEM, whose MMFS does nothing without pictures.
        for layer in module.mm_decoder.layers:
            layer.llama_cross_attn = None
        stored = read(path)
        values = {name: stored[name].clone() for name, _ in module.named_parameters()}
        module.load_state_dict(values, assign=True)
        module.requires_grad_(False)
        return module.eval()
    if program in PARTS:
        return load(on_meta(PARTS[program], s["config"]), path, dtype)
    if program.startswith("deem"):
        return load(Deem(s["config"]), path, dtype)
    raise Unsupported(f"there is no program '{program}'")


def make_subject(case, inputs, module, wrap):
    program = case["program"]
    if program == "adamw":
        return AdamW(case, inputs, wrap)
    if case["group"] == "op":
        return Op(case, inputs, wrap)
    kinds = {"deemTrain": Train, "deemCaption": Generate, "deemPaint": Generate, "decode": Decode}
    return kinds.get(program, Part)(case, inputs, module, wrap)
