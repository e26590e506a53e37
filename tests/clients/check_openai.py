"""openai-python: models, chats and completions, whole, as streams and asynchronously, and who answers them."""

import json

import openai
from asking import ASK, BRIEF, GREEDY, acme, answered_by, chat, check_chunks, check_usage, client, complete
from checks import BASE, SHARED_BASE, URL, check, each, quick, raises, run, same, true

EXAMPLES = {"formal", "german", "hashtag", "medcode", "pirate", "sentiment", "sql", "support-json"}


@quick
def models_are_listed():
    models = {model.id: model for model in client.models.list()}
    true({BASE} | EXAMPLES <= set(models), f"listed are {sorted(models)}")
    for model in models.values():
        same(model.object, "model", "object")
        true(isinstance(model.created, int) and model.created > 0, f"created is {model.created}")
        same(model.parent, None if model.id == BASE else BASE, "parent")
        true("/" not in model.root, f"root is {model.root}")
        true(model.owned_by and model.max_model_len > 0, f"{model}")


@quick
def a_model_is_retrieved_by_each_of_its_names():
    digest = client.models.retrieve("pirate").root
    each([BASE, "base", "default", "pirate", f"{BASE}:pirate", "pirate@v1", f"pirate@{digest}", f"{BASE}:pirate@v1"],
         lambda name: same(client.models.retrieve(name).id, name, "id"))  # fmt: skip


@quick
def ids_may_have_slashes_and_colons():
    same({model.id for model in acme.models.list()}, {SHARED_BASE, "mine"}, "the list")
    each([SHARED_BASE, f"{SHARED_BASE}:mine", "mine@v1"], lambda name: same(acme.models.retrieve(name).id, name, "id"))
    for name in (SHARED_BASE, f"{SHARED_BASE}:mine"):
        same(acme.chat.completions.create(model=name, messages=ASK, **GREEDY).model, name, "model")


@quick
def a_model_belongs_to_its_tenant():
    same({model.id: model.owned_by for model in acme.models.list()}, {SHARED_BASE: "chorus", "mine": "acme"}, "owners")


@quick
def an_unknown_model_is_not_found():
    for name in ("nobody", "org/nobody", "pirate@v9", f"{BASE}:nobody"):
        refused = raises(openai.NotFoundError, client.models.retrieve, name)
        same((refused.code, refused.param), ("model_not_found", "model"))


@quick
def a_chat_is_answered():
    answer = chat()
    true(answer.id.startswith("chatcmpl-"), f"id is {answer.id}")
    same((answer.object, answer.model, len(answer.choices)), ("chat.completion", BASE, 1))
    choice = answer.choices[0]
    same((choice.index, choice.message.role, choice.message.refusal, choice.logprobs), (0, "assistant", None, None))
    true(isinstance(choice.message.content, str) and not choice.message.tool_calls, f"{choice.message}")
    true(choice.finish_reason in ("stop", "length"), choice.finish_reason)
    true(answer.created > 0 and answer.system_fingerprint.startswith("fp_"), f"{answer}")
    check_usage(answer.usage)


@quick
def keys_that_may_be_null_are_there():
    body = json.loads(client.chat.completions.with_raw_response.create(model=BASE, messages=ASK, **GREEDY).text)
    true("refusal" in body["choices"][0]["message"] and "logprobs" in body["choices"][0], f"{body}")
    body = json.loads(client.completions.with_raw_response.create(model=BASE, prompt="a", **GREEDY).text)
    true("logprobs" in body["choices"][0], f"{body}")


@quick
def a_chat_is_streamed():
    chunks, whole = list(chat(stream=True)), chat()
    check_chunks(chunks, "chat.completion.chunk")
    same(chunks[0].choices[0].delta.role, "assistant", "the first role")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    same([delta.role for delta in deltas[1:] if delta.role], [], "later roles")
    same("".join(delta.content or "" for delta in deltas), whole.choices[0].message.content, "the text")
    same([chunk.choices[0].finish_reason for chunk in chunks], [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason])
    same({chunk.usage for chunk in chunks}, {None}, "usage")
    true(len(chunks) > 3, f"{len(chunks)} chunks")


