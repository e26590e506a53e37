"""What the checks of all Python clients share. A check is a function that asks the live server something and raises where the
answer is not what the client's users expect. `run.py` says where the servers are, in variables; each outcome is a line of JSON."""

import asyncio
import contextlib
import inspect
import json
import linecache
import os
import re
import signal
import sys
import time
import traceback
import urllib.error
import urllib.request

# A server without tenants, on the default base, with the example adapters.
URL = os.environ.get("CHORUS_URL", "http://127.0.0.1:8080")
BASE = os.environ.get("CHORUS_BASE", "smollm2-135m-instruct")
# One with tenants, of whom acme and poor have the adapter `mine`, which is acme's default and more than poor may load; rival has
# `secret`. It runs two requests at once, and lets two wait.
SHARED_URL = os.environ.get("CHORUS_SHARED_URL", "")
SHARED_BASE = os.environ.get("CHORUS_SHARED_BASE", "")
KEYS = json.loads(os.environ.get("CHORUS_KEYS", "{}"))
# What the server says of what it does not have. A check that fails for it is not there yet, rather than wrong.
NO_ROUTE = re.compile(r"no such endpoint: \w+ \S+?(?=['\"\s]|$)")
MISSING = re.compile(NO_ROUTE.pattern + "|'[^']*' is not supported by this server")
# No check takes longer, unless the server hangs.
PATIENCE = 90

CHECKS, QUICK = [], set()


def check(function):
    CHECKS.append(function)
    return function


def quick(function):
    """One that every change must pass."""
    QUICK.add(function)
    return check(function)


def same(got, wanted, what="it"):
    if got != wanted:
        raise AssertionError(f"{what} is {got!r}, not {wanted!r}")


def true(condition, why):
    if not condition:
        raise AssertionError(why)


def raises(kind, call, *args, **options):
    """The error that the call raises, which is of this very class, and not for the lack of what is asked."""
    why = failure(call, *args, **options)
    if type(why) is not kind or NO_ROUTE.search(str(why)):
        raise why
    return why


def failure(call, *args, **options):
    """The error that the call raises."""
    try:
        got = call(*args, **options)
    except Exception as why:
        return why
    raise AssertionError(f"no error but {got!r}"[:300])


def each(values, call):
    """Calls with each of the values, and says for which it fails; what is wrong goes before what is not there."""
    failed = {}
    for value in values:
        try:
            call(value)
        except Exception as why:
            failed[str(value)[:60]] = reason(why)
    wrong = {value: why for value, why in failed.items() if not MISSING.search(why)}
    if failed:
        raise AssertionError("; ".join(f"{value}: {why}" for value, why in (wrong or failed).items()))


def post(url, body, key=None, path=""):
    """The status and the JSON of the answer, by the standard library."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def tenant(name, **quota):
    """The key of a new tenant that has this quota."""
    name = f"{name}-{os.urandom(4).hex()}"
    for path, body in (("", {"name": name}), (f"/{name}/quota", quota), (f"/{name}/keys", {"scope": "infer"})):
        status, answer = post(SHARED_URL, body, KEYS["operator"], "/v1/admin/tenants" + path)
        true(status < 300, f"{path}: {answer}")
    return answer["key"]


def token_id(text):
    """The token that this text is alone; None where it is several."""
    _, answer = post(URL, {"prompt": text, "add_special_tokens": False}, path="/tokenize")
    return answer["tokens"][0] if answer["count"] == 1 else None


def metric(name, url=None):
    with urllib.request.urlopen((url or URL) + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def until_idle():
    """Waits until nothing is computed any more; patience runs out where something is for good."""
    while metric("chorus_requests_running") or metric("chorus_requests_waiting"):
        time.sleep(0.01)


def until_running():
    while not metric("chorus_requests_running"):
        time.sleep(0.01)


@contextlib.contextmanager
def freed():
    """What is begun here is given up: the server computes no more for it, though all that was asked for was not computed."""
    until_idle()
    cancelled = metric("chorus_jobs_cancelled_total")
    yield
    until_idle()
    true(metric("chorus_jobs_cancelled_total") > cancelled, "it was answered to its end")


def reason(why):
    """In one line why a check failed. What lies behind an error of a client's own is looked for, too."""
    text, behind = str(why).strip(), why.__cause__ or why.__context__
    if isinstance(why, AssertionError) and not text:
        frame = traceback.extract_tb(why.__traceback__)[-1]
        text = linecache.getline(frame.filename, frame.lineno).strip()
    missing = MISSING.search(text)
    while behind is not None and not missing:
        missing, behind = MISSING.search(str(behind)), behind.__cause__ or behind.__context__
    if missing:
        return missing.group()
    kind = "" if isinstance(why, AssertionError) else f"{type(why).__name__}: "
    return " ".join(f"{kind}{text}".split())[:400]


def too_slow(*_):
    raise TimeoutError(f"no answer in {PATIENCE} s")


def run(client):
    """Runs all checks, or those that are named, or with --quick those of every change."""
    signal.signal(signal.SIGALRM, too_slow)
    # One for all: clients keep connections.
    loop = asyncio.new_event_loop()
    wanted = [word for word in sys.argv[1:] if word != "--quick"]
    print(json.dumps({"client": client}), flush=True)
    for function in CHECKS:
        if wanted and function.__name__ not in wanted or "--quick" in sys.argv and function not in QUICK:
            continue
        begin, outcome, why = time.monotonic(), "passed", ""
        signal.alarm(PATIENCE)
        try:
            loop.run_until_complete(function()) if inspect.iscoroutinefunction(function) else function()
        except Exception as failure:
            why = reason(failure)
            outcome = "not there" if MISSING.search(why) else "failed"
            if wanted:
                traceback.print_exc()
        signal.alarm(0)
        line = {"check": function.__name__, "outcome": outcome, "why": why, "seconds": round(time.monotonic() - begin, 2)}
        print(json.dumps(line), flush=True)
