#!/usr/bin/env python3
"""Our files in the forms that rivals read (needs numpy and gguf; run by compare.py inside a rival's environment).

    convert.py lora PEFT_FOLDER OUT.gguf --heads 9 --kv-heads 3     for llama.cpp
    convert.py base MODEL.gguf OUTDIR                               for vLLM: a directory in Hugging Face layout, bf16

llama.cpp keeps the rows of q and k in the order of interleaved rotary embeddings, PEFT and vLLM in that of halves.
"""

import argparse
import json
import struct
from pathlib import Path

import gguf
import numpy as np

from gen_adapters import safetensors

TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleave(rows, heads):
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def halve(rows, heads):
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            values = data[8 + length + start : 8 + length + end]
            if entry["dtype"] == "BF16":
                # The upper half of an f32.
                values = (np.frombuffer(values, "<u2").astype("<u4") << 16).view("<f4")
            else:
                values = np.frombuffer(values, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            yield name, values.reshape(entry["shape"])


def lora(args):
    config = json.loads((args.source / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(args.out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, values in read_safetensors(args.source / "adapter_model.safetensors"):
        _, _, _, _, layer, block, proj, side, _ = name.split(".")
        if side == "lora_B" and proj in ("q_proj", "k_proj"):
            values = interleave(values, args.heads if proj == "q_proj" else args.kv_heads)
        tensor = f"blk.{layer}.{TENSORS[f'{block}.{proj}']}.weight.{side.lower()}"
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def base(args):
    reader = gguf.GGUFReader(args.source)
    field = lambda key: reader.fields[key].contents()  # noqa: E731
    llama = lambda key: field(f"llama.{key}")  # noqa: E731
    heads, kv_heads = llama("attention.head_count"), llama("attention.head_count_kv")
    names = {gguf_name: name for name, gguf_name in TENSORS.items()}
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}  # fmt: skip
    tensors = []
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in top:
            name = top[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")
            if part in ("attn_q", "attn_k"):
                values = halve(values, heads if part == "attn_q" else kv_heads)
            name = f"model.layers.{layer}.{names[part]}.weight"
        tensors.append((name, values))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model.safetensors").write_bytes(safetensors(tensors, "BF16"))
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": llama("embedding_length"), "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": llama("attention.layer_norm_rms_epsilon"), "rope_theta": llama("rope.freq_base"),
        "max_position_embeddings": llama("context_length"), "vocab_size": len(tokens), "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in {t.name for t in reader.tensors},
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }  # fmt: skip
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    control = int(gguf.TokenType.CONTROL)
    special = [
        {"id": id, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for id, (token, kind) in enumerate(zip(tokens, kinds)) if kind == control
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = {
        "version": "1.0", "added_tokens": special, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: id for id, token in enumerate(tokens)},
                  "merges": [merge.split(" ", 1) for merge in field("tokenizer.ggml.merges")]},
    }  # fmt: skip
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "model_max_length": config["max_position_embeddings"],
        "eos_token": tokens[config["eos_token_id"]], "bos_token": tokens[config["bos_token_id"]],
    }  # fmt: skip
    (args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command, run in (("lora", lora), ("base", base)):
        sub = commands.add_parser(command)
        sub.set_defaults(run=run)
        sub.add_argument("source", type=Path)
        sub.add_argument("out", type=Path)
        if command == "lora":
            sub.add_argument("--heads", type=int, required=True)
            sub.add_argument("--kv-heads", type=int, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
