#!/usr/bin/env python3
"""A base of Llama-3.2-1B's or Llama-3.1-8B's shape with random weights, as GGUF, with a tokenizer that every server loads (needs gguf).

    gen_base.py SMALL.gguf OUT.gguf --type Q4_0|Q4_K|BF16 [--shape 8b]

1b: 16 layers, hidden 2048, 32 heads, 8 of keys, FFN 8192, 128,256 tokens, tied. 8b: 32 layers, hidden 4096, FFN 14336, untied. The
tokenizer is SMALL's, filled up with tokens that no text has. Codes are random; scales make weights of about N(0, 0.02^2), so that
activations stay what a network's are.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HEADS, KV_HEADS, VOCAB = 32, 8, 128256
SHAPES = {"1b": (16, 2048, 8192), "8b": (32, 4096, 14336)}
SIZE = 0.02


def halves(rng, blocks, size):
    """Scales about `size`, as the two bytes of a half each."""
    return (size * rng.uniform(0.8, 1.2, blocks)).astype("<f2").view(np.uint8).reshape(blocks, 2)


def q4_0(rng, outputs, inputs):
    blocks = outputs * inputs // 32
    # Codes are uniform in -8..7: their deviation is 4.6.
    codes = rng.integers(0, 256, (blocks, 16), dtype=np.uint8)
    return np.concatenate([halves(rng, blocks, SIZE / 4.6), codes], axis=1).reshape(outputs, -1)


def q4_k(rng, outputs, inputs):
    blocks = outputs * inputs // 256
    # w = d * scale * code - dmin * min, with 6-bit scales and minima; min = 7.5 scales, so that the mean is zero.
    scale = rng.integers(24, 40, (blocks, 8), dtype=np.uint8)
    packed = np.empty((blocks, 12), np.uint8)
    low, high = scale[:, :4], scale[:, 4:]
    packed[:, :4] = low | (high >> 4) << 6
    packed[:, 4:8] = packed[:, :4]
    packed[:, 8:] = (high & 15) | (high & 15) << 4
    d = halves(rng, blocks, SIZE / 4.6 / 32)
    dmin = (d.view("<f2").astype(np.float32) * 7.5).astype("<f2").view(np.uint8).reshape(blocks, 2)
    codes = rng.integers(0, 256, (blocks, 128), dtype=np.uint8)
    return np.concatenate([d, dmin, packed, codes], axis=1).reshape(outputs, -1)


def q8_0(rng, outputs, inputs):
    blocks = outputs * inputs // 32
    codes = rng.integers(-127, 128, (blocks, 32), dtype=np.int8).view(np.uint8)
    return np.concatenate([halves(rng, blocks, SIZE / 73), codes], axis=1).reshape(outputs, -1)


def bf16(rng, outputs, inputs):
    # The upper halves of floats.
    weights = rng.standard_normal(outputs * inputs, dtype=np.float32) * np.float32(SIZE)
    return (weights.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(outputs, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=["Q4_0", "Q4_K", "BF16"], default="Q4_0")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    args = parser.parse_args()
    layers, hidden, ffn = SHAPES[args.shape]
    small = gguf.GGUFReader(args.small)
    field = lambda key: small.fields[f"tokenizer.ggml.{key}"].contents()  # noqa: E731
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_name(f"random {args.shape.upper()} {args.type}")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(hidden // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    types = gguf.LlamaFileType
    file_type = {"Q4_0": types.MOSTLY_Q4_0, "Q4_K": types.MOSTLY_Q4_K_M, "BF16": types.MOSTLY_BF16}
    writer.add_file_type(file_type[args.type])
    tokens = list(field("tokens"))
    kinds = list(field("token_type"))
    spare = VOCAB - len(tokens)
    writer.add_tokenizer_model(field("model"))
    writer.add_tokenizer_pre(field("pre"))
    writer.add_token_list(tokens + [f"<|unused_{index}|>" for index in range(spare)])
    writer.add_token_types(kinds + [int(gguf.TokenType.UNUSED)] * spare)
    writer.add_token_merges(list(field("merges")))
    writer.add_bos_token_id(field("bos_token_id"))
    writer.add_eos_token_id(field("eos_token_id"))
    if "tokenizer.chat_template" in small.fields:
        writer.add_chat_template(small.fields["tokenizer.chat_template"].contents())
    kind, make = {"Q4_0": (Type.Q4_0, q4_0), "Q4_K": (Type.Q4_K, q4_k), "BF16": (Type.BF16, bf16)}[args.type]
    rows, of_rows = (Type.BF16, bf16) if args.type == "BF16" else (Type.Q8_0, q8_0)
    for name in ["token_embd"] + ["output"] * (args.shape == "8b"):
        writer.add_tensor(f"{name}.weight", of_rows(rng, VOCAB, hidden), raw_dtype=rows)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (hidden // 4, hidden), "attn_v": (hidden // 4, hidden),
        "attn_output": (hidden, hidden), "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn),
    }  # fmt: skip
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(hidden, np.float32))
        for name, (outputs, inputs) in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", make(rng, outputs, inputs), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
