"""LlamaIndex's OpenAILike."""

from importlib.metadata import version
from typing import Literal

import openai
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, raises, run, same, true
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

ASK = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="How do I cook rice?")]


class Mood(BaseModel):
    """The mood of a text."""

    mood: Literal["good", "bad"]
    sure: bool


def cook(dish: Literal["rice", "soup"]) -> str:
    """Cooks a dish."""
    return dish


def model(name=BASE, **options):
    options = {"is_chat_model": True, "context_window": 8192, "temperature": 0, "max_tokens": 12, "max_retries": 0, **options}
    return OpenAILike(**{"model": name, "api_base": URL + "/v1", "api_key": "none", **options})


@check
def a_chat_is_answered():
    answer = model().chat(ASK)
    true(answer.message.content and answer.raw.choices[0].finish_reason in ("stop", "length"), f"{answer}")
    said = answer.additional_kwargs
    same(said["total_tokens"], said["prompt_tokens"] + said["completion_tokens"], "total_tokens")
    same(answer.raw.model, BASE, "model")


@check
def a_chat_is_streamed():
    parts = list(model().stream_chat(ASK))
    same("".join(part.delta or "" for part in parts), model().chat(ASK).message.content, "the text of deltas")
    same(parts[-1].message.content, model().chat(ASK).message.content, "the last text")


@check
def a_chat_model_completes():
    answer = model().complete("How do I cook rice?")
    same(list(model().stream_complete("How do I cook rice?"))[-1].text, answer.text, "the text")


@check
def a_text_is_completed():
    plain = model(is_chat_model=False)
    answer = plain.complete("Once upon a time")
    same(list(plain.stream_complete("Once upon a time"))[-1].text, answer.text, "the text")
    true(answer.raw.usage.completion_tokens > 0, f"{answer.raw}")
    true(plain.chat(ASK).message.content, "no text of a chat")


@check
async def all_of_it_asynchronously():
    whole = await model().achat(ASK)
    same([part async for part in await model().astream_chat(ASK)][-1].message.content, whole.message.content, "the text")
    text = await model().acomplete("Hello")
    same([part async for part in await model().astream_complete("Hello")][-1].text, text.text, "the text")


@check
def an_adapter_is_chosen_by_model_or_header():
    named = model("pirate").chat(ASK).message.content
    same(model(default_headers={"X-Adapter": "pirate"}).chat(ASK).message.content, named, "by header")
    true(named != model().chat(ASK).message.content, "it is the base's")


@check
def refusals_are_the_exceptions_of_the_client():
    same(raises(openai.NotFoundError, model("nobody").chat, ASK).code, "model_not_found", "code")
    same(raises(openai.BadRequestError, model(max_tokens=9000).chat, ASK).code, "context_length_exceeded", "code")
    shared = {"api_base": SHARED_URL + "/v1", "name": SHARED_BASE}
    raises(openai.AuthenticationError, model(**shared).chat, ASK)
    true(model(**shared, api_key=KEYS["acme"]).chat(ASK).message.content, "no text")


@check
def structured_output_by_schema():
    asked = model(should_use_structured_outputs=True, max_tokens=60).as_structured_llm(Mood)
    same(type(asked.chat(ASK).raw), Mood, "the type")


@check
def structured_output_by_function():
    asked = model(is_function_calling_model=True, max_tokens=60).as_structured_llm(Mood)
    same(type(asked.chat(ASK).raw), Mood, "the type")


@check
def tools_are_called():
    asked = model(is_function_calling_model=True, max_tokens=60)
    tools = [FunctionTool.from_defaults(fn=cook)]
    answer = asked.chat_with_tools(tools, user_msg="Cook rice.", tool_required=True)
    calls = asked.get_tool_calls_from_response(answer)
    same([call.tool_name for call in calls][:1], ["cook"])
    true(calls[0].tool_kwargs["dish"] in ("rice", "soup"), f"{calls}")
    same(asked.predict_and_call(tools, user_msg="Cook rice.", tool_required=True).response in ("rice", "soup"), True, "what the tool gave")


run(f"llama-index-llms-openai-like {version('llama-index-llms-openai-like')}")
