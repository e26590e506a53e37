#!/usr/bin/env python3
"""The clients that people have, each in an environment of its own, against a live server: what they send is understood, and what
comes back is what they take for an answer, a stream, a refusal. Nothing depends on what the base says."""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BASE = "smollm2-135m-instruct"
SHARED_BASE = "org/smollm2"
# The default base may have to be fetched first.
START, INSTALL, SET = 600, 900, 1200


class Client(NamedTuple):
    """What is installed, and the files whose checks are run with it; for Python a list of pinned packages, for node a folder."""

    packages: str | None
    files: list[str]


OPENAI = ["check_openai.py", "check_fields.py", "check_refusals.py", "check_structured.py", "check_routes.py"]
CLIENTS = {
    "http": Client(None, ["check_http.py"]),
    "openai3": Client("openai3.txt", OPENAI),
    "openai2": Client("openai2.txt", OPENAI),
    "node": Client("node", ["check_openai.mjs"]),
    "langchain": Client("langchain.txt", ["check_langchain.py"]),
    "litellm": Client("litellm.txt", ["check_litellm.py"]),
    "llama-index": Client("llama_index.txt", ["check_llama_index.py"]),
    "instructor": Client("instructor.txt", ["check_instructor.py"]),
    "lorax": Client("lorax.txt", ["check_lorax.py"]),
    "anthropic": Client("anthropic.txt", ["check_anthropic.py"]),
}
QUICK = ["http", "openai3"]
# Clients ask for nothing beyond this machine.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1",
    "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip


class NotInstalled(Exception):
    pass


def install(name, place):
    """The interpreter of the client's environment, which is made where it is not there or was made from another list."""
    packages = CLIENTS[name].packages
    if packages is None:
        return sys.executable
    lists = [HERE / packages] if packages.endswith(".txt") else sorted((HERE / packages).glob("package*.json"))
    digest, noted = hashlib.sha256(b"".join(file.read_bytes() for file in lists)).hexdigest(), place / "installed.sha256"
    fresh = not noted.is_file() or noted.read_text() != digest
    if packages.endswith(".txt"):
        program = place / "bin" / "python"
        commands = [[sys.executable, "-m", "venv", place],
                    [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", lists[0]]]  # fmt: skip
    else:
        program = shutil.which("node") or "node"
        commands = [["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", place]]
    if fresh:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if not packages.endswith(".txt"):
            [shutil.copy(file, place) for file in lists]
        [attempt(name, command) for command in commands]
        noted.write_text(digest)
    return str(program)


def attempt(name, command):
    try:
        ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=INSTALL)
    except FileNotFoundError:
        raise NotInstalled(f"{name}: there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{name}: {Path(command[0]).name} did not end in {INSTALL} s") from None
    if ended.returncode:
        said = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        raise NotInstalled(f"{name} cannot be installed ({CLIENTS[name].packages}): {errors[0] if errors else ended.returncode}")


class Server:
    """A chorus of this run's own, on a port that the system gives; without adapters where there is no folder of them."""

    def __init__(self, program, *options, adapters=None, env=None):
        self.folder = tempfile.mkdtemp(prefix="chorus-clients-")
        self.log = open(f"{self.folder}/log", "w+")
        (none := Path(self.folder, "none")).mkdir()
        command = [program, "serve", "--model", BASE, "--listen", "127.0.0.1:0", "--store", f"{self.folder}/store",
                   "--adapters", adapters or none, "--log", "warn", *options]  # fmt: skip
        self.process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env={**os.environ, **(env or {})},
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)  # fmt: skip
        timer = threading.Timer(START, self.process.kill)
        timer.start()
        # It prints its address once it takes requests.
        line = next((line for line in self.process.stdout if line.strip().startswith("address ")), None)
        timer.cancel()
        if line is None:
            sys.exit(f"chorus did not start:\n{Path(self.log.name).read_text()}")
        self.url = line.split()[1]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended = self.process.poll()
        self.process.kill()
        self.process.wait()
        log = Path(self.log.name).read_text()
        shutil.rmtree(self.folder, ignore_errors=True)
        if ended is not None:
            sys.exit(f"chorus ended by itself with {ended}:\n{log}")


def chorus(program, *words, env):
    ended = subprocess.run([str(word) for word in (program, *words)], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"chorus {' '.join(map(str, words))}: {ended.stderr}{ended.stdout}")
    return ended.stdout


