"""Makes tests/fixtures/rope.json: rotary frequencies and attention factors as transformers computes them from a config.json.

    .venv/bin/python tests/reference/make_rope.py
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
from pathlib import Path

import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from make_models import versions

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "rope.json"
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
}
WIDE = {"head_dim": 128, "rope_theta": 1000000.0, "max_position_embeddings": 32768}
SHORT = [1.0 + 0.05 * at for at in range(32)]
LONG = [1.0 + 0.9 * at for at in range(32)]

CASES = {
    "none": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama3": {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    # As Qwen2.5's documentation writes it.
    "yarn": WIDE | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "yarn-without-original": {"rope_scaling": {"rope_type": "yarn", "factor": 16.0}},
    "yarn-all": {
        "max_position_embeddings": 8192,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 1024,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "attention_factor": 0.9,
        },
    },
    "yarn-mscale": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 1.2,
        }
    },
    "yarn-mscale-0": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.0, "mscale_all_dim": 1.0, "beta_fast": 0.0}
    },
    # As gpt-oss has it: the ramp lies between whole dimensions.
    "yarn-untruncated": {
        "rope_theta": 150000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    # All turns are slow: both ends of the ramp are the first dimension.
    "yarn-short": {
        "max_position_embeddings": 12,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 6},
    },
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    },
    "longrope-factor": {
        "rope_scaling": {"rope_type": "longrope", "factor": 8.0, "short_factor": SHORT, "long_factor": LONG}
    },
    "longrope-attention": {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "rope_type": "longrope",
            "attention_factor": 1.25,
            "short_factor": SHORT,
            "long_factor": LONG,
        },
    },
}


def case(options: dict) -> dict:
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE, **options}
    rotary = LlamaRotaryEmbedding(LlamaConfig(**{**SHAPE, **options}))
    return {
        "config": config,
        "frequencies": rotary.inv_freq.tolist(),
        "attention": float(rotary.attention_scaling),
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    cases = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(case(options))}" for name, options in CASES.items())
    OUT.write_text(f'{{"made_with": {json.dumps(versions())}, "cases": {{\n  {cases}\n}}}}\n')


if __name__ == "__main__":
    main()
