#!/usr/bin/env python3
"""A store on a small tmpfs (needs root): uploads until it is full, which is refused cleanly; running answers and resident
adapters go on; what is deleted gives its space back. Fifty times."""

import subprocess
import sys
import tempfile

from chorus import CONFIG, ROOT, WEIGHTS, Server, digest, mini

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 50


def large(number):
    """About 2 MB, different for each number."""
    folder = ROOT / "adapters" / "pirate"
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-4:] = mini(number)[WEIGHTS][-4:]
    return {CONFIG: (folder / CONFIG).read_bytes(), WEIGHTS: bytes(weights)}


def main():
    mount = tempfile.mkdtemp()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mount], check=True)
    try:
        with Server(f"{mount}/store") as server:
            assert server.put("kept", mini(0)).status_code == 201
            said = server.complete("kept").json()["choices"][0]["text"]
            number, refusals = 1, 0
            for turn in range(ROUNDS):
                names = []
                while True:
                    files = large(number)
                    number += 1
                    answer = server.put(f"n{len(names)}", files)
                    if answer.status_code == 201:
                        assert answer.json()["digest"] == digest(files)
                        names.append(f"n{len(names)}")
                        continue
                    if answer.status_code != 507 or answer.json()["error"]["code"] != "store_full":
                        sys.exit(f"turn {turn}: {answer.status_code} {answer.text}\n{server.logged()[-2000:]}")
                    refusals += 1
                    break
                if len(names) < 3:
                    sys.exit(f"turn {turn}: only {len(names)} fit, space is lost")
                for model in ["kept", "base-model", *names[:1]]:
                    answer = server.complete(model)
                    assert answer.status_code == 200, answer.text
                assert server.complete("kept").json()["choices"][0]["text"] == said
                if server.show(f"n{len(names)}") is not None:
                    sys.exit(f"turn {turn}: what was refused is there")
                for name in names:
                    # A deletion is a record too: where not even that fits, something else must be given up first.
                    answer = server.delete(name)
                    if answer.status_code != 200:
                        sys.exit(f"turn {turn}: delete: {answer.status_code} {answer.text}")
        with Server(f"{mount}/store") as again:
            assert again.complete("kept").json()["choices"][0]["text"] == said
        print(f"{ROUNDS} times full, {refusals} refusals with 507, {number - 1 - refusals} uploads kept and deleted")
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


main()
