"""openai-python: what each field of a request does, by the API's own name or in `extra_body`: honoured, overlooked or refused."""

import openai
from asking import ASK, chat, client, complete
from checks import BASE, URL, check, each, post, quick, raises, run, same, token_id, true

# Goes on whatever the base would say.
LONG = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
STORY = "Once upon a time"


def story(**fields):
    return complete(**{"prompt": STORY, **LONG, **fields})


def tokens():
    """What the base says to the story, token by token."""
    return story(logprobs=0).choices[0].logprobs.tokens


def with_extra(**fields):
    return {**LONG["extra_body"], **fields}


@quick
def max_tokens_under_both_names():
    for field in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=BASE, messages=ASK, temperature=0, extra_body={"ignore_eos": True}, **{field: 5})
        same((answer.usage.completion_tokens, answer.choices[0].finish_reason), (5, "length"), field)
    answer = chat(max_completion_tokens=3, max_tokens=9, extra_body={"ignore_eos": True})
    same(answer.usage.completion_tokens, 3, "with both")
    same(client.completions.create(model=BASE, prompt=STORY, extra_body={"ignore_eos": True}).usage.completion_tokens, 16, "by default")


@quick
def several_choices():
    answer = chat(n=3, temperature=1, seed=1, extra_body={"ignore_eos": True})
    same([choice.index for choice in answer.choices], [0, 1, 2], "the indices")
    same(answer.usage.completion_tokens, 36, "completion_tokens")
    true(len({choice.message.content for choice in answer.choices}) > 1, "all choices are alike")
    same(len(complete(prompt=["a", "b"], n=2).choices), 4, "the number of choices of two prompts")


@check
def the_best_of_several():
    answer = story(best_of=3, n=1, temperature=1, seed=3)
    same([choice.index for choice in answer.choices], [0], "the indices")
    same(len(story(best_of=3, n=2, temperature=1).choices), 2, "the number of choices")
    same(len(story(best_of=2, n=2, temperature=1).choices), 2, "the number of choices")
    same(raises(openai.BadRequestError, story, best_of=1, n=2).param, "best_of", "param")


@quick
def seeds_repeat_an_answer():
    def text(seed):
        return story(temperature=1.2, seed=seed).choices[0].text

    same(text(7), text(7), "the second of one seed")
    true(len({text(seed) for seed in range(4)}) > 1, "four seeds give one text")
    true(len({story(temperature=1.2).choices[0].text for _ in range(4)}) > 1, "without a seed four texts are alike")


@quick
def the_likeliest_token_in_every_way():
    greedy = story().choices[0].text
    for fields in ({"top_p": 0}, {"extra_body": with_extra(top_k=1)}, {"extra_body": with_extra(min_p=1)}):
        same(story(**{"temperature": 2, **fields}).choices[0].text, greedy, f"{fields}")
    same(story(temperature=0, top_p=0.5, extra_body=with_extra(top_k=-1, min_p=0)).choices[0].text, greedy)


@quick
def penalties_have_an_effect():
    prompt = "one two one two one two one two one two one two"
    plain = story(prompt=prompt).choices[0].text
    for fields in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": with_extra(repetition_penalty=2)}):
        true(story(prompt=prompt, **fields).choices[0].text != plain, f"{fields} changes nothing")
    same(story(prompt=prompt, presence_penalty=0, frequency_penalty=0, extra_body=with_extra(repetition_penalty=1)).choices[0].text, plain)


@check
def logit_bias_forces_and_forbids():
    forced = token_id("x")
    answer = chat(logit_bias={str(forced): 100}, max_tokens=3)
    same(answer.choices[0].message.content, "xxx", "the forced text")
    first = tokens()[0]
    true(story(logit_bias={str(token_id(first)): -100}).choices[0].text.startswith(first) is False, f"{first!r} was forbidden")
    each([{"-1": 1}, {"9999999": 1}, {"x": 1}, {str(forced): 101}],
         lambda bias: true(raises(openai.BadRequestError, chat, logit_bias=bias).param.startswith("logit_bias"), "param"))  # fmt: skip


@quick
def a_stop_string_ends_the_text():
    said = tokens()
    text, spans = "".join(said), said[3][-1:] + said[4][:2]
    stops = {"a part of a token": said[5][1:], "what spans tokens": spans, "of several": ["\u2603", spans],
             "of four": ["\u2603", "\u2604", "\u2605", spans]}  # fmt: skip
    for what, stop in stops.items():
        sought = stop if isinstance(stop, str) else stop[-1]
        choice = story(stop=stop).choices[0]
        same((choice.text, choice.finish_reason), (text[: text.index(sought)], "stop"), what)
        kept = story(stop=stop, extra_body=with_extra(include_stop_str_in_output=True)).choices[0].text
        same(kept, text[: text.index(sought) + len(sought)], f"{what}, kept")
        streamed = list(story(stop=stop, stream=True))
        same("".join(chunk.choices[0].text for chunk in streamed), choice.text, f"{what}, streamed")
        same(streamed[-1].choices[0].finish_reason, "stop", "finish_reason")


