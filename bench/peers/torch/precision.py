"""How far PyTorch in bf16 is from f32 on the stored cases, per tensor: the measure of our own bf16.

precision.py FIXTURES [--draws N --write FOLDER] [--only KIND] -> JSON {torch, cases: {kind: {outputs: {name: [error, ...]}, gradients: {name: [...]}}}},
where an error is the L2 norm of the difference over that of the f32 result. Parameters and floating inputs are rounded to bf16; whatever
PyTorch makes of them is taken as it comes. Every case runs in f32 first, which has to agree with what is stored.

precision.py FIXTURES --float64 -> JSON {torch, cases: {kind: {name: value}}}: gradient norms of the training run in float64 where the stored ones
are off by more than OFF.

One run is one draw of all roundings, and where errors grow from layer to layer two draws differ by factors. So each case runs again on
weights and inputs changed by up to 2^-9, a rounding's size, with PyTorch's f32 as the truth; these cases are written for ours to run, too.
"""

import argparse
import json
import os
import re
import shutil
import sys

import torch

from fixture_models import MODULES, batch_of, deem_step, make_deem
from fixture_ops import OPS
from tensor_file import read, write

# Masks, cotangents, and what decides which picture is which.
FIXED = r"mask|keep|(^|\.)ct\.|uncond_rand|clip_(mean|std)"
STORED_FLOOR = 1e-6
OFF = 5e-4  # relative; half of what parity allows
ZERO = 1e-5  # of the largest gradient's norm: what is below is zero in exact arithmetic, and noise


def tensors(folder, name, draw=0):
    """Of a case; draw 0 as they are stored."""
    path = os.path.join(folder, f"{name}.safetensors")
    out = {k: t.clone() for k, t in read(path).items()} if os.path.exists(path) else {}
    if draw:
        random = torch.Generator().manual_seed(draw)
        for k, t in out.items():
            if t.dtype == torch.float32 and not re.search(FIXED, k):
                t *= 1 + (torch.rand(t.shape, generator=random) - 0.5) * 2**-8
    return out


def below(named, prefix):
    return {name[len(prefix) :]: t for name, t in named.items() if name.startswith(prefix)}


def error(got, want):
    got, want = got.detach().double().reshape(want.shape), want.double()
    length = want.norm()
    return float((got - want).norm() / length) if length > STORED_FLOOR else 0.0


def at_least_float(t):
    return t.to(torch.promote_types(t.dtype, torch.float32))


class Results:
    """What one case gives in one precision, under the stored names."""

    def __init__(self):
        self.outputs, self.gradients = {}, {}

    def put(self, into, prefix, got, stored):
        for name, t in stored.items():
            if t.is_floating_point() and name in got and got[name].numel() == t.numel():
                into[prefix + name] = at_least_float(got[name].detach()).reshape(t.shape)

    def errors(self, truth):
        largest = max((float(t.double().norm()) for t in truth.gradients.values()), default=0.0)
        zero = {name for name, t in truth.gradients.items() if float(t.double().norm()) < ZERO * largest}
        return {
            "outputs": {name: error(t, truth.outputs[name]) for name, t in self.outputs.items()},
            "gradients": {
                name: error(t, truth.gradients[name]) for name, t in self.gradients.items() if name not in zero
            },
        }


def backward(outputs, cotangents):
    roots = [(y, cotangents[f"ct.{name}"].to(y.dtype)) for name, y in outputs.items() if f"ct.{name}" in cotangents]
    roots = [(y, ct) for y, ct in roots if y.requires_grad]
    torch.autograd.backward([y for y, _ in roots], [ct for _, ct in roots])


def gradient(t):
    return torch.zeros_like(t) if t.grad is None else t.grad


def run_case(folder, prefix, settings, dtype, draw, report, run, parameters):
    """run(x, settings) -> outputs, of leaves made from the inputs below the prefix."""
    inputs, outputs, grads = (
        below(tensors(folder, kind, draw if kind == "inputs" else 0), prefix) for kind in ("inputs", "outputs", "grads")
    )
    cotangents = {name: t for name, t in inputs.items() if name.startswith("ct.")}
    x = {}
    for name, t in (inputs | below(tensors(folder, "weights", draw), prefix) if parameters is None else inputs).items():
        if name not in cotangents:
            x[name] = t.to(dtype).requires_grad_(bool(grads)) if t.is_floating_point() else t
    y = run(x, settings)
    report.put(report.outputs, prefix, y, outputs)
    if not grads:
        return
    backward(y, cotangents)
    leaves = x | ({f"w.{name}": p for name, p in parameters.items()} if parameters else {})
    report.put(report.gradients, prefix, {name: gradient(t) for name, t in leaves.items() if name in grads}, grads)


