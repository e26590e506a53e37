"""A chorus server of a test's own, and adapters for it."""

import array
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target" / "release" / "chorus"
BASE = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINI = ROOT / "tests" / "fixtures" / "bad" / "control-good-mini"
# A base of two layers, which answers in a millisecond.
TINY = ROOT / "tests" / "fixtures" / "models" / "tied"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def moto(program):
    """The port of an S3 in memory that has one bucket."""
    port = free_port()
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(requests.RequestException):
                if requests.put(f"http://127.0.0.1:{port}/bucket", timeout=5).status_code == 200:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()


def s3(port):
    """A store in that bucket, and the variables that say how to reach it."""
    return "s3://bucket/chorus", {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }  # fmt: skip


@contextlib.contextmanager
def with_tenants(names, scope):
    """A server, and a key of each of these tenants."""
    operator = "operator-" + os.urandom(16).hex()
    with Server(tempfile.mkdtemp(), env={"CHORUS_OPERATOR_KEY": operator}) as server:
        def admin(path, json):
            answer = server.http.post(server.url + "/v1/admin/tenants" + path, json=json, headers={"Authorization": f"Bearer {operator}"})
            assert answer.status_code == 201, answer.text
            return answer.json()

        keys = []
        for name in names:
            admin("", {"name": name})
            keys.append(admin(f"/{name}/keys", {"scope": scope})["key"])
        yield server, keys


class Server:
    def __init__(self, store, *options, env=None, port=None, adapters=None, model=BASE):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = requests.Session()
        self.http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        adapters = adapters or tempfile.mkdtemp()
        command = [BINARY, "serve", "--model", model, "--served-model-name", "base-model", "--listen", f"127.0.0.1:{self.port}",
                   "--store", store, "--adapters", adapters, "--log", "warn", *options]  # fmt: skip
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=self.log,
                                        env={**os.environ, **(env or {})}, start_new_session=True)  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.RequestException):
                if self.http.get(self.url + "/ready", timeout=1).status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"chorus did not start:\n{self.logged()}")
            time.sleep(0.02)

    def logged(self):
        return Path(self.log.name).read_text()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def put(self, name, files, timeout=120, **options):
        parts = [(file, (file, files[file])) for file in (CONFIG, WEIGHTS)]
        return self.http.put(f"{self.url}/v1/adapters/{name}", files=parts, timeout=timeout, **options)

    def show(self, name):
        answer = self.http.get(f"{self.url}/v1/adapters/{name}", timeout=60)
        return answer.json() if answer.status_code == 200 else None

    def delete(self, name, **options):
        return self.http.delete(f"{self.url}/v1/adapters/{name}", timeout=60, **options)

    def complete(self, model, tokens=8, prompt="Once upon a time", **options):
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        return self.http.post(self.url + "/v1/completions", json=body, timeout=120, **options)

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def mini(number):
    """A small adapter that works, different for each number."""
    weights = bytearray((MINI / WEIGHTS).read_bytes())
    weights[-4:] = struct.pack("<f", 0.01 + number / 1e6)
    return {CONFIG: (MINI / CONFIG).read_bytes(), WEIGHTS: bytes(weights)}


def turned(folder, number):
    """An adapter with half of its A turned round, another half for each number, so that most say something of their own."""
    weights = bytearray((folder / WEIGHTS).read_bytes())
    head = 8 + int.from_bytes(weights[:8], "little")
    tensors = [tensor for name, tensor in json.loads(weights[8:head]).items() if "lora_A" in name]
    # Times an odd number: no two numbers turn the same.
    which = number * (random.Random(0).getrandbits(len(tensors)) | 1)
    for at, tensor in enumerate(tensors):
        if which >> at & 1:
            begin, end = tensor["data_offsets"]
            values = array.array("f", weights[head + begin : head + end])
            weights[head + begin : head + end] = array.array("f", (-value for value in values)).tobytes()
    return {CONFIG: (folder / CONFIG).read_bytes(), WEIGHTS: bytes(weights)}


def digest(files):
    """sha256 over a tag, the config's sha256 and the weights'."""
    inner = b"chorus-adapter-v1\0" + b"".join(hashlib.sha256(files[file]).digest() for file in (CONFIG, WEIGHTS))
    return "sha256:" + hashlib.sha256(inner).hexdigest()
