"""Loads what saveDeem and `deem convert` write with Hugging Face's own code and compares every tensor with the source.

    npm run build && python3 test/python/load_converted.py [DEEM_FOLDER]

DEEM_FOLDER defaults to the stored fixture; the pieces are always those beside it. Compares state dicts, not logits. Prints `skipped` where Python lacks torch or
transformers (diffusers, for Stable Diffusion); exits with 1 where anything differs.
"""

import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]

save = """
import { loadDeem, saveDeem } from './dist/index.js'
const [source, target] = process.argv.slice(1)
const { model } = await loadDeem(source)
const small = { maxShardBytes: 100_000 }
await saveDeem(model, `${target}/llama-f32`, { layout: 'llama' })
await saveDeem(model, `${target}/llama-shards`, { layout: 'llama', dtype: 'f16', ...small })
await saveDeem(model, `${target}/sd`, { layout: 'stable-diffusion', ...small })
await saveDeem(model, `${target}/sd-old`, { layout: 'stable-diffusion', oldAttentionNames: true })
"""
pieces = root / "test/fixtures/hf_layout"


def convert(source, target, *flags):
    """Calls the command line; gives the folder it wrote."""
    command = ["node", "dist/cli/main.js", "convert", str(source), str(target), *flags, "--json"]
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    return target


def stored_weights(folder, torch):
    """The tensors of a folder as torch reads them, by stored name."""
    files = sorted(folder.glob("*.bin"))
    if files:
        parts = [torch.load(f, weights_only=True) for f in files]
    else:
        from safetensors.torch import load_file

        parts = [load_file(f) for f in sorted(folder.glob("*.safetensors"))]
    return {name: t for part in parts for name, t in part.items()}


def differences(torch, got, want):
    """Names that only one side has, or whose values differ once both are f32."""
    names = sorted(got.keys() ^ want.keys())
    return names + [n for n in got.keys() & want.keys() if not torch.equal(got[n].float(), want[n].float())]


def report(what, got, bad):
    print(f"{what}: {len(got)} tensors, {'equal' if not bad else 'DIFFERENT: ' + ', '.join(bad[:20])}")
    return not bad


def llama_of(weights, rows):
    """What a LLaMA of that vocabulary holds of the weights of a DEEM."""
    want = {}
    for name, t in weights.items():
        if name.startswith("mm_decoder.") and ".llama_cross_attn." not in name and "rotary_emb" not in name:
            want["model." + name.removeprefix("mm_decoder.")] = t
    want["model.embed_tokens.weight"] = want["model.embed_tokens.weight"][:rows]
    want["lm_head.weight"] = weights["text_decoder.head.weight"][:rows]
    return want


def check_llama(folder, want, torch, transformers):
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    want = llama_of(want, config.vocab_size) if "text_decoder.head.weight" in want else want
    got = model.state_dict()
    bad = [n for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for n in info[kind]]
    return report(f"{folder.name} ({type(model).__name__}, {model.dtype})", got, bad + differences(torch, got, want))


def check_diffusers(folder, weights, torch, diffusers):
    ok = True
    for part, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        prefix = f"visual_tokenizer.encoder.{part}."
        want = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        got = kind.from_pretrained(folder, subfolder=part).state_dict()
        ok &= report(f"{folder.name}/{part}", got, differences(torch, got, want))
    return ok


def check_file(folder, want, torch):
    """Weights for which no library has a class of this size: as safetensors' own code reads them."""
    got = stored_weights(folder, torch)
    return report(str(folder.name), got, differences(torch, got, want))


def check_text_encoder(folder, want, torch, transformers):
    model, info = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    bad = [n for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for n in info[kind]]
    # Versions differ in whether the names of the module begin with text_model.
    got = {"text_model." + n.removeprefix("text_model."): t for n, t in model.state_dict().items() if "position_ids" not in n}
    want = {n: t for n, t in want.items() if "position_ids" not in n}
    return report(f"{folder.name}/text_encoder ({model.dtype})", got, bad + differences(torch, got, want))


def check_pieces(target, torch, transformers):
    ok = True
    for name, dtype in (("llama", "bf16"), ("llama_bin_fp16", "f16")):
        source = pieces / name
        want = {n: t for n, t in stored_weights(source, torch).items() if "rotary_emb" not in n}
        ok &= check_llama(convert(source, target / name), want, torch, transformers)
        wide = convert(source, target / f"{name}-f32", "--dtype", "f32", "--max-shard-size", "100KB")
        ok &= check_llama(wide, want, torch, transformers)
        ok &= check_llama(convert(wide, target / f"{name}-back", "--dtype", dtype), want, torch, transformers)
    sd = pieces / "stable_diffusion"
    want = stored_weights(sd / "text_encoder", torch)
    ok &= check_text_encoder(convert(sd, target / "pieces-sd"), want, torch, transformers)
    half = {n: t.to(torch.bfloat16) for n, t in want.items()}
    ok &= check_text_encoder(convert(sd, target / "pieces-sd-bf16", "--dtype", "bf16"), half, torch, transformers)
    old = convert(sd, target / "pieces-sd-old", "--old-attention-names")
    for part in ("unet", "vae"):
        ok &= check_file(old / part, stored_weights(sd / part, torch), torch)
    clip = pieces / "open_clip"
    return ok & check_file(convert(clip, target / "open-clip"), stored_weights(clip, torch), torch)


def main():
    try:
        import torch
        import transformers
    except ImportError as missing:
        print(f"skipped: {missing}")
        return 0
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "test/fixtures/hf_layout/deem").resolve()
    weights = stored_weights(source, torch)
    with tempfile.TemporaryDirectory() as place:
        target = pathlib.Path(place)
        command = ["node", "--input-type=module", "-e", save, str(source), str(target)]
        subprocess.run(command, cwd=root, check=True)
        convert(source, target / "llama-file", "--layout", "llama")
        ok = all([check_llama(f, weights, torch, transformers) for f in sorted(target.glob("llama-*"))])
        ok &= check_file(convert(source, target / "deem"), weights, torch)
        again = convert(target / "deem", target / "deem-old", "--old-attention-names")
        ok &= check_file(convert(again, target / "deem-back"), weights, torch)
        ok &= check_pieces(target / "pieces", torch, transformers)
        try:
            import diffusers
        except ImportError as missing:
            print(f"skipped the denoiser: {missing}")
        else:
            ok &= all([check_diffusers(f, weights, torch, diffusers) for f in sorted(target.glob("sd*"))])
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