@quick
def a_stop_string_ends_a_chat():
    text = chat(**LONG).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    choice = chat(**LONG, stop=stop).choices[0]
    same((choice.message.content, choice.finish_reason), (text[: text.index(stop)], "stop"))
    each([None, [], ["\u2603"] * 16], lambda stop: same(chat(**LONG, stop=stop).choices[0].message.content, text))


def single(said):
    """A place in the text, not at its beginning, whose token is no other's before it, and its id."""
    for at in range(4, len(said)):
        if said[at] not in said[:at] and (found := token_id(said[at])) is not None:
            return at, found
    raise AssertionError(f"no token of {said} is one by itself")


@quick
def a_stop_token_ends_the_text():
    said = tokens()
    at, stop = single(said)
    answer = story(extra_body=with_extra(stop_token_ids=[stop]))
    same((answer.choices[0].text, answer.choices[0].finish_reason), ("".join(said[:at]), "stop"))
    same(answer.usage.completion_tokens, at, "completion_tokens")


@check
def min_tokens_keep_an_answer_from_ending():
    at, stop = single(tokens())
    answer = story(extra_body=with_extra(stop_token_ids=[stop], min_tokens=at + 5))
    true(answer.usage.completion_tokens >= at + 5, f"{answer.usage.completion_tokens} tokens, of {at + 5} at least")
    same(raises(openai.BadRequestError, story, max_tokens=4, extra_body={"min_tokens": 5}).param, "min_tokens", "param")


@quick
def ignore_eos_goes_on():
    ended = client.chat.completions.create(model="sentiment", messages=[{"role": "user", "content": "The service was great."}], temperature=0)
    same(ended.choices[0].finish_reason, "stop")
    long = ended.usage.completion_tokens + 8
    answer = chat("sentiment", max_tokens=long, extra_body={"ignore_eos": True})
    same((answer.usage.completion_tokens, answer.choices[0].finish_reason), (long, "length"))


@quick
def scores_of_a_chat():
    answer = chat(logprobs=True, top_logprobs=3)
    scored = answer.choices[0].logprobs
    same(len(scored.content), answer.usage.completion_tokens, "the number of tokens")
    same((b"".join(bytes(token.bytes) for token in scored.content)).decode(), answer.choices[0].message.content, "the bytes")
    same("".join(token.token for token in scored.content), answer.choices[0].message.content, "the tokens")
    for token in scored.content:
        same(len(token.top_logprobs), 3, "the number of top_logprobs")
        best = max(token.top_logprobs, key=lambda top: top.logprob)
        same((token.token, token.logprob), (best.token, best.logprob), "the greedy token")
        true(all(top.logprob <= 0 and bytes(top.bytes) for top in token.top_logprobs), f"{token}")
    same({len(token.top_logprobs) for token in chat(logprobs=True).choices[0].logprobs.content}, {0}, "top_logprobs unasked")
    same({len(token.top_logprobs) for token in chat(logprobs=True, top_logprobs=20).choices[0].logprobs.content}, {20})


