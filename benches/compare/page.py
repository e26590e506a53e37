#!/usr/bin/env python3
"""`chorus bench` on chorus and on llama.cpp's server, with one scenario (benches/scenarios/two-servers.toml): prints medians and ratios, and
writes the comparison of the middle round as one page.

    python3 benches/compare/page.py [--rounds 3] [--html both.html] [--install]

Both servers run all the time, and are asked in turn, round by round. Needs target/release/chorus and the default base; `--install` builds
llama.cpp's server from PyPI's sources first (ten minutes)."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import SMALL
from servers import ROOT, Chorus, LlamaCpp

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--html", type=Path, help="where the page goes")
parser.add_argument("--install", action="store_true")
parser.add_argument("--binary", type=Path, help="the program, where it is not target/release/chorus")
args = parser.parse_args()

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SCENARIO = ROOT / "benches" / "scenarios" / "two-servers.toml"
# That of the scenario: llama.cpp knows adapters by their place.
ADAPTERS = ["pirate", "sentiment", "sql", "support-json"]
LOADS = {
    "16 streams, 4 adapters": (),
    "16 streams, no adapter": ("--adapters", "base"),
    "one stream, 4 adapters": ("-c", 1, "-n", 8),
    "one stream, no adapter": ("-c", 1, "-n", 8, "--adapters", "base"),
}
SEEDS = itertools.count(1)
FIGURES = {
    "tok/s": lambda report: report["throughput"]["output_tokens_s"],
    "median TTFT, ms": lambda report: report["latency"]["ttft"]["p50"],
    "median time per token, ms": lambda report: report["latency"]["tpot"]["p50"],
}


def bench(program, *command):
    command = [str(part) for part in (program, "bench", *command)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def main():
    chorus, llama = Chorus(args.binary), LlamaCpp("Q4_0")
    if args.install:
        llama.install()
    if not llama.installed():
        sys.exit("llama.cpp's server is not there; --install builds it")
    folders = [ROOT / "adapters" / name for name in ADAPTERS]
    with (
        tempfile.TemporaryDirectory() as kept,
        chorus.start(MODEL, folders) as ours,
        llama.start(MODEL, folders, shape=SMALL) as theirs,
    ):
        for load, options in LOADS.items():
            rounds = []
            for number in range(args.rounds):
                # Prompts that neither was asked before: what a server keeps of earlier ones must not count.
                seed, files = next(SEEDS), []
                for server, select, label in ((ours, "header", "chorus"), (theirs, "lora", "llama.cpp")):
                    file = Path(kept) / f"{label}-{number}.json"
                    bench(chorus.binary, "--scenario", SCENARIO, *options, "--url", server.url, "--model", "bench", "--select", select,
                          "--label", label, "--seed", seed, "--json", file)  # fmt: skip
                    files.append(file)
                reports = [json.loads(file.read_text()) for file in files]
                rounds.append(({name: [figure(report) for report in reports] for name, figure in FIGURES.items()}, files))
                failed = [report["requests"]["sent"] - report["requests"]["done"] for report in reports]
                if any(failed):
                    print(f"{load}, round {number + 1}: {failed[0]} of chorus's and {failed[1]} of llama.cpp's requests failed")
            print(f"\n| {load} | chorus | llama.cpp | ratio by round |\n|---|---|---|---|")
            for name in FIGURES:
                pairs = [figures[name] for figures, _ in rounds]
                sides = (f"{statistics.median(side):.1f} ({min(side):.1f}, {max(side):.1f})" for side in zip(*pairs))
                ratios = ", ".join(f"{one / other:.2f}" for one, other in pairs)
                print(f"| {name} | {' | '.join(sides)} | {ratios} |", flush=True)
            if args.html and not options:
                rounds.sort(key=lambda round: round[0]["tok/s"][0] / round[0]["tok/s"][1])
                bench(chorus.binary, "--compare", *rounds[len(rounds) // 2][1], "--html", args.html)


main()
