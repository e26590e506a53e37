#!/usr/bin/env python3
"""Holds `chorus bench` against loadgen.py: both put the same load on one server at the same time, so that what the machine does to one it
does to the other. Prints, for each figure, both medians and the median, least and greatest ratio of the rounds.

    python3 benches/compare/clients.py [--rounds 7] [--concurrency 8] [--requests 96] [--adapters pirate,sql]

Needs target/release/chorus and the default base. Exits with 1 where a median ratio is off by more than --within."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from servers import ROOT, Chorus

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--concurrency", type=int, default=8, help="of each of the two")
parser.add_argument("--requests", type=int, default=96, help="of each of the two")
parser.add_argument("--words", type=int, default=64)
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--adapters", default="", help="names with commas between them; none asks the base")
parser.add_argument("--within", type=float, default=0.05)
parser.add_argument("--binary", type=Path, help="the program, where it is not target/release/chorus")
args = parser.parse_args()

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def both(server, binary, number, folder):
    """The figures of both, by name."""
    report = Path(folder) / "bench.json"
    bench = [binary, "bench", "--url", server.url, "--model", "bench", "--select", "header", "--adapters", args.adapters or "base", "--order", "round",
             "-c", args.concurrency, "-n", args.requests, "--prompt-words", args.words, "--output-tokens", args.tokens, "--warmup", 2,
             "--seed", number, "--json", report]  # fmt: skip
    other = [sys.executable, ROOT / "benches" / "loadgen.py", "--url", server.url, "--model", "bench", "--select", "header:X-Adapter",
             "--adapters", args.adapters, "--concurrency", args.concurrency, "--requests", args.requests, "--prompt-words", args.words,
             "--gen", args.tokens, "--seed", 1000 + number]  # fmt: skip
    running = [subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in (bench, other)]
    said = [process.communicate() for process in running]
    for process, (_, error) in zip(running, said):
        if process.returncode != 0:
            sys.exit(f"{process.args[0]} failed: {error.decode()}")
    ours, theirs = json.loads(report.read_text()), json.loads(said[1][0])
    if ours["requests"]["done"] != args.requests or theirs["ok"] != args.requests:
        sys.exit(f"not all were answered: {ours['requests']}, {theirs['errors']}")
    ttft, itl = ours["latency"]["ttft"], ours["latency"]["itl"]
    return {
        "tokens a second": (ours["throughput"]["output_tokens_s"], theirs["tok_s"]),
        "TTFT, median, ms": (ttft["p50"], theirs["ttft_ms"]["50"]),
        "TTFT, 95th percentile, ms": (ttft["p95"], theirs["ttft_ms"]["95"]),
        "between parts, median, ms": (itl["p50"], theirs["itl_ms"]["50"]),
        "between parts, 95th percentile, ms": (itl["p95"], theirs["itl_ms"]["95"]),
    }


def main():
    chorus = Chorus(args.binary)
    names = [name for name in args.adapters.split(",") if name]
    with tempfile.TemporaryDirectory() as folder, chorus.start(MODEL, [ROOT / "adapters" / name for name in names]) as server:
        both(server, chorus.binary, 0, folder)
        rounds = [both(server, chorus.binary, number + 1, folder) for number in range(args.rounds)]
    print(f"| {args.rounds} rounds, {args.concurrency} streams of each | `chorus bench` | loadgen.py | ratio of a round: median (least, most) |")
    print("|---|---|---|---|")
    off = []
    for name in rounds[0]:
        pairs = [figures[name] for figures in rounds]
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        ratio = statistics.median(ratios)
        ours, theirs = (statistics.median(side) for side in zip(*pairs))
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ratio:.3f} ({ratios[0]:.3f}, {ratios[-1]:.3f}) |")
        if abs(ratio - 1) > args.within:
            off.append(name)
    sys.exit(f"off by more than {args.within:.0%}: {', '.join(off)}" if off else 0)


if __name__ == "__main__":
    main()
