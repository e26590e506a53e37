#!/usr/bin/env python3
"""Twenty tenants with twenty adapters each, some under names that others have too: every way to name a foreign adapter is
answered, byte for byte, as one to name an adapter that nobody has; own names answer as that adapter does alone, before and
after. On a tiny base, so that all pairs are tried."""

import collections
import http.client
import json
import os
import sys
import tempfile
from pathlib import Path

from chorus import CONFIG, TINY, WEIGHTS, Server, digest, turned

TENANTS = ADAPTERS = 20
BASE_ID = "base-model"
FOLDER = TINY / "adapters" / "plain"
PROMPT = "Once upon a time"
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "temperature": 0, "logprobs": True}
TEXT = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1, "echo": True}
JSON = {"Content-Type": "application/json"}
BOUNDARY = "between"

# How a request looks that names an adapter: its method, path, headers and body.
Way = collections.namedtuple("Way", "method path headers body")


def naming():
    """All ways to name an adapter where tokens are computed or counted, with NAME for the name: by header, by model, and both."""
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT), ("/v1/chat/completions", {**CHAT, "stream": True}),
                       ("/v1/completions", {**TEXT, "stream": True}), ("/tokenize", {"prompt": PROMPT}), ("/detokenize", {"tokens": [5, 6]})):  # fmt: skip
        yield Way("POST", path, JSON, json.dumps({**body, "model": "NAME"}))
        yield Way("POST", path, JSON, json.dumps({**body, "model": f"{BASE_ID}:NAME"}))
        yield Way("POST", path, {**JSON, "X-Adapter": "NAME"}, json.dumps(body))
        yield Way("POST", path, {**JSON, "X-Adapter": "NAME"}, json.dumps({**body, "model": BASE_ID}))
        yield Way("POST", path, {**JSON, "X-Adapter": "NAME"}, json.dumps({**body, "model": "NAME"}))
    for name in ("NAME", f"{BASE_ID}:NAME"):
        yield Way("GET", f"/v1/models/{name}", {}, None)


def selecting():
    """The same with the active version's number or digest."""
    for way in naming():
        for selector in ("@v1", "@sha256:DIGEST"):
            path, body = way.path.replace("NAME", "NAME" + selector), way.body and way.body.replace("NAME", "NAME" + selector)
            yield Way(way.method, path, {key: value.replace("NAME", "NAME" + selector) for key, value in way.headers.items()}, body)


def looking():
    """What one can do with one's adapter and it stays as it is."""
    path = "/v1/adapters/NAME"
    yield Way("GET", path, {}, None)
    yield Way("HEAD", path, {}, None)
    yield Way("POST", f"{path}/activate", JSON, '{"version": 1}')
    yield Way("POST", f"{path}/activate", {**JSON, "If-Match": '"v1"'}, '{"version": 1}')
    yield Way("POST", f"{path}/validate", JSON, '{"version": 1}')
    for action in ("pin", "unpin", "prefetch"):
        yield Way("POST", f"{path}/{action}", {}, None)
    for file in (CONFIG, WEIGHTS):
        yield Way("GET", f"{path}/files/{file}", {}, None)
        yield Way("GET", f"{path}/files/{file}?version=1", {}, None)


def refused():
    """What is refused for an own name too, in another way: it must not tell of others."""
    path = "/v1/adapters/NAME"
    yield Way("POST", f"{path}/activate", JSON, '{"version": 2}')
    yield Way("POST", f"{path}/activate", {**JSON, "If-Match": '"v2"'}, '{"version": 1}')
    yield Way("POST", f"{path}/validate", JSON, '{"version": 2}')
    yield Way("GET", f"{path}/files/{CONFIG}?version=2", {}, None)
    yield Way("GET", f"{path}/files/other", {}, None)
    yield Way("DELETE", f"{path}?version=2", {}, None)
    yield Way("DELETE", path, {"If-Match": '"v2"'}, None)
    yield Way("GET", "/v1/models/NAME@v2", {}, None)
    yield Way("POST", "/v1/embeddings", JSON, '{"model": "NAME", "input": "a"}')


def ending():
    """What would take an own adapter away."""
    path = "/v1/adapters/NAME"
    for query, headers in (("", {}), ("?version=1", {}), ("", {"If-Match": '"v1"'}), ("", {"If-Match": "*"})):
        yield Way("DELETE", path + query, headers, None)


