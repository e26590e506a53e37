"""Makes tests/fixtures/models: tiny base models, PEFT adapters for them, and what transformers + PEFT compute in fp32.

    python3 -m venv .venv && .venv/bin/pip install -r tests/reference/requirements.txt
    .venv/bin/python tests/reference/make_models.py

Each reference is computed from the adapter as reloaded from disk on a fresh base, without a KV cache, and is compared
with the in-memory adapter and with by_hand.py. Everything is seeded: a second run writes the same bytes.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import shutil
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

import adapters
import by_hand
import models
import tiny_tokenizer

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "models"
GREEDY_TOKENS = 16
LEAST_EFFECT = 0.5
TOLERANCE = 1e-4


def last_logits(model: torch.nn.Module, prompts: list[list[int]]) -> torch.Tensor:
    """[prompts, vocab] at the last position of each prompt."""
    return torch.stack([logits(model, prompt)[-1] for prompt in prompts])


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def run(model: torch.nn.Module, prompt: list[int]) -> dict:
    prompt_logprobs = logits(model, prompt)[:-1].log_softmax(-1)
    tokens, margins, logprobs = list(prompt), [], []
    for _ in range(GREEDY_TOKENS):
        last = logits(model, tokens)[-1]
        (first, second), (token, _) = (top.tolist() for top in last.topk(2))
        margins.append(first - second)
        logprobs.append(last.log_softmax(-1)[token].item())
        tokens.append(token)
    return {
        "greedy": tokens[len(prompt) :],
        "margins": [round(m, 5) for m in margins],
        "logprobs": [round(p, 5) for p in logprobs],
        "prompt_logprobs": [round(row[token].item(), 5) for row, token in zip(prompt_logprobs, prompt[1:])],
    }


def make_adapter(
    model_name: str, case: adapters.Case, prompts: list[list[int]], base: torch.Tensor
) -> tuple[dict, torch.Tensor]:
    folder = Path(model_name) / "adapters" / case.name
    trained = adapters.train(models.load(model_name), model_name, case)
    adapters.save(trained, case, folder)
    reloaded = adapters.reload(models.load(model_name), folder)

    reference = last_logits(reloaded, prompts)
    effect = (reference - base).abs().max().item()
    from_memory = (reference - last_logits(trained, prompts)).abs().max().item()
    from_hand = (reference - last_logits(by_hand.merged(Path(model_name), folder), prompts)).abs().max().item()
    size = (folder / "adapter_model.safetensors").stat().st_size
    print(f"  {case.name:<24}{size:>8} B  effect {effect:7.3f}  memory {from_memory:.1e}  by hand {from_hand:.1e}")

    assert effect > LEAST_EFFECT, f"{model_name}/{case.name} changes too little"
    assert from_hand < TOLERANCE, f"{model_name}/{case.name}: the README's formulas do not give PEFT's logits"
    exact = case.survives_reload and case.dtype is None and not case.edit_base_weight
    assert (from_memory < TOLERANCE) == exact, f"{model_name}/{case.name}: unexpected result of save and reload"
    return {"effect": round(effect, 3), "runs": [run(reloaded, prompt) for prompt in prompts]}, reference


def make_model(spec: models.ModelSpec) -> None:
    print(spec.name)
    models.save(spec, Path(spec.name))
    if spec.name == "tied":
        tiny_tokenizer.save(Path(spec.name))
    base, prompts = models.load(spec.name), models.prompts(spec)
    base_logits = last_logits(base, prompts)
    print(f"  logits: standard deviation {base_logits.std().item():.2f}")
    tensors = {"base": base_logits}
    reference = {
        "made_with": versions(),
        "prompts": prompts,
        "base": {"runs": [run(base, prompt) for prompt in prompts]},
        "adapters": {},
    }
    for case in adapters.CASES[spec.name]:
        result, tensors[f"adapter.{case.name}"] = make_adapter(spec.name, case, prompts, base_logits)
        reference["adapters"][case.name] = result
    write_reference(Path(spec.name) / "reference.json", reference)
    save_file(tensors, Path(spec.name) / "reference.safetensors")


def versions() -> dict[str, str]:
    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def write_reference(path: Path, reference: dict) -> None:
    """JSON with one run to a line: compact, and a diff shows which run changed."""

    def encode(value: object, depth: int) -> str:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not any(isinstance(item, (dict, list)) for item in inner) or "greedy" in value:
            return json.dumps(value, separators=(",", ":"))
        indent, (opening, closing) = "\n" + " " * (depth + 1), "{}" if isinstance(value, dict) else "[]"
        items = (
            [f"{json.dumps(key)}: {encode(item, depth + 1)}" for key, item in value.items()]
            if isinstance(value, dict)
            else [encode(item, depth + 1) for item in value]
        )
        return opening + indent + f",{indent}".join(items) + indent[:-1] + closing

    path.write_text(encode(reference, 0) + "\n")


def check_that_options_matter() -> None:
    """The window and the RoPE scalings really change what the reference computes."""
    for name, off in {
        "sliding": {"sliding_window": None},
        "rope-llama3": {"rope_scaling": None},
        "linear-rope": {"rope_scaling": None},
        "yarn": {"rope_scaling": None},
    }.items():
        spec = next(spec for spec in models.MODELS if spec.name == name)
        longest = [models.prompts(spec)[-1]]
        with_option, without = last_logits(models.load(name), longest), last_logits(models.load(name, **off), longest)
        effect = (with_option - without).abs().max().item()
        print(f"{name} without {off}: logits change by {effect:.2f}")
        assert effect > LEAST_EFFECT


def check_what_peft_refuses() -> None:
    """Combinations that no PEFT file can hold, so that no reader has to apply them."""
    refused = {
        "DoRA with lora_bias": {"target_modules": adapters.QV, "use_dora": True, "lora_bias": True},
        "lora_bias on an embedding": {"target_modules": ["embed_tokens"], "lora_bias": True},
        "a regex with layers_to_transform": {"target_modules": ".*q_proj", "layers_to_transform": [0]},
    }
    for what, options in refused.items():
        try:
            peft.get_peft_model(models.load("tied"), peft.LoraConfig(**options))
        except ValueError as error:
            print(f"PEFT refuses {what}: {error}")
        else:
            raise AssertionError(f"PEFT accepts {what}")


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    os.chdir(OUT)  # so that adapter_config.json names its base by the folder's name alone
    for spec in models.MODELS:
        make_model(spec)
    check_that_options_matter()
    check_what_peft_refuses()
    for file in OUT.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
