#!/usr/bin/env python3
"""Measures a server on the device that CHORUS_TEST_DEVICE names (default: cpu), with `chorus bench` of the same program: tokens a second, time to
first token and per token, by streams and adapters; what adapters cost against the base; step time against the time in which the
device reads the base once; and many adapters with room for few.

    CHORUS_TEST_DEVICE=cuda:0 python3 benches/compare/device.py MODEL.gguf --shape 8b --bandwidth 4800 [--binary CHORUS] [--quick]

Adapters are random ones of rank 16, and of ranks 8 to 64 (needs numpy). Each figure is the median of --rounds."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from servers import HERE, ROOT, WORK, Chorus

SHAPES = {
    "135m": {},
    "1b": {"hidden": 2048, "kv": 512, "ffn": 8192, "layers": 16},
    "8b": {"hidden": 4096, "kv": 1024, "ffn": 14336, "layers": 32},
}
SEEDS = itertools.count(1)


def adapters(shape, count, ranks):
    folder = WORK / f"device-{shape}-{ranks}"
    options = [f"--{key}={value}" for key, value in SHAPES[shape].items()]
    made = len(list(folder.glob("rand-*"))) if folder.exists() else 0
    if made < count:
        command = [sys.executable, HERE / "gen_adapters.py", folder, "-n", count, "--ranks", ranks, "--dtype", "f16", *options]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob("rand-*"))[:count]


class Load:
    def __init__(self, args):
        self.args, self.rows = args, []

    def ask(self, server, streams, names, tokens=128, requests=None, order="round"):
        """The medians of some rounds: tokens a second, and milliseconds."""
        rounds = []
        for _ in range(1 if self.args.quick else self.args.rounds):
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                command = [
                    self.args.program, "bench", "--url", server.url, "--model", "bench", "-c", streams, "-n", requests or 2 * streams,
                    "--adapters", ",".join(names) or "base", "--order", order, "--select", "header", "--warmup", "each",
                    "--prompt-words", 64, "--output-tokens", tokens, "--seed", next(SEEDS), "--json", file.name,
                ]  # fmt: skip
                done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
                if done.returncode != 0:
                    sys.exit(f"{done.stderr}\n{server.log}")
                report = json.loads(Path(file.name).read_text())
            latency = report["latency"]
            rounds.append((report["throughput"]["output_tokens_s"], latency["ttft"]["p50"], latency["tpot"]["p50"]))
        return [statistics.median(figures) for figures in zip(*rounds)]

    def add(self, what, figures, note=""):
        speed, first, step = figures
        self.rows.append(f"| {what} | {speed:.0f} | {first:.0f} | {step:.2f} | {note} |")
        print(self.rows[-1], flush=True)


def measure(load, args, served):
    floor = 1000 * args.model.stat().st_size / (args.bandwidth * 1e9) if args.bandwidth else None
    base = {}
    names = [adapter.name for adapter in served]
    for streams in args.streams:
        for count in args.adapters:
            if count > len(names) or count > 2 * streams:
                continue
            figures = load.ask(args.server, streams, names[:count])
            note = []
            if count == 0:
                base[streams] = figures
                if floor:
                    note.append(f"{figures[2] / floor:.2f} times the {floor:.2f} ms in which the base is read once")
            else:
                note.append(f"{100 * (figures[2] / base[streams][2] - 1):+.1f} % a token against the base")
            load.add(f"{streams} streams, {count} adapters", figures, "; ".join(note))


def plan(server):
    """What the server printed of its device."""
    lines = Path(server.log).read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("  device")), None)
    return "" if start is None else "\n".join(itertools.takewhile(lambda line: not line.startswith("  base"), lines[start:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path)
    add("--shape", choices=SHAPES, default="135m")
    add("--binary", type=Path)
    add("--bandwidth", type=float, help="of the device's memory, in GB/s: for the floor of a step")
    add("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32, 128])
    add("--adapters", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 32, 256])
    add("--many", type=int, default=1000, help="adapters with room for --room of them")
    add("--room", type=int, default=64)
    add("--rounds", type=int, default=3)
    add("--quick", action="store_true", help="one round")
    args = parser.parse_args()
    device = os.environ.get("CHORUS_TEST_DEVICE", "cpu")
    chorus = Chorus(args.binary)
    args.program, load = chorus.binary, Load(args)
    most = max(args.streams)
    options = ["--device", device, "--max-running", most, "--max-waiting", 4 * most, "--adapter-slots", min(most, 256),
               "--step-tokens", max(256, 2 * most), "--kv-bytes", "16GiB" if device.startswith("cuda") else "2GiB",
               "--adapter-cache-bytes", "64GiB" if device.startswith("cuda") else "8GiB"]  # fmt: skip
    on_gpu = device.startswith("cuda")
    print(f"{chorus.version()}, {device}, {args.model.name}, {datetime.date.today()}\n")
    print("| | tokens/s | TTFT p50, ms | per token p50, ms | |\n|---|---|---|---|---|")
    served = adapters(args.shape, max(args.adapters), "16")
    with chorus.start(args.model, served, [*options, *(["--device-adapter-bytes", "24GiB"] if on_gpu else [])]) as args.server:
        measure(load, args, served)
        about = plan(args.server)
    mixed = adapters(args.shape, min(32, max(args.adapters)), "8,16,32,64")
    with chorus.start(args.model, mixed, [*options, *(["--device-adapter-bytes", "24GiB"] if on_gpu else [])]) as server:
        streams = min(32, most)
        figures = load.ask(server, streams, [adapter.name for adapter in mixed])
        load.add(f"{streams} streams, {len(mixed)} adapters of ranks 8 to 64", figures)
    many = adapters(args.shape, args.many, "16")
    size = (many[0] / "adapter_model.safetensors").stat().st_size
    room = ["--device-adapter-bytes" if on_gpu else "--adapter-cache-bytes", int(1.05 * size * args.room)]
    kept = options if on_gpu else [part for pair in zip(options[::2], options[1::2]) for part in pair if pair[0] != room[0]]
    for what, extra in [("all there", []), (f"room for {args.room}", room)]:
        chosen = [*(kept if extra else options), *extra]
        if on_gpu and not extra:
            chosen += ["--device-adapter-bytes", int(1.05 * size * args.many)]
        with chorus.start(args.model, many, chosen) as server:
            streams = min(32, most)
            names = [adapter.name for adapter in many]
            figures = load.ask(server, streams, names, requests=10 * streams, order="zipf:1.0")
            load.add(f"{streams} streams, {args.many} adapters by Zipf 1.0, {what}", figures)
    print(f"\n```\n{about}\n```")


if __name__ == "__main__":
    main()
