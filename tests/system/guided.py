#!/usr/bin/env python3
"""Answers that are held to a form do not slow those beside them by more than 10 %. Nothing else should run meanwhile.

In each round so many free answers of so many tokens are made beside as many others, which are

    free   as they are themselves,
    held   to a schema of JSON that is not fulfilled before they end.

Said is the median of the rounds of each round's ratio of the tokens a second that the first ones got, and of the median and the 95th
percentile of the times between their tokens."""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time

from chorus import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--streams", type=int, default=8, help="of each kind")
parser.add_argument("--tokens", type=int, default=160, help="of each answer")
parser.add_argument("--at-most", type=float, default=1.1)
args = parser.parse_args()

# More than any answer has room for.
ENTRY = {
    "type": "object", "additionalProperties": False, "required": ["name", "kind", "amount", "tags", "when"],
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 40}, "kind": {"enum": ["refund", "order", "question", "complaint"]},
        "amount": {"type": "number", "minimum": 0, "maximum": 1000}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "when": {"type": "string", "format": "date-time"},
    },
}  # fmt: skip
SCHEMA = {"type": "array", "items": ENTRY, "minItems": 100}


def request(number, held):
    body = {"model": "base-model", "prompt": f"{number}: The customer wrote that the order", "stream": True, "ignore_eos": True,
            "seed": number, "temperature": 0.8, "max_tokens": args.tokens}  # fmt: skip
    return {**body, "guided_json": SCHEMA, "ignore_eos": False} if held else body


async def ask(server, body):
    """When each token came."""
    came = []
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = json.dumps(body).encode()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)  # fmt: skip
    status = await reader.readline()
    assert status.split()[1] == b"200", (status, await reader.read())
    while line := await reader.readline():
        if line.startswith(b'data: {"') and b'"finish_reason":null' in line:
            came.append(time.perf_counter())
    writer.close()
    return came


async def part(server, number, held):
    """Tokens a second, median and 95th percentile of the gaps, of the free answers."""
    free = [ask(server, request(1000 * number + each, False)) for each in range(args.streams)]
    beside = [ask(server, request(1000 * number + 500 + each, held)) for each in range(args.streams)]
    came = (await asyncio.gather(*free, *beside))[: args.streams]
    gaps = sorted(later - earlier for stream in came for earlier, later in zip(stream, stream[1:]))
    begun, ended = min(stream[0] for stream in came), max(stream[-1] for stream in came)
    return len(gaps) / (ended - begun), statistics.median(gaps), gaps[int(0.95 * len(gaps))]


async def measure(server):
    await part(server, 999, True)  # Compiled and warm.
    ratios = []
    for number in range(args.rounds):
        seen = {}
        for held in (False, True) if number % 2 else (True, False):
            seen[held] = rate, median, most = await part(server, number, held)
            print(f"round {number}, beside {'held' if held else 'free'} ones: {rate:.1f} tokens/s, between them {1e3 * median:.1f} ms "
                  f"(p95 {1e3 * most:.1f} ms)", flush=True)  # fmt: skip
        ratios.append((seen[False][0] / seen[True][0], seen[True][1] / seen[False][1], seen[True][2] / seen[False][2]))
    for name, of_rounds in zip(("time for all", "median gap", "p95 gap"), zip(*ratios)):
        listed = ", ".join(f"{ratio:.3f}" for ratio in sorted(of_rounds))
        print(f"{name}, held / free: {statistics.median(of_rounds):.3f} (rounds: {listed})")
    return statistics.median(ratio[0] for ratio in ratios)


with tempfile.TemporaryDirectory() as store, Server(store) as server:
    if asyncio.run(measure(server)) > args.at_most:
        sys.exit("held answers slow those beside them")
