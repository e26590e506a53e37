#!/usr/bin/env python3
"""Foreign and unknown names cannot be told apart by time: 2,000 tries of each in turn, in each way to name an adapter,
two-sample Kolmogorov-Smirnov test (Smirnov 1948; p by the asymptotic series). Nothing else should run meanwhile."""

import math
import random
import sys
import time

from chorus import mini, with_tenants

TEXT = {"prompt": "Once", "max_tokens": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
# Method, path, whether the header names the adapter, and the body.
WAYS = {
    "completions by header": ("POST", "/v1/completions", True, {**TEXT, "model": "base-model"}),
    "completions by model": ("POST", "/v1/completions", False, {**TEXT, "model": "NAME"}),
    "chat by header": ("POST", "/v1/chat/completions", True, CHAT),
    "chat by model": ("POST", "/v1/chat/completions", False, {**CHAT, "model": "NAME"}),
    "chat stream by model": ("POST", "/v1/chat/completions", False, {**CHAT, "model": "NAME", "stream": True}),
    "show": ("GET", "/v1/adapters/NAME", False, None),
    "show as model": ("GET", "/v1/models/NAME", False, None),
    "file": ("GET", "/v1/adapters/NAME/files/adapter_config.json", False, None),
    "activate": ("POST", "/v1/adapters/NAME/activate", False, {"version": 1}),
    "prefetch": ("POST", "/v1/adapters/NAME/prefetch", False, None),
    "delete": ("DELETE", "/v1/adapters/NAME", False, None),
}
TRIES = int(sys.argv[1]) if len(sys.argv) > 1 else 2000


def ks(one, two):
    """The largest distance of the two empirical distributions, and how likely that or more is by chance."""
    one, two = sorted(one), sorted(two)
    distance, i, j = 0.0, 0, 0
    while i < len(one) and j < len(two):
        at = min(one[i], two[j])
        while i < len(one) and one[i] <= at:
            i += 1
        while j < len(two) and two[j] <= at:
            j += 1
        distance = max(distance, abs(i / len(one) - j / len(two)))
    scale = math.sqrt(len(one) * len(two) / (len(one) + len(two))) * distance
    return distance, min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * scale * scale) for k in range(1, 101))))


def main():
    with with_tenants(("mine", "theirs"), "admin") as (server, keys):
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in keys)
        foreign, unknown = [f"foreign{n:04d}" for n in range(50)], [f"unknown{n:04d}" for n in range(50)]
        for at, name in enumerate(foreign):
            assert server.put(name, mini(at), headers=theirs).status_code == 201
        bad, dice = 0, random.Random(1)
        for way, (method, path, header, body) in WAYS.items():
            times = {"foreign": [], "unknown": []}
            for turn in range(TRIES):
                # Which comes first is drawn by lot: a drift is in both, and so is what goes round among threads.
                for kind in dice.sample(sorted(times), 2):
                    name = (foreign if kind == "foreign" else unknown)[turn % 50]
                    headers = {**mine, "X-Adapter": name} if header else mine
                    url = server.url + path.replace("NAME", name)
                    filled = body and {key: name if value == "NAME" else value for key, value in body.items()}
                    begun = time.perf_counter()
                    answer = server.http.request(method, url, json=filled, headers=headers)
                    times[kind].append(time.perf_counter() - begun)
                    assert answer.status_code == 404, answer.text
            distance, chance = ks(times["foreign"], times["unknown"])
            medians = [1e6 * sorted(times[kind])[TRIES // 2] for kind in ("foreign", "unknown")]
            print(f"{way}: {TRIES} tries of each, median {medians[0]:.0f} and {medians[1]:.0f} us, D = {distance:.4f}, p = {chance:.3f}", flush=True)
            # So many ways are tried that one of them would often come out below 0.05 by chance.
            bad += chance < 0.05 / len(WAYS)
    sys.exit(bad > 0)


main()
