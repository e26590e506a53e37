#!/usr/bin/env python3
"""1,000 adapters uploaded, memory for 32 of them, Zipf 1.0, 16 streams: no error, each answer is what that adapter said
alone, and memory stays flat."""

import argparse
import random
import sys
import tempfile
import threading
import time

from chorus import ROOT, Server, turned

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--adapters", type=int, default=1000)
args = parser.parse_args()


def main():
    prompt = "Once upon a time there was a girl who"
    with Server(tempfile.mkdtemp(), "--adapter-cache-bytes", str(32 * 930_000)) as server:
        begun = time.monotonic()
        for number in range(args.adapters):
            answer = server.put(f"n{number}", turned(ROOT / "adapters" / "sentiment", number))
            assert answer.status_code == 201, answer.text
        print(f"{args.adapters} uploads in {time.monotonic() - begun:.0f} s", flush=True)
        alone = []
        for number in range(args.adapters):
            answer = server.complete(f"n{number}", 12, prompt)
            assert answer.status_code == 200, answer.text
            alone.append(answer.json()["choices"][0]["text"])
        print(f"{len(set(alone))} different answers", flush=True)
        weights = [1 / (rank + 1) for rank in range(args.adapters)]
        order = list(range(args.adapters))
        random.Random(5).shuffle(order)
        count, errors, stop, lock = [0], [], threading.Event(), threading.Lock()

        def stream(seed):
            dice = random.Random(seed)
            while not stop.is_set():
                number = order[dice.choices(range(args.adapters), weights)[0]]
                answer = server.complete(f"n{number}", 12, prompt)
                with lock:
                    count[0] += 1
                    if answer.status_code != 200:
                        errors.append(f"{answer.status_code} {answer.text}")
                    elif answer.json()["choices"][0]["text"] != alone[number]:
                        errors.append(f"n{number} said what it does not say alone")

        threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(16)]
        [thread.start() for thread in threads]
        memory = []
        for _ in range(10):
            time.sleep(6 * args.minutes)
            memory.append(server.resident())
        stop.set()
        [thread.join() for thread in threads]
        metrics = server.http.get(server.url + "/metrics").text
        shown = [line for line in metrics.splitlines() if line.startswith(("chorus_adapter_hits", "chorus_adapter_misses", "chorus_adapter_evict"))]
        print(f"{count[0]} requests in {args.minutes} min, {len(errors)} errors {errors[:3]}; resident MB "
              f"{[round(m / 1e6) for m in memory]}; {'; '.join(shown)}")  # fmt: skip
        # From the second tenth on: by then all memory for keys and values that this load needs is in use.
        if errors or memory[-1] > 1.1 * memory[1]:
            sys.exit("errors, or memory grows")


main()
