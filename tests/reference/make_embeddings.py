"""Makes tests/fixtures/smollm2/embeddings.*: vectors of the default base and of three of its adapters, by transformers + PEFT.

    .venv/bin/python tests/reference/make_embeddings.py models/SmolLM2-135M-Instruct.Q4_1.gguf

The GGUF is dequantised to fp32 by transformers. A vector is the mean, or the last, of the hidden states behind the final norm,
scaled to length 1; sums are in float64.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from make_models import versions

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "tests" / "fixtures" / "smollm2"
# LoRA with patterns, DoRA, and trained norms.
ADAPTERS = ["german", "medcode", "hashtag"]


def inputs() -> list[dict]:
    """Texts of 70 and 61 tokens, a short chat and a long one, with the token ids of the given reference."""
    short = json.loads((OUT / "reference" / "base.json").read_text())
    long = json.loads((OUT / "reference" / "base-long.json").read_text())
    texts = [short["nll"]["general"]["texts"][at] for at in (0, 4)]
    chats = [short["prompts"][5], long["prompts"][0]]
    return [{"text": t["text"], "ids": t["ids"]} for t in texts] + [
        {"text": chat["rendered"], "ids": chat["prompt_ids"]} for chat in chats
    ]


@torch.no_grad()
def states(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, hidden]"""
    output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0].double()


def unit(vector: torch.Tensor) -> torch.Tensor:
    return (vector / vector.norm()).float()


def write(gguf_sha256: str, given: list[dict]) -> None:
    """JSON with one input to a line."""
    head = {"made_with": versions(), "gguf_sha256": gguf_sha256, "voices": ["base", *ADAPTERS]}
    lines = ",\n  ".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in given)
    text = json.dumps(head)[:-1] + f', "inputs": [\n  {lines}\n]}}\n'
    (OUT / "embeddings.json").write_text(text)


def main() -> None:
    transformers.logging.set_verbosity_error()
    gguf = Path(sys.argv[1]).resolve()
    given = inputs()
    tensors = {}
    for voice in ["base", *ADAPTERS]:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if voice != "base":
            model = PeftModel.from_pretrained(model, ROOT / "adapters" / voice).eval()
        found = [states(model, one["ids"]) for one in given]
        tensors[f"{voice}.mean"] = torch.stack([unit(one.mean(0)) for one in found])
        tensors[f"{voice}.last"] = torch.stack([unit(one[-1]) for one in found])
        for kind in ("mean", "last"):
            cosines = (tensors[f"base.{kind}"] * tensors[f"{voice}.{kind}"]).sum(-1)
            print(f"{voice} {kind}: cosines with the base's {[round(cosine, 3) for cosine in cosines.tolist()]}")
    write(hashlib.sha256(gguf.read_bytes()).hexdigest(), given)
    save_file(tensors, OUT / "embeddings.safetensors")
    (OUT / "embeddings.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