@contextlib.contextmanager
def servers(program):
    """Variables that say where two servers are: one without tenants, and one that three share."""
    operator = "operator-" + os.urandom(16).hex()
    narrow = ["--served-model-name", SHARED_BASE, "--max-running", "2", "--max-waiting", "2", "--kv-bytes", "64MiB"]
    with Server(program, adapters=ROOT / "adapters") as server, Server(program, *narrow, env={"CHORUS_OPERATOR_KEY": operator}) as shared:
        env = {"CHORUS_URL": shared.url, "CHORUS_OPERATOR_KEY": operator}
        keys = {"operator": operator}
        for tenant, adapter, folder in (("acme", "mine", "sentiment"), ("rival", "secret", "pirate"), ("poor", "mine", "sentiment")):
            chorus(program, "tenant", "create", tenant, env=env)
            keys[tenant] = json.loads(chorus(program, "tenant", "key", "new", tenant, "--scope", "upload", "--json", env=env))["key"]
            chorus(program, "adapter", "push", adapter, f"adapters/{folder}", env={**env, "CHORUS_KEY": keys[tenant]})
        chorus(program, "tenant", "default", "acme", "mine", env=env)
        chorus(program, "tenant", "quota", "poor", "--resident-max-bytes", "1", env=env)
        yield {"CHORUS_URL": server.url, "CHORUS_BASE": BASE, "CHORUS_SHARED_URL": shared.url, "CHORUS_SHARED_BASE": SHARED_BASE,
               "CHORUS_KEYS": json.dumps(keys)}  # fmt: skip


def checked(file, program, place, env, options):
    """The client's name and version, and the outcomes of the checks of one file, as they come."""
    path = HERE / file
    if file.endswith(".mjs"):
        # Modules look for packages beside themselves.
        [shutil.copy(HERE / "node" / each, place) for each in ("checks.mjs", file)]
        path = place / file
    command = [program, *(["-B"] if file.endswith(".py") else []), str(path), *options]
    process = subprocess.Popen(command, env={**os.environ, **QUIET, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr))
    timer = threading.Timer(SET, process.kill)
    [thread.start() for thread in (reader, timer)]
    for line in process.stdout:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
    code = process.wait()
    timer.cancel()
    reader.join()
    if said and any(word for word in options if word != "--quick"):
        print("".join(said), file=sys.stderr)
    if code:
        lines = [line.strip() for line in said if line.strip()]
        why = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
        yield {"check": file, "outcome": "failed", "why": f"ended with {code}: {why}"[:400], "seconds": 0}


def run(name, place, env, options):
    """All outcomes of one client, printed as they come."""
    try:
        program = install(name, place)
    except NotInstalled as why:
        print(f"{name:<12} {why}", flush=True)
        return name, [{"check": "install", "outcome": "failed", "why": str(why), "seconds": 0}]
    version, outcomes = name, []
    for file in CLIENTS[name].files:
        for line in checked(file, program, place, env, options):
            if "client" in line:
                version = line["client"]
                continue
            outcomes.append(line)
            print(f"{name:<12} {line['check']:<52} {line['outcome']:<9} {line['seconds']:6.2f} s  {line['why']}".rstrip(), flush=True)
    return version, outcomes


def summary(results):
    """A line for each client. True where all has passed."""
    print(f"\n{'client':<30} {'passed':>7} {'failed':>7} {'not there':>10}  seconds")
    total = {"passed": 0, "failed": 0, "not there": 0}
    for version, outcomes in results:
        count = {outcome: sum(line["outcome"] == outcome for line in outcomes) for outcome in total}
        seconds = sum(line["seconds"] for line in outcomes)
        print(f"{version:<30} {count['passed']:>7} {count['failed']:>7} {count['not there']:>10} {seconds:>8.1f}")
        total = {outcome: total[outcome] + count[outcome] for outcome in total}
    print(f"\n{total['passed']} passed, {total['failed'] + total['not there']} failed")
    return total["passed"] > 0 and total["failed"] + total["not there"] == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, default=ROOT / "target" / "clients", metavar="DIR", help="where environments are made")
    parser.add_argument("--only", action="append", choices=CLIENTS, help="this client alone; may be given more than once")
    parser.add_argument("--quick", action="store_true", help="what every change must pass: plain HTTP, and the standard client")
    parser.add_argument("--list", action="store_true", help="print the clients")
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "release" / "chorus", help="the chorus to start")
    parser.add_argument("checks", nargs="*", help="these checks alone, with what their programs say")
    args = parser.parse_args()
    if args.list:
        for name, client in CLIENTS.items():
            print(f"{name:<12} {client.packages or '-':<16} {' '.join(client.files)}")
        return
    if not args.program.is_file():
        sys.exit(f"{args.program} is not there: cargo build --release")
    names = args.only or (QUICK if args.quick else list(CLIENTS))
    options = [*(["--quick"] if args.quick else []), *args.checks]
    with servers(args.program.resolve()) as env:
        results = [run(name, args.venvs.resolve() / name, env, options) for name in names]
    sys.exit(not summary(results))


if __name__ == "__main__":
    main()
