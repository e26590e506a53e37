#!/usr/bin/env python3
"""Runs what the guides say. Every command in README.md, docs/ and the other README files is run in the order of its document, in a
folder of its own that looks like the repository, beside a server of its own; every link and #anchor in any Markdown file leads
somewhere; every `chorus ..` in running text has the commands and options that it names; every code of an error is in a guide.

    python3 -B tests/docs/run.py            all of it; downloads, and trains the worked example
    python3 -B tests/docs/run.py --quick    what every change must pass (.ci/run)

A block is indented by four, or fenced:

    indented, sh    for bash, with -euo pipefail; exported variables and the folder stay from block to block. curl fails where the
                    answer is an error
    console         the same after `$ ` and `> `; other lines are what is printed
    python          for the environment of tests/clients whose package it imports
    json, toml      is parsed; yaml too, where PyYAML is there
    text            nothing; but directly below a command, what it prints: each line is a part of it, `..` being anything

Anything else is a mistake. Of addresses on 127.0.0.1 the port is another one. Comments directly above a block:

    <!-- not run: REASON -->        it cannot be run here
    <!-- full: REASON -->           it is not run with --quick
    <!-- server -->                 its command serves, and is left running, in the place of what had its port; `cargo run --release --`
                                    is the program that is there. Where none is above the first command, one is started
    <!-- fails -->                  its last command fails
    <!-- file: NAME -->             it is written to that file
    <!-- by hand: COMMAND -->       what the reader has to do before; $PRINTED has what was printed last

Needs target/release/chorus (or `--binary FILE`), bash, curl and the standard library."""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

try:
    import yaml
except ImportError:
    yaml = None

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "docs/*.md", "adapters/README.md", "benches/README.md", "deploy/README.md", "fuzz/README.md", "tests/*/README.md"]
SHELL, SHOWN = {"indented", "sh", "console"}, {"text"}
KINDS = SHELL | SHOWN | {"python", "json", "toml", "yaml"}
MARKERS = {"not run", "full", "server", "fails", "file", "by hand"}
# Whose packages a block of Python imports, by the name of a client of tests/clients.
CLIENTS = {"openai": "openai3", "lorax": "lorax", "anthropic": "anthropic"}
# Seconds: the default base may have to be fetched, and the worked example fetches libraries and trains.
START, RUN, RUN_FULL = 600, 120, 3600
ADDRESS = re.compile(r"\b(127\.0\.0\.1|localhost):(\d{4,5})\b")


class Wrong(Exception):
    """What is the matter with a block."""


class Block(NamedTuple):
    line: int
    kind: str
    text: str
    # What the comments above it say: names and values, in order.
    marks: list
    # Whether nothing but empty lines is between it and the block before.
    follows: bool

    def mark(self, name):
        return next((value for mark, value in self.marks if mark == name), None)


def blocks(text):
    """The blocks of a document."""
    found, marks, item, last = [], [], 0, "other"
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at]
        begun, indent = at, len(line) - len(line.lstrip(" "))
        if fence := re.match(r" *(`{3,}|~{3,})\s*([\w-]*)", line):
            end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == fence[1]), None)
            if end is None:
                raise Wrong(f"{at + 1}: the fence has no end")
            inner = [inside[min(indent, len(inside) - len(inside.lstrip(" "))) :] for inside in lines[at + 1 : end]]
            found.append(Block(begun + 1, fence[2] or "fenced without a language", "\n".join(inner) + "\n", marks, last == "block"))
            at, marks, last = end + 1, [], "block"
            continue
        if line.strip() and indent >= item + 4 and last in ("empty", "block", "empty after block"):
            end = at
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" " * (item + 4))):
                end += 1
            inner = [inside[item + 4 :] for inside in lines[at:end]]
            found.append(Block(begun + 1, "indented", "\n".join(inner).rstrip("\n") + "\n", marks, last == "empty after block"))
            at, marks, last = end, [], "block"
            continue
        if not line.strip():
            last = "empty after block" if last in ("block", "empty after block") else "empty"
        elif comment := re.fullmatch(r" *<!-- ([a-z ]+?)(?:: (.+))? -->", line):
            marks, last = [*marks, (comment[1], comment[2] or "")], "empty"
        else:
            if marks:
                raise Wrong(f"{at}: `{marks[-1][0]}` is above no block")
            last = "other"
            if bullet := re.match(r" *(?:[-*]|\d+\.) +", line):
                item = len(bullet[0])
            elif indent == 0:
                item = 0
        at += 1
    return found


