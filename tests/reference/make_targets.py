"""Which modules PEFT's own matching selects, and at which rank and scale: ../fixtures/peft_targets.json.

Each case is a drawn part of an adapter_config.json, and either `refused` (PEFT raises, or selects nothing that it can
adapt) or the modules of a Llama of 12 layers with their rank and scale, and the modules that are saved whole.
The file is the same on every run. Needs peft 0.18.1.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from pathlib import Path

from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

LAYERS, CASES = 12, 160
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
SITES = ["model.embed_tokens", "lm_head"] + [f"model.layers.{n}.{p}" for n in range(LAYERS) for p in PROJECTIONS]
GAINS = ["model.norm"] + [f"model.layers.{n}.{p}" for n in range(LAYERS) for p in NORMS]

NAMES = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens", "self_attn.q_proj",
    "layers.1.mlp.up_proj", "1.mlp.up_proj", "model.layers.1.self_attn.v_proj", "model.layers.11.mlp.down_proj", "proj", "_proj",
    "attn.q_proj", "layers.11.self_attn.k_proj", "c_attn", "q.proj", "model.embed_tokens",
]  # fmt: skip
WHOLE = [
    r".*[qv]_proj", r".*\.(self_attn\.(q|v|o)_proj|mlp\.(up|down)_proj)", r"model\.layers\.(1|3)\..*_proj", r".*layers\.1.*_proj",
    r"(?:.*?(?:q_proj|mlp\.up_proj))", "q_proj", "lm_head", r"lm_head|.*embed.*", r".*\.\d\.mlp\..*_proj", r"(a+)+$|.*(q|v)_proj",
    r".*\.layers\.([0-5])\.self_attn\.(q|k)_proj$", r".*norm", r"^model\.layers\.[0-3]\.mlp\.(gate|up)_proj$", r"(?i).*Q_PROJ",
]  # fmt: skip
PATTERNS = [
    *NAMES, r"^model.layers.1.self_attn.v_proj", r"^q_proj", r"layers\.1\.self_attn\.q_proj", r".*\.(0|1|2|3)\.self_attn\..*",
    r"layers\.[0-9]\..*", r"layers\.1\d?\..*", r"q_proj|v_proj", r".*", r"mlp\..*", r"q_proj$", r"(q|k)_proj", "v", r"self_attn\.q_proj",
]  # fmt: skip


def draw(rng: random.Random) -> dict:
    config: dict = {"r": rng.choice([1, 2, 8, 16]), "lora_alpha": rng.choice([1, 4, 16, 32, 7.5])}
    by_pattern = rng.random() < 0.35
    config["target_modules"] = rng.choice(WHOLE) if by_pattern else rng.sample(NAMES, rng.randint(1, 6))
    if rng.random() < 0.3:
        config["use_rslora"] = True
    if rng.random() < 0.3:
        config["exclude_modules"] = rng.choice(WHOLE) if rng.random() < 0.4 else rng.sample(NAMES, rng.randint(1, 3))
    if rng.random() < (0.05 if by_pattern else 0.4):
        config["layers_to_transform"] = rng.choice([0, 1, 11, 12, [], [1], [0, 3, 11], list(range(1, 12))])
        if config["layers_to_transform"] != 0 and rng.random() < 0.5:  # PEFT takes 0 for "not set" there
            config["layers_pattern"] = rng.choice(["layers", "h", ["h", "layers"], [], ""])
    for key, values in (("rank_pattern", [1, 3, 4, 64]), ("alpha_pattern", [1, 2, 5, 0.5])):
        if rng.random() < 0.5:
            config[key] = {pattern: rng.choice(values) for pattern in rng.sample(PATTERNS, rng.randint(1, 4))}
    if rng.random() < 0.25:
        config["modules_to_save"] = rng.sample(["norm", "lm_head", "embed_tokens", "layernorm", "model.norm"], rng.randint(1, 2))
    return config


def selection(drawn: dict) -> dict:
    try:
        config = LoraConfig(**drawn)
    except (TypeError, ValueError):
        return {"refused": True}
    saved = [path for path in SITES + GAINS if any(path.endswith(name) for name in drawn.get("modules_to_save", ()))]
    deltas = {}
    for path in SITES + GAINS:
        found = check_target_module_exists(config, path)
        if not found or isinstance(found, _ExcludedModule):
            continue
        if path in GAINS:
            return {"refused": True}  # LoRA on a norm is a ValueError
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
        deltas[path] = [rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)]
    return {"deltas": deltas, "saved": sorted(saved)} if deltas else {"refused": True}


def main() -> None:
    warnings.simplefilter("ignore")
    rng = random.Random(20240601)
    cases = [{"config": config, **selection(config)} for config in (draw(rng) for _ in range(CASES))]
    path = Path(__file__).parent.parent / "fixtures" / "peft_targets.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
