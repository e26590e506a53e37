#!/usr/bin/env python3
"""A tenant with 80 % of the load raises a quiet tenant's p95 time to the first token by less than 1.5 times: that of the same
requests alone. Nothing else should run meanwhile.

Requests come at random (Poisson) at a share of what the server can do, measured first; prompts and answers of both tenants
are short and long alike, so shares of requests are shares of the load. In each round the same quiet requests come

    alone     and nobody else's,
    equal     beside a tenant with as many,
    loud      beside a tenant with four times as many,
    flooded   beside a tenant that asks for all at once, in as many streams as run side by side and half as many again.

Said is the median of the rounds of each round's ratio, so that what else the machine does is in both sides."""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time

from chorus import with_tenants

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=60, help="of each part of a round")
parser.add_argument("--load", type=float, default=0.7, help="of both tenants together, of what the server can do")
parser.add_argument("--at-most", type=float, default=1.5)
args = parser.parse_args()

WORDS = ("the customer wrote that order arrived late and box was open so we need to check what happened before any refund can "
         "be made please read this note with care then answer in a short clear way").split()  # fmt: skip
STREAMS = 96
PARTS = ("alone", "equal", "loud", "flooded")


def request(dice, tag):
    """A chat that nobody has had before, short or long."""
    words = [tag, str(dice.random()), *(dice.choice(WORDS) for _ in range(dice.randrange(8, 120)))]
    return {"model": "base-model", "messages": [{"role": "user", "content": " ".join(words)}], "stream": True, "ignore_eos": True,
            "temperature": 0, "max_tokens": dice.randrange(8, 64)}  # fmt: skip


def arrivals(dice, rate, tag):
    """When requests come, in seconds, and which."""
    came, at = [], dice.expovariate(rate)
    while at < args.seconds:
        came.append((at, request(dice, tag)))
        at += dice.expovariate(rate)
    return came


async def ask(server, key, body):
    """Seconds to the first token of an answer, which is read to its end."""
    begun, first = time.perf_counter(), None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = json.dumps(body).encode()
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {key}\r\n"
                 f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)  # fmt: skip
    status = await reader.readline()
    assert status.split()[1] == b"200", (status, await reader.read())
    while line := await reader.readline():
        if first is None and b'"content":"' in line and b'"content":""' not in line:
            first = time.perf_counter() - begun
    writer.close()
    assert first is not None, "no token"
    return first


async def play(server, key, came):
    """Asks each request when it comes, whatever has become of those before."""
    async def later(at, body):
        await asyncio.sleep(at)
        return await ask(server, key, body)

    return await asyncio.gather(*(later(at, body) for at, body in came))


async def flood(server, key, streams, dice):
    """Asks on, in so many streams, until it is cancelled; how many were answered is the list's length."""
    answered = []

    async def stream():
        while True:
            await ask(server, key, request(dice, "flood"))
            answered.append(time.perf_counter())

    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    try:
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        return answered
    finally:
        [task.cancel() for task in tasks]


async def for_a_while(flooding, seconds):
    task = asyncio.create_task(flooding)
    await asyncio.sleep(seconds)
    task.cancel()
    return await task


def p95(times):
    return sorted(times)[int(0.95 * len(times))]


async def round_of(server, keys, rate, number):
    """The p95 of the quiet tenant in each part of a round."""
    quiet, loud = keys
    seen = {}
    # Which comes first is turned round, so that a drift is in all.
    for part in PARTS if number % 2 else PARTS[::-1]:
        same, others = random.Random(number), random.Random(1000 + number)
        neighbour = None
        if part in ("equal", "loud"):
            neighbour = play(server, loud, arrivals(others, rate * (4 if part == "loud" else 1), part))
        elif part == "flooded":
            neighbour = for_a_while(flood(server, loud, STREAMS, others), args.seconds)
        came = play(server, quiet, arrivals(same, rate, f"{part} {number}"))
        times, _ = await asyncio.gather(came, neighbour or asyncio.sleep(0))
        seen[part] = p95(times)
        print(f"round {number}, {part}: {len(times)} requests, p50 {1e3 * statistics.median(times):.0f} ms, "
              f"p95 {1e3 * seen[part]:.0f} ms", flush=True)  # fmt: skip
    return seen


async def measure(server, keys):
    answered = await for_a_while(flood(server, keys[1], 16, random.Random(0)), 20)
    # Of the second half: by then there is no beginning in it.
    capacity = sum(at > answered[-1] - 10 for at in answered) / 10
    rate = args.load * capacity / 5
    print(f"16 streams are answered {capacity:.2f} times a second; at {args.load:.0%} of it the quiet tenant asks {rate:.2f} "
          f"and the loud one {4 * rate:.2f} times a second", flush=True)  # fmt: skip
    rounds = [await round_of(server, keys, rate, number) for number in range(args.rounds)]
    ratios = {}
    for part, base in (("equal", "alone"), ("loud", "alone"), ("loud", "equal"), ("flooded", "alone"), ("flooded", "equal")):
        of_rounds = sorted(seen[part] / seen[base] for seen in rounds)
        ratios[part, base] = statistics.median(of_rounds)
        print(f"{part} / {base}: {ratios[part, base]:.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in of_rounds)})")
    return ratios


def main():
    with with_tenants(("quiet", "loud"), "infer") as (server, keys):
        ratios = asyncio.run(measure(server, keys))
        if ratios["loud", "alone"] >= args.at_most:
            sys.exit("the loud tenant is heard")


main()
