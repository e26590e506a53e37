"""What schemathesis is to look at besides (see openapi.py): a right request is refused only for what its schema cannot say."""

import contextlib
import re
import zlib

import schemathesis

# Of the messages of such refusals.
UNSAID = [re.compile(pattern, re.IGNORECASE) for pattern in [
    # What the server's base and its adapters are.
    r"context_length_exceeded",
    r"the vocabulary of \d+ tokens has no token",
    r"must have at least one token",
    r"each token of '[a-z]+' must be below \d+",
    r"'dimensions' can only be",
    r"the name is reserved for the base model",
    # How things stand.
    r"there is no operator's key yet",
    r"no response is stored by this server",
    # Values that are right alone.
    r"resident_min_bytes is \d+ and resident_max_bytes \d+",
    r"If-Match and If-None-Match exclude each other",
    r"you must provide 'model', or name an adapter by header",
    r"cannot both be followed",
    r"'messages\[\d+\]\.content' is missing",
    r"send either 'prompt' or 'messages'",
    r"tool_result is a part of the user's messages alone",
    r"'min_tokens' is \d+, more than",
    r"format(\.json_schema|\.schema)?' is missing",
    r"'tool_choice\.name' is missing",
    r"'tool_choice' needs 'tools'",
    r"'top_logprobs' needs 'logprobs'",
    r"'adapters' names .* twice",
    r"only the assistant calls tools",
    r"tool_use is a part of the assistant's messages alone",
    r"'messages' ends with 'tool_use'",
    # That 7.0 is 7, to a schema.
    r"(a whole number|a token id) [a-z0-9 ]*is expected, not -?\d+(\.\d+)?(e[+-]?\d+)?$",
    r"'parameters\.decoder_input_details' is not supported",  # in a stream
    # What stands in a string, in a header or in a file. Cases of coverage do not follow this header's pattern.
    r"If-Match must be \*, or tags of versions",
    r"is a text that is no JSON",
    r"'(guided_(json|regex|grammar)|structured_outputs\.(json|regex|grammar)|[a-z_.]+\.schema|tools)' cannot be followed",
    r"'(input|messages)\[\d+\][a-z0-9_.\[\]]*\.arguments' is not JSON",
    r"'x-adapter' (must be NAME|names)",
    r"adapter_config\.json",
    r"the upload is not the multipart/form-data that it says",
    # Times that there are not, or that are over.
    r"must be a day such as",
    r"the key would have expired already",
]]  # fmt: skip
REFUSED = (400, 422)
# An adapter that is there, and the routes that are to name one.
NAME = "sql"
NAMING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings")


def message(response):
    """Of each of the three shapes."""
    try:
        error = response.json().get("error")
    except ValueError:
        return None
    return error.get("message") if isinstance(error, dict) else error


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Chance seldom names a model that is there, and what names none gets no further: of four requests three are helped to one. None
    is given less time than it takes."""
    headers, body = case.headers or {}, case.body if isinstance(case.body, dict) else {}
    with contextlib.suppress(ValueError, TypeError):
        if 0 < float(headers.get("X-Request-Timeout")) < 20:
            headers["X-Request-Timeout"] = "20"
    if zlib.crc32(case.id.encode()) % 4 == 0:
        return
    if isinstance(headers.get("X-Adapter"), str):
        headers["X-Adapter"] = NAME
    if isinstance(body.get("model", "" if case.path in NAMING else None), str):
        body["model"] = NAME
    if isinstance(body.get("adapters"), list):
        del body["adapters"]
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("adapter_id"), str):
        parameters["adapter_id"] = NAME


@schemathesis.check
def what_is_right_is_taken(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in REFUSED:
        return
    said = message(response)
    if said is not None and any(pattern.search(said) for pattern in UNSAID):
        return
    raise AssertionError(f"refused although it is right: {said}")
