"""Makes the GGUF files of tests/fixtures/gguf from the `tied` model that make_models.py left behind.

    python3 tests/reference/make_models.py && python3 tests/reference/make_gguf.py

tied-f32.gguf    the weights of models/tied, so that both loaders must give the same logits
tied-mixed.gguf  the same model in eight tensor types, with a reference of its own (for the rounded weights)
mamba.gguf       a header of an architecture that we do not serve
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

import adapters
import make_models
import models
import tiny_tokenizer

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
TIED = make_models.OUT / "tied"

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# ffn_down has rows of 112 values, which the block types (blocks of 32) cannot hold.
MIXED = {
    "token_embd": Type.Q8_0,
    "attn_q": Type.Q4_0,
    "attn_k": Type.Q4_1,
    "attn_v": Type.Q5_0,
    "attn_output": Type.Q5_1,
    "ffn_gate": Type.Q8_0,
    "ffn_up": Type.BF16,
    "ffn_down": Type.F16,
}


def names(layers: int) -> dict[str, str]:
    """GGUF tensor name -> Hugging Face name. The head is tied, so there is no output.weight."""
    of_layers = {
        f"blk.{layer}.{gguf}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(layers)
        for gguf, theirs in LAYER_NAMES.items()
    }
    return {"token_embd.weight": "model.embed_tokens.weight", **of_layers, "output_norm.weight": "model.norm.weight"}


def heads(name: str, config: transformers.LlamaConfig) -> int | None:
    """Of the tensors whose rows llama.cpp's converter permutes."""
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part(name))


def part(name: str) -> str:
    return name.removesuffix(".weight").split(".")[-1]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face rotates row i with row i + half of a head; GGUF wants the two rows side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def deinterleave(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_metadata(writer: GGUFWriter, config: transformers.LlamaConfig, file_type: LlamaFileType) -> None:
    writer.add_name("tied")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)

    tokens = tiny_tokenizer.tokens()
    specials = len(tiny_tokenizer.SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * specials + [TokenType.NORMAL] * (len(tokens) - specials))
    writer.add_token_merges(tiny_tokenizer.merges())
    writer.add_bos_token_id(tiny_tokenizer.BOS)
    writer.add_eos_token_id(tiny_tokenizer.EOS)
    writer.add_unk_token_id(tiny_tokenizer.UNKNOWN)
    writer.add_pad_token_id(tiny_tokenizer.EOS)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)


def write_model(path: Path, types: dict[str, Type], file_type: LlamaFileType) -> dict[str, torch.Tensor]:
    """Returns the values that the file stands for, under their Hugging Face names."""
    model = models.load(TIED)
    writer = GGUFWriter(path, arch="llama")
    write_metadata(writer, model.config, file_type)
    stored = {}
    for gguf, theirs in names(model.config.num_hidden_layers).items():
        weight = model.get_parameter(theirs).detach().numpy()
        kind, rotated = types.get(part(gguf), Type.F32), heads(gguf, model.config)
        data = quantize(interleave(weight, rotated) if rotated else weight, kind)
        writer.add_tensor(gguf, data, raw_dtype=kind)
        values = dequantize(data, kind)
        stored[theirs] = torch.from_numpy(deinterleave(values, rotated) if rotated else values)
    finish(writer)
    return stored


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_by_transformers(path: Path) -> None:
    """An independent GGUF reader finds the same model: the row order and the metadata are right."""
    model = models.load(path.parent, gguf_file=path.name)
    prompts = models.prompts(next(spec for spec in models.MODELS if spec.name == "tied"))
    difference = make_models.last_logits(model, prompts) - make_models.last_logits(models.load(TIED), prompts)
    assert difference.abs().max() < make_models.TOLERANCE, difference.abs().max()


def write_mixed_reference(stored: dict[str, torch.Tensor]) -> None:
    """The base, and two adapters of models/tied on top of it (DoRA's norms are those of the rounded weights)."""

    def rounded() -> torch.nn.Module:
        model = models.load("tied")
        missing, unexpected = model.load_state_dict(stored, strict=False)
        assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
        return model

    spec = next(spec for spec in models.MODELS if spec.name == "tied")
    prompts = models.prompts(spec)
    subjects = {name: adapters.reload(rounded(), f"tied/adapters/{name}") for name in ("plain", "dora")}
    runs = {name: [make_models.run(model, prompt) for prompt in prompts] for name, model in subjects.items()}
    base = rounded()
    reference = {
        "made_with": make_models.versions(),
        "prompts": prompts,
        "base": {"runs": [make_models.run(base, prompt) for prompt in prompts]},
        "adapters": {name: {"runs": runs[name]} for name in subjects},
    }
    make_models.write_reference(OUT / "tied-mixed.reference.json", reference)
    tensors = {"base": make_models.last_logits(base, prompts)}
    tensors |= {f"adapter.{name}": make_models.last_logits(model, prompts) for name, model in subjects.items()}
    save_file(tensors, OUT / "tied-mixed.reference.safetensors")
    rounding = (tensors["base"] - make_models.last_logits(models.load("tied"), prompts)).abs().max().item()
    print(f"tied-mixed: rounding changes the logits by {rounding:.3f}")


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    os.chdir(make_models.OUT)
    stored = write_model(OUT / "tied-f32.gguf", {}, LlamaFileType.ALL_F32)
    assert all(torch.equal(stored[name], weight) for name, weight in models.load("tied").named_parameters())
    check_by_transformers(OUT / "tied-f32.gguf")
    write_mixed_reference(write_model(OUT / "tied-mixed.gguf", MIXED, LlamaFileType.GUESSED))
    finish(GGUFWriter(OUT / "mamba.gguf", arch="mamba"))
    for file in OUT.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
