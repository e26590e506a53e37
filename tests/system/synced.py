#!/usr/bin/env python3
"""Under strace: before the 201 is sent, each file of the upload and the directory that holds it are synced, the record's last."""

import re
import subprocess
import sys
import tempfile
import time

from chorus import Server, mini


def main():
    store, trace = tempfile.mkdtemp(), tempfile.mktemp()
    calls = "openat,fsync,fdatasync,link,linkat,rename,renameat,renameat2,write,writev,sendto"
    with Server(store) as server:
        assert server.put("warm", mini(1)).status_code == 201
        strace = subprocess.Popen(["strace", "-f", "-y", "-tt", "-s", "32", "-e", f"trace={calls}", "-o", trace, "-p", str(server.process.pid)],
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(1)
        assert server.put("name", mini(2)).status_code == 201
        time.sleep(0.5)
        strace.terminate()
        strace.wait()
    events = []
    for line in open(trace, errors="replace"):
        if "HTTP/1.1 201" in line:
            events.append("201 sent")
        if found := re.search(r"(fsync|fdatasync)\(\d+<([^>]*)>", line):
            events.append(f"synced {found[2].removeprefix(store)}")
        if found := re.search(r'(link|linkat|rename|renameat|renameat2)\(.*"([^"]*)"[^"]*$', line):
            if store in line:
                events.append(f"named {re.sub('#.*', '', found[2]).removeprefix(store)}")
    print("\n".join(events))
    done = events.index("201 sent")
    shape = [re.sub(r"[0-9a-f]{64}\.[0-9a-f]{16}", "BLOB", event) for event in events[:done]]
    files = [event for event in shape if event.startswith("synced /blobs/BLOB")]
    named = [event for event in shape if event.startswith("named /blobs/BLOB")]
    directories = [event for event in shape if event == "synced /blobs"]
    record = [at for at, event in enumerate(shape) if event.startswith("synced /logs/adapters/0")]
    folder = [at for at, event in enumerate(shape) if event == "synced /logs/adapters"]
    if not (len(files) >= 2 and len(named) >= 2 and len(directories) >= 2 and record and folder and record[0] < folder[-1]):
        sys.exit("something was not synced before the 201")
    if max(at for at, event in enumerate(shape) if event == "synced /blobs") > record[0]:
        sys.exit("the record was written before its files were safe")
    print("both files, their directory, the record and its directory were synced before the 201, in this order")


main()
