"""openai-python: what besides chats and completions an OpenAI server has: embeddings and responses."""

import json
import math
from typing import Literal

import openai
from asking import acme, answered_by, client
from checks import BASE, URL, each, failure, post, quick, raises, run, same, true
from pydantic import BaseModel

TEXTS = ["How do I cook rice?", "How long does rice take?", "The train was late."]
ASK = "How do I cook rice?"
DISH = {"type": "object", "properties": {"dish": {"enum": ["rice", "soup"]}}, "required": ["dish"], "additionalProperties": False}
TOOL = {"type": "function", "name": "cook", "description": "Cooks", "strict": True, "parameters": DISH}


class Mood(BaseModel):
    mood: Literal["good", "bad"]
    sure: bool


def embed(given=ASK, **fields):
    return client.embeddings.create(**{"model": BASE, "input": given, **fields})


def respond(**fields):
    return client.responses.create(**{"model": BASE, "input": ASK, "temperature": 0, "max_output_tokens": 16, **fields})


def near(one, two):
    return all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(one, two, strict=True))


@quick
def texts_are_embedded():
    answer = embed(TEXTS)
    same((answer.object, answer.model, [one.index for one in answer.data]), ("list", BASE, [0, 1, 2]))
    same({one.object for one in answer.data}, {"embedding"}, "object")
    same(len({len(one.embedding) for one in answer.data}), 1, "the number of lengths")
    for one in answer.data:
        true(math.isclose(sum(x * x for x in one.embedding), 1, abs_tol=1e-3), "a vector is not of length 1")
    true(not near(answer.data[0].embedding, answer.data[2].embedding), "two texts are alike")
    same(answer.usage.prompt_tokens, answer.usage.total_tokens, "total_tokens")
    true(answer.usage.prompt_tokens > 3, f"{answer.usage}")
    true(near(embed(TEXTS[1]).data[0].embedding, answer.data[1].embedding), "alone a text has another vector")


@quick
def embeddings_in_both_encodings():
    packed, floats = embed(), embed(encoding_format="float")
    true(near(packed.data[0].embedding, floats.data[0].embedding), "base64 and float differ")
    raw = json.loads(client.embeddings.with_raw_response.create(model=BASE, input=ASK, encoding_format="base64").text)
    same(type(raw["data"][0]["embedding"]), str, "the type of base64")


@quick
def token_ids_are_embedded():
    _, tokenized = post(URL, {"prompt": ASK}, path="/tokenize")
    answer = embed([tokenized["tokens"], tokenized["tokens"][:2]])
    same((len(answer.data), answer.usage.prompt_tokens), (2, tokenized["count"] + 2))
    true(near(answer.data[0].embedding, embed().data[0].embedding), "ids and their text differ")


@quick
def an_adapter_embeds():
    answer = client.embeddings.with_raw_response.create(model=BASE, input=ASK, extra_headers={"X-Adapter": "pirate"})
    same(answered_by(answer), "pirate@v1")
    true(not near(answer.parse().data[0].embedding, embed().data[0].embedding), "it does as the base does")
    same(acme.embeddings.create(model="mine", input=ASK).model, "mine", "model")


@quick
def what_cannot_be_embedded_is_refused():
    for given in ("", [], [""], [[]]):
        true(raises(openai.BadRequestError, embed, given).param.startswith("input"), f"param of {given!r}")
    same(raises(openai.BadRequestError, embed, encoding_format="hex").param, "encoding_format", "param")
    same(raises(openai.BadRequestError, embed, "rice " * 9000).code, "context_length_exceeded", "code")
    same(raises(openai.NotFoundError, embed, model="nobody").code, "model_not_found", "code")
    same(raises(openai.NotFoundError, acme.embeddings.create, model="secret", input=ASK).code, "model_not_found", "code")


