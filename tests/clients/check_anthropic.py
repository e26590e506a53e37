"""Anthropic's client: messages, whole and as streams."""

import json

import anthropic
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, each, freed, raises, run, same, true

ASK = [{"role": "user", "content": "How do I cook rice?"}]
TOOL = {"name": "cook", "description": "Cooks", "input_schema": {
    "type": "object", "properties": {"dish": {"enum": ["rice", "soup"]}}, "required": ["dish"], "additionalProperties": False}}  # fmt: skip
# The client itself has no such fields any more.
GREEDY = {"extra_body": {"temperature": 0}}
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)


def message(model=BASE, **fields):
    return client.messages.create(**{"model": model, "messages": ASK, "max_tokens": 12, **GREEDY, **fields})


def prompt(answer):
    """Tokens of its prompt, those that had been computed before among them."""
    return answer.usage.input_tokens + answer.usage.cache_read_input_tokens


@check
def a_message_is_answered():
    answer = message()
    true(answer.id.startswith("msg_"), f"id is {answer.id}")
    same((answer.type, answer.role, answer.model, answer.content[0].type), ("message", "assistant", BASE, "text"))
    true(answer.stop_reason in ("end_turn", "max_tokens") and answer.stop_sequence is None, f"{answer}")
    true(answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= 12, f"{answer.usage}")
    true(answer._request_id, "no request-id, which is this client's header")


@check
def a_message_is_streamed():
    whole, events = message(), list(message(stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    same((kinds[:2], kinds[-3:]), (["message_start", "content_block_start"], ["content_block_stop", "message_delta", "message_stop"]))
    same("".join(event.delta.text for event in events if event.type == "content_block_delta"), whole.content[0].text, "the text")
    last = next(event for event in events if event.type == "message_delta")
    same((last.delta.stop_reason, last.usage.output_tokens), (whole.stop_reason, whole.usage.output_tokens))
    with client.messages.stream(model=BASE, messages=ASK, max_tokens=12, **GREEDY) as stream:
        same("".join(stream.text_stream), whole.content[0].text, "the text of the library's stream")
        same(prompt(stream.get_final_message()), prompt(whole), "the prompt's tokens")


@check
def fields_have_their_meaning():
    text = message(max_tokens=24).content[0].text
    stop = text[8:11]
    ended = message(max_tokens=24, stop_sequences=[stop])
    same((ended.content[0].text, ended.stop_reason, ended.stop_sequence), (text[: text.index(stop)], "stop_sequence", stop))
    same(message(max_tokens=3).stop_reason, "max_tokens", "stop_reason")
    true(prompt(message(system="Answer in verse.")) != prompt(message()), "system is overlooked")
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    same(message(messages=parts, max_tokens=24).content[0].text, text, "the text for parts")
    true(message(metadata={"user_id": "ann"}, extra_body={"top_k": 5, "top_p": 0.9, "temperature": 1}).content is not None, "no content")


@check
def an_adapter_is_chosen_by_model_or_header():
    for options in ({"model": "pirate"}, {"model": BASE, "extra_headers": {"X-Adapter": "pirate"}}):
        answer = client.messages.with_raw_response.create(messages=ASK, max_tokens=12, **options)
        same((answer.headers["x-chorus-adapter"].split(";")[0], answer.parse().model), ("pirate@v1", options["model"]))


@check
def keys_are_sent_in_each_way():
    options = {"model": SHARED_BASE, "messages": ASK, "max_tokens": 4}
    for key in ({"api_key": KEYS["acme"]}, {"auth_token": KEYS["acme"], "api_key": None},
                # What older ones send.
                {"api_key": None, "default_headers": {"X-Api-Key": KEYS["acme"]}}):  # fmt: skip
        holder = anthropic.Anthropic(base_url=SHARED_URL, max_retries=0, **key)
        same(holder.messages.create(**options).model, SHARED_BASE, "model")
    wrong = anthropic.Anthropic(base_url=SHARED_URL, api_key="wrong", max_retries=0)
    same(raises(anthropic.AuthenticationError, wrong.messages.create, **options).body["error"]["type"], "authentication_error", "type")


@check
def refusals_are_the_exceptions_of_the_client():
    error = raises(anthropic.NotFoundError, message, "nobody")
    same((error.body["type"], error.body["error"]["type"]), ("error", "not_found_error"))
    true(error.request_id, "no request-id, which is this client's header")
    each([{"extra_body": {"temperature": 9}}, {"max_tokens": 0}, {"messages": []}, {"messages": [{"role": "user", "content": "rice " * 9000}]}],
         lambda fields: same(raises(anthropic.BadRequestError, message, **fields).body["error"]["type"], "invalid_request_error"))  # fmt: skip
    poor = anthropic.Anthropic(base_url=SHARED_URL, api_key=KEYS["poor"], max_retries=0)
    raises(anthropic.RateLimitError, poor.messages.create, model="mine", messages=ASK, max_tokens=4)


@check
def tools_are_called():
    answer = message(tools=[TOOL], tool_choice={"type": "any"}, max_tokens=80)
    call = next(block for block in answer.content if block.type == "tool_use")
    same((answer.stop_reason, call.name, call.input["dish"] in ("rice", "soup")), ("tool_use", "cook", True))
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Done."}]}
    again = message(messages=[*ASK, {"role": "assistant", "content": answer.content}, result], tools=[TOOL], tool_choice={"type": "none"})
    same(again.content[0].type, "text", "type")
    with client.messages.stream(model=BASE, messages=ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "cook"}, max_tokens=80) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    same((final.content[-1].input["dish"] in ("rice", "soup"), final.stop_reason), (True, "tool_use"), "the streamed input")
    true("input_json" in kinds, f"{kinds}")
    free = message(tools=[TOOL], max_tokens=40)
    true({block.type for block in free.content} <= {"text", "tool_use"}, f"{free}")


@check
def tools_that_cannot_be_are_refused():
    def check_fields(fields):
        same(raises(anthropic.BadRequestError, message, **fields).body["error"]["type"], "invalid_request_error", "type")

    each([{"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
          {"tool_choice": {"type": "any"}}, {"tools": [{**TOOL, "name": "a b"}]}], check_fields)  # fmt: skip


@check
def a_form_is_kept():
    answer = message(output_config={"format": {"type": "json_schema", "schema": TOOL["input_schema"]}}, max_tokens=40)
    true(json.loads(answer.content[0].text)["dish"] in ("rice", "soup"), answer.content[0].text)


@check
def tokens_are_counted():
    same(client.messages.count_tokens(model=BASE, messages=ASK).input_tokens, prompt(message()), "input_tokens")
    told = {"system": "Be brief.", "tools": [TOOL]}
    same(client.messages.count_tokens(model="pirate", messages=ASK, **told).input_tokens, prompt(message("pirate", **told)), "with tools")
    raises(anthropic.NotFoundError, client.messages.count_tokens, model="nobody", messages=ASK)


@check
async def all_of_it_asynchronously():
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as remote:
        async with remote.messages.stream(model="sql", messages=ASK, max_tokens=12, **GREEDY) as stream:
            text = "".join([part async for part in stream.text_stream])
        same(text, message("sql").content[0].text, "the text")


@check
def a_stream_that_is_closed_frees_the_server():
    with freed(), client.messages.create(model=BASE, messages=ASK, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}) as stream:
        [next(iter(stream)) for _ in range(3)]


run(f"anthropic {anthropic.__version__}")
