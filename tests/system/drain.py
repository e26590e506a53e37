#!/usr/bin/env python3
"""A server that is told to end (SIGTERM) under 200 streams cuts none of them: each ends as it would have, with all its tokens; who comes
later is refused, and is told so; the process ends with status 0.

    python3 -B drain.py [--rounds 20] [--streams 200]"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time

from chorus import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--streams", type=int, default=200)
parser.add_argument("--tokens", type=int, default=24, help="of each answer")
args = parser.parse_args()


async def ask(server, number, begun):
    """What became of one stream: `whole`, or what is wrong with it. `begun` is told that it is sent."""
    body = {"model": "base-model", "prompt": f"Customer {number} wrote that", "stream": True, "ignore_eos": True, "seed": number,
            "max_tokens": args.tokens, "stream_options": {"include_usage": True}}  # fmt: skip
    data = json.dumps(body).encode()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
                     f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)  # fmt: skip
        await writer.drain()
        begun.release()
        status = (await reader.readline()).split()[1:2]
        rest = await reader.read()
        writer.close()
    except OSError as error:
        begun.release()
        return f"{error}"
    if status != [b"200"]:
        return f"status {status}"
    events = [line[6:] for line in rest.decode().splitlines() if line.startswith("data: ")]
    if not rest.endswith(b"0\r\n\r\n") or events[-1:] != ["[DONE]"]:
        return f"it was cut: {rest[-200:]}"
    events = [json.loads(event) for event in events[:-1]]
    reasons = [choice["finish_reason"] for event in events for choice in event.get("choices", []) if choice["finish_reason"]]
    tokens = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    return "whole" if (reasons, tokens) == (["length"], [args.tokens]) else f"it ended with {reasons} after {tokens} tokens"


async def late(server):
    """What a request is told that comes behind the signal."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"GET /ready HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.split()[1].decode() if answer else "closed"
    except OSError:
        return "refused"


async def round_of(server):
    begun = asyncio.Semaphore(0)
    streams = [asyncio.create_task(ask(server, number, begun)) for number in range(args.streams)]
    for _ in streams:
        await begun.acquire()
    # Sent is not yet read.
    await asyncio.sleep(0.5)
    running = sum(not stream.done() for stream in streams)
    server.process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    await asyncio.sleep(0.05)
    told = await late(server)
    became = await asyncio.gather(*streams)
    ended = await asyncio.to_thread(server.process.wait, 60)
    return running, told, [what for what in became if what != "whole"], ended, time.monotonic() - signalled


failures = 0
for number in range(args.rounds):
    with tempfile.TemporaryDirectory() as store, Server(store, "--drain-time", "60s", "--max-waiting", str(args.streams)) as server:
        running, told, cut, ended, seconds = asyncio.run(round_of(server))
    well = not cut and ended == 0 and told in ("503", "closed", "refused") and running > 0
    failures += not well
    print(f"round {number}: {running} of {args.streams} streams ran at the signal, {len(cut)} were not whole, a later request was told "
          f"{told}, status {ended} after {seconds:.1f} s {cut[:3] or ''}", flush=True)  # fmt: skip
sys.exit(f"{failures} of {args.rounds} rounds" if failures else 0)
