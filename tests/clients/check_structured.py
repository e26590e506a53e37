"""openai-python: answers that have a form: JSON, a schema, pydantic models, tools, and vLLM's guides. What an answer says is the base's
affair; that it has the form is not, so forms are such that every answer of them is short."""

import json
import re
from typing import Literal

import openai
from asking import ASK, answered_by, chat, client, complete
from checks import BASE, check, each, quick, raises, run, same, true
from pydantic import BaseModel, ConfigDict

ROOM = {"temperature": 1, "seed": 1, "max_tokens": 200}


class Spice(BaseModel):
    name: Literal["salt", "pepper", "cumin"]
    hot: bool


class Dish(BaseModel):
    """Everything in it ends soon."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["soup", "rice", "cake"]
    serves: Literal[1, 2, 4]
    vegan: bool
    rest: Literal["yes", "no"] | None
    spice: Spice


SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["mood", "sure", "tags"],
    "properties": {
        "mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA}}


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}", "parameters": parameters}}


TOOLS = [tool("cook", dish={"enum": ["rice", "soup"]}, minutes={"enum": [5, 20]}), tool("ask", whom={"enum": ["mother", "chef"]})]
FORCED = {"type": "function", "function": {"name": "ask"}}


def check_mood(text):
    """That the text has the form of `SCHEMA`."""
    value = json.loads(text)
    same(set(value), {"mood", "sure", "tags"}, "the keys")
    true(value["mood"] in ("good", "bad") and isinstance(value["sure"], bool), text)
    true(1 <= len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}, text)


def check_call(call, names=("cook", "ask")):
    same(call.type, "function", "type")
    true(call.id and call.function.name in names, f"{call}")
    arguments = json.loads(call.function.arguments)
    allowed = {"cook": {"dish": ["rice", "soup"], "minutes": [5, 20]}, "ask": {"whom": ["mother", "chef"]}}[call.function.name]
    same(set(arguments), set(allowed), "the arguments")
    true(all(arguments[name] in allowed[name] for name in allowed), f"{arguments}")


@quick
def json_objects():
    """A base as small as this does not always come to the end of an object; where it does, it is one."""
    ended = []
    for seed in range(8):
        choice = chat(response_format={"type": "json_object"}, **{**ROOM, "seed": seed, "temperature": 0.3}).choices[0]
        if choice.finish_reason == "stop":
            ended.append(json.loads(choice.message.content))
    true(ended, "no answer came to its end")
    same({type(value) for value in ended}, {dict}, "their types")


@quick
def a_schema_is_kept():
    for seed in range(4):
        answer = chat(response_format=FORMAT, **{**ROOM, "seed": seed})
        same(answer.choices[0].finish_reason, "stop")
        check_mood(answer.choices[0].message.content)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chat(response_format=FORMAT, **ROOM, stream=True))
    check_mood(text)
    same(chat(response_format=FORMAT, **ROOM).choices[0].message.content, text, "the text of one seed")


@quick
def a_schema_is_kept_by_each_choice_and_adapter():
    for choice in chat(response_format=FORMAT, **ROOM, n=3).choices:
        check_mood(choice.message.content)
    answer = client.chat.completions.with_raw_response.create(model="pirate", messages=ASK, response_format=FORMAT, **ROOM)
    same(answered_by(answer), "pirate@v1")
    check_mood(answer.parse().choices[0].message.content)
    scored = chat(response_format=FORMAT, **ROOM, logprobs=True, top_logprobs=2)
    same("".join(token.token for token in scored.choices[0].logprobs.content), scored.choices[0].message.content, "the scored tokens")


@quick
def a_pydantic_model_is_parsed():
    for seed in range(3):
        answer = client.chat.completions.parse(model=BASE, messages=ASK, response_format=Dish, **{**ROOM, "seed": seed})
        same(type(answer.choices[0].message.parsed), Dish, "the parsed type")
    with client.chat.completions.stream(model=BASE, messages=ASK, response_format=Dish, **ROOM) as stream:
        kinds = {event.type for event in stream}
        same(type(stream.get_final_completion().choices[0].message.parsed), Dish, "the parsed type of a stream")
    true("content.done" in kinds, f"{kinds}")


@quick
async def a_pydantic_model_is_parsed_asynchronously():
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as remote:
        answer = await remote.chat.completions.parse(model="sql", messages=ASK, response_format=Dish, **ROOM)
        same(type(answer.choices[0].message.parsed), Dish, "the parsed type")


@quick
def a_form_that_is_cut_off_is_said_to_be():
    error = raises(openai.LengthFinishReasonError, client.chat.completions.parse, model=BASE, messages=ASK, response_format=Dish, max_tokens=3)
    same(error.completion.choices[0].finish_reason, "length")


@quick
def schemas_that_cannot_be_are_refused():
    def check_format(form):
        param = raises(openai.BadRequestError, chat, response_format=form).param
        true(param.startswith("response_format"), f"param is {param}")

    chat(response_format=FORMAT, **ROOM)
    each([{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
          {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": 7}}},
          {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}], check_format)  # fmt: skip


@quick
def a_tool_that_is_required_is_called():
    for seed in range(3):
        choice = chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **{**ROOM, "seed": seed}).choices[0]
        same((choice.finish_reason, len(choice.message.tool_calls), choice.message.refusal), ("tool_calls", 1, None))
        check_call(choice.message.tool_calls[0])
    several = chat(tools=TOOLS, tool_choice="required", **ROOM).choices[0].message.tool_calls
    [check_call(call) for call in several]
    same(len({call.id for call in several}), len(several), "the number of ids")


@quick
def a_tool_that_is_named_is_called():
    choice = chat("pirate", tools=TOOLS, tool_choice=FORCED, **ROOM).choices[0]
    true(choice.finish_reason in ("stop", "tool_calls"), choice.finish_reason)
    check_call(choice.message.tool_calls[0], ["ask"])
    for wrong in ({"type": "function", "function": {"name": "nobody"}}, "sometimes"):
        param = raises(openai.BadRequestError, chat, tools=TOOLS, tool_choice=wrong).param
        true(param.startswith("tool_choice"), f"param is {param}")
    raises(openai.BadRequestError, chat, tool_choice="required")


@check
def a_tool_may_be_called_or_not():
    choice = chat(tools=TOOLS, tool_choice="auto", **ROOM).choices[0]
    same(choice.finish_reason == "tool_calls", bool(choice.message.tool_calls), "whether a tool is called")
    same(choice.message.tool_calls or [], [call for call in choice.message.tool_calls or [] if call.function.name in ("cook", "ask")])
    choice = chat(tools=TOOLS, tool_choice="none", **ROOM).choices[0]
    true(not choice.message.tool_calls and choice.finish_reason != "tool_calls" and choice.message.content is not None, f"{choice}")


@quick
def tool_calls_are_streamed():
    for tool_choice in ("required", FORCED):
        calls, ends = {}, []
        for chunk in chat(tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=False, **ROOM, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                if delta.index not in calls:
                    true(delta.id and delta.type == "function" and delta.function.name, f"the first delta is {delta}")
                    calls[delta.index] = [delta.function.name, delta.function.arguments or ""]
                    continue
                true(not delta.id and not delta.function.name, f"a later delta is {delta}")
                calls[delta.index][1] += delta.function.arguments
            ends += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
        same(list(calls), [0], "the indices")
        whole = chat(tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=False, **ROOM).choices[0]
        called = whole.message.tool_calls[0].function
        same((calls[0], ends), ([called.name, called.arguments], [whole.finish_reason]))


@quick
def the_events_of_tool_calls():
    with client.chat.completions.stream(model=BASE, messages=ASK, tools=[openai.pydantic_function_tool(Dish)], tool_choice="required",
                                        parallel_tool_calls=False, **ROOM) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    true("tool_calls.function.arguments.done" in kinds, f"{kinds}")
    same(type(call.function.parsed_arguments), Dish, "the parsed type")


@quick
def arguments_are_parsed():
    answer = client.chat.completions.parse(model=BASE, messages=ASK, tools=[openai.pydantic_function_tool(Dish)], tool_choice="required", **ROOM)
    same({type(call.function.parsed_arguments) for call in answer.choices[0].message.tool_calls}, {Dish}, "the parsed types")


@check
def what_a_tool_has_said_is_answered():
    message = chat(tools=TOOLS, tool_choice=FORCED, **ROOM).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "She says: wash it first."} for call in message.tool_calls]
    answer = chat(messages=[*ASK, message, *results], tools=TOOLS, tool_choice="none", **ROOM)
    true(answer.choices[0].message.content, "there is no text")
    shorter = chat(messages=ASK, tools=TOOLS, tool_choice="none", **ROOM)
    true(answer.usage.prompt_tokens > shorter.usage.prompt_tokens, "the tool's words are not in the prompt")


@check
def guides_of_vllm():
    guides = {
        "guided_choice": (["yes", "no", "perhaps"], lambda text: true(text in ("yes", "no", "perhaps"), text)),
        "guided_regex": (r"\d{3}-\d{2}", lambda text: true(re.fullmatch(r"\d{3}-\d{2}", text), text)),
        "guided_json": (SCHEMA, check_mood),
        "guided_grammar": ('start: "a" ("b" | "c") "d"', lambda text: true(text in ("abd", "acd"), text)),
    }
    newer = {"guided_choice": "choice", "guided_regex": "regex", "guided_json": "json", "guided_grammar": "grammar"}

    def check_guide(name):
        guide, has_form = guides[name]
        for extra in ({name: guide}, {"structured_outputs": {newer[name]: guide}}):
            has_form(chat(**ROOM, extra_body=extra).choices[0].message.content)
            choice = complete(**ROOM, extra_body=extra).choices[0]
            has_form(choice.text)
            same(choice.finish_reason, "stop")
            has_form("".join(chunk.choices[0].text for chunk in complete("pirate", **ROOM, extra_body=extra, stream=True)))

    each(guides, check_guide)


# Brackets within brackets, which no pattern can follow, and names that do not end where a lexeme would.
EBNF = """root ::= item ("," " "? item)  # two of them
item ::= "(" item ")" | [a-c]+ "c" | "\\u0064"
"""


@quick
def a_grammar_in_the_form_of_llama_cpp():
    """vLLM takes this one, too."""

    def check_text(text):
        first, _, second = text.partition(",")
        for item in (first, second.removeprefix(" ")):
            true(re.fullmatch(r"\(*([a-c]+c|d)\)*", item) and item.count("(") == item.count(")"), text)

    for extra in ({"guided_grammar": EBNF}, {"structured_outputs": {"grammar": EBNF}}):
        for choice in [*chat(**ROOM, n=2, extra_body=extra).choices, *complete("pirate", **ROOM, n=2, extra_body=extra).choices]:
            if choice.finish_reason == "stop":
                check_text(choice.text if hasattr(choice, "text") else choice.message.content)
    text = chat(**ROOM, extra_body={"guided_grammar": 'root ::= "a" ("b" | "c") "d"'}).choices[0].message.content
    true(text in ("abd", "acd"), text)
    for wrong in ("root ::= nobody", "root ::= [a", "a ::= \"b\""):
        true("guided_grammar" in raises(openai.BadRequestError, chat, extra_body={"guided_grammar": wrong}).param, wrong)


@check
def strict_tools_may_be_called_or_not():
    """What is called follows the schema, although nothing has to be called."""
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    for seed in range(3):
        choice = chat(tools=strict, **{**ROOM, "seed": seed}).choices[0]
        [check_call(call) for call in choice.message.tool_calls or []]


@check
def guides_that_cannot_be_are_refused():
    def check_guide(extra):
        param = raises(openai.BadRequestError, chat, extra_body=extra).param
        true("guided" in param or "structured" in param, f"param is {param}")

    chat(extra_body={"guided_choice": ["yes", "no"]})
    each([{"guided_regex": "("}, {"guided_choice": []}, {"guided_grammar": "start: ("}, {"guided_json": "{"},
          {"guided_regex": "a", "guided_choice": ["a"]}, {"structured_outputs": {"regex": "a", "choice": ["a"]}}], check_guide)  # fmt: skip


if __name__ == "__main__":
    run(f"openai-python {openai.__version__}")
