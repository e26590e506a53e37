"""LiteLLM as a library: `openai/` models, and what it makes of refusals."""

import asyncio
import json
from importlib.metadata import version
from typing import Literal

import litellm
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, failure, raises, run, same, true
from pydantic import BaseModel

ASK = [{"role": "user", "content": "How do I cook rice?"}]
HERE = {"api_base": URL + "/v1", "api_key": "none", "num_retries": 0, "max_retries": 0}
litellm.suppress_debug_info = True
litellm.telemetry = False


class Mood(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


TOOLS = [{"type": "function", "function": {"name": "cook", "parameters": {
    "type": "object", "properties": {"dish": {"enum": ["rice", "soup"]}}, "required": ["dish"], "additionalProperties": False}}}]  # fmt: skip


def chat(model=BASE, **fields):
    return litellm.completion(**{"model": "openai/" + model, "messages": ASK, "temperature": 0, "max_tokens": 12, **HERE, **fields})


@check
def a_chat_is_answered():
    answer = chat()
    true(answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length"), f"{answer}")
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens, "total_tokens")
    true(answer.usage.prompt_tokens_details.cached_tokens >= 0, f"{answer.usage}")


@check
def a_chat_is_streamed():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chat().choices[0].message.content, "the text")
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    same(usage[-1].completion_tokens, chat().usage.completion_tokens, "completion_tokens")
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    same(ends, [chat().choices[0].finish_reason], "the ends")
    same(litellm.stream_chunk_builder(chunks).choices[0].message.content, chat().choices[0].message.content, "the text put together")


@check
async def a_chat_is_asked_asynchronously():
    options = {"model": "openai/" + BASE, "messages": ASK, "temperature": 0, "max_tokens": 12, **HERE}
    answers = await asyncio.gather(*(litellm.acompletion(**options) for _ in range(3)))
    same(len({answer.choices[0].message.content for answer in answers}), 1, "the number of different answers")
    stream = await litellm.acompletion(**options, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    same(text, answers[0].choices[0].message.content, "the text")


@check
def a_text_is_completed():
    answer = litellm.text_completion(model="text-completion-openai/" + BASE, prompt="Once upon a time", temperature=0, max_tokens=8, **HERE)
    true(answer.choices[0].text and answer.usage.completion_tokens == 8, f"{answer}")


@check
def an_adapter_is_chosen_by_model_or_header():
    texts = {answer.choices[0].message.content for answer in (chat("pirate"), chat(extra_headers={"X-Adapter": "pirate"}))}
    same(len(texts), 1, "the number of answers of one adapter")
    true(texts != {chat().choices[0].message.content}, "it is the base's")
    answer = chat("pirate")
    same(answer._hidden_params["additional_headers"]["llm_provider-x-chorus-adapter"].split(";")[0], "pirate@v1", "the header")


@check
def fields_are_passed_on():
    answer = chat(n=2, seed=4, stop=["\u2603"], top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, user="ann", logprobs=True, top_logprobs=2,
                  extra_body={"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True})  # fmt: skip
    same((len(answer.choices), answer.usage.completion_tokens), (2, 24))
    same({len(token.top_logprobs) for token in answer.choices[0].logprobs.content}, {2}, "top_logprobs")


@check
def a_prompt_beyond_the_context_has_an_exception_of_its_own():
    long = [{"role": "user", "content": "rice " * 9000}]
    raises(litellm.ContextWindowExceededError, chat, messages=long)
    raises(litellm.ContextWindowExceededError, chat, max_tokens=9000)
    raises(litellm.ContextWindowExceededError, chat, messages=long, stream=True)


@check
async def a_router_falls_back_where_the_context_is_too_short():
    named = {"short": (BASE, {"max_tokens": 9000}), "long": ("pirate", {"max_tokens": 5}), "lost": ("nobody", {})}
    models = [{"model_name": name, "litellm_params": {"model": "openai/" + model, **HERE, **more}} for name, (model, more) in named.items()]
    router = litellm.Router(models, context_window_fallbacks=[{"short": ["long"]}], fallbacks=[{"lost": ["long"]}], num_retries=0)
    for name in ("short", "lost"):
        answer = await router.acompletion(name, messages=ASK)
        same((answer.model.split("/")[-1], answer.usage.completion_tokens <= 5), ("pirate", True), name)


@check
def refusals_are_the_exceptions_of_the_library():
    raises(litellm.NotFoundError, chat, "nobody")
    raises(litellm.BadRequestError, chat, temperature=9)
    shared = {"api_base": SHARED_URL + "/v1"}
    raises(litellm.AuthenticationError, chat, SHARED_BASE, **shared, api_key="wrong")
    raises(litellm.RateLimitError, chat, "mine", **shared, api_key=KEYS["poor"])
    true(chat(SHARED_BASE, **shared, api_key=KEYS["acme"]).choices[0].message.content, "no text")
    error = failure(chat, extra_headers={"X-Request-Timeout": "0.05"}, max_tokens=4000, extra_body={"ignore_eos": True})
    same(error.status_code, 504, "the status of a deadline")


@check
def structured_output():
    answer = chat(response_format=Mood, max_tokens=60)
    Mood.model_validate_json(answer.choices[0].message.content)
    schema = {**Mood.model_json_schema(), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": schema}}
    Mood.model_validate_json(chat("pirate", response_format=form, max_tokens=60).choices[0].message.content)


@check
def tools_are_called():
    choice = chat(tools=TOOLS, tool_choice="required", max_tokens=60).choices[0]
    same((choice.finish_reason, choice.message.tool_calls[0].function.name), ("tool_calls", "cook"))
    true(json.loads(choice.message.tool_calls[0].function.arguments)["dish"] in ("rice", "soup"), f"{choice}")
    whole = litellm.stream_chunk_builder(list(chat(tools=TOOLS, tool_choice="required", max_tokens=60, stream=True)))
    same(whole.choices[0].message.tool_calls[0].function.name, "cook", "streamed")


@check
def texts_are_embedded():
    answer = litellm.embedding(model="openai/" + BASE, input=["rice", "soup"], **HERE)
    same((len(answer.data), len({len(one["embedding"]) for one in answer.data})), (2, 1))


@check
def a_response_is_made():
    answer = litellm.responses(model="openai/" + BASE, input="How do I cook rice?", max_output_tokens=16, **HERE)
    true(answer.output[0].content[0].text and answer.usage.output_tokens > 0, f"{answer}")


run(f"litellm {version('litellm')}")