def prose(text):
    """The document without its blocks, line by line."""
    lines = text.split("\n")
    for block in blocks(text):
        size = block.text.count("\n") + (0 if block.kind == "indented" else 2)
        lines[block.line - 1 : block.line - 1 + size] = [""] * size
    return lines


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def clients():
    """tests/clients/run.py, which makes environments."""
    spec = importlib.util.spec_from_file_location("clients", ROOT / "tests" / "clients" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run:
    """One document: its folder, its servers, and what was printed last."""

    def __init__(self, asked):
        self.asked, self.ports, self.servers, self.printed = asked, {}, {}, ""
        self.place = Path(tempfile.mkdtemp(prefix="chorus-docs-"))
        self.work, self.state, tools = (self.place / name for name in ("work", "state", "bin"))
        [folder.mkdir() for folder in (self.work, self.state, tools)]
        for entry in ROOT.iterdir():
            if entry.name not in {"target", "models", "chorus-data"} and not entry.name.startswith("."):
                (self.work / entry.name).symlink_to(entry)
        (self.work / "models").symlink_to(asked.models.resolve())
        (tools / "chorus").symlink_to(asked.binary)
        curl = tools / "curl"
        curl.write_text(f'#!/bin/sh\nexec {shutil.which("curl") or "curl"} --fail-with-body "$@"\n')
        curl.chmod(0o755)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHORUS_")}
        self.env = {**clean, "PATH": f"{tools}:{os.environ['PATH']}", "PRINTED": str(self.state / "printed"), "NO_PROXY": "127.0.0.1",
                    "PYTHONDONTWRITEBYTECODE": "1", "CHORUS_LOG": "warn"}  # fmt: skip
        self.env |= {"CHORUS_LISTEN": f"127.0.0.1:{self.port(8080)}", "CHORUS_URL": f"http://127.0.0.1:{self.port(8080)}"}

    def port(self, number):
        if number not in self.ports:
            self.ports[number] = free_port()
        return self.ports[number]

    def here(self, text):
        return ADDRESS.sub(lambda match: f"{match[1]}:{self.port(int(match[2]))}", text)

    def script(self, lines, last=""):
        """A script that begins where the one before ended."""
        session = shlex.quote(str(self.state / "session"))
        begin = f"set -euo pipefail\nif [ -f {session} ]; then . {session}; fi\n"
        end = f"\n{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {session}\n"
        path = self.state / "script"
        path.write_text(begin + self.here(lines) + (last or end))
        return ["bash", str(path)]

    def attempt(self, command, limit):
        """What it prints, and its status."""
        with open(self.state / "output", "w+") as output:
            process = subprocess.Popen(command, cwd=self.work, env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       start_new_session=True)  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"not ended after {limit} s"
            output.seek(0)
            self.printed = output.read()
        (self.state / "printed").write_text(self.printed)
        return code

    def run(self, block):
        for mark, command in block.marks:
            if mark == "by hand" and (code := self.attempt(self.script(command), RUN)):
                raise Wrong(f"by hand: {command}: {code}: {self.last_words()}")
        if block.kind in SHELL:
            return self.shell(block)
        if block.kind == "python":
            self.serve_default()
            return self.python(block)
        if block.mark("file"):
            (self.work / block.mark("file")).write_text(self.here(block.text))
        parsers = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load if yaml else lambda text: text}
        try:
            parsers[block.kind](block.text)
        except ValueError as why:
            raise Wrong(f"is no {block.kind}: {why}") from None

    def shell(self, block):
        text, expected = block.text, ""
        if block.kind == "console":
            lines = block.text.splitlines()
            text = "".join(line[2:] + "\n" for line in lines if line[:2] in ("$ ", "> "))
            expected = "\n".join(line for line in lines if line[:2] not in ("$ ", "> "))
        if block.mark("server") is not None:
            return self.serve(text)
        self.serve_default()
        if re.search(r"^\s*cargo\b", text, re.M):
            raise Wrong("cargo is not run here: mark it")
        code = self.attempt(self.script(text), self.limit())
        if (code != 0) != (block.mark("fails") is not None):
            raise Wrong(f"ended with {code}: {self.last_words()}")
        self.expect(expected)

    def limit(self):
        return RUN if self.asked.quick else RUN_FULL

    def last_words(self):
        return " | ".join(line.strip() for line in self.printed.splitlines()[-6:])[-800:] or "nothing was printed"

    def expect(self, text):
        for line in filter(None, map(str.strip, text.splitlines())):
            pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split(".."))
            if not any(re.search(pattern, " ".join(said.split())) for said in self.printed.splitlines()):
                raise Wrong(f"does not print `{line}`, but: {self.last_words()}")

    def python(self, block):
        imports = re.findall(r"^(?:from|import) (\w+)", block.text, re.M)
        client = next((CLIENTS[name] for name in imports if name in CLIENTS), None)
        program = sys.executable if client is None else self.asked.made.install(client, self.asked.venvs / client)
        path = self.state / "block.py"
        path.write_text(self.here(block.text))
        if code := self.attempt([program, "-B", str(path)], self.limit()):
            raise Wrong(f"ended with {code}: {self.last_words()}")

    def serve_default(self):
        if 8080 not in self.servers:
            self.serve("chorus serve")

    def serve(self, text):
        """Starts what serves, and waits until it says where."""
        command = text.strip().removeprefix("cargo run --release -- ").removeprefix("chorus ")
        if "\n" in command or not command.startswith("serve"):
            raise Wrong("a server's block is one line that runs `chorus serve`")
        listen = re.search(r"--listen [\d.]+:(\d+)", command)
        number = int(listen[1]) if listen else 8080
        self.stop(number)
        log = open(self.state / f"server-{number}", "w+")
        process = subprocess.Popen(self.script("", f"\nexec chorus {self.here(command)}\n"), cwd=self.work, env=self.env, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)  # fmt: skip
        self.servers[number] = process
        timer = threading.Timer(START, process.kill)
        timer.start()
        said = []
        for line in process.stdout:
            said.append(line)
            if line.strip().startswith("address "):
                break
        timer.cancel()
        if not said or not said[-1].strip().startswith("address "):
            self.servers.pop(number)
            process.kill()
            process.wait()
            log.seek(0)
            raise Wrong(f"the server did not start: {''.join(said)[-300:]}{log.read()[-800:]}")
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def stop(self, number):
        if process := self.servers.pop(number, None):
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Wrong("the server before does not end") from None

    def ended(self):
        """Servers that are there no more, although nobody has stopped them."""
        return [f"the server of port {number} ended by itself: {(self.state / f'server-{number}').read_text()[-800:]}"
                for number, process in self.servers.items() if process.poll() is not None]  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.servers.values():
            process.kill()
            process.wait()
        if self.asked.keep:
            print(f"  kept: {self.place}")
        else:
            shutil.rmtree(self.place, ignore_errors=True)