@quick
def scores_of_a_chat_streamed():
    whole, scored = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content, []
    for chunk in chat(logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs:
            scored += chunk.choices[0].logprobs.content
    same(scored, whole, "the scores")


@quick
def scores_of_a_text():
    answer = story(logprobs=3)
    scored, text = answer.choices[0].logprobs, answer.choices[0].text
    lengths = {len(getattr(scored, name)) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    same(lengths, {answer.usage.completion_tokens}, "the lengths of the lists")
    same("".join(scored.tokens), text, "the tokens")
    for token, logprob, top, offset in zip(scored.tokens, scored.token_logprobs, scored.top_logprobs, scored.text_offset):
        same(text[offset:][: len(token)], token, "what is at text_offset")
        same((top[token], len(top)), (logprob, 3), "the greedy token's score")
    same({len(top) for top in story(logprobs=0).choices[0].logprobs.top_logprobs}, {1}, "with logprobs 0")
    pieces = [chunk.choices[0].logprobs for chunk in story(logprobs=3, stream=True)]
    same([offset for piece in pieces if piece for offset in piece.text_offset], scored.text_offset, "offsets streamed")


@quick
def a_prompt_is_sent_back():
    plain = story().choices[0].text
    same(story(echo=True).choices[0].text, STORY + plain, "the text")
    same("".join(chunk.choices[0].text for chunk in story(echo=True, stream=True)), STORY + plain, "the text streamed")
    answer = story(echo=True, logprobs=2)
    scored = answer.choices[0].logprobs
    same("".join(scored.tokens), STORY + plain, "the tokens")
    same((scored.token_logprobs[0], scored.top_logprobs[0], scored.text_offset[0]), (None, None, 0), "the first token's")
    true(all(isinstance(logprob, float) for logprob in scored.token_logprobs[1:]), f"{scored.token_logprobs}")
    same(len(scored.tokens), answer.usage.total_tokens, "the number of tokens")


@quick
def a_prompt_is_scored_alone():
    answer = complete(prompt=STORY, echo=True, logprobs=1, max_tokens=0)
    same((answer.choices[0].text, answer.usage.completion_tokens), (STORY, 0))
    same(len(answer.choices[0].logprobs.tokens), answer.usage.prompt_tokens, "the number of tokens")


@quick
def prompts_in_four_shapes():
    _, tokenized = post(URL, {"prompt": STORY}, path="/tokenize")
    _, other = post(URL, {"prompt": "Two"}, path="/tokenize")
    one, two = (complete(prompt=prompt).choices[0].text for prompt in (STORY, "Two"))
    for prompt in ([STORY, "Two"], [tokenized["tokens"], other["tokens"]]):
        answer = complete(prompt=prompt)
        same([(choice.index, choice.text) for choice in answer.choices], [(0, one), (1, two)])
        same(answer.usage.prompt_tokens, tokenized["count"] + other["count"], "prompt_tokens")
    same(complete(prompt=tokenized["tokens"]).choices[0].text, one)
    same(complete(prompt=[STORY]).choices[0].text, one)


@quick
def the_final_message_is_continued():
    whole = chat(**LONG).choices[0].message.content
    # To the end of a word, so that the tokens are the same.
    begun = whole[: whole.index(" ", 12)]
    continued = {"add_generation_prompt": False, "continue_final_message": True, "ignore_eos": True}
    messages = [*ASK, {"role": "assistant", "content": begun}]
    answer = chat(messages=messages, temperature=0, max_tokens=8, extra_body=continued)
    text = answer.choices[0].message.content
    same(text, whole[len(begun) :][: len(text)], "the rest")
    streamed = chat(messages=messages, temperature=0, max_tokens=8, extra_body=continued, stream=True)
    same("".join(chunk.choices[0].delta.content or "" for chunk in streamed), text, "the rest streamed")
    both = {"add_generation_prompt": True, "continue_final_message": True}
    raises(openai.BadRequestError, chat, messages=messages, extra_body=both)


@quick
def messages_of_every_kind():
    system, developer = (chat(messages=[{"role": role, "content": "Be brief."}, *ASK]) for role in ("system", "developer"))
    same(system.choices[0].message.content, developer.choices[0].message.content, "developer's")
    text, parts = (chat(messages=[{"role": "user", "content": content}]).usage.prompt_tokens
                   for content in ("How?", [{"type": "text", "text": "How?"}]))  # fmt: skip
    same(parts, text, "prompt_tokens of parts")
    chat(messages=[{"role": "user", "content": "Hi", "name": "ann"}, {"role": "assistant", "content": "Hi"}, *ASK])
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    refused = raises(openai.BadRequestError, chat, messages=[{"role": "user", "content": image}])
    true(refused.param.startswith("messages[0]"), f"param is {refused.param}")


def say(**fields):
    """A few words with these fields."""
    return chat(max_tokens=3, extra_body=fields).choices[0].message.content


@quick
def what_has_no_meaning_here_is_overlooked():
    plain = say()
    fields = {
        "user": "ann", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"a": 1}, "safety_identifier": "s",
        "modalities": ["text"], "verbosity": "low", "reasoning_effort": "low", "web_search_options": {}, "response_format": {"type": "text"},
        "tools": [], "functions": [], "unknown_to_all": {"deep": [1]}, "add_generation_prompt": True, "skip_special_tokens": True,
        "cache_salt": "salt", "priority": 3, "request_id": "mine", "store_true": True,
    }  # fmt: skip
    fields["store"] = True
    each(fields, lambda field: same(say(**{field: fields[field]}), plain))
    options = {"include_usage": True, "include_obfuscation": False}
    same(len([chunk for chunk in chat(stream=True, stream_options=options) if chunk.usage]), 1, "chunks with usage")
    same(len(complete(user="ann", extra_body={"priority": 1, "unknown_to_all": 1}).choices), 1)


@quick
def null_is_as_good_as_absent():
    plain = say()
    common = ("n", "stop", "seed", "stream", "stream_options", "top_p", "logit_bias", "presence_penalty", "frequency_penalty", "user",
              "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")  # fmt: skip
    chats = (*common, "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "metadata", "store",
             "parallel_tool_calls", "modalities", "audio", "prediction", "functions", "function_call", "service_tier", "reasoning_effort",
             "web_search_options", "chat_template", "chat_template_kwargs", "continue_final_message", "return_token_ids", "cache_salt")  # fmt: skip
    each(chats, lambda field: same(say(**{field: None}), plain))
    each((*common, "suffix", "echo", "best_of", "logprobs"), lambda field: complete(max_tokens=2, extra_body={field: None}))


@quick
def token_ids_are_returned():
    _, tokenized = post(URL, {"prompt": STORY}, path="/tokenize")
    choice = story(extra_body=with_extra(return_token_ids=True)).choices[0]
    same((choice.prompt_token_ids, len(choice.token_ids)), (tokenized["tokens"], 24))
    _, text = post(URL, {"tokens": choice.token_ids}, path="/detokenize")
    same(text["prompt"], choice.text, "the ids' text")
    answer = chat(extra_body={"return_token_ids": True})
    same((len(answer.prompt_token_ids), len(answer.choices[0].token_ids)), (answer.usage.prompt_tokens, answer.usage.completion_tokens))
    chunks = list(chat(extra_body={"return_token_ids": True}, stream=True))
    same([getattr(chunk, "prompt_token_ids", None) for chunk in chunks[:2]], [answer.prompt_token_ids, None], "the prompt's")
    ids = [number for chunk in chunks for number in getattr(chunk.choices[0], "token_ids", None) or []]
    same(ids, answer.choices[0].token_ids, "the ids streamed")
    true(getattr(chat(), "prompt_token_ids", None) is None, "ids that nobody asked for")


@quick
def tokens_may_be_named_by_their_ids():
    asked = {"logprobs": True, "top_logprobs": 1, "extra_body": {"return_tokens_as_token_ids": True, "return_token_ids": True}}
    choice = chat(**asked).choices[0]
    same([token.token for token in choice.logprobs.content], [f"token_id:{number}" for number in choice.token_ids])
    choice = complete(logprobs=1, extra_body=asked["extra_body"]).choices[0]
    same(choice.logprobs.tokens, [f"token_id:{number}" for number in choice.token_ids])


@quick
def what_would_change_the_answer_is_refused():
    refused = {
        "chat_template": "{{ messages }}", "chat_template_kwargs": {"chat_template": "{{ messages }}"}, "audio": {"voice": "a", "format": "wav"},
        "modalities": ["audio"], "n": 0, "top_logprobs": 3, "echo": True,
    }  # fmt: skip
    each(refused, lambda field: true(raises(openai.BadRequestError, chat, extra_body={field: refused[field]}).param.startswith(field), "param"))
    same(raises(openai.BadRequestError, complete, suffix="end").param, "suffix", "param")


@quick
def a_value_that_cannot_be_is_refused_by_name():
    chats = {
        "temperature": [-0.1, 2.1, "hot"], "top_p": [-0.1, 1.1], "presence_penalty": [2.1], "frequency_penalty": [-2.1], "n": [-1, 129, 1.5],
        "max_tokens": [0, -1, 1.5], "max_completion_tokens": [0], "seed": [1.5], "stop": ["", 7], "logprobs": [3], "top_logprobs": [21],
        "stream": ["yes"], "top_k": [-2], "min_p": [2], "repetition_penalty": [0], "ignore_eos": ["x"], "stop_token_ids": ["x"],
        "messages": [[], "hi", None], "model": [7],
    }  # fmt: skip
    for stream in (False, True):
        each(((field, value) for field, values in chats.items() for value in values if not (stream and field == "stream")),
             lambda pair: check_refusal(pair[0], chat, **{"stream": stream, "extra_body": dict([pair, *logprobs_for(pair)])}))  # fmt: skip
    texts = {"prompt": ["", [], 7, [[]], ["a", 1]], "logprobs": [21, True], "max_tokens": [-1], "best_of": ["x"], "echo": [7]}
    each(((field, value) for field, values in texts.items() for value in values),
         lambda pair: check_refusal(pair[0], complete, extra_body=dict([pair])))  # fmt: skip


def logprobs_for(pair):
    return [("logprobs", True)] if pair[0] == "top_logprobs" else []


def check_refusal(field, call, **fields):
    refused = raises(openai.BadRequestError, call, **fields)
    same((refused.type, refused.code), ("invalid_request_error", None))
    true((refused.param or "").startswith(field) or field in refused.message, f"param is {refused.param}, {refused.message}")


if __name__ == "__main__":
    run(f"openai-python {openai.__version__}")
