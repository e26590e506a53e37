#!/usr/bin/env python3
"""Backups of a store that four writers change meanwhile: by `chorus store copy`, and by cp in the order that docs/operating.md
has. Each copy passes `chorus store check --hashes`, has all that was acknowledged before it began, and is served. With
--s3 (pip install 'moto[server]') the store is a bucket, and copies are directories all the same."""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from chorus import BINARY, Server, digest, mini, moto, s3

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--copies", type=int, default=10)
parser.add_argument("--s3", action="store_true")
parser.add_argument("--moto", default="moto_server")
args = parser.parse_args()


@contextlib.contextmanager
def store():
    """The store's name, and the variables that say how to reach it."""
    if not args.s3:
        yield tempfile.mkdtemp(), {}
        return
    with moto(args.moto) as port:
        yield s3(port)


class Writers:
    """Each has names that it stores, replaces and deletes. Of each name what was acknowledged last is known, and by a number
    of its own, so that what was deleted, stored and deleted again is told from what was left alone."""

    def __init__(self, server):
        self.server, self.stop, self.lock, self.state, self.changes = server, threading.Event(), threading.Lock(), {}, 0
        self.numbers = iter(range(10**6))
        self.threads = [threading.Thread(target=self.write, args=(at,)) for at in range(4)]
        [thread.start() for thread in self.threads]

    def write(self, at):
        dice = random.Random(at)
        while not self.stop.is_set():
            name = f"n{at}-{dice.randrange(12)}"
            with self.lock:
                number = next(self.numbers)
                before = self.state.get(name)
                # Until it is acknowledged, nobody knows.
                self.state[name] = "?"
            if before and before[1] and dice.random() < 0.4:
                answer, after = self.server.delete(name), None
            else:
                files = mini(number)
                answer, after = self.server.put(name, files), digest(files)
            assert answer.status_code in (200, 201), answer.text
            with self.lock:
                self.state[name] = (number, after)
                self.changes += 1

    def known(self):
        with self.lock:
            return {name: last for name, last in self.state.items() if last != "?"}

    def end(self):
        self.stop.set()
        [thread.join() for thread in self.threads]


def chorus(*words, env):
    ended = subprocess.run([BINARY, *words], env={**env, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def by_hand(place, copy):
    """The order of docs/operating.md, with cp: files, records of adapters, those of tenants, files again."""
    for part in ("chorus.json", "blobs", "logs/adapters", "logs/tenants", "blobs"):
        source, target = Path(place, part), Path(copy, part)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            # Files that vanish while they are listed have been erased; half-written ones have a # in their names.
            subprocess.run(["cp", "-an", f"{source}/.", target], stderr=subprocess.DEVNULL)
            [half.unlink() for half in target.glob("*#*")]
        elif source.is_file():
            shutil.copy2(source, target)


def check(copy, env):
    code, said = chorus("store", "check", "--hashes", "--json", "--store", copy, env=env)
    return code, json.loads(said.splitlines()[0])


def serves(copy, writers_before, changed_since, env):
    """Starts a server on a copy: what was acknowledged before the copy, and was not touched since, is there; all answers."""
    with Server(copy, env=env) as restored:
        listed = {one["name"]: one["digest"] for one in restored.http.get(restored.url + "/v1/adapters").json()["data"]}
        for name, (_, wanted) in writers_before.items():
            if name not in changed_since and listed.get(name) != wanted:
                sys.exit(f"{copy}: {name} is {listed.get(name)}, acknowledged before was {wanted}")
        for name in listed:
            answer = restored.complete(name, 1)
            if answer.status_code != 200:
                sys.exit(f"{copy}: {name} answers {answer.status_code} {answer.text}")
    return len(listed)


def main():
    again = faults = served = 0
    with store() as (place, env), Server(place, env=env) as server:
        writers = Writers(server)
        running, copies = f"{tempfile.mkdtemp()}/copy", []
        for turn in range(args.copies):
            time.sleep(1)
            before = writers.known()
            # One that is gone on with, and a new one each time.
            for copy in (running, f"{tempfile.mkdtemp()}/copy"):
                code, said = chorus("store", "copy", place, copy, env=env)
                if code != 0:
                    sys.exit(f"copy {turn}: {said}")
                code, found = check(copy, env)
                if code != 0:
                    sys.exit(f"copy {turn}: {found}")
            copies.append((copy, before))
            if not args.s3:
                copy = f"{tempfile.mkdtemp()}/by-hand"
                by_hand(place, copy)
                while (result := check(copy, env))[0] != 0:
                    again, faults = again + 1, faults + len(result[1]["faults"])
                    by_hand(place, copy)
                copies.append((copy, before))
            code, found = check(place, env)
            if code != 0:
                sys.exit(f"the live store: {found}")
        writers.end()
        after = writers.known()
        code, said = chorus("store", "copy", place, running, env=env)
        assert code == 0, said
        copies.append((running, after))
        for copy, before in copies:
            changed = {name for name in before if after.get(name) != before[name]}
            served += serves(copy, before, changed, env)
        code, said = chorus("store", "copy", running, f"{tempfile.mkdtemp()}/restored", env=env)
        assert code == 0, said
    print(f"{args.copies} times copied beside {writers.changes} changes; {len(copies)} copies served {served} adapters, all answered; "
          f"by hand {again} were gone over again for {faults} files")  # fmt: skip


main()
