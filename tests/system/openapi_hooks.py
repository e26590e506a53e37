"""What schemathesis is to look at besides (see openapi.py): a right request is refused only for what its schema cannot say."""

import json
import os
import re

import schemathesis

# Of the messages of such refusals.
UNSAID = [re.compile(pattern, re.IGNORECASE) for pattern in [
    # What the server's base and its adapters are.
    r"context_length_exceeded",
    r"the vocabulary of \d+ tokens has no token",
    r"the name is reserved for the base model",
    # How things stand.
    r"there is no operator's key yet",
    # Two values that are right alone.
    r"resident_min_bytes is \d+ and resident_max_bytes \d+",
    # Times that there are not, or that are over.
    r"must be a day such as",
    r"the key would have expired already",
]]  # fmt: skip
REFUSED = (400, 422)


def message(response):
    """Of each of the three shapes."""
    try:
        error = response.json().get("error")
    except ValueError:
        return None
    return error.get("message") if isinstance(error, dict) else error


@schemathesis.check
def what_is_right_is_taken(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in REFUSED:
        return
    said = message(response)
    if said is not None and any(pattern.search(said) for pattern in UNSAID):
        return
    if "REFUSED_LOG" in os.environ:
        with open(os.environ["REFUSED_LOG"], "a") as log:
            body = case.body if isinstance(case.body, dict) else None
            log.write(json.dumps([case.operation.label, said, body], default=str) + "\n")
    raise AssertionError(f"refused although it is right: {said}")
