"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings."""

import json
from importlib.metadata import version
from typing import Literal

import openai
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, failure, run, same, true
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

ASK = "How do I cook rice?"


class Mood(BaseModel):
    """The mood of a text."""

    mood: Literal["good", "bad"] = Field(description="How it is")
    sure: bool


@tool
def cook(dish: Literal["rice", "soup"], minutes: Literal[5, 20]) -> str:
    """Cooks a dish."""
    return f"{dish} for {minutes} minutes"


def chat(model=BASE, **options):
    return ChatOpenAI(**{"model": model, "base_url": URL + "/v1", "api_key": "none", "temperature": 0, "max_tokens": 12, **options})


def check_usage(usage):
    same(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"], "total_tokens")
    true(usage["input_tokens"] > 0 and 0 < usage["output_tokens"] <= 12, f"{usage}")
    true("cache_read" in usage["input_token_details"], f"{usage}")


@check
def a_chat_is_invoked():
    answer = chat(include_response_headers=True).invoke([SystemMessage("Be brief."), HumanMessage(ASK)])
    true(answer.content and answer.id, f"{answer}")
    check_usage(answer.usage_metadata)
    said = answer.response_metadata
    true(said["finish_reason"] in ("stop", "length") and said["system_fingerprint"].startswith("fp_"), f"{said}")
    same((said["model_name"], said["headers"]["x-chorus-adapter"]), (BASE, "base"))
    true(said["headers"]["x-request-id"], "no x-request-id")


@check
def a_chat_is_streamed():
    chunks = list(chat(stream_usage=True).stream(ASK))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    same(whole.content, chat().invoke(ASK).content, "the text")
    check_usage(whole.usage_metadata)
    true(whole.response_metadata["finish_reason"] in ("stop", "length"), f"{whole.response_metadata}")


@check
def chats_are_batched():
    prompts = [ASK, "Hello", "Who are you?"]
    same([answer.content for answer in chat().batch(prompts)], [chat().invoke(prompt).content for prompt in prompts])


@check
async def a_chat_is_asked_asynchronously():
    whole = await chat().ainvoke(ASK)
    same("".join([chunk.content async for chunk in chat().astream(ASK)]), whole.content, "the text")
    same([answer.content for answer in await chat().abatch([ASK, ASK])], [whole.content] * 2)


@check
def an_adapter_is_chosen_by_model_or_header():
    for options in ({"model": "pirate"}, {"default_headers": {"X-Adapter": "pirate"}}, {"model": f"{BASE}:pirate"}):
        answer = chat(**options, include_response_headers=True).invoke(ASK)
        true(answer.response_metadata["headers"]["x-chorus-adapter"].startswith("pirate@v1;sha256="), f"{options}")


@check
def scores_and_several_choices():
    answer = chat(logprobs=True, top_logprobs=2).invoke(ASK)
    scored = answer.response_metadata["logprobs"]["content"]
    same(("".join(token["token"] for token in scored), {len(token["top_logprobs"]) for token in scored}), (answer.content, {2}))
    generated = chat(n=2, temperature=1, seed=3, stop=["\u2603"]).generate([[HumanMessage(ASK)]])
    same(len(generated.generations[0]), 2, "the number of choices")
    true(generated.llm_output["token_usage"]["completion_tokens"] > 0, f"{generated.llm_output}")


@check
def a_text_is_completed():
    model = OpenAI(model=BASE, base_url=URL + "/v1", api_key="none", temperature=0, max_tokens=8)
    same("".join(model.stream("Once upon a time")), model.invoke("Once upon a time"), "the text")
    generated = model.generate(["Once", "Twice"])
    same(len(generated.generations), 2, "the number of texts")
    true(generated.llm_output["token_usage"]["total_tokens"] > 0, f"{generated.llm_output}")


@check
def refusals_are_the_exceptions_of_the_library():
    shared = {"base_url": SHARED_URL + "/v1", "model": SHARED_BASE}
    # Its own exceptions, which are the client's as well.
    long = "rice " * 9000
    for kind, call in ((ContextOverflowError, lambda: chat().invoke(long)), (ContextOverflowError, lambda: list(chat().stream(long))),
                       (openai.BadRequestError, lambda: chat(temperature=9).invoke(ASK)), (openai.NotFoundError, lambda: chat("nobody").invoke(ASK)),
                       (openai.AuthenticationError, lambda: chat(**shared).invoke(ASK))):  # fmt: skip
        error = failure(call)
        true(isinstance(error, kind), f"{type(error).__name__}: {error}")
    same(chat(**shared, api_key=KEYS["acme"]).invoke(ASK).response_metadata["model_name"], SHARED_BASE)


@check
def structured_output_by_schema():
    for strict in (None, True):
        model = chat(max_tokens=60).with_structured_output(Mood, method="json_schema", strict=strict)
        same(type(model.invoke(ASK)), Mood, f"the type with strict {strict}")
    same(set(chat(max_tokens=60).with_structured_output(Mood.model_json_schema(), method="json_schema").invoke(ASK)), {"mood", "sure"})
    raw = chat("pirate", max_tokens=60).with_structured_output(Mood, method="json_schema", include_raw=True).invoke(ASK)
    same((type(raw["parsed"]), raw["parsing_error"]), (Mood, None))


@check
def structured_output_by_function():
    same(type(chat(max_tokens=60).with_structured_output(Mood, method="function_calling").invoke(ASK)), Mood, "the type")
    same(type(chat(max_tokens=60).with_structured_output(Mood, method="function_calling", strict=True).invoke(ASK)), Mood, "the type")


@check
async def structured_output_asynchronously():
    same(type(await chat(max_tokens=60).with_structured_output(Mood, method="json_schema").ainvoke(ASK)), Mood, "the type")
    parts = [part async for part in chat(max_tokens=60).with_structured_output(Mood, method="json_schema").astream(ASK)]
    same(type(parts[-1]), Mood, "the last type of a stream")


@check
def bound_tools_are_called():
    for choice in ("any", "cook", "required", True):
        answer = chat(max_tokens=80).bind_tools([cook], tool_choice=choice).invoke(ASK)
        call = answer.tool_calls[0]
        same((call["name"], answer.invalid_tool_calls), ("cook", []))
        said = cook.invoke(call)
        same(type(said), ToolMessage, "what the tool gives")
    again = chat(max_tokens=12).bind_tools([cook], tool_choice="none").invoke([HumanMessage(ASK), answer, said])
    same((again.tool_calls, bool(again.content)), ([], True))


@check
def bound_tools_are_called_in_a_stream():
    whole = None
    for chunk in chat(max_tokens=80).bind_tools([cook], tool_choice="any", parallel_tool_calls=False).stream(ASK):
        whole = chunk if whole is None else whole + chunk
    same([call["name"] for call in whole.tool_calls], ["cook"])
    same(whole.response_metadata["finish_reason"], "tool_calls", "finish_reason")
    same(json.loads(whole.tool_call_chunks[0]["args"]), whole.tool_calls[0]["args"], "the arguments")


@check
def texts_are_embedded():
    model = OpenAIEmbeddings(model=BASE, base_url=URL + "/v1", api_key="none", check_embedding_ctx_length=False)
    vectors = model.embed_documents(["rice", "soup"])
    same((len(vectors), len(vectors[0])), (2, len(model.embed_query("rice"))))


@check
def the_responses_api_is_invoked():
    answer = chat(use_responses_api=True, max_tokens=16).invoke(ASK)
    true(answer.text and answer.response_metadata["status"] in ("completed", "incomplete"), f"{answer}")
    same("".join(chunk.text for chunk in chat(use_responses_api=True, max_tokens=16).stream(ASK)), answer.text, "the text streamed")


@check
def the_responses_api_calls_tools_and_keeps_forms():
    model = chat(use_responses_api=True, max_tokens=80)
    answer = model.bind_tools([cook], tool_choice="any", parallel_tool_calls=False).invoke(ASK)
    same([call["name"] for call in answer.tool_calls], ["cook"])
    whole = None
    for chunk in model.bind_tools([cook], tool_choice="any", parallel_tool_calls=False).stream(ASK):
        whole = chunk if whole is None else whole + chunk
    same([call["args"] for call in whole.tool_calls], [call["args"] for call in answer.tool_calls], "the arguments of a stream")
    said = [HumanMessage(ASK), answer, cook.invoke(answer.tool_calls[0])]
    again = model.bind_tools([cook], tool_choice="none").invoke(said)
    same((again.tool_calls, bool(again.text)), ([], True))
    same(type(model.with_structured_output(Mood, method="json_schema").invoke(ASK)), Mood, "the type")


run(f"langchain-openai {version('langchain-openai')}")