def put(files, headers, query=""):
    parts = b"".join(b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
                     % (BOUNDARY.encode(), name.encode(), name.encode(), files[name]) for name in (CONFIG, WEIGHTS))  # fmt: skip
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return Way("PUT", "/v1/adapters/NAME" + query, {**kind, **headers}, parts + b"--%s--\r\n" % BOUNDARY.encode())


class Holder:
    """Somebody with a key, on a connection that stays."""

    def __init__(self, server, key):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.key = {"Authorization": f"Bearer {key}"} if key else {}
        self.asked = 0

    def ask(self, way, name="", digest=""):
        """Status, headers without what is each answer's own, and body."""
        def fill(text):
            return text.replace("NAME", name).replace("DIGEST", digest)

        body = fill(way.body) if isinstance(way.body, str) else way.body
        headers = {key: fill(value) for key, value in {**self.key, **way.headers}.items()}
        try:
            self.connection.request(way.method, fill(way.path), body, headers)
            answer = self.connection.getresponse()
        except ConnectionError:
            # The server ends connections on which nothing is asked, or whose last body nobody read.
            self.connection.close()
            self.connection.request(way.method, fill(way.path), body, headers)
            answer = self.connection.getresponse()
        content = answer.read()
        self.asked += 1
        kept = sorted((k.lower(), v) for k, v in answer.getheaders() if k.lower() not in ("date", "x-request-id"))
        return answer.status, kept, content

    def json(self, method, path, body=None):
        status, _, content = self.ask(Way(method, path, JSON, body and json.dumps(body)))
        return status, json.loads(content)


def nameless(answer, name, digest=""):
    """The answer without the name, which is the only difference there may be."""
    status, headers, body = answer
    body = body.replace(name.encode(), b"NAME")
    return status, headers, body.replace(digest.encode(), b"DIGEST") if digest else body


def said(answer):
    """What was said, and from whom: a stream's pieces put together."""
    status, headers, body = answer
    if status != 200:
        sys.exit(f"{status} {body[:300]}")
    pieces = [body]
    if dict(headers)["content-type"].startswith("text/event-stream"):
        pieces = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    text, scores = "", []
    for choice in (choice for piece in pieces for choice in json.loads(piece)["choices"]):
        message = choice.get("message") or choice.get("delta") or {}
        text += message.get("content") or choice.get("text") or ""
        found = choice.get("logprobs") or {}
        scores += found.get("token_logprobs") or [entry["logprob"] for entry in found.get("content") or []]
    return dict(headers)["x-chorus-adapter"], text, scores


class Tenant:
    def __init__(self, operator, server, at):
        self.name = f"tenant-{at:02d}"
        operator.json("POST", "/v1/admin/tenants", {"name": self.name})
        _, key = operator.json("POST", f"/v1/admin/tenants/{self.name}/keys", {"scope": "admin"})
        self.holder = Holder(server, key["key"])
        own = [f"n-own-{at:02d}-{i:02d}" for i in range(ADAPTERS - 8)]
        shared = [f"n-shared-{i:02d}" for i in range(16) if (i + at) % 2 == 0]
        # Nobody's bytes are another's but those of the first shared name of two tenants.
        self.files = {name: turned(FOLDER, 1 + at * ADAPTERS + i) for i, name in enumerate(own + shared)}
        if at == 2:
            self.files["n-shared-00"] = turned(FOLDER, 1 + ADAPTERS - 8)

    def upload(self):
        for name, files in self.files.items():
            status, _, body = self.holder.ask(put(files, {"If-None-Match": "*"}), name)
            if status != 201 or json.loads(body)["digest"] != digest(files):
                sys.exit(f"{self.name} {name}: {status} {body}")


