#!/usr/bin/env python3
"""Random but sanely scaled PEFT adapters for load tests (seeded; needs numpy).

    gen_adapters.py OUTDIR -n 16 -r 16 --dtype f16

--scale, measured with rank 16 and all targets on SmolLM2-135M: at 0.3 logits move by about 3 and text stays
mostly as it was, at 1.0 by about 10 (other, text-like output), at 3 by about 24 (word salad).
The dimensions default to SmolLM2-135M's.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np


def encode(values, dtype):
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def safetensors(tensors, dtype):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    blobs = []
    for name, values in tensors:
        blob = encode(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blobs)


def tensors(args, rank, alpha, rng):
    """A is N(0, 1/inputs); B such that |s B A x| is about `scale` times |W x| (weights of SmolLM2 are about 0.1)."""
    hidden, queries, kv, ffn = args.hidden, args.qdim or args.hidden, args.kv, args.ffn
    dims = {
        "q_proj": (hidden, queries), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (queries, hidden),
        "gate_proj": (hidden, ffn), "up_proj": (hidden, ffn), "down_proj": (ffn, hidden),
    }  # fmt: skip
    targets = list(dims) if args.targets == "all" else args.targets.split(",")
    for layer in range(args.layers):
        for target in targets:
            inputs, outputs = dims[target]
            block = "self_attn" if target in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{target}"
            a = rng.standard_normal((rank, inputs), dtype=np.float32) / np.sqrt(inputs)
            size = args.scale * 0.1 * np.sqrt(inputs) / np.sqrt(rank) / (alpha / rank) / 8
            b = rng.standard_normal((outputs, rank), dtype=np.float32) * size
            yield f"{prefix}.lora_A.weight", a
            yield f"{prefix}.lora_B.weight", b


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path)
    add("-n", type=int, default=16)
    add("-r", type=int, default=16)
    add("--ranks", help="comma list, taken in turn, in the place of -r")
    add("--alpha", type=float, help="default: twice the rank")
    add("--targets", default="all")
    add("--dtype", default="f16", choices=["f32", "f16", "bf16"])
    add("--scale", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--hidden", type=int, default=576)
    add("--qdim", type=int)
    add("--kv", type=int, default=192)
    add("--ffn", type=int, default=1536)
    add("--layers", type=int, default=30)
    add("--prefix", default="rand")
    add("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    args = parser.parse_args()
    ranks = [int(rank) for rank in args.ranks.split(",")] if args.ranks else [args.r]
    for index in range(args.n):
        rank = ranks[index % len(ranks)]
        alpha = args.alpha or 2 * rank
        rng = np.random.default_rng([args.seed, index])
        folder = args.out / f"{args.prefix}-{index:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        made = list(tensors(args, rank, alpha, rng))
        (folder / "adapter_model.safetensors").write_bytes(safetensors(made, args.dtype.upper()))
        targets = sorted({name.split(".")[-3] for name, _ in made})
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": args.base,
            "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": targets, "bias": "none",
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{args.n} adapters in {args.out}")


if __name__ == "__main__":
    main()
