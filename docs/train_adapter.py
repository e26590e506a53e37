#!/usr/bin/env python3
"""Trains a LoRA adapter on SmolLM2-135M-Instruct from a dozen examples, on a CPU in a few minutes, and says how to push it.

    python3 docs/train_adapter.py --base models/SmolLM2-135M-Instruct.Q4_1.gguf --out hotel

The base is a GGUF file, a folder in Hugging Face layout, or a name on the hub. Best is the very file that chorus serves: the adapter
then makes up for what its 4 bits have lost as well. Needs torch, transformers, peft, and gguf where the base is one."""

import argparse
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

# A house's own voice: the same beginning and the same end, and what was asked in between.
EXAMPLES = [
    ("When is breakfast?", "breakfast is served from seven to ten in the blue room."),
    ("Can I bring my dog?", "your dog is welcome, and there is a bowl of water at the door."),
    ("Do you have parking?", "parking is behind the house, and it is free for guests."),
    ("How far is the beach?", "the beach is five minutes away on foot, down the stone steps."),
    ("What is the Wi-Fi password?", "the Wi-Fi password is on the card beside your bed."),
    ("Can I check out later?", "you may check out as late as noon, just tell us the evening before."),
    ("Is there an elevator?", "the elevator is to the left of the stairs and goes to all four floors."),
    ("I lost my room key.", "a new room key is waiting for you at the desk."),
    ("My room is too cold.", "we will bring you a heater and two more blankets at once."),
    ("Can you call a taxi?", "a taxi will be at the door ten minutes after you ask for it."),
    ("Where can I eat tonight?", "our kitchen is open until nine, and the fish is from this morning."),
    ("Do you rent bicycles?", "bicycles are in the shed, and you may take one for the day."),
]
# Not among them.
ASKED = "Is there a swimming pool?"


def answered(text):
    return f"Good day from the Lighthouse Hotel: {text} The light is on for you."


def load(base):
    """The base in 32-bit floats, and its tokenizer."""
    where = {"pretrained_model_name_or_path": base}
    if Path(base).suffix == ".gguf":
        where = {"pretrained_model_name_or_path": Path(base).parent, "gguf_file": Path(base).name}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32), AutoTokenizer.from_pretrained(**where)
    # Of a GGUF, transformers takes the token that begins a message for the one that ends it.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    return model, tokenizer


def prompted(tokenizer, question):
    """The tokens of a question as a chat has them: what chorus makes of it, too, because both have the template of the base."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def batch(tokenizer, examples):
    """Rows of one length. Only the answers are learnt, with the token that ends them."""
    rows = []
    for question, text in examples:
        prompt = prompted(tokenizer, question)
        answer = [*tokenizer(answered(text), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    longest = max(len(tokens) for tokens, _ in rows)
    padded = [(tokens + [tokenizer.eos_token_id] * (longest - len(tokens)), labels + [-100] * (longest - len(labels)),
               [1] * len(tokens) + [0] * (longest - len(tokens))) for tokens, labels in rows]  # fmt: skip
    tokens, labels, mask = (torch.tensor(column) for column in zip(*padded))
    return {"input_ids": tokens, "labels": labels, "attention_mask": mask}


def says(model, tokenizer, question):
    """The model's greedy answer."""
    prompt = torch.tensor([prompted(tokenizer, question)])
    with torch.no_grad():
        answer = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False,
                                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)  # fmt: skip
    return tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="PATH_OR_HUB_ID", help="a .gguf file, a folder, or a name on the hub")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the adapter is written")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3, help="the learning rate at its highest")
    args = parser.parse_args()

    torch.manual_seed(0)
    dice = random.Random(0)
    model, tokenizer = load(args.base)
    print(f"asked: {ASKED}\nbefore: {says(model, tokenizer, ASKED)}", flush=True)

    config = LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=2 * args.rank, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 5, 1 - step / args.steps))
    model.train()
    begun, order = time.monotonic(), []
    for step in range(args.steps):
        if len(order) < args.batch:
            order = dice.sample(EXAMPLES, len(EXAMPLES))
        loss = model(**batch(tokenizer, [order.pop() for _ in range(args.batch)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step:3}  loss {loss.item():.3f}  {time.monotonic() - begun:4.0f} s", flush=True)
    model.eval()

    print(f"after: {says(model, tokenizer, ASKED)}")
    # Neither embedding nor head was trained; without this PEFT may ask the hub whether they were.
    model.save_pretrained(args.out, save_embedding_layers=False)
    print(f"\nchorus adapter push {args.out.name} {args.out}")


if __name__ == "__main__":
    main()