def load(module, weights, dtype):
    own = dict(module.named_parameters())
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unknown:
        raise ValueError(f"weights missing: {sorted(missing)[:5]}, unknown: {sorted(unknown)[:5]}")
    module.load_state_dict({name: weights[name].to(dtype).view(p.shape) for name, p in own.items()}, assign=True)
    return module.requires_grad_(True).eval()


def run_op(folder, config, dtype, draw):
    report = Results()
    for settings in config["cases"]:
        run_case(folder, settings["prefix"], settings, dtype, draw, report, OPS[config["op"]], None)
    return report


def run_module(folder, config, dtype, draw):
    make, run = MODULES[os.path.basename(folder)]
    report = Results()
    for settings in config.get("cases", [{"prefix": ""}]):
        module = load(make(config), tensors(folder, "weights", draw), dtype)
        parameters = dict(module.named_parameters())
        run_case(folder, settings["prefix"], config, dtype, draw, report, lambda x, c: run(module, x, c), parameters)
    return report


def whole_model(folder, config, dtype, draw):
    weights = tensors(folder, "weights", draw)
    weights.pop("visual_tokenizer.neg_prompt_embeds", None)  # the second name of image_decoder.neg_prompt_embeds
    return load(make_deem(config), weights, dtype)


def trained(folder):
    path = os.path.join(os.path.dirname(folder), "deem_nano_train", "config.json")
    with open(path) as file:
        config = json.load(file)
    return config, [line.split(" ") for line in config["parameters"]]


second = {"visual_tokenizer.neg_prompt_embeds": "image_decoder.neg_prompt_embeds"}


def run_deem(folder, config, dtype, draw):
    report = Results()
    model = whole_model(folder, config, dtype, draw)
    inputs, outputs, grads = tensors(folder, "inputs", draw), tensors(folder, "outputs"), tensors(folder, "grads")
    loss, y = deem_step(model, batch_of(inputs, inputs, dtype))
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {name: gradient(parameters[second.get(name, name)]) for name in grads}
    names = [name for name, _, _ in trained(folder)[1]]
    y["grad_norm"] = torch.stack([gradient(parameters[second.get(n, n)]).double().norm() for n in names]).norm()
    report.put(report.outputs, "", y, outputs)  # but img_*: pictures that carry no loss are not denoised on this side
    report.put(report.gradients, "", gradients, grads)
    return report


def run_train(folder, config, dtype, draw):
    """Five steps. The optimizer of a bf16 model holds f32 weights, as PyTorch is trained in bf16."""
    report = Results()
    base = os.path.join(os.path.dirname(folder), "deem_nano")
    with open(os.path.join(base, "config.json")) as file:
        model = whole_model(base, json.load(file), dtype, draw)
    inputs, outputs, draws = tensors(base, "inputs", draw), tensors(folder, "outputs"), tensors(folder, "inputs", draw)
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    groups, shadows = [], []
    for name, lr, decay in (line.split(" ") for line in config["parameters"]):
        p = parameters[second.get(name, name)].requires_grad_(True)
        master = at_least_float(p.detach()).clone()
        shadows.append((p, master))
        groups.append({"params": [master], "lr": float(lr), "weight_decay": float(decay), "base": float(lr)})
    optimizer = torch.optim.AdamW(groups, betas=config["betas"], eps=config["eps"])
    y = {}
    for k in range(config["steps"]):
        factor = float(outputs[f"step{k}.lr_factor"])
        loss, values = deem_step(model, batch_of(inputs, below(draws, f"step{k}."), dtype))
        loss.backward()
        for group, (p, master) in zip(optimizer.param_groups, shadows):
            group["lr"] = group["base"] * factor
            master.grad = at_least_float(gradient(p))
            p.grad = None
        y[f"step{k}.grad_norm_before_clip"] = torch.nn.utils.clip_grad_norm_(
            [m for _, m in shadows], config["max_grad_norm"]
        )
        optimizer.step()
        for p, master in shadows:
            p.data.copy_(master)
        y[f"step{k}.norms"] = torch.stack([p.detach().double().norm() for p, _ in shadows])
        for name in ("loss", "loss_txt", "loss_img", "loss_sniffer"):
            y[f"step{k}.{name}"] = values[name]
    y |= {f"after.{name}": p for name, p in parameters.items()}
    report.put(report.outputs, "", y, outputs)
    return report


