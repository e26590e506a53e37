#!/usr/bin/env python3
"""Foreign and unknown names cannot be told apart by time: 2,000 tries of each in turn, by header and by model, two-sample
Kolmogorov-Smirnov test (Smirnov 1948; p by the asymptotic series). Nothing else should run meanwhile."""

import math
import os
import sys
import tempfile
import time

from chorus import Server, mini

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
    operator = "operator-" + os.urandom(16).hex()
    with Server(tempfile.mkdtemp(), env={"CHORUS_OPERATOR_KEY": operator}) as server:
        def admin(path, json):
            answer = server.http.post(server.url + "/v1/admin/tenants" + path, json=json, headers={"Authorization": f"Bearer {operator}"})
            assert answer.status_code == 201, answer.text
            return answer.json()

        keys = []
        for name in ("mine", "theirs"):
            admin("", {"name": name})
            keys.append(admin(f"/{name}/keys", {"scope": "admin"})["key"])
        mine, theirs = ({"Authorization": f"Bearer {key}"} for key in keys)
        foreign, unknown = [f"foreign{n:04d}" for n in range(50)], [f"unknown{n:04d}" for n in range(50)]
        for at, name in enumerate(foreign):
            assert server.put(name, mini(at), headers=theirs).status_code == 201
        bad = 0
        for way in ("header", "model", "show"):
            times = {"foreign": [], "unknown": []}
            for turn in range(TRIES):
                # Which comes first is turned round, so that a drift is in both.
                for kind in ("foreign", "unknown") if turn % 2 else ("unknown", "foreign"):
                    name = (foreign if kind == "foreign" else unknown)[turn % 50]
                    begun = time.perf_counter()
                    if way == "header":
                        answer = server.complete("base-model", 1, headers={**mine, "X-Adapter": name})
                    elif way == "model":
                        answer = server.complete(name, 1, headers=mine)
                    else:
                        answer = server.http.get(f"{server.url}/v1/adapters/{name}", headers=mine)
                    times[kind].append(time.perf_counter() - begun)
                    assert answer.status_code == 404, answer.text
            distance, chance = ks(times["foreign"], times["unknown"])
            medians = [1e6 * sorted(times[kind])[TRIES // 2] for kind in ("foreign", "unknown")]
            print(f"{way}: {TRIES} tries of each, median {medians[0]:.0f} and {medians[1]:.0f} us, D = {distance:.4f}, p = {chance:.3f}")
            # Three ways are tried.
            bad += chance < 0.05 / 3
    sys.exit(bad > 0)


main()
