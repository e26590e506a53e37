"""Plain HTTP, by the standard library: how answers, streams and refusals are framed, which is what every client stands on."""

import contextlib
import http.client
import json
import socket
import time
from urllib.parse import urlsplit

from checks import BASE, KEYS, SHARED_URL, URL, check, each, freed, quick, run, same, true, until_running

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Say it with an emoji: ☃ 🦀"}], "temperature": 0, "max_tokens": 12}
ENDLESS = {**CHAT, "max_tokens": 4000, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}
ERROR = ["message", "type", "param", "code"]


def connect(url=URL):
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)


def ask(method, path, body=None, headers=JSON, url=URL):
    """The answer, read to its end, and the bytes of its body."""
    with contextlib.closing(connect(url)) as connection:
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, headers)
        answer = connection.getresponse()
        return answer, answer.read()


def raw(text, url=URL):
    """All that the server sends to these bytes until it closes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(text)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def head(length, more=""):
    """Of a chat whose body has so many bytes."""
    fields = f"Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n".encode()


def check_error(method, path, status, body=None, headers=JSON, url=URL):
    answer, text = ask(method, path, body, headers, url)
    same(answer.status, status, f"the status of {method} {path}")
    same((answer.headers["Content-Type"], list(json.loads(text)), list(json.loads(text)["error"])), ("application/json", ["error"], ERROR))
    true(answer.headers["X-Request-Id"].startswith("req-"), "no X-Request-Id")
    return answer, json.loads(text)["error"]


def events(body):
    """The data of each event. Nothing but events and comments is there, and each ends with an empty line."""
    true(body.endswith(b"\n\n"), f"the end is {body[-20:]!r}")
    data = []
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        true(len(lines) == 1 and lines[0].startswith("data: "), f"an event is {event!r}")
        data.append(lines[0].removeprefix("data: "))
    return data


@quick
def a_stream_is_events():
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "sql", "prompt": "☃ 🦀", "max_tokens": 8})):
        answer, text = ask("POST", path, {**body, "stream": True, "stream_options": {"include_usage": True}})
        same((answer.status, answer.headers["Content-Type"].split(";")[0]), (200, "text/event-stream"))
        same((answer.headers["Transfer-Encoding"], answer.headers["Content-Length"]), ("chunked", None))
        true("no-cache" in answer.headers["Cache-Control"], answer.headers["Cache-Control"])
        *chunks, done = events(text)
        same(done, "[DONE]", "the last event")
        chunks = [json.loads(chunk) for chunk in chunks]
        same([chunk["usage"] is None for chunk in chunks], [True] * (len(chunks) - 1) + [False], "where usage is null")
        same([bool(chunk["choices"]) for chunk in chunks], [True] * (len(chunks) - 1) + [False], "where choices are")
        same([key for chunk in chunks for key in chunk if key == "error"], [], "errors")


@quick
def no_usage_is_no_key():
    _, text = ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    same([chunk for chunk in events(text)[:-1] if "usage" in json.loads(chunk)], [], "chunks with a usage")


@quick
def events_come_as_they_are_made():
    """The first are read while the answer is being computed, which goes on until it is given up."""
    with freed(), contextlib.closing(connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": True}), JSON)
        answer = connection.getresponse()
        lines = [answer.readline() for _ in range(6)]
        same([line.startswith(b"data: ") for line in lines], [True, False] * 3, "the lines that are data")


@quick
def a_failure_ends_a_stream():
    answer, text = ask("POST", "/v1/chat/completions", {**ENDLESS, "stream": True}, {**JSON, "X-Request-Timeout": "0.4"})
    *before, failure, done = events(text)
    same((answer.status, done, list(json.loads(failure)), list(json.loads(failure)["error"])), (200, "[DONE]", ["error"], ERROR))
    true(before, "nothing came before")


@quick
def what_fails_before_the_first_event_is_no_stream():
    for fields, status in (({"model": "nobody"}, 404), ({"max_tokens": 9000}, 400), ({"temperature": 9}, 400)):
        check_error("POST", "/v1/chat/completions", status, {**CHAT, "stream": True, **fields})


@quick
def an_answer_has_its_length():
    answer, text = ask("POST", "/v1/chat/completions", CHAT)
    same((answer.status, answer.headers["Content-Type"], int(answer.headers["Content-Length"])), (200, "application/json", len(text)))
    true(json.loads(text)["choices"], "no choices")


@quick
def a_connection_is_used_again():
    with contextlib.closing(connect()) as connection:
        connection.connect()
        port = connection.sock.getsockname()[1]
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/chat/completions", {**CHAT, "stream": True}), ("/nothing", CHAT),
                           ("/v1/chat/completions", {**CHAT, "model": "nobody"}), ("/v1/chat/completions", CHAT)):  # fmt: skip
            connection.request("POST", path, json.dumps(body), JSON)
            connection.getresponse().read()
            same(connection.sock and connection.sock.getsockname()[1], port, f"the port after {path}")


@quick
def bodies_in_pieces():
    body = json.dumps(CHAT).encode()
    with contextlib.closing(connect()) as connection:
        # The standard library sends what it iterates over in chunks.
        connection.request("POST", "/v1/chat/completions", (body[at : at + 1] for at in range(len(body))), JSON, encode_chunked=True)
        same(connection.getresponse().status, 200, "the status")
    expecting = raw(head(len(body), "Expect: 100-continue\r\n") + body)
    true(expecting.startswith((b"HTTP/1.1 100", b"HTTP/1.1 200")), "Expect is not understood")
    old = raw(head(len(body)).replace(b"HTTP/1.1", b"HTTP/1.0") + body)
    true(old.split(b"\r\n")[0].endswith(b"200 OK"), "HTTP/1.0 is not understood")


@quick
def errors_have_one_body():
    for method, path, status in (("GET", "/v1", 404), ("POST", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405),
                                 ("PUT", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/models/nobody", 404)):  # fmt: skip
        check_error(method, path, status)
    chat = "/v1/chat/completions"
    each([("{", 400, JSON), ("", 400, JSON), ("[]", 400, JSON), ('{"model": 1}', 400, JSON), ("{}", 415, {}),
          ("{}", 415, {"Content-Type": "text/plain"}), ("{}", 415, {**JSON, "Content-Encoding": "gzip"}), (json.dumps(CHAT)[:-1], 400, JSON),
          (json.dumps(CHAT) + "x", 400, JSON), (b'{"model": "\xff"}', 400, JSON), (json.dumps({**CHAT, "user": "\ud800"}), 400, JSON)],
         lambda case: check_error("POST", chat, case[1], case[0], case[2]))  # fmt: skip
    same(check_error("GET", chat, 405)[0].headers["Allow"], "POST", "Allow")


@quick
def keys_are_bearers():
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}, {"Authorization": KEYS["acme"]}):
        error = check_error("GET", "/v1/models", 401, headers=headers, url=SHARED_URL)[1]
        same((error["type"], error["code"]), ("invalid_request_error", "invalid_api_key"))
    same(ask("GET", "/v1/models", headers={"Authorization": f"bearer {KEYS['acme']}"}, url=SHARED_URL)[0].status, 200)


@quick
def a_body_too_large_is_refused_before_it_is_sent():
    answer = raw(head(1 << 30) + b'{"model": "')
    true(answer.startswith(b"HTTP/1.1 413"), f"{answer[:100]}")
    same(list(json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]), ERROR, "the keys of the error")


@quick
def a_client_that_sends_all_before_it_reads_learns_why():
    for path, status, headers in (("/v1/chat/completions", 413, JSON), ("/v1/nothing", 404, JSON), ("/v1/chat/completions", 415, {})):
        with contextlib.closing(connect()) as connection:
            connection.request("POST", path, b" " * (9 << 20), headers)
            same(connection.getresponse().status, status, "the status")


@quick
def other_hosts_and_pages_are_refused():
    check_error("GET", "/v1/models", 403, headers={"Host": "evil.example"})
    check_error("POST", "/v1/chat/completions", 403, CHAT, {**JSON, "Origin": "https://evil.example"})
    same(ask("POST", "/v1/chat/completions", CHAT)[0].headers["Access-Control-Allow-Origin"], None, "CORS")


@quick
def probes_are_answered():
    for path in ("/health", "/ping", "/ready", "/version", "/metrics", "/v1/models"):
        same(ask("GET", path)[0].status, 200, path)
    same(ask("HEAD", "/health")[1], b"", "the body of HEAD")


@quick
def a_connection_that_is_cut_frees_the_server():
    body = json.dumps(ENDLESS).encode()
    for fields in ({}, {"stream": True}):
        with freed(), contextlib.closing(connect()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, **fields}), JSON)
            until_running()
    # One whose reader has stopped reading is still there; one that is reset is not.
    with freed():
        parts = urlsplit(URL)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(head(len(body)) + body)
            until_running()


@check
def a_reader_that_is_slow_gets_all():
    with contextlib.closing(connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps({**CHAT, "max_tokens": 300, "ignore_eos": True, "stream": True}), JSON)
        answer, text = connection.getresponse(), b""
        while piece := answer.read(2048):
            text += piece
            time.sleep(0.01)
    same(events(text)[-1], "[DONE]", "the last event")
    same(json.loads(events(text)[-2])["choices"][0]["finish_reason"], "length", "finish_reason")


run("plain HTTP")
