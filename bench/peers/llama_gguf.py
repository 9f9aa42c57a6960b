"""Writes a LLaMA of random weights as GGUF: python llama_gguf.py CONFIG_JSON bf16|q8_0|q4_0 FILE.

Speed does not depend on the values, so every matrix repeats the same 64 random rows.
"""

import json
import sys

import gguf
import numpy as np

KINDS = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
ROWS = 64


def main(config, kind, path):
    c = json.loads(config)
    dtype, file_type = KINDS[kind]
    draws = np.random.default_rng(1)
    width, heads, shared = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(width)
    out.add_block_count(c["num_hidden_layers"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(shared)
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_rope_dimension_count(width // heads)
    out.add_vocab_size(c["vocab_size"])
    out.add_file_type(file_type)

    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens = special + [f"t{i}" for i in range(len(special), c["vocab_size"])]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([-float(i) for i in range(len(tokens))])
    out.add_token_types(types + [gguf.TokenType.NORMAL] * (len(tokens) - len(types)))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    def matrix(name, rows, cols):
        some = gguf.quants.quantize(draws.normal(0, 0.02, (ROWS, cols)).astype(np.float32), dtype)
        out.add_tensor(name, np.tile(some, (-(-rows // ROWS), 1))[:rows], raw_dtype=dtype)

    def ones(name):
        out.add_tensor(name, np.ones(width, np.float32))

    matrix("token_embd.weight", c["vocab_size"], width)
    ones("output_norm.weight")
    matrix("output.weight", c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        ones(f"blk.{i}.attn_norm.weight")
        ones(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", width, width)
        matrix(f"blk.{i}.attn_k.weight", width // heads * shared, width)
        matrix(f"blk.{i}.attn_v.weight", width // heads * shared, width)
        matrix(f"blk.{i}.attn_output.weight", width, width)
        matrix(f"blk.{i}.ffn_gate.weight", c["intermediate_size"], width)
        matrix(f"blk.{i}.ffn_up.weight", c["intermediate_size"], width)
        matrix(f"blk.{i}.ffn_down.weight", width, c["intermediate_size"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


main(*sys.argv[1:])
