#!/usr/bin/env python3
"""What /openapi.json says is what the server does: schemathesis makes requests of it, right ones and wrong ones, against a small base.
None may be answered by a 5xx, by a status or a body that the document does not have, or be refused although it is right; and none
that is wrong may be taken. It needs `schemathesis` (PyPI).

    python3 -B openapi.py [--cases 5000] [--seed 1]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chorus import MINI, TINY, Server, mini

HERE = Path(__file__).resolve().parent



def run(arguments):
    """The exit status and what was seen, over as many rounds as the cases take."""
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as reports:
        with Server(store, "--request-timeout", "20", model=TINY) as server:
            for number in range(3):
                assert server.put(f"adapter-{number}", mini(number)).status_code in (201, 422)
            seen, seed, failed = Counter(), arguments.seed, False
            while seen["cases"] < arguments.cases and not failed:
                report = Path(reports) / f"{seed}.json"
                command = [arguments.program, "run", server.url + "/openapi.json", "--checks", "all", "--exclude-checks",
                           "positive_data_acceptance,ignored_auth", "--seed", str(seed), "--workers", "2", "--continue-on-failure",
                           "--max-examples", str(arguments.examples), "--request-timeout", "60", "--no-shrink",
                           "--suppress-health-check", "all", "--report", "json", "--report-json-path", report]  # fmt: skip
                ended = subprocess.run([str(part) for part in command], cwd=HERE, check=False,
                                       env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks"})  # fmt: skip
                failed = ended.returncode != 0
                seen["cases"] += json.loads(report.read_text())["summary"]["cases"] if report.is_file() else 0
                seed += 1
            alive = server.http.get(server.url + "/ready", timeout=5).status_code == 200
    return failed or not alive, seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", default="schemathesis")
    failed, seen = run(parser.parse_args())
    print(dict(seen))
    sys.exit(failed)
