"""Loads what saveDeem and convertFolder write with Hugging Face's own code and compares every tensor with the source.

    npm run build && python3 test/python/load_converted.py [DEEM_FOLDER]

DEEM_FOLDER defaults to the stored fixture. Compares state dicts, not logits. Prints `skipped` where Python lacks torch or
transformers (diffusers, for Stable Diffusion); exits with 1 where anything differs.
"""

import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]

convert = """
import { convertFolder, loadDeem, saveDeem } from './dist/index.js'
const [source, target] = process.argv.slice(1)
const { model } = await loadDeem(source)
const small = { maxShardBytes: 100_000 }
await saveDeem(model, `${target}/llama-f32`, { layout: 'llama' })
await saveDeem(model, `${target}/llama-shards`, { layout: 'llama', dtype: 'f16', ...small })
await convertFolder(source, `${target}/llama-file`, { layout: 'llama' })
await saveDeem(model, `${target}/sd`, { layout: 'stable-diffusion', ...small })
await saveDeem(model, `${target}/sd-old`, { layout: 'stable-diffusion', oldAttentionNames: true })
"""


def stored_weights(folder, torch):
    """The tensors of a DEEM folder as torch reads them, by published name."""
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


def check_llama(folder, weights, torch, transformers):
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    rows = config.vocab_size
    want = {}
    for name, t in weights.items():
        if name.startswith("mm_decoder.") and ".llama_cross_attn." not in name and "rotary_emb" not in name:
            want["model." + name.removeprefix("mm_decoder.")] = t
    want["model.embed_tokens.weight"] = want["model.embed_tokens.weight"][:rows]
    want["lm_head.weight"] = weights["text_decoder.head.weight"][:rows]
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
        command = ["node", "--input-type=module", "-e", convert, str(source), str(target)]
        subprocess.run(command, cwd=root, check=True)
        ok = all([check_llama(f, weights, torch, transformers) for f in sorted(target.glob("llama-*"))])
        try:
            import diffusers
        except ImportError as missing:
            print(f"skipped the denoiser: {missing}")
        else:
            ok &= all([check_diffusers(f, weights, torch, diffusers) for f in sorted(target.glob("sd*"))])
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
