"""How the checks of openai-python ask."""

import openai
from checks import BASE, KEYS, SHARED_URL, URL, same, true

ASK = [{"role": "user", "content": "How do I cook rice?"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
# Ends at the second word.
BRIEF = {**GREEDY, "stop": [" "]}

client = openai.OpenAI(base_url=URL + "/v1", api_key="none")
acme = openai.OpenAI(base_url=SHARED_URL + "/v1", api_key=KEYS.get("acme", "none"))


def chat(model=BASE, **fields):
    return client.chat.completions.create(**{"model": model, "messages": ASK, **GREEDY, **fields})


def complete(model=BASE, **fields):
    return client.completions.create(**{"model": model, "prompt": "Once upon a time", **GREEDY, **fields})


def check_usage(usage):
    true(usage.prompt_tokens > 0, f"prompt_tokens is {usage.prompt_tokens}")
    same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")
    true(0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens, f"{usage.prompt_tokens_details}")


def check_chunks(chunks, kind):
    """What all chunks of one answer share."""
    for field in ("id", "created", "model", "object", "system_fingerprint"):
        same(len({getattr(chunk, field) for chunk in chunks}), 1, f"the number of values of {field}")
    same(chunks[0].object, kind, "object")


def answered_by(answer):
    """Who answered, as the header of a raw response says it."""
    return answer.headers["x-chorus-adapter"].split(";")[0]