@quick
def a_response_is_made():
    answer = respond()
    true(answer.id.startswith("resp_"), f"id is {answer.id}")
    same((answer.object, answer.model, answer.error), ("response", BASE, None))
    true(answer.status in ("completed", "incomplete"), answer.status)
    message = answer.output[0]
    same((message.type, message.role, message.content[0].type), ("message", "assistant", "output_text"))
    same(answer.output_text, message.content[0].text, "the text")
    usage = answer.usage
    same(usage.total_tokens, usage.input_tokens + usage.output_tokens, "total_tokens")
    true(usage.input_tokens > 0 and 0 < usage.output_tokens <= 16, f"{usage}")
    true(usage.input_tokens_details.cached_tokens >= 0 and usage.output_tokens_details.reasoning_tokens == 0, f"{usage}")
    chat = client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": ASK}], temperature=0, max_tokens=16)
    same(answer.output_text, chat.choices[0].message.content, "the text of a chat")


@quick
def a_response_that_is_cut_off():
    answer = respond(max_output_tokens=16, extra_body={"ignore_eos": True})
    same((answer.status, answer.incomplete_details.reason), ("incomplete", "max_output_tokens"))


@quick
def responses_to_messages_and_instructions():
    plain = respond()
    for given in ([{"role": "user", "content": ASK}], [{"role": "user", "content": [{"type": "input_text", "text": ASK}]}],
                  [{"type": "message", "role": "user", "content": ASK}]):  # fmt: skip
        same(respond(input=given).output_text, plain.output_text, f"{given}")
    true(respond(instructions="Answer in verse.").usage.input_tokens != plain.usage.input_tokens, "instructions are overlooked")
    developer = [{"role": "developer", "content": "Answer in verse."}, {"role": "user", "content": ASK}]
    same(respond(input=developer).output_text, respond(instructions="Answer in verse.").output_text)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": ASK}]
    true(respond(input=turns, store=False, metadata={"a": "b"}, truncation="disabled").output_text, "no text")


@quick
def a_response_is_streamed():
    events = list(respond(stream=True))
    kinds = [event.type for event in events]
    same((kinds[0], kinds[-1] in ("response.completed", "response.incomplete")), ("response.created", True), "the first and last event")
    same([event.sequence_number for event in events], list(range(len(events))), "the sequence numbers")
    for kind in ("response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done",
                 "response.content_part.done", "response.output_item.done"):  # fmt: skip
        true(kind in kinds, f"{kind} is not among {sorted(set(kinds))}")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same((text, events[-1].response.output_text), (respond().output_text, text), "the text")
    true(events[-1].response.usage.output_tokens > 0, f"{events[-1].response.usage}")
    same(len({event.response.id for event in events if hasattr(event, "response")}), 1, "the number of ids")


@quick
def the_streaming_events_of_responses():
    # It knows no answer that is cut off; this adapter's are a word.
    brief = {"model": "sentiment", "input": "The service was great.", "temperature": 0, "max_output_tokens": 16}
    with client.responses.stream(**brief) as stream:
        kinds = {event.type for event in stream}
        same(stream.get_final_response().output_text, respond(**brief).output_text, "the text")
    true("response.output_text.delta" in kinds, f"{kinds}")


@quick
def an_adapter_responds():
    answer = client.responses.with_raw_response.create(model="pirate", input=ASK, max_output_tokens=16)
    same((answered_by(answer), answer.parse().model), ("pirate@v1", "pirate"))
    answer = client.responses.with_raw_response.create(model=BASE, input=ASK, max_output_tokens=16, extra_headers={"X-Adapter": "sql"})
    same(answered_by(answer), "sql@v1")


@quick
def a_response_is_parsed():
    answer = client.responses.parse(model=BASE, input=ASK, text_format=Mood, max_output_tokens=60)
    same(type(answer.output_parsed), Mood, "the parsed type")
    same((answer.text.format.type, answer.text.format.name), ("json_schema", "Mood"), "what comes back")
    with client.responses.stream(model="pirate", input=ASK, text_format=Mood, max_output_tokens=60) as stream:
        same(type(stream.get_final_response().output_parsed), Mood, "the parsed type of a stream")


@quick
async def a_response_is_parsed_asynchronously():
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as remote:
        answer = await remote.responses.parse(model=BASE, input=ASK, text_format=Mood, max_output_tokens=60)
        same(type(answer.output_parsed), Mood, "the parsed type")


