"""The tiny base models: what each one is for, and how its random weights are drawn.

Weights are scaled so that the last-position logits spread over several units; greedy margins are then real decisions and
not float noise.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

EMBEDDING_STD = 0.3
LINEAR_GAIN = 1.2

# Shared by every tiny model unless its spec says otherwise. Vocabularies and some widths are no multiples of 32.
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class ModelSpec:
    name: str
    config: type
    model: type[PreTrainedModel]
    options: dict
    dtype: torch.dtype = torch.float32
    prompt_lengths: tuple[int, ...] = (1, 7, 40)
    max_shard_size: str = "10MB"
    vocab: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", self.options.get("vocab_size", SHAPE["vocab_size"]))


MODELS = [
    ModelSpec(
        name="tied",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options={
            "vocab_size": 320,
            "intermediate_size": 112,
            "tie_word_embeddings": True,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
        },
        dtype=torch.bfloat16,
    ),
    ModelSpec(
        name="untied-bias",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options={
            "vocab_size": 300,
            "intermediate_size": 72,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
        max_shard_size="200KB",
    ),
    ModelSpec(
        name="rope-llama3",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options={
            "head_dim": 24,
            "tie_word_embeddings": True,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        dtype=torch.float16,
        prompt_lengths=(1, 7, 40, 120),
    ),
    ModelSpec(
        name="sliding",
        config=MistralConfig,
        model=MistralForCausalLM,
        options={"sliding_window": 16, "tie_word_embeddings": False, "head_dim": 16},
        prompt_lengths=(1, 7, 16, 17, 60),
    ),
    ModelSpec(
        name="linear-rope",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options={
            "intermediate_size": 80,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        dtype=torch.bfloat16,
    ),
    ModelSpec(
        name="yarn",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        options={
            "num_hidden_layers": 1,
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
        dtype=torch.bfloat16,
        prompt_lengths=(1, 7, 40, 120),
    ),
    ModelSpec(
        name="qwen2",
        config=Qwen2Config,
        model=Qwen2ForCausalLM,
        options={"tie_word_embeddings": True, "num_key_value_heads": 1, "rope_theta": 1000000.0},
        dtype=torch.bfloat16,
    ),
]


def generator(name: str) -> torch.Generator:
    """Random numbers that depend on the name alone, so that adding a case changes no other fixture."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def randn(shape: torch.Size | tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=rng)


def uniform(shape: torch.Size | tuple[int, ...], low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def build(spec: ModelSpec) -> PreTrainedModel:
    model = spec.model(spec.config(**{**SHAPE, **spec.options}))
    rng = generator(spec.name)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" in name:
                weight.copy_(uniform(weight.shape, 0.7, 1.4, rng))
            elif name.endswith(".bias"):
                weight.copy_(0.3 * randn(weight.shape, rng))
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(EMBEDDING_STD * randn(weight.shape, rng))
            else:
                weight.copy_(LINEAR_GAIN / weight.shape[1] ** 0.5 * randn(weight.shape, rng))
    return model


def save(spec: ModelSpec, folder: Path) -> None:
    model = build(spec).to(spec.dtype)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder, max_shard_size=spec.max_shard_size)


def load(folder: str | Path, **config: object) -> PreTrainedModel:
    """The stored weights in fp32, with eager attention so that every mask is really applied."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **config
    ).eval()


def prompts(spec: ModelSpec) -> list[list[int]]:
    """Random token ids; 0, 1 and 2 are left to the special tokens."""
    rng = generator(f"{spec.name} prompts")
    return [torch.randint(3, spec.vocab, (length,), generator=rng).tolist() for length in spec.prompt_lengths]
