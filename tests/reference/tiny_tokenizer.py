"""A byte-level BPE tokenizer of 320 tokens for the `tied` model: three special tokens, 256 bytes, 61 merges."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB = 320
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
UNKNOWN, BOS, EOS = range(3)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the other animals look on.",
    "A server answers many users at the same time; every one of them asks another question.",
    "When there is nothing to do, the best answer is to wait and to listen for the next one.",
]

SAMPLES = [
    "",
    " ",
    "The other one answers.",
    "  two  spaces\n\n\tand a tab\r\n",
    "1234567890 and 3.14",
    "don't, we'll, it's",
    "Grüße, 你好, 🙂👩‍👩‍👧, e\u0301",
    "<|im_start|>user\nHello<|im_end|>\n",
    "a<|im_end|>b <|not_special|>",
    "\u0000\u001f\u007f",
]

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]


def build() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # llama.cpp's pre-tokenizer "smollm"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def save(folder: Path) -> None:
    """tokenizer.json and its companions, with the token ids of SAMPLES and the rendered CHAT to test against."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build(),
        bos_token=SPECIALS[BOS],
        eos_token=SPECIALS[EOS],
        pad_token=SPECIALS[EOS],
        unk_token=SPECIALS[UNKNOWN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    vectors = {
        "strings": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in SAMPLES],
        "chat": {
            "messages": CHAT,
            "rendered": tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
        },
    }
    (folder / "tokenizer_vectors.json").write_text(json.dumps(vectors, indent=1) + "\n")


def tokens() -> list[str]:
    """In id order."""
    return [token for token, _ in sorted(build().get_vocab().items(), key=lambda item: item[1])]


def merges() -> list[str]:
    return [" ".join(pair) for pair in json.loads(build().to_str())["model"]["merges"]]