@quick
def a_response_has_a_form():
    form = {"type": "json_schema", "name": "dish", "strict": True, "schema": DISH}
    for seed in range(3):
        answer = respond(text={"format": form}, max_output_tokens=60, temperature=1, extra_body={"seed": seed})
        true(json.loads(answer.output_text)["dish"] in ("rice", "soup"), answer.output_text)
    answer = respond(text={"format": {"type": "json_object"}}, max_output_tokens=30)
    true(answer.output_text.startswith("{"), answer.output_text)
    each([{"type": "xml"}, {"type": "json_schema", "name": "a"}, {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}],
         lambda form: true(raises(openai.BadRequestError, respond, text={"format": form}).param.startswith("text.format"), "param"))  # fmt: skip


@quick
def a_response_calls_a_tool():
    answer = respond(tools=[TOOL], tool_choice="required", max_output_tokens=60)
    call = next(item for item in answer.output if item.type == "function_call")
    same((call.name, call.status), ("cook", "completed"))
    true(call.call_id and json.loads(call.arguments)["dish"] in ("rice", "soup"), f"{call}")
    given = [{"role": "user", "content": ASK}, call, {"type": "function_call_output", "call_id": call.call_id, "output": "Done."}]
    true(respond(input=given, tools=[TOOL], tool_choice="none").output_text, "no text")
    forced = {"type": "function", "name": "cook"}
    answer = respond(tools=[TOOL, {**TOOL, "name": "eat"}], tool_choice=forced, parallel_tool_calls=False, max_output_tokens=60)
    same([(item.type, item.name) for item in answer.output], [("function_call", "cook")])
    same((answer.tools[0].name, answer.tools[0].parameters, answer.tool_choice.name), ("cook", DISH, "cook"), "what comes back")
    free = respond(tools=[TOOL], max_output_tokens=60)
    true({item.type for item in free.output} <= {"message", "function_call"}, f"{free.output}")


@quick
def a_response_calls_a_tool_in_a_stream():
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
    events = list(respond(**asked, stream=True))
    kinds = [event.type for event in events]
    wanted = ["response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
              "response.output_item.done", "response.completed"]  # fmt: skip
    same(list(dict.fromkeys(kinds[2:])), wanted, "the events")
    same([event.sequence_number for event in events], list(range(len(events))), "the sequence numbers")
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    item = events[-1].response.output[0]
    same((arguments, item.name), (item.arguments, "cook"), "the arguments")
    same({event.item_id for event in events if hasattr(event, "item_id")}, {item.id}, "the ids")
    with client.responses.stream(model=BASE, input=ASK, temperature=0, **asked) as stream:
        call = stream.get_final_response().output[0]
    true(call.parsed_arguments["dish"] in ("rice", "soup"), f"{call}")


@quick
def tools_of_a_server_are_refused():
    each(["web_search", "file_search", "code_interpreter", "image_generation", "mcp", "custom"],
         lambda kind: true(kind in str(raises(openai.BadRequestError, respond, tools=[{"type": kind, "name": "x"}])), "it is not named"))  # fmt: skip
    same(raises(openai.BadRequestError, respond, tools=[{"type": "web_search"}]).param, "tools[0].type", "param")
    same(raises(openai.BadRequestError, respond, tools=[TOOL], tool_choice={"type": "function", "name": "x"}).param, "tool_choice", "param")
    given = [{"role": "user", "content": ASK}, {"type": "function_call", "call_id": "1", "name": "cook", "arguments": "{"}]
    same(raises(openai.BadRequestError, respond, input=given, tools=[TOOL]).param, "input[1].arguments", "param")


@quick
def responses_that_are_refused():
    same(raises(openai.NotFoundError, respond, model="nobody").code, "model_not_found", "code")
    same(raises(openai.NotFoundError, acme.responses.create, model="secret", input=ASK).code, "model_not_found", "code")
    same(raises(openai.BadRequestError, respond, temperature=3).param, "temperature", "param")
    same(raises(openai.BadRequestError, respond, input="rice " * 9000).code, "context_length_exceeded", "code")
    same(raises(openai.BadRequestError, respond, input=[]).param, "input", "param")
    # Nothing is kept that could be gone on with.
    same(raises(openai.BadRequestError, respond, previous_response_id="resp_1").param, "previous_response_id", "param")
    same(set(failure(client.responses.retrieve, "resp_1").body), {"message", "type", "param", "code"}, "the error's keys")


if __name__ == "__main__":
    run(f"openai-python {openai.__version__}")