def find(root):
    for place, names, run in (("ops", OPS, run_op), ("modules", MODULES, run_module)):
        for name in sorted(names):
            yield f"{place}/{name}", run
    yield "model/deem_nano", run_deem
    yield "model/deem_nano_train", run_train


def zero_padding(results, folder, name="cached.prompt_hidden"):
    """Rows of padding need not match."""
    if name in results.outputs:
        results.outputs[name] *= tensors(folder, "inputs")["cached.keep"][..., None]


def stored_results(folder):
    out = Results()
    out.outputs, out.gradients = tensors(folder, "outputs"), tensors(folder, "grads")
    zero_padding(out, folder)
    return out


def write_case(to, folder, draw, truth):
    os.makedirs(to)
    shutil.copy(os.path.join(folder, "config.json"), to)
    for name in ("inputs", "weights"):
        if changed := tensors(folder, name, draw):
            write(os.path.join(to, f"{name}.safetensors"), changed)
    for name, results in (("outputs", truth.outputs), ("grads", truth.gradients)):
        if results:  # norms are taken in float64; stored cases hold f32
            narrow = {n: t.float() if t.dtype == torch.float64 else t for n, t in results.items()}
            write(os.path.join(to, f"{name}.safetensors"), narrow)


def float64(root):
    """Where stored gradient norms of the training run are off, what they are without rounding."""
    torch.set_num_threads(2)
    kind = "model/deem_nano_train"
    folder = os.path.join(root, kind)
    with open(os.path.join(folder, "config.json")) as file:
        exact = run_train(folder, json.load(file), torch.float64, 0).outputs
    off = {}
    for name, stored in tensors(folder, "outputs").items():
        if name.endswith("grad_norm_before_clip"):
            part = error(stored, exact[name])
            print(f"{name}: {float(exact[name])}, stored off by {part:.2e}", file=sys.stderr)
            if part > OFF:
                off[name] = float(exact[name])
    json.dump({"torch": torch.__version__, "cases": {kind: off}}, sys.stdout)


def main(root, draws, written, only):
    torch.set_num_threads(2)
    cases = {}
    for kind, run in find(root):
        if only not in kind:
            continue
        folder = os.path.join(root, kind)
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        exact = run(folder, config, torch.float32, 0)
        limit = 1e-2 if kind.endswith("_train") else 2e-3
        truth = stored_results(folder)
        wrong = {n: e for part in exact.errors(truth).values() for n, e in part.items() if not e < limit}
        if wrong:
            raise SystemExit(f"{kind}: PyTorch in f32 is not what is stored: {wrong}")
        runs = [run(folder, config, torch.bfloat16, 0).errors(truth)]
        for draw in range(1, 1 + (0 if kind.startswith("ops/") else draws)):
            truth = run(folder, config, torch.float32, draw)
            runs.append(run(folder, config, torch.bfloat16, draw).errors(truth))
            if written:
                write_case(os.path.join(written, str(draw), kind), folder, draw, truth)
        kept = {part: [n for n in runs[0][part] if all(n in e[part] for e in runs)] for part in runs[0]}
        cases[kind] = {part: {n: [e[part][n] for e in runs] for n in names} for part, names in kept.items()}
        print(kind, file=sys.stderr)
    json.dump({"torch": torch.__version__, "cases": cases}, sys.stdout)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("fixtures")
    options.add_argument("--draws", type=int, default=0)
    options.add_argument("--write")
    options.add_argument("--only", default="")
    options.add_argument("--float64", action="store_true")
    given = options.parse_args()
    if given.float64:
        float64(given.fixtures)
    else:
        main(given.fixtures, given.draws, given.write, given.only)
