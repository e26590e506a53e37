"""instructor: pydantic models by tools, by JSON and by schema, at the first try."""

import json
from importlib.metadata import version
from typing import Literal

import instructor
import openai
from checks import BASE, KEYS, SHARED_BASE, SHARED_URL, URL, check, each, failure, run, same, true
from instructor import Mode
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, ConfigDict

ASK = [{"role": "user", "content": "How do I cook rice?"}]
MODES = [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA]
OPTIONS = {"messages": ASK, "temperature": 0, "max_tokens": 80, "max_retries": 0}


class Spice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["salt", "pepper"]
    hot: bool


class Dish(BaseModel):
    """A dish."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["soup", "rice"]
    spice: Spice
    serves: Literal[1, 2, 4]


def check_dish(dish):
    # Its own classes inherit from what was asked for.
    true(isinstance(dish, Dish), f"it is {dish!r}")
    Dish.model_validate(dish.model_dump())


def client(mode):
    return instructor.from_openai(openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0), mode=mode)


@check
def a_model_in_each_mode():
    def ask(mode):
        for model in (BASE, "pirate"):
            dish = client(mode).chat.completions.create(model=model, response_model=Dish, **OPTIONS)
            check_dish(dish)
            same(dish._raw_response.model, model, "model")

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
        except IncompleteOutputException:
            pass
        except InstructorRetryException as why:
            if why.last_completion is None:
                raise
            ended += 1
            text = why.last_completion.choices[0].message.content
            same(type(json.loads(text)), dict, f"the type of {text}")
    true(ended, "no answer came to its end")


@check
async def a_model_asynchronously():
    remote = instructor.from_openai(openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none"), mode=Mode.JSON_SCHEMA)
    check_dish(await remote.chat.completions.create(model=BASE, response_model=Dish, **OPTIONS))


@check
def a_model_with_its_completion():
    dish, completion = client(Mode.TOOLS).chat.completions.create_with_completion(model=BASE, response_model=Dish, **OPTIONS)
    check_dish(dish)
    same(completion.choices[0].message.tool_calls[0].function.name, "Dish", "the function")
    true(completion.usage.completion_tokens > 0, f"{completion.usage}")


@check
def a_model_grows_in_a_stream():
    def ask(mode):
        parts = list(client(mode).chat.completions.create_partial(model=BASE, response_model=Dish, **OPTIONS))
        Dish.model_validate(parts[-1].model_dump())

    each([Mode.TOOLS, Mode.JSON_SCHEMA], ask)


@check
def a_model_by_responses():
    dish = client(Mode.RESPONSES_TOOLS).responses.create(
        model=BASE, input=ASK, response_model=Dish, temperature=0, max_output_tokens=80, max_retries=0)  # fmt: skip
    check_dish(dish)


@check
def what_is_refused_is_not_hidden():
    error = failure(client(Mode.TOOLS).chat.completions.create, model="nobody", response_model=Dish, **OPTIONS)
    true("model_not_found" in str(error), str(error))
    shared = openai.OpenAI(base_url=SHARED_URL + "/v1", api_key="wrong", max_retries=0)
    error = failure(instructor.from_openai(shared).chat.completions.create, model=SHARED_BASE, response_model=Dish, **OPTIONS)
    true("invalid_api_key" in str(error), str(error))
    plain = instructor.from_openai(shared.with_options(api_key=KEYS["acme"]), mode=Mode.JSON_SCHEMA)
    check_dish(plain.chat.completions.create(model="mine", response_model=Dish, **OPTIONS))


run(f"instructor {version('instructor')}, openai {openai.__version__}")
