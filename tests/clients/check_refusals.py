"""openai-python: what is refused becomes the right exception, is tried again where that helps and not where it does not, and what a
client gives up is given up by the server."""

import asyncio
import contextlib
import logging
import threading

import openai
from asking import ASK, GREEDY, acme, chat, client, complete
from checks import (
    BASE, KEYS, SHARED_BASE, SHARED_URL, URL, each, failure, freed, metric, quick, raises, run, same, tenant, true, until_running,
)  # fmt: skip

# More than is ever waited for.
ENDLESS = {"model": BASE, "messages": ASK, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
ERROR = {"message", "type", "param", "code"}


def holder(key, retries=0):
    return openai.OpenAI(base_url=SHARED_URL + "/v1", api_key=key, max_retries=retries)


def ask(whose, model=SHARED_BASE, **fields):
    return whose.chat.completions.create(model=model, messages=ASK, **{**GREEDY, **fields})


def tries(error):
    """How often the request had been sent before the one that failed for good."""
    return int(error.request.headers["x-stainless-retry-count"])


def check_body(error, status):
    same((error.status_code, set(error.body)), (status, ERROR), "status and keys of the error")
    true(error.request_id.startswith("req-"), f"x-request-id is {error.request_id}")
    same(error.response.headers["content-type"], "application/json", "content-type")


@quick
def a_prompt_beyond_the_context():
    def check(call, **fields):
        refused = raises(openai.BadRequestError, call, **fields)
        same((refused.code, refused.type), ("context_length_exceeded", "invalid_request_error"))
        true("This model's maximum context length is 8192 tokens." in refused.message, refused.message)
        check_body(refused, 400)

    for stream in (False, True):
        check(chat, messages=[{"role": "user", "content": "rice " * 9000}], stream=stream)
        check(chat, max_tokens=8192, stream=stream)
        check(complete, prompt="rice " * 9000, stream=stream)
        check(complete, prompt=[5] * 8192, stream=stream)
        check(complete, prompt="a " * 2_000_000, stream=stream)


@quick
def a_key_that_does_not_count():
    bodies = []
    for key in ("wrong", "none", KEYS["acme"][:-1]):
        for call in (lambda: ask(holder(key)), lambda: ask(holder(key), stream=True), lambda: holder(key).models.list(),
                     lambda: holder(key).models.retrieve("mine"), lambda: ask(holder(key), "secret")):  # fmt: skip
            refused = raises(openai.AuthenticationError, call)
            same((refused.code, refused.type), ("invalid_api_key", "invalid_request_error"))
            check_body(refused, 401)
            bodies.append(refused.response.text)
    same(len(set(bodies)), 1, "the number of different bodies")


@quick
def anothers_model_is_as_one_that_nobody_has():
    whose = holder(KEYS["acme"])
    for calls in (lambda name: ask(whose, name), lambda name: ask(whose, name, stream=True), lambda name: whose.models.retrieve(name),
                  lambda name: ask(whose, extra_headers={"X-Adapter": name}), lambda name: ask(whose, f"{SHARED_BASE}:{name}"),
                  lambda name: whose.completions.create(model=name, prompt="a", max_tokens=1)):  # fmt: skip
        foreign, unknown = (raises(openai.NotFoundError, calls, name) for name in ("secret", "nobody"))
        same(foreign.response.text.replace("secret", "nobody"), unknown.response.text, "the body")
        headers = [{name for name in error.response.headers} for error in (foreign, unknown)]
        same(headers[0], headers[1], "the headers")
        same((foreign.code, foreign.param), ("model_not_found", "model"))
        check_body(foreign, 404)


@quick
def a_key_for_inference_alone():
    key = tenant("reader")
    for call in (lambda whose: whose.put("/adapters/a", cast_to=object), lambda whose: whose.get("/admin/tenants", cast_to=object)):
        refused = raises(openai.PermissionDeniedError, call, holder(key))
        same(refused.code, "insufficient_scope")
        check_body(refused, 403)


@quick
def requests_beyond_the_quota_wait_as_they_are_told():
    key = tenant("slow", requests_per_minute=20)

    def ask_again(retries=0):
        return holder(key, retries).chat.completions.with_raw_response.create(model=SHARED_BASE, messages=ASK, max_tokens=1)

    left, refused = [], None
    while not refused:
        try:
            answer = ask_again()
            same(answer.headers["x-ratelimit-limit-requests"], "20", "the limit")
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
        except openai.RateLimitError as why:
            refused = why
    same((left[0], left[-1]), (19, 0), "what was left at first and at last")
    same((refused.code, refused.type, tries(refused)), ("rate_limit_exceeded", "requests", 0))
    check_body(refused, 429)
    true(0 < int(refused.response.headers["retry-after"]) <= 3, f"Retry-After is {refused.response.headers['retry-after']}")
    # One more try is enough, as it comes when it was told to. The client's own first delay would be too short.
    while not ask_again(retries=1).retries_taken:
        pass


@quick
def tokens_beyond_the_quota():
    key = tenant("brief", tokens_per_minute=60)
    ask(holder(key), max_tokens=40, extra_body={"ignore_eos": True})
    refused = raises(openai.RateLimitError, ask, holder(key))
    same((refused.code, refused.type), ("rate_limit_exceeded", "tokens"))
    true(int(refused.response.headers["retry-after"]) > 0, "Retry-After is 0")


@quick
def what_will_never_be_allowed_is_not_tried_again():
    refused = raises(openai.RateLimitError, ask, holder(KEYS["poor"], retries=3), "mine")
    same((refused.code, refused.type, tries(refused)), ("insufficient_quota", "insufficient_quota", 0))
    same(refused.response.headers["x-should-retry"], "false", "x-should-retry")
    check_body(refused, 429)


@quick
async def a_full_server_is_asked_again():
    async with openai.AsyncOpenAI(base_url=SHARED_URL + "/v1", api_key=KEYS["acme"], max_retries=0) as remote:
        def asked(whose, **fields):
            return whose.chat.completions.with_raw_response.create(model=SHARED_BASE, messages=ASK, **{**GREEDY, **fields})

        # Two run and two wait, which is all that may.
        endless = {"model": SHARED_BASE, "messages": ASK, "max_tokens": 2500, "extra_body": {"ignore_eos": True}, "stream": True}
        running = [await remote.chat.completions.create(**endless) for _ in range(2)]
        waiting = [asyncio.create_task(asked(remote)) for _ in range(2)]
        while metric("chorus_requests_waiting", SHARED_URL) < 2:
            await asyncio.sleep(0.01)
        (error,) = await asyncio.gather(asked(remote), return_exceptions=True)
        same((type(error), error.status_code, error.code), (openai.InternalServerError, 503, "overloaded"))
        true(int(error.response.headers["retry-after"]) > 0, "Retry-After is 0")
        with told_to_retry() as retried:
            again = asyncio.create_task(asked(remote.with_options(max_retries=20)))
            await retried.wait()
        [await stream.close() for stream in running]
        same([(await answer).retries_taken for answer in waiting], [0, 0], "retries of what had a place")
        true((await again).retries_taken > 0, "nothing was tried again")


@contextlib.contextmanager
def told_to_retry():
    """Set once the client says in its log that it will try again."""
    class Listener(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Retrying request"):
                retried.set()

    retried, log, listener = asyncio.Event(), logging.getLogger("openai._base_client"), Listener()
    log.setLevel(logging.INFO)
    log.addHandler(listener)
    yield retried
    log.removeHandler(listener)


@quick
def routes_that_are_not_there():
    def check(call):
        lost = failure(call)
        same(type(lost), openai.NotFoundError)
        check_body(lost, 404)
        true("no such endpoint" in lost.message, lost.message)

    each([client.files.list, client.fine_tuning.jobs.list, client.batches.list, lambda: client.moderations.create(input="a"),
          lambda: client.images.generate(prompt="a"), lambda: client.audio.speech.create(input="a", model="b", voice="c"),
          lambda: client.get("/nothing", cast_to=object), lambda: client.post("/nothing/at/all", cast_to=object)], check)  # fmt: skip


@quick
def methods_that_a_route_does_not_take():
    for call in (lambda: client.get("/chat/completions", cast_to=object), lambda: client.delete("/completions", cast_to=object),
                 lambda: client.models.delete("pirate"), lambda: client.post("/models", cast_to=object, body={})):  # fmt: skip
        refused = raises(openai.APIStatusError, call)
        check_body(refused, 405)
        true(refused.response.headers["allow"], "no Allow")


@quick
def a_body_that_is_too_large():
    for bytes in (9 << 20, 64 << 20):
        refused = raises(openai.APIStatusError, client.with_options(max_retries=0).chat.completions.create, model=BASE,
                         messages=[{"role": "user", "content": "x" * bytes}])  # fmt: skip
        check_body(refused, 413)


@quick
def a_failure_in_the_middle_of_a_stream():
    chunks = []

    def read(**options):
        for chunk in client.chat.completions.create(**ENDLESS, **options, stream=True, extra_headers={"X-Request-Timeout": "0.5"}):
            chunks.append(chunk)

    failed = raises(openai.APIError, read)
    same((failed.code, failed.type, set(failed.body)), ("deadline_exceeded", "server_error", ERROR))
    true(len(chunks) > 1, f"{len(chunks)} chunks came before")
    same([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason], [], "ends")


@quick
def a_deadline_that_is_over_is_over_for_good():
    failed = raises(openai.InternalServerError, client.with_options(max_retries=2).chat.completions.create, **ENDLESS,
                    extra_headers={"X-Request-Timeout": "0.2"})  # fmt: skip
    same((failed.code, tries(failed)), ("deadline_exceeded", 0))
    check_body(failed, 504)


@quick
def a_client_that_waits_no_longer_frees_the_server():
    for stream in (False, True):
        with freed():
            impatient = client.with_options(timeout=openai.Timeout(0.4, read=0.4), max_retries=0).chat.completions.create
            fields = {**ENDLESS, "messages": [{"role": "user", "content": "rice " * 2000}]} if stream else ENDLESS
            raises(openai.APITimeoutError, impatient, **fields, stream=stream)


@quick
def a_stream_that_is_closed_frees_the_server():
    with freed():
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        [next(stream) for _ in range(3)]
        stream.close()
    with freed(), client.chat.completions.create(**ENDLESS, stream=True) as stream:
        next(stream)


@quick
async def a_task_that_is_cancelled_frees_the_server():
    with freed():
        async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0) as remote:
            task = asyncio.create_task(remote.chat.completions.create(**ENDLESS))
            await asyncio.to_thread(until_running)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            same(type(outcome), asyncio.CancelledError)


@quick
def the_server_answers_others_meanwhile():
    with freed():
        stream = client.chat.completions.create(**ENDLESS, stream=True)
        next(stream)
        answers, models = [], ("pirate", "sql", BASE)
        threads = [threading.Thread(target=lambda model: answers.append(chat(model).model), args=(model,)) for model in models]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        same(sorted(answers), sorted(models))
        stream.close()
    same(ask(acme, "mine").model, "mine")


if __name__ == "__main__":
    run(f"openai-python {openai.__version__}")