def document(path, asked, problems, left):
    """Runs one. Counts what became of its blocks."""
    name, count, begun = path.relative_to(ROOT), Counter(), time.monotonic()
    before = len(problems)
    try:
        found = blocks(path.read_text())
    except Wrong as why:
        problems.append(f"{name}:{why}")
        return Counter(failed=1)
    with Run(asked) as run:
        ran = None
        for block in found:
            try:
                if block.kind not in KINDS:
                    raise Wrong(f"is a block of an unknown kind: {block.kind}")
                if unknown := [mark for mark, _ in block.marks if mark not in MARKERS]:
                    raise Wrong(f"has an unknown comment above it: {unknown[0]}")
                reason = block.mark("not run") or (block.mark("full") if asked.quick else None)
                if block.kind in SHOWN:
                    if block.follows and ran is not None:
                        run.expect(block.text)
                        count["checked"] += 1
                    continue
                ran = None
                if block.mark("not run") == "" or block.mark("full") == "":
                    raise Wrong("has no reason why it is not run")
                if reason:
                    count["not run" if block.mark("not run") else "left to a full run"] += 1
                    left.append(f"{name}:{block.line}: {reason}")
                    continue
                run.run(block)
                if gone := run.ended():
                    raise Wrong(gone[0])
                ran = block
                count["run" if block.kind in SHELL | {"python"} else "parsed"] += 1
            except Exception as why:
                count["failed"] += 1
                problems.append(f"{name}:{block.line}: {why if isinstance(why, Wrong) else f'{type(why).__name__}: {why}'}")
    if found:
        told = ", ".join(f"{number} {what}" for what, number in count.items()) or "nothing to run"
        print(f"{str(name):<26} {told:<60} {time.monotonic() - begun:5.1f} s", flush=True)
    [print(f"  WRONG {problem}", flush=True) for problem in problems[before:]]
    return count


# Links.


def slugs(text):
    """The anchors of a document, as GitHub makes them."""
    seen, found = Counter(), set()
    for line in prose(text):
        if heading := re.match(r"#{1,6} +(.+?) *#*$", line):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").lower()
            slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
            found.add(slug + (f"-{seen[slug]}" if seen[slug] else ""))
            seen[slug] += 1
    return found


def links(path):
    """Problems of the links in one document, and how many there are."""
    text = path.read_text()
    lines = prose(text)
    named = {match[1].lower() for line in lines if (match := re.match(r"\[([^]]+)\]: \S+", line))}
    wrong, number = [], 0
    for at, line in enumerate(lines, 1):
        bare = re.sub(r"`[^`]*`", "", line)
        for label in re.findall(r"\]\[([^]]+)\]", bare):
            number += 1
            if label.lower() not in named:
                wrong.append(f"{path.relative_to(ROOT)}:{at}: [{label}] is nowhere defined")
        for target in re.findall(r"\]\(([^)\s]+)\)", bare) + re.findall(r"^\[[^]]+\]: (\S+)", bare):
            number += 1
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            place = (path.parent / file).resolve() if file else path
            if not place.exists():
                wrong.append(f"{path.relative_to(ROOT)}:{at}: there is no {target}")
            elif anchor and (place.suffix != ".md" or anchor not in slugs(place.read_text())):
                wrong.append(f"{path.relative_to(ROOT)}:{at}: {file or 'it'} has no #{anchor}")
    return wrong, number


