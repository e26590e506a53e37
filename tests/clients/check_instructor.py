"""instructor: pydantic models by tools, by JSON and by schema, at the first try."""

from importlib.metadata import version
from typing import Literal

import instructor
import openai
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, each, failure, run, same, true
from instructor import Mode
from pydantic import BaseModel

ASK = [{"role": "user", "content": "How do I cook rice?"}]
MODES = [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA]
OPTIONS = {"messages": ASK, "temperature": 0, "max_tokens": 80, "max_retries": 0}


class Spice(BaseModel):
    name: Literal["salt", "pepper"]
    hot: bool


class Dish(BaseModel):
    """A dish."""

    kind: Literal["soup", "rice"]
    spice: Spice
    serves: Literal[1, 2, 4]


def client(mode):
    return instructor.from_openai(openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0), mode=mode)


@check
def a_model_in_each_mode():
    def ask(mode):
        for model in (BASE, "pirate"):
            dish = client(mode).chat.completions.create(model=model, response_model=Dish, **OPTIONS)
            same((type(dish), dish._raw_response.model), (Dish, model))

    each(MODES, ask)


@check
def a_model_in_json_mode():
    """This mode asks for a JSON object and leaves the schema to the prompt: what comes is JSON, and not always a dish."""
    ended = 0
    for seed in range(6):
        try:
            options = {**OPTIONS, "max_tokens": 200, "temperature": 0.5, "seed": seed}
            client(Mode.JSON).chat.completions.create(model=BASE, response_model=Dish, **options)
            ended += 1
        except instructor.core.InstructorRetryException as why:
            choice = why.last_completion.choices[0] if why.last_completion else None
            if choice is None:
                raise
            if choice.finish_reason == "stop":
                ended += 1
                true("json_invalid" not in str(why), f"no JSON: {choice.message.content}")
    true(ended, "no answer came to its end")


@check
async def a_model_asynchronously():
    remote = instructor.from_openai(openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none"), mode=Mode.JSON_SCHEMA)
    same(type(await remote.chat.completions.create(model=BASE, response_model=Dish, **OPTIONS)), Dish, "the type")


@check
def a_model_with_its_completion():
    dish, completion = client(Mode.TOOLS).chat.completions.create_with_completion(model=BASE, response_model=Dish, **OPTIONS)
    same((type(dish), completion.choices[0].message.tool_calls[0].function.name), (Dish, "Dish"))
    true(completion.usage.completion_tokens > 0, f"{completion.usage}")


@check
def a_model_grows_in_a_stream():
    def ask(mode):
        parts = list(client(mode).chat.completions.create_partial(model=BASE, response_model=Dish, **OPTIONS))
        Dish.model_validate(parts[-1].model_dump())

    each([Mode.TOOLS, Mode.JSON_SCHEMA], ask)


@check
def a_list_of_models():
    """A list has no end of its own: one that is cut off has whole models before."""
    dishes = client(Mode.TOOLS).chat.completions.create_iterable(model=BASE, response_model=Dish, **{**OPTIONS, "max_tokens": 300})
    same(type(next(iter(dishes))), Dish, "the type")


@check
def what_is_refused_is_not_hidden():
    error = failure(client(Mode.TOOLS).chat.completions.create, model="nobody", response_model=Dish, **OPTIONS)
    true("model_not_found" in str(error), str(error))
    shared = openai.OpenAI(base_url=SHARED_URL + "/v1", api_key="wrong", max_retries=0)
    error = failure(instructor.from_openai(shared).chat.completions.create, model=SHARED_BASE, response_model=Dish, **OPTIONS)
    true("invalid_api_key" in str(error), str(error))
    plain = instructor.from_openai(shared.with_options(api_key=KEYS["acme"]), mode=Mode.JSON_SCHEMA)
    same(type(plain.chat.completions.create(model="mine", response_model=Dish, **OPTIONS)), Dish, "the type")


run(f"instructor {version('instructor')}, openai {openai.__version__}")
