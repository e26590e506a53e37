#!/usr/bin/env python3
"""A server that is asked for five times what it can do goes on doing what it can: its goodput (answers within the SLO a second) is at
least 90 % of its peak; who is refused is told so within 50 ms, and when to come again; and its memory does not grow. Nothing else
should run meanwhile.

The peak is the best goodput of some rates about what a closed loop of sixteen reaches, each in an open loop (Poisson) by `chorus bench`;
the overload is five times the rate of that peak, by the same program. Four tenants ask for the example adapters and the base. How long
refusals take is seen by a client beside it that asks five times a second, in a connection of its own each time, from before that is
opened until the whole answer is there. Both clients run on the server's own cores: what they cost is in all figures, and said.

The server is told what its clients want: so many side by side that a token comes in time (24 here), and half a second to wait at most,
which leaves the rest of the SLO's two to the prompt.

    python3 -B overload.py [--overload-seconds 300] [--slo ttft=2s,itl=150ms] [-- OPTIONS OF THE SERVER]"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chorus import BINARY, CONFIG, ROOT, WEIGHTS, Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--overload-seconds", type=float, default=300)
parser.add_argument("--times", type=float, default=5, help="the rate of the peak")
parser.add_argument("--peak-seconds", type=float, default=45, help="of each rate that is tried for the peak")
parser.add_argument("--rates", type=float, nargs="+", default=[0.75, 0.9, 1.05], help="tried for the peak, to a closed loop's")
parser.add_argument("--slo", default="ttft=2s,itl=150ms")
parser.add_argument("--words", default="64", help="of prompts")
parser.add_argument("--tokens", default="32", help="of answers")
parser.add_argument("--tenants", type=int, default=4)
parser.add_argument("--at-least", type=float, default=0.9, help="of the peak's goodput")
parser.add_argument("--refused-within", type=float, default=50, help="milliseconds, of 99 of 100")
parser.add_argument("--reports", type=Path, help="a folder for the reports of chorus bench")
parser.add_argument("server", nargs="*", default=["--max-running", "24", "--max-wait", "500ms"], help="options of the server, after --")
args = parser.parse_args()

ADAPTERS = ["base", *sorted(folder.name for folder in (ROOT / "adapters").iterdir() if folder.is_dir())]
GAUGES = ("chorus_requests_running ", "chorus_requests_waiting ")


class Load:
    """`chorus bench` on a server, with all that does not change from run to run."""

    def __init__(self, server, model, keys, folder):
        self.folder = args.reports or Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        tenants = Path(folder) / "tenants"
        tenants.touch(mode=0o600)
        tenants.write_text("".join(f"{name}={key}\n" for name, key in keys.items()))
        self.command = [BINARY, "bench", "--url", server.url, "--tenants-file", tenants, "--model", model, "--adapters",
                        ",".join(ADAPTERS), "--order", "zipf:0.9", "--prompt-words", args.words, "--output-tokens", args.tokens,
                        "--slo", args.slo, "--timeout", "2m", "--max-in-flight", "4096"]  # fmt: skip
        self.seed = 0

    async def run(self, name, *options):
        """The report of one run. Its prompts are its own: nothing that is kept of others counts."""
        self.seed += 1
        report = self.folder / f"{name}.json"
        command = [*self.command, "--label", name, "--seed", self.seed, "--json", report, *options]
        process = await asyncio.create_subprocess_exec(*map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, said = await process.communicate()
        if process.returncode != 0:
            sys.exit(f"chorus bench: {said.decode()}")
        return json.loads(report.read_text())


def told(report):
    """A report in a line."""
    requests, rates, client = report["requests"], report["throughput"], report["client"]
    ttft, tpot = report["latency"]["ttft"] or {}, report["latency"]["tpot"] or {}

    def shown(spread):
        return f"{spread['p50']:.0f}/{spread['p95']:.0f}" if spread else "-"

    return (f"{requests['sent']} sent, {requests['done']} done, {requests['refused']} refused, {requests['failed']} failed; goodput "
            f"{rates['good_requests_s']:.2f}/s of {rates['requests_s']:.2f}/s answered, {rates['output_tokens_s']:.0f} tok/s; TTFT p50/p95 "
            f"{shown(ttft)} ms, per token {shown(tpot)} ms; fairness {report['fairness']['served']:.3f}; the client took "
            f"{client['cpu_s'] or 0:.1f} s of {os.cpu_count()} x {report['wall_s']:.0f} s, wake-ups p99 {client['wake_ms']['p99']:.1f} ms"
            f"{''.join(f'; {warning}' for warning in report['warnings'])}")  # fmt: skip


class Probe:
    """Asks five times a second, and notes how long refusals take."""

    def __init__(self, server, key):
        self.server, self.key = server, key
        self.refused, self.answered, self.wrong = [], 0, []

    async def ask(self, number):
        body = json.dumps({"model": ADAPTERS[1], "prompt": f"Customer {number} wrote that", "max_tokens": 1}).encode()
        begun = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            head = (f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.server.port}\r\nAuthorization: Bearer {self.key}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n")  # fmt: skip
            writer.write(head.encode() + body)
            answer = await reader.read()
            took = 1e3 * (time.perf_counter() - begun)
            writer.close()
        except OSError as error:
            self.wrong.append(f"{error}")
            return
        head = answer.split(b"\r\n\r\n")[0].decode().lower().split("\r\n")
        status = head[0].split()[1:2]
        if status == ["200"]:
            self.answered += 1
        elif status in (["429"], ["503"]) and any(line.startswith("retry-after: ") for line in head):
            self.refused.append(took)
        else:
            self.wrong.append(answer[:300].decode())

    async def go_on(self):
        asked, number = set(), 0
        try:
            while True:
                task = asyncio.create_task(self.ask(number))
                asked.add(task)
                task.add_done_callback(asked.discard)
                number += 1
                await asyncio.sleep(0.2)
        finally:
            for task in asked:
                task.cancel()


async def watch(server, headers, seen):
    """The server's memory every ten seconds, and how much it has to do."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(10)
        text = (await asyncio.to_thread(server.http.get, server.url + "/metrics", headers=headers, timeout=30)).text
        gauges = [int(float(line.split()[1])) for line in text.splitlines() if line.startswith(GAUGES)]
        seen.append((time.monotonic() - begun, server.resident(), gauges))


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def measure(server, operator, keys, folder):
    load = Load(server, "base-model", keys, folder)
    closed = await load.run("closed", "--concurrency", 16, "--duration", "20s", "--warmup", "each")
    print(f"16 at once: {told(closed)}", flush=True)
    capacity, tried = closed["throughput"]["requests_s"], []
    for part in args.rates:
        rate = round(part * capacity, 2)
        report = await load.run(f"rate-{rate}", "--rate", rate, "--duration", f"{args.peak_seconds}s")
        tried.append((report["throughput"]["good_requests_s"], rate))
        print(f"{rate}/s: {told(report)}", flush=True)
    peak, rate = max(tried)

    before, seen = server.resident(), []
    probe = Probe(server, next(iter(keys.values())))
    beside = [asyncio.create_task(probe.go_on()), asyncio.create_task(watch(server, {"Authorization": f"Bearer {operator}"}, seen))]
    over = await load.run("overload", "--rate", round(args.times * rate, 2), "--duration", f"{args.overload_seconds}s")
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    print(f"{args.times:g} times {rate}/s: {told(over)}")
    print(f"probes: {probe.answered} answered, {len(probe.refused)} refused, {len(probe.wrong)} neither {probe.wrong[:2] or ''}")
    print(f"running and waiting, every ten seconds: {' '.join('+'.join(map(str, gauges)) for _, _, gauges in seen)}")
    print(f"resident MB before {before / 1e6:.0f}, then every ten seconds: {' '.join(f'{held / 1e6:.0f}' for _, held, _ in seen)}")

    wrong = []
    part = over["throughput"]["good_requests_s"] / peak
    print(f"goodput: {part:.1%} of the peak's {peak:.2f}/s")
    if part < args.at_least:
        wrong.append("goodput falls")
    if over["requests"]["failed"] or probe.wrong:
        wrong.append(f"requests failed: {over['errors']}")
    if probe.refused:
        p50, p99, most = statistics.median(probe.refused), percentile(probe.refused, 0.99), max(probe.refused)
        slow = sum(took > args.refused_within for took in probe.refused)
        print(f"refusals: p50 {p50:.1f} ms, p95 {percentile(probe.refused, 0.95):.1f} ms, p99 {p99:.1f} ms, at most {most:.1f} ms; "
              f"{slow} of {len(probe.refused)} took longer than {args.refused_within:g} ms")  # fmt: skip
        if p99 > args.refused_within:
            wrong.append("refusals take long")
    else:
        wrong.append("nobody was refused")
    # From a minute on: by then all memory that this load needs is in use.
    settled = [held for at, held, _ in seen if at >= min(60, args.overload_seconds / 3)]
    half = len(settled) // 2
    grown = max(settled[half:]) / max(settled[:half])
    print(f"memory: at most {max(settled[half:]) / 1e6:.0f} MB in the second half, {grown - 1:+.1%} of that in the first")
    if grown > 1.02:
        wrong.append("memory grows")
    return wrong


def main():
    # The clients' connections, all of which may wait at once.
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    operator = "operator-" + os.urandom(16).hex()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        env = {"CHORUS_OPERATOR_KEY": operator}
        server = stack.enter_context(Server(f"{folder}/store", *args.server, env=env))
        keys = {}
        for number in range(args.tenants):
            name = f"tenant-{number}"
            for path, body in (("", {"name": name}), (f"/{name}/keys", {"scope": "upload"})):
                headers = {"Authorization": f"Bearer {operator}"}
                answer = server.http.post(f"{server.url}/v1/admin/tenants{path}", json=body, headers=headers)
                assert answer.status_code == 201, answer.text
            keys[name] = answer.json()["key"]
            for adapter in ADAPTERS[1:]:
                files = {file: (ROOT / "adapters" / adapter / file).read_bytes() for file in (CONFIG, WEIGHTS)}
                answer = server.put(adapter, files, headers={"Authorization": f"Bearer {keys[name]}"})
                assert answer.status_code == 201, answer.text
        wrong = asyncio.run(measure(server, operator, keys, folder))
    if wrong:
        sys.exit("; ".join(wrong))


main()