def check_own(tenant, alone):
    """Own names do everything, and answer as they do alone."""
    for name, files in tenant.files.items():
        hexadecimal = digest(files).removeprefix("sha256:")
        wanted = f"{name}@v1;sha256={hexadecimal}"
        for way in [*naming(), *selecting()]:
            answer = tenant.holder.ask(way, name, hexadecimal)
            if way.path.endswith("completions"):
                stream = '"stream"' in way.body
                heard = said(answer)
                if heard != (wanted, *alone[hexadecimal][way.path, stream]):
                    sys.exit(f"{tenant.name} {way}: {heard}, alone {alone[hexadecimal][way.path, stream]}")
            elif answer[0] != 200:
                sys.exit(f"{tenant.name} {name} {way}: {answer}")
        for way in looking():
            status, _, body = tenant.holder.ask(way, name)
            if status != 200:
                sys.exit(f"{tenant.name} {name} {way}: {status} {body}")
            for file in (CONFIG, WEIGHTS):
                if f"/files/{file}" in way.path and body != files[file]:
                    sys.exit(f"{tenant.name} {name}: other bytes come back")


def check_lists(tenant):
    """Lists have one's own, all of it, and nothing else."""
    for path, mine in (("/v1/adapters", []), ("/v1/models", [BASE_ID])):
        status, listed = tenant.holder.json("GET", path)
        if status != 200 or sorted(entry["id"] for entry in listed["data"]) != sorted([*mine, *tenant.files]):
            sys.exit(f"{tenant.name} {path}: {listed}")
        text = json.dumps(listed)
        for entry in listed["data"][len(mine) :]:
            if digest(tenant.files[entry["id"]]) not in text:
                sys.exit(f"{tenant.name} {path}: another's digest: {entry}")


def check_foreign(tenant, others):
    """Names of others alone are nobody's, and so are versions of others under a name that one has too. Returns pairs."""
    pairs, nobodys = 0, {}
    ways = [*naming(), *selecting(), *looking(), *refused(), *ending(), Way("PUT", "/v1/adapters/NAME", {"If-Match": '"v1"'}, None),
            Way("PUT", "/v1/adapters/NAME", {"If-Match": "*"}, None)]  # fmt: skip
    foreign = {name: files for other in others for name, files in other.files.items() if name not in tenant.files}
    for name, files in foreign.items():
        hexadecimal = digest(files).removeprefix("sha256:")
        unknown, empty = "n-nobody-has-this"[: len(name)].ljust(len(name), "x"), "0" * 64
        for at, way in enumerate(ways):
            expected = nobodys.get((at, len(name)))
            if expected is None:
                expected = nobodys[at, len(name)] = nameless(tenant.holder.ask(way, unknown, empty), unknown, empty)
                if expected[0] not in (404, 412) and "/files/other" not in way.path:
                    sys.exit(f"{tenant.name}: {way} of a name that nobody has: {expected}")
            answer = nameless(tenant.holder.ask(way, name, hexadecimal), name, hexadecimal)
            if answer != expected:
                sys.exit(f"{tenant.name}: {way} of {name}: {answer}, of a name that nobody has {expected}")
        pairs += 1
    for other in others:
        for name in set(other.files) & set(tenant.files):
            theirs = digest(other.files[name]).removeprefix("sha256:")
            if digest(tenant.files[name]).endswith(theirs):
                continue
            for way in (way for way in selecting() if "DIGEST" in f"{way}"):
                answer, unknown = (nameless(tenant.holder.ask(way, name, d), name, d) for d in (theirs, "0" * 64))
                if answer != unknown or answer[0] != 404:
                    sys.exit(f"{tenant.name}: {way} of {other.name}'s {name}: {answer}, of an unknown digest {unknown}")
            pairs += 1
    return pairs


def check_taken(tenant, other):
    """A name that another has is free: an upload under it makes one's own, from version 1, and touches nothing of the other's."""
    name = next(name for name in other.files if name not in tenant.files)
    before = other.holder.ask(Way("GET", "/v1/adapters/NAME", {}, None), name)
    files = turned(FOLDER, 1000)
    for headers, wanted in (({"If-Match": '"v1"'}, 412), ({"If-Match": "*"}, 412), ({"If-None-Match": "*"}, 201), ({"If-Match": '"v1"'}, 200)):
        status, _, body = tenant.holder.ask(put(files, headers), name)
        if status != wanted or status < 300 and json.loads(body)["version"] != 1:
            sys.exit(f"{tenant.name} puts {other.name}'s {name} with {headers}: {status} {body}")
    for way in ("pin", "unpin"):
        tenant.holder.ask(Way("POST", f"/v1/adapters/NAME/{way}", {}, None), name)
    status, _, body = tenant.holder.ask(Way("DELETE", "/v1/adapters/NAME", {}, None), name)
    if status != 200 or other.holder.ask(Way("GET", "/v1/adapters/NAME", {}, None), name) != before:
        sys.exit(f"{tenant.name} took {name} from {other.name}: {status} {body}")


