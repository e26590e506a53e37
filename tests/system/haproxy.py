#!/usr/bin/env python3
"""Two servers behind haproxy (Debian's package; consistent hash on X-Adapter with bounded load) on one store: what is uploaded
through one is used through the other; one is killed under load, and only its requests in flight fail."""

import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import requests
from chorus import Server, free_port, mini

CONFIG = """
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    option redispatch
    retries 3
frontend in
    bind 127.0.0.1:{port}
    default_backend chorus
backend chorus
    balance hdr(X-Adapter)
    hash-type consistent
    hash-balance-factor 150
    option httpchk
    http-check send meth GET uri /ready hdr Host localhost
    server one 127.0.0.1:{one} check inter 200ms fall 2 rise 1
    server two 127.0.0.1:{two} check inter 200ms fall 2 rise 1
"""


def main():
    store, names = tempfile.mkdtemp(), [f"n{number}" for number in range(20)]
    with Server(store, "--store-refresh", "1s") as one, Server(store, "--store-refresh", "1s") as two:
        port = free_port()
        config = tempfile.NamedTemporaryFile("w", suffix=".cfg")
        config.write(CONFIG.format(port=port, one=one.port, two=two.port))
        config.flush()
        haproxy = subprocess.Popen(["haproxy", "-f", config.name, "-db"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            time.sleep(1)
            for number, name in enumerate(names):
                # To one of them; the balance decides who answers for it.
                assert (one, two)[number % 2].put(name, mini(number)).status_code == 201
            alone = {name: one.complete(name).json()["choices"][0]["text"] for name in names}
            results, stop, lock = [], threading.Event(), threading.Lock()

            def load(seed):
                dice = random.Random(seed)
                while not stop.is_set():
                    name, begun = dice.choice(names), time.monotonic()
                    body = {"model": name, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
                    try:
                        answer = requests.post(url + "/v1/completions", json=body, headers={"X-Adapter": name}, timeout=60)
                        right = answer.status_code == 200 and answer.json()["choices"][0]["text"] == alone[name]
                        wrong = answer.status_code == 200 and not right
                        outcome = "right" if right else "wrong" if wrong else str(answer.status_code)
                    except requests.RequestException as error:
                        outcome = type(error).__name__
                    with lock:
                        results.append((begun, time.monotonic(), outcome))

            threads = [threading.Thread(target=load, args=(seed,)) for seed in range(8)]
            [thread.start() for thread in threads]
            time.sleep(5)
            before = two.http.get(two.url + "/metrics").text
            killed = time.monotonic()
            two.process.send_signal(signal.SIGKILL)
            time.sleep(8)
            stop.set()
            [thread.join() for thread in threads]
        finally:
            haproxy.kill()
    used = [line for line in before.splitlines() if line.startswith("chorus_generation_tokens_total ")]
    failed = [(begun, ended, outcome) for begun, ended, outcome in results if outcome != "right"]
    late = [entry for entry in failed if entry[0] > killed]
    flight = sum(begun < killed < ended for begun, ended, _ in results)
    print(f"{len(results)} requests, {len(failed)} failed of {flight} in flight at the kill: {sorted({o for *_, o in failed})}; "
          f"{len(late)} of those begun later; the killed one had {used[0].split()[1]} tokens generated")  # fmt: skip
    if any(outcome == "wrong" for *_, outcome in failed) or late or len(failed) > flight or float(used[0].split()[1]) == 0:
        sys.exit("more failed than what the killed server had in flight, or an answer was wrong")


main()
