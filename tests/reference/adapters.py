"""The adapter cases, one PEFT feature each, and how their weights are drawn.

PEFT initialises an adapter so that it changes nothing (B = 0, magnitude = norm of the base). Here every trained tensor is
drawn at random, strong enough for each feature to move the logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from models import EMBEDDING_STD, generator, randn, uniform

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = ["q_proj", "v_proj"]


@dataclass(frozen=True)
class Case:
    name: str
    options: dict
    """Options of LoraConfig."""
    save_embedding_layers: bool | str = "auto"
    """PEFT's default "auto" puts the targeted embedding's base weight into the file."""
    dtype: torch.dtype | None = None
    """Cast the saved tensors to this type."""
    edit_base_weight: bool = False
    """Change the base weight that PEFT put into the file, as training after a vocabulary resize would."""
    survives_reload: bool = True
    """False where PEFT does not save all of what it trains."""
    unsorted_patterns: bool = False
    """Write the pattern keys in the order given here, as a person would; PEFT sorts them when it saves."""


def lora(r: int = 4, alpha: float = 8, **options: object) -> dict:
    return {"r": r, "lora_alpha": alpha, "lora_dropout": 0.05, "task_type": "CAUSAL_LM", **options}


TIED = [
    Case("plain", lora(target_modules=LINEARS)),
    Case("all-linear", lora(r=2, target_modules="all-linear")),
    Case("regex", lora(target_modules=r".*\.layers\.1\.(self_attn\.[qo]_proj|mlp\.down_proj)")),
    Case("exclude", lora(r=2, target_modules=LINEARS, exclude_modules=["layers.0.self_attn.q_proj", "down_proj"])),
    Case("exclude-regex", lora(r=2, target_modules=LINEARS, exclude_modules=r".*layers\.1\..*")),
    Case("layers-int", lora(target_modules=QV, layers_to_transform=1)),
    Case("layers-list", lora(target_modules=QV, layers_to_transform=[0], layers_pattern="layers")),
    Case(
        "patterns",
        lora(
            r=2,
            alpha=4,
            target_modules=LINEARS,
            rank_pattern={"down_proj": 5, r"layers\.0\.self_attn\.q_proj": 3, "q_proj": 1},
            alpha_pattern={"k_proj": 16, r"layers\.1\.mlp\.up_proj": 1, "o_proj": 7},
        ),
    ),
    Case("rslora", lora(r=8, alpha=16, target_modules=QV, use_rslora=True)),
    Case(
        "rslora-patterns",
        lora(target_modules=QV, use_rslora=True, rank_pattern={"v_proj": 7}, alpha_pattern={"layers.0.self_attn.v_proj": 3}),
    ),
    Case(
        "patterns-unsorted",
        lora(target_modules=QV, alpha_pattern={"q_proj": 16, "layers.0.self_attn.q_proj": 2, "v": 1, "_proj": 1}),
        unsorted_patterns=True,
    ),
    Case("file-f16", lora(target_modules=QV + ["down_proj"]), dtype=torch.float16),
    Case("file-bf16", lora(target_modules=QV + ["down_proj"]), dtype=torch.bfloat16),
    Case("dora", lora(r=2, target_modules=LINEARS, use_dora=True)),
    Case("dora-rslora", lora(r=3, target_modules=QV, use_dora=True, use_rslora=True)),
    Case("embed", lora(target_modules=QV + ["embed_tokens"])),
    Case("embed-slim", lora(target_modules=QV + ["embed_tokens"]), save_embedding_layers=False),
    Case("embed-edited", lora(target_modules=QV + ["embed_tokens"]), edit_base_weight=True),
    Case("head", lora(target_modules=QV + ["lm_head"])),
    Case("head-slim", lora(target_modules=QV + ["lm_head"]), save_embedding_layers=False),
    Case("head-edited", lora(r=2, target_modules=["lm_head"]), edit_base_weight=True),
    Case("embed-head", lora(target_modules=["embed_tokens", "lm_head"])),
    Case("embed-head-slim", lora(r=8, alpha=8, target_modules=["embed_tokens", "lm_head"]), save_embedding_layers=False),
    Case("saved-base", lora(r=2, target_modules=QV), save_embedding_layers=True, edit_base_weight=True),
    Case("dora-embed", lora(target_modules=["embed_tokens"], use_dora=True), save_embedding_layers=False),
    Case("dora-head", lora(target_modules=["lm_head"], use_dora=True), save_embedding_layers=False),
    Case("save-embed", lora(target_modules=QV, modules_to_save=["embed_tokens"])),
    Case("save-head", lora(target_modules=QV, modules_to_save=["lm_head"])),
    Case("save-embed-head", lora(target_modules=QV, modules_to_save=["embed_tokens", "lm_head"])),
    Case("save-embed-ensure-tied", lora(target_modules=QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    Case("save-norm", lora(target_modules=QV, modules_to_save=["norm"])),
    Case("save-norms", lora(target_modules=QV, modules_to_save=["post_attention_layernorm", "model.norm"])),
    Case("trainable-tokens", lora(target_modules=QV, trainable_token_indices=[5, 9, 200])),
]

UNTIED_BIAS = [
    Case("plain", lora(r=2, target_modules=LINEARS)),
    Case("bias-all", lora(target_modules=QV, bias="all")),
    Case("bias-lora-only", lora(target_modules=QV, bias="lora_only"), survives_reload=False),
    Case("lora-bias", lora(target_modules=QV + ["down_proj"], lora_bias=True)),
    Case("dora", lora(r=2, target_modules=LINEARS, use_dora=True)),
    Case("dora-bias-all", lora(r=2, target_modules=QV + ["gate_proj"], use_dora=True, bias="all")),
    Case("embed", lora(target_modules=QV + ["embed_tokens"])),
    Case("embed-slim", lora(target_modules=QV + ["embed_tokens"]), save_embedding_layers=False),
    Case("head-edited", lora(target_modules=QV + ["lm_head"]), edit_base_weight=True),
    Case("head-slim", lora(target_modules=QV + ["lm_head"]), save_embedding_layers=False),
    Case("embed-head-slim", lora(target_modules=["embed_tokens", "lm_head"]), save_embedding_layers=False),
    Case("dora-embed", lora(target_modules=["embed_tokens"], use_dora=True), save_embedding_layers=False),
    Case("dora-head", lora(target_modules=["lm_head"], use_dora=True), save_embedding_layers=False),
    Case("save-embed", lora(r=2, target_modules=QV, modules_to_save=["embed_tokens"])),
    Case("save-head", lora(r=2, target_modules=QV, modules_to_save=["lm_head"])),
    Case("save-embed-head", lora(r=2, target_modules=QV, modules_to_save=["embed_tokens", "lm_head"])),
    Case("save-linear", lora(r=2, target_modules=QV, modules_to_save=["k_proj"])),
]

PLAIN = [Case("plain", lora(r=2, target_modules=LINEARS))]

CASES: dict[str, list[Case]] = {
    "tied": TIED,
    "untied-bias": UNTIED_BIAS,
    "rope-llama3": PLAIN,
    "sliding": PLAIN,
    "linear-rope": PLAIN,
    "yarn": PLAIN,
    "qwen2": PLAIN,
}


def train(base: torch.nn.Module, model_name: str, case: Case) -> PeftModel:
    """What training would leave behind: every trainable tensor has a random value."""
    model = get_peft_model(base, LoraConfig(**case.options)).eval()
    rng = generator(f"{model_name}/{case.name}")
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(trained(model, name, weight, rng))
    return model


def trained(model: PeftModel, name: str, weight: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    noise = randn(weight.shape, rng)
    if ".lora_A." in name:
        return noise / weight.shape[1] ** 0.5
    if ".lora_embedding_A." in name:
        return noise
    if ".lora_B." in name or ".lora_embedding_B." in name:
        layer = model.get_submodule(name.split(".lora_")[0])
        reach = EMBEDDING_STD if "embedding" in name else 1.0
        columns = weight.shape[1] if weight.dim() == 2 else 1
        return noise * reach / (layer.scaling["default"] * columns**0.5)
    if ".modules_to_save." in name and weight.dim() == 2:
        return (weight + 0.3 * noise).bfloat16().float()  # stored as bf16 without loss
    if "lora_magnitude_vector" in name or ("norm" in name and weight.dim() == 1):
        return weight * uniform(weight.shape, 0.6, 1.6, rng)
    return weight + 0.3 * noise  # biases, trainable tokens


def save(model: PeftModel, case: Case, folder: Path) -> None:
    model.save_pretrained(folder, save_embedding_layers=case.save_embedding_layers)
    (folder / "README.md").unlink()  # an empty model card
    write_config(case, folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    tensors = {name: stored(case, name, tensor) for name, tensor in sorted(load_file(weights).items())}
    save_file(tensors, weights, metadata={"format": "pt"})


def stored(case: Case, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if case.edit_base_weight and tensor.dim() == 2 and ".lora_" not in name:
        edit = randn(tensor.shape, generator(f"{case.name} edit"))  # the same for both copies of a tied weight
        tensor = (tensor + 0.2 * edit).bfloat16().float()
    if case.dtype is not None:
        return tensor.to(case.dtype)
    if ".lora_" not in name and torch.equal(tensor, tensor.bfloat16().float()):
        return tensor.bfloat16()  # a whole weight of a bf16 base stays bf16 in the file, beside f32 LoRA tensors
    return tensor


def write_config(case: Case, path: Path) -> None:
    """PEFT writes its sets in an order that changes from run to run."""
    config = json.loads(path.read_text())
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    if case.unsorted_patterns:
        config |= {key: case.options[key] for key in ("rank_pattern", "alpha_pattern") if key in case.options}
    path.write_text(json.dumps(config, indent=2) + "\n")


def reload(base: torch.nn.Module, folder: str | Path) -> PeftModel:
    return PeftModel.from_pretrained(base, folder).eval()
