#!/usr/bin/env python3
"""What /openapi.json says is what the server does: schemathesis makes requests of it, right ones and wrong ones, against a small base.
None may be answered by a 5xx, or by a status or a body that the document does not have; none that is right may be refused, but for
what a schema cannot say (openapi_hooks.py lists it); and none that is wrong may be taken. It needs `schemathesis` (PyPI).

    python3 -B openapi.py [--cases 5000] [--seed 1]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from chorus import CONFIG, TINY, WEIGHTS, Server

HERE = Path(__file__).resolve().parent
OPERATOR = "operator-" + os.urandom(16).hex()


def cases(arguments, server, key, operations):
    """How many there were, and whether all were as they should be."""
    command = [arguments.program, "run", server.url + "/openapi.json", "--checks", "all",
               # The first is done by a check of our own; the second asks without a key, which /metrics and its like answer.
               "--exclude-checks", "positive_data_acceptance,ignored_auth", *operations, "-H", f"Authorization: Bearer {key}",
               "--seed", str(arguments.seed), "--max-examples", str(arguments.examples), "--workers", "1", "--continue-on-failure",
               "--no-shrink", "--request-timeout", "60", "--suppress-health-check", "all"]  # fmt: skip
    ended = subprocess.run(command, cwd=HERE, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks"})  # fmt: skip
    print(ended.stdout, flush=True)
    found = re.search(r"(\d+) generated", ended.stdout)
    return int(found[1]) if found else 0, ended.returncode == 0


def run(arguments):
    with tempfile.TemporaryDirectory() as store:
        with Server(store, model=TINY, env={"CHORUS_OPERATOR_KEY": OPERATOR}) as server:
            def admin(path, body):
                answer = server.http.post(f"{server.url}/v1/admin/tenants{path}", json=body, headers={"Authorization": f"Bearer {OPERATOR}"})
                assert answer.status_code == 201, answer.text
                return answer.json()

            admin("", {"name": "acme"})
            key = admin("/acme/keys", {"scope": "admin"})["key"]
            for name, folder in (("sql", "all-linear"), ("support", "layers-int")):
                files = {file: (TINY / "adapters" / folder / file).read_bytes() for file in (CONFIG, WEIGHTS)}
                answer = server.put(name, files, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == 201, answer.text
            of_tenant, well = cases(arguments, server, key, ("--exclude-tag", "operation"))
            of_operator, too = cases(arguments, server, OPERATOR, ("--include-tag", "operation"))
            ready = server.http.get(server.url + "/ready", timeout=5).status_code == 200
            panics = "panicked" in server.logged()
    count = of_tenant + of_operator
    print(f"{count} cases; ready {ready}, panics {panics}")
    return well and too and ready and not panics and count >= arguments.cases


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000, help="at least")
    parser.add_argument("--examples", type=int, default=30, help="of each operation, besides those of coverage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default="schemathesis")
    sys.exit(not run(parser.parse_args()))
