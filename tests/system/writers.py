#!/usr/bin/env python3
"""Fifty writers of one name, each with If-Match: one winner a round. With --s3 (pip install 'moto[server]') through two
servers on one bucket, with --faults through a proxy that answers 500, stalls, truncates, and cuts before and after."""

import argparse
import contextlib
import http.client
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from chorus import TINY, Server, digest, moto, s3, turned

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=200)
parser.add_argument("--writers", type=int, default=50)
parser.add_argument("--s3", action="store_true")
parser.add_argument("--faults", action="store_true")
parser.add_argument("--moto", default="moto_server")
args = parser.parse_args()


def adapter(number):
    """On a tiny base: what is tried is the order of changes, and not how fast an adapter is."""
    return turned(TINY / "adapters" / "plain", number)


class Faulty(BaseHTTPRequestHandler):
    """Passes requests on to moto, most of them."""

    protocol_version = "HTTP/1.1"
    target, active, seen, dice = None, False, {}, random.Random(7)

    def handle_all(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = "pass"
        if Faulty.active and self.dice.random() < 0.06:
            fault = self.dice.choice(["500", "500 after", "cut", "cut after", "truncate", "stall"])
            Faulty.seen[fault] = Faulty.seen.get(fault, 0) + 1
        if fault == "cut":
            return self.cut()
        if fault == "stall":
            time.sleep(2)
            return self.cut()
        if fault == "500":
            return self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
        upstream = http.client.HTTPConnection(*self.target, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        content = response.read()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding", "content-length")}
        upstream.close()
        if fault == "cut after":
            return self.cut()
        if fault == "500 after":
            return self.answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
        if fault == "truncate" and len(content) > 1:
            self.answer(response.status, kept, content, send=len(content) // 2)
            return self.cut()
        length = response.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(response.status, kept, content, length=length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_all

    def cut(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def answer(self, status, headers, content, send=None, length=None):
        with contextlib.suppress(OSError):
            self.send_response_only(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:send])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def store():
    """The store's name, and the variables that say how to reach it."""
    if not args.s3:
        yield tempfile.mkdtemp(), {}
        return
    with moto(args.moto) as port:
        Faulty.target = ("127.0.0.1", port)
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield s3(proxy.server_port)


def main():
    numbers = iter(range(10**6))
    won = lost = failed = unsure = 0
    acknowledged = {}
    with store() as (place, env), contextlib.ExitStack() as stack:
        count = 2 if args.s3 else 1
        servers = [stack.enter_context(Server(place, "--store-refresh", "1s", env=env, model=TINY)) for _ in range(count)]
        assert servers[0].put("name", adapter(next(numbers))).status_code == 201
        active = 1
        Faulty.active = args.faults
        with ThreadPoolExecutor(args.writers) as pool:
            for turn in range(args.rounds):
                def write(at, active=active):
                    files = adapter(numbers_of_round[at])
                    answer = servers[at % count].put("name", files, headers={"If-Match": f'"v{active}"'})
                    return answer.status_code, files, answer

                numbers_of_round = [next(numbers) for _ in range(args.writers)]
                results = list(pool.map(write, range(args.writers)))
                codes = [code for code, _, _ in results]
                winners = [(files, answer.json()) for code, files, answer in results if code == 201]
                errors = [code for code in codes if code not in (201, 412)]
                if unknown := [code for code in errors if code != 503]:
                    sys.exit(f"round {turn}: answers {unknown}\n{servers[0].logged()[-2000:]}")
                if len(winners) > 1 or (not errors and len(winners) != 1):
                    sys.exit(f"round {turn}: {len(winners)} winners among {codes}")
                shown = None
                while shown is None:
                    with contextlib.suppress(requests.RequestException, ValueError, KeyError):
                        shown = servers[0].show("name")
                for files, answer in winners:
                    acknowledged[answer["version"]] = digest(files)
                won, lost, failed = won + len(winners), lost + codes.count(412), failed + len(errors)
                Faulty.active = False
                # The servers may not have seen yet what was written last.
                for server in servers:
                    server.delete("nothing-of-this-name")
                shown = servers[0].show("name")
                Faulty.active = args.faults
                if shown["version"] > active + 1:
                    sys.exit(f"round {turn}: from v{active} to v{shown['version']}")
                unsure += shown["version"] == active + 1 and not winners
                active = shown["version"]
        Faulty.active = False
        with Server(place, env=env, model=TINY) as fresh:
            versions = {entry["version"]: entry["digest"] for entry in fresh.show("name")["versions"]}
            for version, wanted in acknowledged.items():
                if versions.get(version) != wanted:
                    sys.exit(f"v{version} is {versions.get(version)}, acknowledged was {wanted}")
            for version in random.Random(1).sample(sorted(versions), min(20, len(versions))):
                answer = fresh.complete(f"name@v{version}", 2)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-chorus-adapter"] == f"name@v{version};{versions[version].replace(':', '=')}"
    print(f"{args.rounds} rounds of {args.writers} writers on {count} server(s): {won} won, {lost} were told 412, {failed} 503, "
          f"{unsure} rounds were won by a writer that was told 503; all acknowledged versions are there")  # fmt: skip
    if args.faults:
        print("faults:", dict(sorted(Faulty.seen.items())))


main()
