#!/usr/bin/env python3
"""Starts chorus and its rivals in turn under the same load and prints the ratios.

    python3 benches/compare/compare.py --install        builds chorus and fetches and builds the rivals
    python3 benches/compare/compare.py                  the whole table, as Markdown; raw figures beside it as JSON

Servers are asked in turn, never at the same time; each figure is the median of --rounds. The load is loadgen.py's:
prompts of 64 random words, 64 tokens, greedy, end-of-text ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

from servers import HERE, RIVALS, ROOT, THREADS, WORK, Chorus, LlamaCpp, MistralRs, Server, call

sys.path.insert(0, str(ROOT / "benches"))
import loadgen  # noqa: E402

SMALL = {"heads": 9, "kv_heads": 3, "hidden": 576, "kv": 192, "ffn": 1536, "layers": 30}
LARGE = {"heads": 32, "kv_heads": 8, "hidden": 2048, "kv": 512, "ffn": 8192, "layers": 16}
# A rival with a queue of its own answers the last of sixteen after minutes.
TIMEOUT = 1200


SEEDS = itertools.count(1)


def load(server: Server, concurrency, requests, adapters="", select=None, **options):
    """One run of loadgen.py. Fails loudly where a request fails: an error answered quickly is no throughput."""
    command = [sys.executable, ROOT / "benches" / "loadgen.py", "--url", server.url, "--model", "bench",
               "--concurrency", concurrency, "--requests", requests, "--timeout", TIMEOUT]  # fmt: skip
    if adapters:
        command += ["--adapters", adapters, "--select", select or server.select]
    # Prompts that were not asked before: what a server keeps of earlier ones must not count.
    options = {"gen": 64, "prompt-words": 64, "warmup": 1, "seed": next(SEEDS), **options}
    for key, value in options.items():
        command += [f"--{key}", value]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"loadgen on {server.name}: {done.stderr or done.stdout}")
    result = json.loads(done.stdout)
    if result["ok"] != result["requests"]:
        sys.exit(f"{server.name}: {result['errors']}; see {server.log}")
    return result


def restart_prompts(first=0):
    """The next server is asked what the last one was."""
    global SEEDS
    SEEDS = itertools.count(first + 1)


def adapters(count, shape, folder):
    """`count` generated adapters of rank 16 on all linear maps."""
    out = WORK / "adapters" / folder
    if not (out / f"rand-{count - 1:04d}" / "adapter_config.json").exists():
        python = LlamaCpp().python
        call(python, HERE / "gen_adapters.py", out, "-n", count, "-r", 16, "--dtype", "f16", "--scale", 0.3,
             "--hidden", shape["hidden"], "--kv", shape["kv"], "--ffn", shape["ffn"], "--layers", shape["layers"],
             log=WORK / "adapters.log")  # fmt: skip
    return [out / f"rand-{index:04d}" for index in range(count)]


class Figures:
    """Figures by (row, server), each a list with one number a round."""

    def __init__(self):
        self.all = {}

    def add(self, row, server, figure):
        self.all.setdefault(row, {}).setdefault(server, []).append(figure)
        print(f"  {row:44} {server:22} {figure:10.1f}", file=sys.stderr, flush=True)

    def median(self, row, server):
        found = self.all.get(row, {}).get(server)
        return statistics.median(found) if found else None


def shared(sides, model, shape, made, figures, rounds, quick):
    """The rows that rivals share. All servers of a row run at the same time, and are asked in turn: what else the machine
    does comes and goes within minutes, and would decide ratios of figures that were taken one after the other."""

    def start(stack, side, adapters=()):
        options = {} if isinstance(side, Chorus) else {"shape": shape}
        server = stack.enter_context(side.start(model, adapters, **options))
        load(server, 1, 1)
        return server

    prompts = itertools.count(100, 100)

    def rows(servers, asked):
        for _ in range(rounds):
            for ask in asked:
                # The next server is asked what the last one was, and none is asked anything twice.
                first = next(prompts)
                for server in servers:
                    restart_prompts(first)
                    ask(server)

    def speed(row, concurrency, count, select=None):
        def ask(server):
            if select:
                # What was evicted meanwhile is not what is measured.
                load(server, concurrency, concurrency, select, gen=1)
            result = load(server, concurrency, count, select)
            figures.add(row, server.name, result["tok_s"])
            return result

        return ask

    def long(server):
        result = load(server, 1, 1, gen=1, **{"prompt-words": 2000})
        figures.add("TTFT of 2,000 tokens alone, ms", server.name, result["ttft_ms"]["50"])

    def many(server):
        result = speed("16 streams, 16 adapters, tok/s", 16, 32, "rand-%04d*16")(server)
        figures.add("median TTFT there, ms", server.name, result["ttft_ms"]["50"])
        if not quick:
            poisson = load(server, 16, 16, "rand-%04d*16", rate=0.5)
            row = "Poisson, 0.5 requests/s, 16 adapters, median TTFT, ms"
            figures.add(row, server.name, poisson["ttft_ms"]["50"])

    with contextlib.ExitStack() as stack:
        servers = [start(stack, side) for side in sides]
        rows(servers, [speed("one stream, no adapter, tok/s", 1, 4)])
        # mistral.rs's module takes one request at a time, and no adapters.
        servers = [server for server in servers if server.name != MistralRs.name]
        rows(servers, [speed("16 streams, no adapter, tok/s", 16, 32)] + [long] * (not quick))
    sides = [side for side in sides if not isinstance(side, MistralRs)]
    with contextlib.ExitStack() as stack:
        servers = [start(stack, side, made[:1]) for side in sides]
        rows(servers, [speed("one stream, an adapter, tok/s", 1, 4, "rand-%04d*1")])
    with contextlib.ExitStack() as stack:
        rows([start(stack, side, made) for side in sides], [many])


def touch(server, count):
    """Every adapter is asked for once."""
    load(server, 8, count, f"rand-%04d*{count}", gen=1, **{"prompt-words": 1})


def resident(chorus, model, made, figures):
    """What adapters in memory cost those who do not ask for them."""
    for row, own in (("none", []), ("16 resident", made)):
        restart_prompts()
        with chorus.start(model, own) as server:
            if own:
                touch(server, len(own))
            load(server, 16, 16)
            figures.add("base alone, 16 streams, tok/s", row, load(server, 16, 48)["tok_s"])


def zipf(chorus, model, shape, figures):
    """A thousand adapters, memory for 64 of them."""
    many = adapters(1000, shape, f"thousand-{shape['hidden']}")
    one = sum(file.stat().st_size for file in many[0].iterdir())
    for row, budget in (("cache for 64", 64 * one), ("all resident", 1100 * one)):
        restart_prompts()
        with chorus.start(model, many, ["--adapter-cache-bytes", str(budget)]) as server:
            print(f"  {row}: ready after {server.start_s:.1f} s", file=sys.stderr)
            if row == "all resident":
                touch(server, 1000)
            options = {"draw": "zipf", "zipf": 1.0}
            load(server, 16, 64, "rand-%04d*1000", **options)
            result = load(server, 16, 128, "rand-%04d*1000", **options)
            figures.add("1,000 adapters, Zipf 1.0, 16 streams, tok/s", row, result["tok_s"])


@contextlib.contextmanager
def busy(count):
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def busy_loops(chorus, model, figures):
    """The same load while as many other processes as there are cores want them too."""
    with chorus.start(model) as server:
        load(server, 16, 16)
        figures.add("two busy loops, 16 streams, tok/s", "free cores", load(server, 16, 32)["tok_s"])
        with busy(THREADS):
            figures.add("two busy loops, 16 streams, tok/s", "busy cores", load(server, 16, 32)["tok_s"])


async def disturbed(server: Server, streams, disturb):
    """Gaps between tokens of `streams` long answers: in quiet, and while `disturb` goes on."""
    at = urlparse(server.url)

    def ask(words, tokens, adapter=None):
        body = {"model": "bench", "prompt": words, "max_tokens": tokens, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}, "ignore_eos": True}  # fmt: skip
        headers = {"X-Adapter": adapter} if adapter else {}
        return loadgen.one(at.hostname, at.port, "/v1/completions", body, headers, TIMEOUT)

    running = [asyncio.create_task(ask(f"story number {n}", 2000)) for n in range(streams)]
    await asyncio.sleep(2)
    quiet = [time.perf_counter()]
    await asyncio.sleep(3)
    quiet.append(time.perf_counter())
    windows = []
    async for _ in disturb(ask):
        windows.append(time.perf_counter())
    results = await asyncio.gather(*running)
    for result in results:
        if result["stamps"][0] > quiet[0] or result["stamps"][-1] < windows[-1]:
            sys.exit("a running stream began late or ended early: the gaps are not those of all streams")

    def p95(spans):
        gaps = [later - earlier for result in results for earlier, later in zip(result["stamps"], result["stamps"][1:])
                if any(earlier < end and later > start for start, end in spans)]  # fmt: skip
        return 1e3 * loadgen.pct(gaps, 95)

    return p95([tuple(quiet)]), p95(list(zip(windows[::2], windows[1::2])))


def gaps(chorus, model, made, figures):
    """How a long prompt, and adapters that are not in memory, hold up those who are being answered."""
    rng = loadgen.random.Random(5)
    long = loadgen.prompt_for(rng, 2000)

    async def prompt(ask):
        yield
        await ask(long, 1)
        yield

    async def cold(ask):
        for folder in made:
            yield
            await ask("one", 1, folder.name)
            yield
            await asyncio.sleep(0.05)

    for row, disturb in (("a 2,000-token prompt", prompt), ("16 cold adapters in turn", cold)):
        with chorus.start(model, made) as server:
            load(server, 16, 16)
            quiet, meanwhile = asyncio.run(disturbed(server, 8, disturb))
            row = f"p95 gap of 8 streams, ms: {row}"
            figures.add(row, "without", quiet)
            figures.add(row, "meanwhile", meanwhile)


def memory(chorus, model, made, figures):
    """Resident bytes after the mixed load, and what they may be."""
    kv = 64 << 20
    with chorus.start(model, made, ["--kv-bytes", str(kv)]) as server:
        touch(server, len(made))
        load(server, 16, 32, "rand-%04d*16")
        figures.add("resident memory, MB", "chorus", server.memory() / 1e6)
    own = sum(file.stat().st_size for folder in made for file in folder.iterdir())
    figures.add("resident memory, MB", "allowed", (model.stat().st_size * 1.25 + kv + own + 150e6) / 1e6)


SHARED = [
    # row, higher is better, floor, aim
    ("one stream, no adapter, tok/s", True, 1.3, 2),
    ("16 streams, no adapter, tok/s", True, 3, 6),
    ("one stream, an adapter, tok/s", True, 1.8, 3),
    ("16 streams, 16 adapters, tok/s", True, 6, 12),
    ("median TTFT there, ms", False, 6, 12),
    ("TTFT of 2,000 tokens alone, ms", False, 2, 4),
    ("Poisson, 0.5 requests/s, 16 adapters, median TTFT, ms", False, None, None),
]
OWN = [
    # row, figure, compared with, higher is better, floor, aim
    ("base alone, 16 streams, tok/s", "16 resident", "none", True, 0.98, 1),
    ("1,000 adapters, Zipf 1.0, 16 streams, tok/s", "cache for 64", "all resident", True, 0.60, 0.85),
    ("two busy loops, 16 streams, tok/s", "busy cores", "free cores", True, 0.35, 0.45),
    ("p95 gap of 8 streams, ms: a 2,000-token prompt", "meanwhile", "without", False, 2, 1.3),
    ("p95 gap of 8 streams, ms: 16 cold adapters in turn", "meanwhile", "without", False, 2, 1.3),
    ("resident memory, MB", "chorus", "allowed", False, 1, 1),
]


def number(value):
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def table(figures, sides):
    names = [side.name for side in sides]
    rivals = [name for name in names if not name.startswith("chorus")]
    ours = [name for name in names if name not in rivals]
    head = ["", *names, *(f"{name} to the best rival" for name in ours), "floor", "aim"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, higher, floor, aim in SHARED:
        medians = {name: figures.median(row, name) for name in names}

        def ratio(ours):
            # Those that guess tokens are held against those that do, and others.
            likes = [name for name in rivals if "no guesses" not in ours or "n-grams" not in name]
            others = [medians[name] for name in likes if medians[name] is not None]
            if not (medians[ours] and others):
                return "–"
            best = max(others) if higher else min(others)
            ratio = medians[ours] / best if higher else best / medians[ours]
            return f"{ratio:.2f}x" + ("" if floor is None else " ✓" if ratio >= floor else " ✗")

        if any(value is not None for value in medians.values()):
            cells = [number(medians[name]) for name in names]
            ratios = [ratio(name) for name in names if name not in rivals]
            lines.append(f"| {' | '.join([row, *cells, *ratios])} | {floor or '–'} | {aim or '–'} |")
    own = []
    for row, figure, other, higher, floor, aim in OWN:
        ours, theirs = figures.median(row, figure), figures.median(row, other)
        if ours and theirs:
            ratio = ours / theirs
            good = ratio >= floor if higher else ratio <= floor
            shown = f"{ratio:.2f} {'✓' if good else '✗'}"
            own.append(f"| {row} | {figure}: {number(ours)} | {other}: {number(theirs)} | {shown} | {floor} | {aim} |")
    if own:
        lines += ["", "| chorus with itself | | | ratio | floor | aim |", "|---|---|---|---|---|---|", *own]
    return "\n".join(lines)


def machine():
    cpu = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags"))
        cpu += ", ".join(["", *(flag for flag in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags)])
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    today = datetime.date.today().isoformat()
    return f"{today}, commit {commit.strip()}, {THREADS} cores of {cpu}, {platform.system()} {platform.machine()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--install", action="store_true", help="build chorus, fetch and build the rivals, and end")
    add("--rivals", default="llama.cpp,vllm", help=f"of {', '.join(RIVALS)}; empty for none, though llama.cpp's environment makes the adapters")
    add("--rounds", type=int, default=3)
    add("--chorus", type=Path, help="another binary than target/release/chorus")
    add("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    add("--shape", choices=["135m", "1b"], default="135m", help="of the model: what the adapters must fit")
    add("--only", default="shared,resident,zipf,busy,gaps,memory", help="parts of the table")
    add("--quick", action="store_true", help="the four rows of throughput alone")
    add("--out", type=Path, default=WORK / "figures.json", help="raw figures")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    chorus = Chorus(args.chorus)
    eight = Chorus(args.chorus, "chorus int8", ["--precision", "int8"])
    names = [name for name in args.rivals.split(",") if name]
    if unknown := set(names) - set(RIVALS):
        parser.error(f"no rival {', '.join(sorted(unknown))}; there are {', '.join(RIVALS)}")
    rivals = [rival for name in names for rival in RIVALS[name]()]
    if args.install:
        for side in [*rivals, chorus, LlamaCpp()]:
            print(f"installing {side.name}", file=sys.stderr)
            side.install()
        return
    if missing := [side.name for side in [chorus, *rivals, LlamaCpp()] if not side.installed()]:
        parser.error(f"{', '.join(missing)} not there: run with --install first")
    model = args.model.resolve()
    if not model.exists():
        parser.error(f"{model} is not there: `cargo run --release -- pull smollm2-135m-instruct` fetches the default")
    shape = SMALL if args.shape == "135m" else LARGE
    made = adapters(16, shape, f"sixteen-{args.shape}")
    plain = Chorus(args.chorus, "chorus, no guesses", ["--guess-tokens", "0"])
    figures, sides = Figures(), [chorus, plain, eight, *rivals]
    parts = {
        "resident": lambda: resident(chorus, model, made, figures),
        "zipf": lambda: zipf(chorus, model, shape, figures),
        "busy": lambda: busy_loops(chorus, model, figures),
        "gaps": lambda: gaps(chorus, model, made, figures),
        "memory": lambda: memory(chorus, model, made, figures),
    }
    only = args.only.split(",")
    if "shared" in only:
        shared(sides, model, shape, made, figures, args.rounds, args.quick)
    for turn in range(args.rounds):
        print(f"chorus with itself, round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)
        for name, part in parts.items():
            if name in only:
                part()
        args.out.write_text(json.dumps({"machine": machine(), "model": model.name, "figures": figures.all}, indent=1))
    print(machine())
    print(f"{model.name}; " + "; ".join(side.version() for side in sides) + f"; median of {args.rounds}\n")
    print(table(figures, sides))


if __name__ == "__main__":
    main()
