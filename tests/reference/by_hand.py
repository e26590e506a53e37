"""An adapter file applied by hand: the formulas of the fixtures' README in one place, without PEFT.

It merges the file into a float64 copy of the base (always untied, since most adapters untie it) and so proves that the
README says all that a reader has to know: the logits must equal those of PEFT.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import models

PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def merged(model_folder: Path, adapter_folder: Path) -> PreTrainedModel:
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    tensors = {
        name.removeprefix(PREFIX): tensor.double()
        for name, tensor in load_file(adapter_folder / "adapter_model.safetensors").items()
    }
    base = models.load(model_folder).double()
    tied = base.config.tie_word_embeddings
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}

    replace_whole_tensors(weights, tensors, config, tied=tied)
    replace_rows(weights, tensors, config)
    for module in sorted({name.split(".lora_")[0] for name in tensors if ".lora_" in name}):
        lora = {name.removeprefix(f"{module}."): t for name, t in tensors.items() if name.startswith(f"{module}.lora_")}
        apply_lora(weights, module, lora, config)

    result = models.load(model_folder, tie_word_embeddings=False).double()
    result.load_state_dict(weights)
    return result


def replace_whole_tensors(weights: dict, tensors: dict, config: dict, *, tied: bool) -> None:
    """modules_to_save, bias="all", and the base weights that PEFT saves beside a targeted or resized embedding."""
    for name, tensor in tensors.items():
        if ".lora_" in name or ".token_adapter." in name:
            continue
        name = name.replace(".base_layer.", ".")
        weights[name] = tensor
        of_its_own = any(name.removesuffix(".weight").endswith(saved) for saved in config["modules_to_save"] or ())
        if tied and name in (EMBEDDING, HEAD) and not of_its_own:
            weights[EMBEDDING] = weights[HEAD] = tensor  # the base's one shared parameter is overwritten


def replace_rows(weights: dict, tensors: dict, config: dict) -> None:
    rows = tensors.get("model.embed_tokens.token_adapter.trainable_tokens_delta")
    if rows is not None:
        for matrix in (EMBEDDING, HEAD):
            weights[matrix] = weights[matrix].clone()
            weights[matrix][config["trainable_token_indices"]] = rows


def apply_lora(weights: dict, module: str, lora: dict, config: dict) -> None:
    scaling = scale(config, module)
    name = f"{module}.weight"
    if "lora_embedding_A" in lora:
        delta = scaling * (lora["lora_embedding_B"] @ lora["lora_embedding_A"]).T  # [vocab, hidden]
        axis = 0  # magnitude [hidden]: one per column
    else:
        delta = scaling * lora["lora_B.weight"] @ lora["lora_A.weight"]  # [outputs, inputs]
        axis = 1  # magnitude [outputs]: one per row
    weight = weights[name] + delta
    if "lora_magnitude_vector" in lora:
        magnitude = lora["lora_magnitude_vector"].unsqueeze(axis)
        weight = magnitude * weight / weight.norm(dim=axis, keepdim=True)
    weights[name] = weight
    if "lora_B.bias" in lora:
        weights[f"{module}.bias"] = weights[f"{module}.bias"] + scaling * lora["lora_B.bias"]


def scale(config: dict, module: str) -> float:
    rank = pattern(config["rank_pattern"], module, config["r"])
    alpha = pattern(config["alpha_pattern"], module, config["lora_alpha"])
    return alpha / rank**0.5 if config["use_rslora"] else alpha / rank


def pattern(patterns: dict, module: str, default: float) -> float:
    """The first key, in the file's order, that is a regular expression for the name's end at a dot."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
