#!/usr/bin/env python3
"""A thousand clients that read their streams slowly or not at all, and a thousand that never finish their requests, raise the p95 time to
the first token of others by less than 1.5 times. Nothing else should run meanwhile.

In each round requests come at the same random times (Poisson) twice: alone, and while the others hang on. Before that as many requests are
answered as will hang on, so that what the server keeps of prompts is the same in all parts. Slow readers have asked for log-
probabilities, so that their answers do not fit into the buffers below; half-open requests that the server gives up are made again.
Said is the median of the rounds of each round's ratio, and the memory of the server."""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import socket
import statistics
import sys
import tempfile
import time

from chorus import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=60, help="of each part of a round")
parser.add_argument("--rate", type=float, default=2, help="requests a second")
parser.add_argument("--slow", type=int, default=1000)
parser.add_argument("--half-open", type=int, default=1000)
parser.add_argument("--at-most", type=float, default=1.5)
args = parser.parse_args()

GAUGES = ("chorus_requests_running ", "chorus_requests_waiting ")


def head(server, length):
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()  # fmt: skip


def chat(said, tokens, **more):
    return json.dumps({"model": "base-model", "messages": [{"role": "user", "content": said}], "stream": True, "ignore_eos": True,
                       "temperature": 0, "max_tokens": tokens, **more}).encode()  # fmt: skip


async def ask(server, said, at, begun):
    """Seconds to the first token of an answer, which is read to its end."""
    await asyncio.sleep(begun + at - time.perf_counter())
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body, first = chat(said, 32), None
    writer.write(head(server, len(body)) + body)
    status = await reader.readline()
    assert status.split()[1] == b"200", status
    while (line := await reader.readline()) != b"data: [DONE]\n":
        assert line, "it was cut"
        if first is None and b'"content":"' in line and b'"content":""' not in line:
            first = time.perf_counter() - sent
    writer.close()
    return first


async def part(server, name):
    """The 95th percentile of the times to the first token. They come at the same times in all parts, and ask what nobody asked before."""
    dice = random.Random(0)
    asked, at, begun = [], dice.expovariate(args.rate), time.perf_counter()
    while at < args.seconds:
        asked.append(ask(server, f"{name}, {dice.random()}: what came of the order?", at, begun))
        at += dice.expovariate(args.rate)
    times = sorted(await asyncio.gather(*asked))
    return times[int(0.95 * len(times))]


async def fill(server):
    """As many answers as slow readers will have asked for, sixteen at a time."""
    numbers = iter(range(args.slow))

    async def stream():
        for number in numbers:
            await ask(server, f"fill {number}", 0, time.perf_counter())

    await asyncio.gather(*(stream() for _ in range(16)))


async def slow_reader(server, number):
    """Takes a byte a second of a stream."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    with connection:
        await loop.sock_connect(connection, ("127.0.0.1", server.port))
        body = chat(f"slow {number}", 32, logprobs=True, top_logprobs=20)
        await loop.sock_sendall(connection, head(server, len(body)) + body)
        while await loop.sock_recv(connection, 1):
            await asyncio.sleep(1 if number % 2 else 3600)


async def half_open(server, number):
    """Never sends the whole of a request: every other one not even its head."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.closing(writer):
                writer.write(head(server, 1000) + b'{"model": ' if number % 2 else head(server, 1000)[:40])
                await reader.read()
        await asyncio.sleep(1)


async def settled(server):
    """Until all that slow readers have asked for is computed."""
    while True:
        text = (await asyncio.to_thread(server.http.get, server.url + "/metrics", timeout=30)).text
        gauges = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith(GAUGES)}
        assert len(gauges) == 2, gauges
        if not any(gauges.values()):
            return
        await asyncio.sleep(1)


async def measure(server):
    await fill(server)
    await part(server, "before")
    ratios = []
    for number in range(args.rounds):
        alone = await part(server, f"alone {number}")
        before = server.resident()
        hanging = []
        for at in range(0, max(args.slow, args.half_open), 50):
            numbers = range(at, at + 50)
            hanging += [asyncio.create_task(slow_reader(server, n)) for n in numbers if n < args.slow]
            hanging += [asyncio.create_task(half_open(server, n)) for n in numbers if n < args.half_open]
            await asyncio.sleep(0.2)
            await settled(server)
        beside, held = await part(server, f"beside {number}"), server.resident()
        there = sum(not task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await asyncio.sleep(1)
        ratios.append(beside / alone)
        print(f"round {number}: p95 TTFT {1e3 * alone:.0f} ms alone, {1e3 * beside:.0f} ms beside {there} that hang on; "
              f"{(held - before) / 1e6:.0f} MB more for them, {(server.resident() - before) / 1e6:.0f} MB after", flush=True)  # fmt: skip
    print(f"beside / alone: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})")
    return statistics.median(ratios)


resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with tempfile.TemporaryDirectory() as store, Server(store) as server:
    if asyncio.run(measure(server)) > args.at_most:
        sys.exit("those who hang on cost others too much")
