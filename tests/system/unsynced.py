#!/usr/bin/env python3
"""On a disk that loses what was not synced (volatile.py: needs root, libfuse and `pip install mfusepy`): the power is cut at
any moment while names are uploaded, activated and deleted. Afterwards all that was acknowledged is there, with its bytes, and
nothing is half there. Then the same on a disk that only says it syncs, where this must be seen to fail."""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import requests
from chorus import CONFIG, TINY, WEIGHTS, Server, digest, turned

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cuts", type=int, default=100)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

NAMES = 3
# So many cuts are survived by one store before the next begins with an empty folder.
CUTS_OF_A_STORE = 5
# The number of a version whose upload was not answered.
UNTOLD = "untold"


class Disk:
    def __init__(self, *options):
        self.mount = Path(tempfile.mkdtemp())
        self.process = subprocess.Popen([sys.executable, "-B", Path(__file__).with_name("volatile.py"), self.mount, *options])
        deadline = time.monotonic() + 10
        while not os.path.ismount(self.mount):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the file system was not mounted")
            time.sleep(0.01)

    def cut(self, seed):
        os.setxattr(self.mount, "user.cut", str(seed).encode())

    def power(self):
        os.setxattr(self.mount, "user.power", b"")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.mount], check=True)
        self.process.wait()


class Lost(Exception):
    """Something acknowledged is not there, or something is half there."""


class Name:
    """What was last acknowledged of a name, and what may have come after it."""

    def __init__(self, at):
        self.name, self.next, self.last, self.step = f"n{at}", at, 0, 0
        self.versions, self.active, self.perhaps = {}, None, None

    def change(self, server):
        """One change: how to ask for it, and what comes of it."""
        self.step += 1
        oldest = min(self.versions, default=None)
        url = f"{server.url}/v1/adapters/{self.name}"
        if self.step % 4 == 1 and oldest:
            return (lambda: server.http.post(f"{url}/activate", json={"version": oldest}, timeout=60)), (self.versions, oldest)
        if self.step % 8 == 7 and oldest:
            return (lambda: server.delete(self.name)), ({}, None)
        files = turned(TINY / "adapters" / "plain", self.next + 1)
        self.next += NAMES
        return (lambda: server.put(self.name, files)), ({**self.versions, UNTOLD: digest(files)}, UNTOLD)

    def go_on(self, server, acknowledged):
        """Changes it until the power is gone."""
        while True:
            ask, (versions, active) = self.change(server)
            try:
                answer = ask()
                told = answer.json()
            except (requests.RequestException, ValueError):
                self.perhaps = versions, active
                return
            if answer.status_code >= 500:
                self.perhaps = versions, active
                return
            if answer.status_code not in (200, 201):
                raise Lost(f"{self.name}: {answer.status_code} {answer.text}")
            self.tell(versions, active, told.get("version"))
            acknowledged.append(self.name)

    def tell(self, versions, active, number):
        if UNTOLD in versions:
            if number <= self.last:
                raise Lost(f"{self.name}: version {number} is given again, {self.last} was there")
            self.last = number
            versions = {number if known is UNTOLD else known: content for known, content in versions.items()}
            active = number if active is UNTOLD else active
        self.versions, self.active = versions, active

    def check(self, server):
        """All that was acknowledged is there and whole; of the last change either all or nothing."""
        shown = server.show(self.name)
        versions = {entry["version"]: entry["digest"] for entry in shown["versions"]} if shown else {}
        active = shown["version"] if shown and shown["status"] == "active" else None
        found, perhaps = (versions, active), self.perhaps
        self.perhaps = None
        if found != (self.versions, self.active):
            if perhaps and UNTOLD in perhaps[0]:
                new = max(set(versions) - set(self.versions), default=None)
                if new:
                    self.tell(*perhaps, new)
            elif perhaps:
                self.versions, self.active = perhaps
        if found != (self.versions, self.active):
            raise Lost(f"{self.name} is {found}, was {(self.versions, self.active)}, perhaps {perhaps}")
        for number, content in versions.items():
            url = f"{server.url}/v1/adapters/{self.name}/files"
            files = {file: server.http.get(f"{url}/{file}?version={number}", timeout=60).content for file in (CONFIG, WEIGHTS)}
            if digest(files) != content:
                raise Lost(f"{self.name}@v{number} has other bytes")
            answer = server.complete(f"{self.name}@v{number}", 1)
            if answer.headers.get("x-chorus-adapter") != f"{self.name}@v{number};{content.replace(':', '=')}":
                raise Lost(f"{self.name}@v{number} answers {answer.status_code} {answer.text}")