def markdown():
    ended = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True)
    return sorted(ROOT / line for line in ended.stdout.split() if (ROOT / line).is_file())


# What is named in running text.


class Help:
    """What `chorus --help` says, command by command."""

    def __init__(self, binary):
        self.binary, self.texts = binary, {}

    def of(self, path):
        if path not in self.texts:
            self.texts[path] = subprocess.run([self.binary, *path, "--help"], capture_output=True, text=True).stdout
        return self.texts[path]

    def commands(self, path):
        listed = re.search(r"^Commands:\n((?: +.*\n)+)", self.of(path), re.M)
        return set(re.findall(r"^  ([a-z-]+)", listed[1], re.M)) - {"help"} if listed else set()

    def problem(self, span):
        words, path = re.findall(r"[^\s\[\]|()]+", span)[1:], ()
        for word in words:
            if word in self.commands(path):
                path = (*path, word)
            else:
                break
        rest = words[len(path) :]
        if rest and self.commands(path) and re.fullmatch("[a-z-]+", rest[0]) and not rest[0].startswith("-"):
            return f"`{span}`: there is no such command"
        for option in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", span):
            if not re.search(rf"--{option}\b", self.of(path)):
                return f"`{span}`: no such option as --{option}"
        return None


def spans(path, known):
    """Problems of the commands in running text, and how many there are."""
    wrong, number = [], 0
    for at, line in enumerate(prose(path.read_text()), 1):
        for span in re.findall(r"`(chorus [^`]+)`", line):
            number += 1
            if problem := known.problem(span):
                wrong.append(f"{path.relative_to(ROOT)}:{at}: {problem}")
    return wrong, number


def codes():
    """Codes of errors that are in no guide, and how many there are."""
    api, adapters = (ROOT / "docs" / name for name in ("api.md", "adapters.md"))
    http = ROOT / "src" / "http"
    files = [http / "error.rs", *(file for file in sorted(http.glob("error/*.rs")) if file.name != "tests.rs")]
    source = "\n".join(file.read_text().split("#[cfg(test)]")[0] for file in files)
    errors = set(re.findall(r'(?:with_code\(|Some\(|unfit\()"([a-z_]+)"', source)) | {"context_length_exceeded"}
    refusals = (ROOT / "src" / "lora" / "refusal.rs").read_text().split("fn code(")[1].split("#[cfg(test)]")[0]
    upload = set(re.findall(r'"([a-z_]+)"', refusals))
    told = set(re.findall(r"`([a-z_]+)`", api.read_text() + adapters.read_text()))
    missing = sorted((errors | upload) - told)
    return [f"docs: the code `{code}` is in neither docs/api.md nor docs/adapters.md" for code in missing], len(errors | upload)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out what is marked `full`")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "chorus", help="the chorus to run")
    parser.add_argument("--models", type=Path, default=ROOT / "models", metavar="DIR", help="where fetched bases are kept")
    parser.add_argument("--venvs", type=Path, default=ROOT / "target" / "clients", metavar="DIR", help="where environments are made")
    parser.add_argument("--only", action="append", metavar="FILE", help="run this document alone; may be given more than once")
    parser.add_argument("--keep", action="store_true", help="leave the folders where commands were run")
    asked = parser.parse_args()
    # Whoever ends this ends its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    if not asked.binary.is_file():
        sys.exit(f"{asked.binary} is not there: cargo build --release")
    asked.binary, asked.venvs, asked.made = asked.binary.resolve(), asked.venvs.resolve(), clients()

    problems, left, count = [], [], Counter()
    known, total = Help(asked.binary), Counter()
    found = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    for path in markdown():
        for what, look in (("links", links), ("commands in running text", lambda file: spans(file, known))):
            wrong, number = look(path)
            problems, total[what] = problems + wrong, total[what] + number
    wrong, total["codes of errors"] = codes()
    problems += wrong
    [print(f"  WRONG {problem}") for problem in problems]
    print(", ".join(f"{number} {what}" for what, number in total.items()), flush=True)
    count["failed"] += len(problems)
    for path in found:
        if not asked.only or str(path.relative_to(ROOT)) in asked.only:
            count += document(path, asked, problems, left)
    if left:
        print("\nnot run:\n" + "\n".join(f"  {line}" for line in left))
    if problems:
        print("\nwrong:\n" + "\n".join(f"  {problem}" for problem in problems))
    print(f"\n{count['run'] + count['parsed'] + count['checked']} passed, {len(problems)} failed, {len(left)} skipped")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