def check_same_bytes(one, two):
    """Who has the same bytes learns nothing of the other's use of them: asked before anybody has used the second's."""
    name = "n-shared-00"
    assert one.files[name] == two.files[name]
    said(one.holder.ask(Way("POST", "/v1/completions", {**JSON, "X-Adapter": "NAME"}, json.dumps(TEXT)), name))
    shown = two.holder.json("GET", f"/v1/adapters/{name}")[1]
    if (shown["hits"], shown["residency"], shown["last_used"]) != (0, "disk", None):
        sys.exit(f"another's use shows: {shown}")


def check_admin(tenant, other):
    """A tenant's own admin key is not the operator's: all is forbidden alike, for itself, for others, and for nobody."""
    for method, path, body in (("GET", "", None), ("POST", "/keys", {"scope": "admin"}), ("DELETE", "/keys/abababab", None),
                               ("POST", "/default", {"adapter": None}), ("POST", "/quota", {})):  # fmt: skip
        answers = {name: tenant.holder.json(method, f"/v1/admin/tenants/{name}{path}", body) for name in (tenant.name, other.name, "nobody-00")}
        texts = {json.dumps(answer).replace(name, "NAME") for name, answer in answers.items()}
        if len(texts) > 1 or answers[other.name][0] != 403:
            sys.exit(f"{tenant.name} {method} {path}: {answers}")
    for method, path in (("GET", "/v1/admin/tenants"), ("POST", "/v1/admin/tenants"), ("POST", "/v1/admin/operator-key")):
        if tenant.holder.json(method, path, {"name": "new"})[0] != 403:
            sys.exit(f"{tenant.name} {method} {path} is not forbidden")


def heard_alone(tenants):
    """What each adapter says on a server without tenants, which has them in a folder: by digest, path, and whether it streams."""
    folder = Path(tempfile.mkdtemp())
    names = {}
    for tenant in tenants:
        for files in tenant.files.values():
            name = digest(files)[7:23]
            names[name] = digest(files).removeprefix("sha256:")
            (folder / name).mkdir(exist_ok=True)
            for file, content in files.items():
                (folder / name / file).write_bytes(content)
    ways = [way for way in naming() if way.path.endswith("completions") and way.headers == {**JSON, "X-Adapter": "NAME"}]
    with Server(tempfile.mkdtemp(), adapters=folder, model=TINY) as server:
        holder = Holder(server, None)
        return {hexadecimal: {(way.path, '"stream"' in way.body): said(holder.ask(way, name))[1:] for way in ways}
                for name, hexadecimal in names.items()}  # fmt: skip


def main():
    key = "operator-" + os.urandom(16).hex()
    with Server(tempfile.mkdtemp(), model=TINY, env={"CHORUS_OPERATOR_KEY": key}) as server:
        operator = Holder(server, key)
        tenants = [Tenant(operator, server, at) for at in range(TENANTS)]
        for tenant in tenants:
            tenant.upload()
        check_same_bytes(tenants[0], tenants[2])
        alone = heard_alone(tenants)
        pairs = 0
        for tenant in tenants:
            others = [other for other in tenants if other is not tenant]
            check_lists(tenant)
            pairs += check_foreign(tenant, others)
            for other in others:
                check_taken(tenant, other)
            check_admin(tenant, others[-1])
        for tenant in tenants:
            check_lists(tenant)
            check_own(tenant, alone)
        texts = {tuple(map(str, heard["/v1/completions", False])) for heard in alone.values()}
        asked = sum(tenant.holder.asked for tenant in tenants)
        ways = len([*naming(), *selecting(), *looking(), *refused(), *ending()]) + 2
    print(f"{TENANTS} tenants, {len(alone)} adapters with {len(texts)} different answers, {pairs} foreign pairs in {ways} ways, {asked} requests: "
          "each foreign name is answered as one that nobody has, each own one as that adapter alone")  # fmt: skip


main()
