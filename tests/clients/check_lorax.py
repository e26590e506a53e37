"""lorax-client: people who move here from LoRAX. It posts to the root of the server, whole answers and streams alike."""

import asyncio
from importlib.metadata import version

from checks import KEYS, SHARED_URL, URL, check, each, failure, freed, raises, run, same, true
from lorax import AsyncClient, Client
from lorax.errors import BadRequestError, NotFoundError, RateLimitExceededError, UnprocessableEntityError, ValidationError

PROMPT = "How do I cook rice?"
ENDS = ("length", "eos_token", "stop_sequence")
client = Client(URL, max_session_retries=0)


def generate(prompt=PROMPT, **options):
    return client.generate(prompt, **{"max_new_tokens": 12, **options})


def stream(prompt=PROMPT, **options):
    return client.generate_stream(prompt, **{"max_new_tokens": 12, **options})


def voice(answer):
    """What tells adapters apart even where they say the same."""
    return tuple(token.logprob for token in answer.details.tokens)


@check
def a_text_is_generated():
    answer = generate()
    details = answer.details
    true(answer.generated_text and details.finish_reason.value in ENDS, f"{answer}")
    true(details.prompt_tokens > 0 and 0 < details.generated_tokens <= 12, f"{details}")
    same(len(details.tokens), details.generated_tokens, "the number of tokens")
    same("".join(token.text for token in details.tokens if not token.special), answer.generated_text, "the tokens")
    true(all(token.logprob <= 0 and token.id >= 0 for token in details.tokens), f"{details.tokens}")


@check
def a_text_is_streamed():
    parts, whole = list(stream()), generate()
    same("".join(part.token.text for part in parts if not part.token.special), whole.generated_text, "the tokens")
    same([part.generated_text for part in parts], [None] * (len(parts) - 1) + [whole.generated_text], "generated_text")
    same((parts[-1].details.generated_tokens, parts[-1].details.finish_reason), (whole.details.generated_tokens, whole.details.finish_reason))


@check
def an_adapter_generates():
    heard = {name: voice(generate(adapter_id=name, ignore_eos_token=True)) for name in (None, "pirate", "sql")}
    same(len(set(heard.values())), 3, "the number of different voices")
    for options in ({"adapter_id": "pirate", "adapter_source": "local"}, {"adapter_id": "pirate@v1"}):
        same(voice(generate(**options, ignore_eos_token=True)), heard["pirate"], f"the voice with {options}")
    parts = stream(adapter_id="pirate", ignore_eos_token=True)
    same(tuple(part.token.logprob for part in parts), heard["pirate"], "the voice of a stream")


@check
def an_answer_of_nothing_has_its_end():
    """To a prompt that is no chat some adapters say nothing."""
    whole, parts = generate(adapter_id="pirate"), list(stream(adapter_id="pirate"))
    same((whole.generated_text, whole.details.finish_reason.value), ("", "eos_token"))
    same((parts[-1].generated_text, parts[-1].details.finish_reason.value), ("", "eos_token"), "the end of the stream")


@check
def an_unknown_adapter_is_not_found():
    raises(NotFoundError, generate, adapter_id="nobody")
    raises(NotFoundError, lambda: list(stream(adapter_id="nobody")))


@check
def parameters_have_their_meaning():
    plain = generate(max_new_tokens=24, ignore_eos_token=True)
    same((plain.details.finish_reason.value, plain.details.generated_tokens), ("length", 24))
    text = plain.generated_text
    same(generate(return_full_text=True, max_new_tokens=24, ignore_eos_token=True).generated_text, PROMPT + text, "return_full_text")
    stop = text[8:11]
    ended = generate(max_new_tokens=24, ignore_eos_token=True, stop_sequences=[stop])
    true(ended.generated_text in (text[: text.index(stop)], text[: text.index(stop) + len(stop)]), f"{ended.generated_text!r} with {stop!r}")
    same(ended.details.finish_reason.value, "stop_sequence", "finish_reason")
    sampled = {"do_sample": True, "temperature": 1.0, "seed": 5, "top_k": 40, "top_p": 0.9}
    same(generate(**sampled).generated_text, generate(**sampled).generated_text, "the second of one seed")
    true(generate(repetition_penalty=1.3).generated_text, "no text")


@check
def details_are_as_wanted():
    same(generate(details=False).details, None, "details")
    prefill = generate(decoder_input_details=True).details
    same(len(prefill.prefill), prefill.prompt_tokens, "the number of tokens of the prompt")
    same(prefill.prefill[0].logprob, None, "the first logprob")


@check
def what_cannot_be_is_refused():
    def check_options(options):
        error = failure(generate, **options)
        if type(error) not in (BadRequestError, UnprocessableEntityError, ValidationError):
            raise error

    each([{"max_new_tokens": 100_000}, {"prompt": "rice " * 9000}, {"typical_p": 0.5}, {"watermark": True}], check_options)


@check
def tenants_have_keys():
    def holder(tenant):
        return Client(SHARED_URL, headers={"Authorization": f"Bearer {KEYS[tenant]}"}, max_session_retries=0)

    true(holder("acme").generate("Fine.", adapter_id="mine", max_new_tokens=4).generated_text is not None, "no text")
    raises(NotFoundError, holder("acme").generate, "Fine.", adapter_id="secret")
    raises(RateLimitExceededError, holder("poor").generate, "Fine.", adapter_id="mine")
    true("401" in str(failure(Client(SHARED_URL).generate, "Fine.")), "no 401 without a key")


@check
def a_form_is_kept():
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"], "additionalProperties": False}
    text = generate(max_new_tokens=60, response_format={"type": "json_object", "schema": schema}).generated_text
    true("".join(text.split()) in ('{"mood":"good"}', '{"mood":"bad"}'), text)
    parts = list(stream(max_new_tokens=60, response_format={"type": "json_object", "schema": schema}))
    same(parts[-1].generated_text, text, "the text streamed")
    error = failure(generate, response_format={"type": "json_object", "schema": {"type": "nothing"}})
    true("response_format.schema" in str(error), f"{error}")


@check
async def all_of_it_asynchronously():
    remote = AsyncClient(URL)
    whole = await remote.generate(PROMPT, max_new_tokens=12)
    parts = [part async for part in remote.generate_stream(PROMPT, max_new_tokens=12)]
    same(parts[-1].generated_text, whole.generated_text, "the text")
    names = ("pirate", "sql", "german")
    answers = await asyncio.gather(*(remote.generate(PROMPT, adapter_id=name, max_new_tokens=8, ignore_eos_token=True) for name in names))
    same(len({voice(answer) for answer in answers}), 3, "the number of different voices")


@check
def a_stream_that_is_closed_frees_the_server():
    with freed():
        begun = stream(max_new_tokens=4000, ignore_eos_token=True)
        next(begun)
        begun.close()


run(f"lorax-client {version('lorax-client')}")