def start(store, spool):
    return Server(store, "--spool", spool, model=TINY)


def cut_at_start(disk, store, spool, dice, seed):
    """The power goes before the server is there."""
    timer = threading.Timer(dice.uniform(0, 0.2), disk.cut, [seed])
    timer.start()
    with contextlib.suppress(SystemExit), start(store, spool):
        pass
    timer.join()
    disk.power()


def left_unsynced(disk):
    """Directories that another process has made, and was killed before it synced them, are not taken for safe."""
    store, spool, name = disk.mount / "left", tempfile.mkdtemp(), Name(0)
    for folder in ("logs/adapters", "logs/tenants", "blobs"):
        (store / folder).mkdir(parents=True)
    with start(store, spool) as server:
        ask, (versions, active) = name.change(server)
        name.tell(versions, active, ask().json()["version"])
        disk.cut(0)
    disk.power()
    with start(store, spool) as server:
        name.check(server)


def run(disk, cuts, dice):
    """Returns how many changes were acknowledged."""
    spool, acknowledged, names = tempfile.mkdtemp(), [], []
    for turn in range(cuts):
        if turn % CUTS_OF_A_STORE == 0:
            store, names = disk.mount / f"store-{turn}", [Name(at) for at in range(NAMES)]
        # Half of the cuts lose all that was not synced; the others keep some of it.
        seed = dice.randrange(1, 1 << 30) if turn % 2 else 0
        if dice.random() < 0.2:
            cut_at_start(disk, store, spool, dice, dice.choice([0, seed]))
        elif dice.random() < 0.2:
            # The process alone: what it has not synced is there still, and must not be taken for safe.
            with start(store, spool) as server:
                threads = [threading.Thread(target=name.go_on, args=(server, acknowledged)) for name in names]
                [thread.start() for thread in threads]
                time.sleep(dice.uniform(0, 0.1))
                os.killpg(server.process.pid, signal.SIGKILL)
                [thread.join() for thread in threads]
            with start(store, spool) as server:
                [name.check(server) for name in names]
        failures = []

        def go_on(name, server):
            try:
                name.go_on(server, acknowledged)
            except Lost as lost:
                failures.append(lost)

        with start(store, spool) as server:
            threads = [threading.Thread(target=go_on, args=(name, server)) for name in names]
            [thread.start() for thread in threads]
            time.sleep(dice.uniform(0, 0.5))
            disk.cut(seed)
            server.kill()
            [thread.join() for thread in threads]
        disk.power()
        if failures:
            raise failures[0]
        with start(store, spool) as server:
            for name in names:
                name.check(server)
    return len(acknowledged)


def main():
    with Disk() as disk:
        try:
            left_unsynced(disk)
            acknowledged = run(disk, args.cuts, random.Random(args.seed))
        except Lost as lost:
            sys.exit(f"lost: {lost}")
    if acknowledged < args.cuts:
        sys.exit(f"only {acknowledged} changes were acknowledged")
    print(f"{acknowledged} changes acknowledged, {args.cuts} times the power was cut: all there, none half", flush=True)
    with Disk("--lie") as disk:
        try:
            run(disk, 10, random.Random(args.seed))
        except (Lost, SystemExit) as seen:
            print(f"on a disk that does not sync this is seen: {str(seen)[:200]}")
            return
    sys.exit("what a disk loses that does not sync was not noticed")


main()