@quick
def a_stream_may_end_with_usage():
    for chunks, kind, whole in ((list(chat(stream=True, stream_options={"include_usage": True})), "chat.completion.chunk", chat()),
                                (list(complete(stream=True, stream_options={"include_usage": True})), "text_completion", complete())):  # fmt: skip
        check_chunks(chunks, kind)
        *before, last = chunks
        same(last.choices, [], "the last choices")
        same((last.usage.prompt_tokens, last.usage.completion_tokens), (whole.usage.prompt_tokens, whole.usage.completion_tokens), "usage")
        check_usage(last.usage)
        same([chunk.usage for chunk in before], [None] * len(before), "usage before")
        true(all(chunk.choices for chunk in before), "a chunk before the last has no choices")


@quick
def several_choices_are_streamed_side_by_side():
    text, ends = {}, {}
    for chunk in chat(stream=True, n=2, temperature=1, seed=5, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            true(choice.index not in ends, f"choice {choice.index} goes on after its end")
            text[choice.index] = text.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    whole = chat(n=2, temperature=1, seed=5)
    same(text, {choice.index: choice.message.content for choice in whole.choices}, "the texts")
    same(ends, {choice.index: choice.finish_reason for choice in whole.choices}, "the ends")


@quick
def the_streaming_events_of_the_library():
    # It takes an answer that was cut off for an error.
    with client.chat.completions.stream(model=BASE, messages=ASK, **BRIEF, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    true({"chunk", "content.delta", "content.done"} <= set(kinds), f"{set(kinds)}")
    same("".join(event.delta for event in events if event.type == "content.delta"), final.choices[0].message.content, "the text")
    same(final.usage.completion_tokens, chat(**BRIEF).usage.completion_tokens, "completion_tokens")


@quick
def a_text_is_completed():
    answer = complete()
    true(answer.id.startswith("cmpl-"), f"id is {answer.id}")
    same((answer.object, answer.model, answer.choices[0].index, answer.choices[0].logprobs), ("text_completion", BASE, 0, None))
    true(answer.choices[0].finish_reason in ("stop", "length"), answer.choices[0].finish_reason)
    check_usage(answer.usage)
    chunks = list(complete(stream=True))
    check_chunks(chunks, "text_completion")
    same("".join(chunk.choices[0].text for chunk in chunks), answer.choices[0].text, "the text streamed")
    same([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason], [answer.choices[0].finish_reason])


@quick
def raw_responses_have_headers():
    answer = client.chat.completions.with_raw_response.create(model="pirate", messages=ASK, **GREEDY)
    true(answer.headers["x-request-id"].startswith("req-"), f"{answer.headers}")
    same((answered_by(answer), answer.parse().model), ("pirate@v1", "pirate"))
    with client.chat.completions.with_streaming_response.create(model="pirate", messages=ASK, **GREEDY, stream=True) as answer:
        same((answered_by(answer), answer.headers["content-type"].split(";")[0]), ("pirate@v1", "text/event-stream"))
        true(len(list(answer.parse())) > 3, "too few chunks")


@quick
def each_answer_has_an_id_of_its_own():
    one, two = (chat(extra_headers={"X-Request-Id": "mine"}) for _ in range(2))
    true(one._request_id and one._request_id != two._request_id and one._request_id != "mine", f"{one._request_id} {two._request_id}")
    answer = client.chat.completions.with_raw_response.create(model=BASE, messages=ASK, **GREEDY, extra_headers={"X-Request-Id": "mine"})
    same(answer.headers["x-client-request-id"], "mine", "x-client-request-id")


@quick
def an_adapter_is_named_by_model_or_header():
    asked = client.chat.completions.with_raw_response
    for name in ("pirate", f"{BASE}:pirate", "pirate@v1"):
        answer = asked.create(model=name, messages=ASK, **GREEDY)
        same((answered_by(answer), answer.parse().model), ("pirate@v1", name))
    for header, model in (("pirate", BASE), ("pirate", "default"), ("pirate@v1", "pirate"), ("pirate", f"{BASE}:pirate")):
        answer = asked.create(model=model, messages=ASK, **GREEDY, extra_headers={"X-Adapter": header})
        same((answered_by(answer), answer.parse().model), ("pirate@v1", model))
    texts = {name: chat(name).choices[0].message.content for name in (BASE, "pirate", "sentiment", "sql")}
    same(len(set(texts.values())), len(texts), "the number of different answers")
    same(complete("sql", stream=True).response.headers["x-chorus-adapter"].split(";")[0], "sql@v1")


@quick
def an_adapter_is_a_header_of_the_client():
    pirate = openai.OpenAI(base_url=URL + "/v1", api_key="none", default_headers={"X-Adapter": "pirate"})
    same(answered_by(pirate.chat.completions.with_raw_response.create(model=BASE, messages=ASK, **GREEDY)), "pirate@v1")
    once = pirate.chat.completions.with_raw_response.create(model=BASE, messages=ASK, **GREEDY, extra_headers={"X-Adapter": "sql"})
    same(answered_by(once), "sql@v1", "with a header of this request's")


@quick
def base_and_default_name_no_adapter():
    for model in ("base", "default", BASE):
        answer = client.chat.completions.with_raw_response.create(model=model, messages=ASK, **GREEDY)
        same((answered_by(answer), answer.parse().model), ("base", model))
    answer = client.chat.completions.with_raw_response.create(model="default", messages=ASK, **GREEDY, extra_headers={"X-Adapter": "base"})
    same(answered_by(answer), "base")


@quick
def default_is_the_adapter_of_the_tenant():
    answer = acme.chat.completions.with_raw_response.create(model="default", messages=ASK, **GREEDY)
    same((answered_by(answer), answer.parse().model), ("mine@v1", "default"))


@quick
def two_names_that_differ_are_a_conflict():
    for header, model in (("pirate", "sql"), ("base", "sql"), ("pirate@v1", "sql")):
        refused = raises(openai.BadRequestError, chat, model, extra_headers={"X-Adapter": header})
        same((refused.code, refused.param), ("adapter_conflict", "model"))
    refused = raises(openai.NotFoundError, chat, "gpt-4o", extra_headers={"X-Adapter": "pirate"})
    same(refused.code, "model_not_found")


@quick
async def all_of_it_asynchronously():
    async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none") as remote:
        whole = await remote.chat.completions.create(model=BASE, messages=ASK, **GREEDY)
        stream = await remote.chat.completions.create(model=BASE, messages=ASK, **GREEDY, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        same(text, whole.choices[0].message.content, "the text")
        same((await remote.completions.create(model="sql", prompt="a", **GREEDY)).model, "sql", "model")
        true(BASE in [model.id async for model in remote.models.list()], "the base is not listed")
        async with remote.chat.completions.stream(model=BASE, messages=ASK, **BRIEF) as events:
            final = (await events.get_final_completion()).choices[0].message.content
            true(text.startswith(final), f"{final!r} by events, {text!r} before")


@check
def the_usage_of_a_prefix_that_was_computed():
    messages = [{"role": "system", "content": "You know all about rice, and say it in a few words. " * 8}, *ASK]
    first, second = chat("pirate", messages=messages).usage, chat("pirate", messages=messages).usage
    same(first.prompt_tokens, second.prompt_tokens, "prompt_tokens")
    true(second.prompt_tokens_details.cached_tokens > 0, f"{second}")


if __name__ == "__main__":
    run(f"openai-python {openai.__version__}")
