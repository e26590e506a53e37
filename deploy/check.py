#!/usr/bin/env python3
"""Holds the files of this folder against the program: every option, variable, metric and route that they name exists, and
chorus.toml has every knob with its default. Then against the programs that they are for, as far as these are there.

    python3 -B deploy/check.py            all of it
    python3 -B deploy/check.py --quick    nothing but chorus itself

Needs target/release/chorus (or `--binary FILE`) and the standard library; YAML is read where PyYAML is there."""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

try:
    import yaml
except ImportError:
    yaml = None

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# A base of two layers, which is read in a moment.
TINY = ROOT / "tests" / "fixtures" / "models" / "tied"
# What chorus reads besides the options of `serve`.
OTHER_VARIABLES = {"CHORUS_OPERATOR_KEY", "CHORUS_URL", "CHORUS_KEY", "CHORUS_TEST_DEVICE"}
# Labels that Prometheus and Kubernetes add to those of chorus.
OUTER_LABELS = {"le", "instance", "job", "namespace", "pod"}
# How long the end waits for the store, after the drain: LAST_SHEET of src/cli/serve.rs.
LAST_SHEET = 5
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}

problems, absent = [], []


def expect(right, what):
    if not right:
        problems.append(what)
        print(f"  WRONG: {what}")


def files(*patterns):
    found = [file for pattern in patterns for file in sorted(HERE.rglob(pattern))]
    return {file.relative_to(HERE).as_posix(): file.read_text() for file in found}


def documents():
    """Every object in a YAML file, with the file's name."""
    if yaml is None:
        return []
    return [(name, item) for name, text in files("*.yaml", "*.yml").items() for item in yaml.safe_load_all(text) if item]


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|min|m|h)?", str(text)).groups()
    return int(number) * {"ms": 0.001, "s": 1, None: 1, "min": 60, "m": 60, "h": 3600}[unit]


# The program.


def ask_options(binary, *command):
    """Its options, and each one's default as the help has it."""
    text = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^ +(?:-\w, )?--([a-z-]+)", text, flags=re.M)[1:]
    defaults = {}
    for name, part in zip(parts[::2], parts[1::2]):
        default = re.search(r"\[default: ([^\]]+)\]", " ".join(part.split()))
        defaults[name] = default and default[1]
    return defaults


@contextlib.contextmanager
def served(binary, *options, env=None):
    """A server of the small base that is ready, by its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile("w+") as log:
        for folder in ("adapters", "lora-root"):
            (Path(work) / folder).mkdir()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHORUS_")}
        command = [binary, "serve", "--model", TINY, "--listen", f"127.0.0.1:{port}", *options]
        process = subprocess.Popen([str(part) for part in command], cwd=work, env={**clean, **(env or {})}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while ask(port, "/ready")[0] != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"chorus did not start with {options}:\n{log.read()}")
                time.sleep(0.02)
            yield port
        finally:
            process.kill()
            process.wait()


def ask(port, path, body=None, **headers):
    """The status and text of an answer; 0 where there is none."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json", **named})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


# What the files name.


def check_file(binary, options):
    """chorus.toml has every knob, with its default, and changes nothing; what is in it is understood."""
    source = (ROOT / "src" / "config" / "knobs.rs").read_text()
    struct = source[source.index("pub struct Knobs {") :]
    knobs = {name.replace("_", "-") for name in re.findall(r"^    pub\(super\) (\w+): Option<", struct[: struct.index("\n}")], re.M)}
    expect(knobs == options.keys() - {"config", "help"}, f"src/config/knobs.rs and `serve --help` differ: {knobs ^ (options.keys() - {'config', 'help'})}")
    text = (HERE / "chorus.toml").read_text()
    expect(not re.search(r"^[^#\n]", text, re.M), "chorus.toml: a line is not commented out")
    lines = re.findall(r"((?:^#(?: .*)?\n)*)^#([a-z][a-z-]*) = (.+)$", text, re.M)
    written = [name for _, name, _ in lines]
    expect(sorted(written) == sorted(knobs), f"chorus.toml lacks, repeats or invents {sorted(set(written) ^ knobs) or 'a knob'}")
    for comment, name, value in lines:
        expect(comment.strip("#\n ") != "", f"chorus.toml: {name} has no comment")
        default = options.get(name) or "false"
        if not re.search("Examples?;|Without it", comment):
            expect(value.strip('"') == default, f"chorus.toml: {name} = {value}, but its default is {default}")
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as taken:
        # There is no certificate here, and nobody below asks by https; and no GPU.
        taken.write(re.sub(r"^#((?!tls-|device-adapter-)[a-z][a-z-]* = )", r"\1", text, flags=re.M))
        taken.flush()
        with served(binary, "--config", HERE / "chorus.toml"), served(binary, "--config", taken.name, "--max-context", "128", "--metrics-listen", "127.0.0.1:0"):
            pass
    with served(binary, "--config", HERE / "kubernetes" / "chorus.toml"):
        pass
    return knobs


def check_names(knobs, options):
    """Variables and options that are named anywhere here are chorus's."""
    variables = {"CHORUS_" + name.upper().replace("-", "_") for name in [*knobs, "config"]} | OTHER_VARIABLES
    for name, text in everything().items():
        for variable in set(re.findall(r"\bCHORUS_[A-Z0-9_]*[A-Z0-9]", text)):
            expect(variable in variables, f"{name} names {variable}, which chorus does not read")
    # In these all that looks like an option is one of chorus.
    for name in ("chorus.toml", "haproxy.cfg", "nginx.conf", "prometheus/alerts.yml", "grafana/dashboard.json", "systemd/chorus.service"):
        for option in set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", (HERE / name).read_text())):
            expect(option in options, f"{name} names --{option}, which `chorus serve` does not have")
    for name, item in documents():
        for container in containers(item):
            for option in re.findall(r"(?<!\S)--([a-z][a-z-]+)", " ".join(map(str, container.get("args") or []))):
                expect(option in options, f"{name} starts chorus with --{option}, which it does not have")
    for knob in re.findall(r"^([a-z-]+) *=", (HERE / "kubernetes" / "chorus.toml").read_text(), re.M):
        expect(knob in knobs, f"kubernetes/chorus.toml has {knob}, which chorus does not know")


def everything():
    return {name: text for name, text in {
        file.relative_to(HERE).as_posix(): file.read_text() for file in sorted(HERE.rglob("*")) if file.is_file() and file.suffix != ".pyc"
    }.items() if name != "check.py"}  # fmt: skip


def containers(item):
    """The containers of chorus in an object of Kubernetes."""
    spec = item.get("spec") or {}
    inner = (spec.get("template") or {}).get("spec") or spec
    return [one for one in inner.get("containers") or [] if isinstance(one, dict) and "chorus" in str(one.get("image", ""))]


def exported(text):
    """Every name under which a page of metrics can have series."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    return {name + suffix for name, kind in kinds for suffix in SUFFIXES[kind]}


def check_metrics(binary):
    """Every metric and label in rules, dashboards and scalers is one that a server shows."""
    with served(binary, "--metrics-open") as port:
        body = {"model": "tied", "prompt": "Once", "max_tokens": 2}
        status, text = ask(port, "/v1/completions", body)
        expect(status == 200, f"a completion gave {status}: {text}")
        page = ask(port, "/metrics")[1]
    names = exported(page)
    labels = set(re.findall(r'[{,](\w+)="', page)) | OUTER_LABELS
    source = (ROOT / "src" / "http" / "metrics.rs").read_text()
    used = {}
    for name, text in everything().items():
        for metric in set(re.findall(r"\b(?:chorus_|vllm:)[a-z0-9_]*[a-z0-9]", text)):
            used.setdefault(metric, name)
            expect(metric in names, f"{name} names the metric {metric}, which chorus does not show")
    for name, expression in expressions():
        for inside in re.findall(r"\{([^{}]*)\}", expression):
            for label in re.findall(r"(\w+) *(?:=~|!~|!=|=)", inside):
                expect(label in labels, f"{name}: no series has a label {label}")
        for inside in re.findall(r"\bby \(([^)]*)\)", expression):
            for label in re.split(r"[ ,]+", inside):
                expect(label in labels, f"{name}: no series has a label {label}")
    expect("tenant: String" in source and "adapter: String" in source, "src/http/metrics.rs: usage has other labels than these files use")
    print(f"  {len(used)} of {len(names)} metrics are used")


def expressions():
    """Every PromQL expression, as text with Grafana's variables filled in."""
    dashboard = json.loads((HERE / "grafana" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"dashboard, {panel['title']}", target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
    for match in re.finditer(r"^ +expr: (.+)$", (HERE / "prometheus" / "alerts.yml").read_text(), re.M):
        yield "alerts.yml", match[1]


def check_times(options):
    """Whoever stops a server lets it drain; whoever asks for a page asks for one that there is."""
    drain = seconds(options["drain-time"]) + LAST_SHEET
    unit = (HERE / "systemd" / "chorus.service").read_text()
    expect(seconds(re.search(r"^TimeoutStopSec=(\S+)", unit, re.M)[1]) > drain, "chorus.service kills before the drain is over")
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    for name, item in documents():
        for service, told in (item.get("services") or {}).items():
            if service.startswith("chorus"):
                expect(seconds(told.get("stop_grace_period", 10)) > drain, f"{name}: {service} is killed before the drain is over")
        for container in containers(item):
            spec = item["spec"].get("template", {}).get("spec", item["spec"])
            before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if item.get("kind") == "Deployment":
                expect(spec.get("terminationGracePeriodSeconds", 30) > before + drain, f"{name} kills before the drain is over")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container.get(probe, {}).get("httpGet", {}).get("path")
                expect(path is None or path in paths, f"{name}: {probe} asks for {path}, which is no route")


# The programs that the files are for.


def there(program):
    # Debian keeps servers out of people's PATH.
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        absent.append(program)
    return found


def passes(what, command, **options):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    expect(done.returncode == 0, f"{what}: {done.stdout.strip()}")
    print(f"  {what}: {'passed' if done.returncode == 0 else 'failed'}")
    return done.stdout


def check_with_programs(binary):
    if program := there("haproxy"):
        passes("haproxy -c", [program, "-c", "-f", HERE / "haproxy.cfg"])
        check_haproxy(binary, program)
    if program := there("nginx"):
        passes("nginx -t", [program, "-t", "-c", HERE / "nginx.conf"])
        check_nginx(binary, program)
    if program := there("promtool"):
        passes("promtool check rules", [program, "check", "rules", HERE / "prometheus" / "alerts.yml"])
        passes("promtool check config", [program, "check", "config", "--syntax-only", HERE / "prometheus" / "prometheus.yml"])
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as rules:
            listed = [{"record": f"panel:{number}", "expr": expression} for number, (_, expression) in enumerate(expressions())]
            json.dump({"groups": [{"name": "dashboard", "rules": listed}]}, rules)
            rules.flush()
            passes("promtool check rules, the dashboard's expressions", [program, "check", "rules", rules.name])
    if program := there("systemd-analyze"):
        with tempfile.TemporaryDirectory() as folder:
            # Where this program is; the unit's is where it is to be installed.
            unit = (HERE / "systemd" / "chorus.service").read_text().replace("/usr/local/bin/chorus", str(binary))
            (Path(folder) / "chorus.service").write_text(unit)
            said = passes("systemd-analyze verify", [program, "verify", Path(folder) / "chorus.service"])
            expect("chorus.service" not in said, f"systemd-analyze verify: {said}")
    built = None
    if program := there("kubectl"):
        built = passes("kubectl kustomize", [program, "kustomize", HERE / "kubernetes"])
    if program := there("kubeconform"):
        passes("kubeconform", [program, "-strict", "-ignore-missing-schemas", "-"], input=built) if built else None
    if program := there("kubernetes-validate"):
        # From PyPI; it has the schemas of Kubernetes itself, and passes over kinds that others have defined.
        passes("kubernetes-validate", [program, "--strict", *sorted((HERE / "kubernetes").glob("*.yaml"))])
    if program := there("docker"):
        if subprocess.run([program, "compose", "version"], capture_output=True).returncode == 0:
            command = [program, "compose", "-f", HERE / "compose.yaml", "--env-file", HERE / "compose.env.example", "config", "--quiet"]
            passes("docker compose config", command)
        else:
            absent.append("docker compose")


def behind(what, binary, run):
    """Two servers behind a proxy: adapters keep to one of them, tokens come one by one, and what is not for clients is not there."""
    with contextlib.ExitStack() as held:
        store = held.enter_context(tempfile.TemporaryDirectory())
        one, two = (held.enter_context(served(binary, "--store", store)) for _ in range(2))
        port = held.enter_context(run(one, two))
        deadline = time.monotonic() + 20
        while ask(port, "/ready", Host="localhost")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        expect(ask(port, "/metrics", Host="localhost")[0] == 404, f"{what} passes /metrics on")
        # The name of nothing: 404 is counted where it is given.
        for number in range(12):
            for _ in range(4):
                body = {"model": "tied", "prompt": "Once", "max_tokens": 1}
                status, _text = ask(port, "/v1/completions", body, X_Adapter=f"none-{number}", Host="localhost")
                expect(status in (400, 404), f"{what}: {status} for an adapter that is not there")
        counts = []
        for server in (one, two):
            lines = re.findall(r'^chorus_requests_total\{endpoint="/v1/completions",code="(?:400|404)"\} (\d+)', ask(server, "/metrics")[1], re.M)
            counts.append(sum(map(int, lines)))
        # An adapter's four requests go one way, so that the sums are multiples of four.
        expect(sum(counts) == 48 and all(count % 4 == 0 and count for count in counts), f"{what}: {counts} requests of 12 adapters of 4 each")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"model": "tied", "prompt": "Once", "max_tokens": 64, "stream": True, "ignore_eos": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", "Host": "localhost"})
        answer = connection.getresponse()
        expect(answer.status == 200 and answer.readline().startswith(b"data: "), f"{what} does not stream: {answer.status}")
        expect(answer.read().rstrip().endswith(b"[DONE]"), f"{what} cuts a stream off")
        connection.close()
        foreign = ask(port, "/v1/models", Host="evil.example")[0]
        expect(foreign == 403, f"{what} makes a foreign Host pass: {foreign}")
        print(f"  two servers behind {what}: {counts[0]} and {counts[1]} requests, each adapter's to one of them")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_haproxy(binary, program):
    @contextlib.contextmanager
    def run(one, two):
        port = free_port()
        env = {**os.environ, "LISTEN": f"127.0.0.1:{port}", "SERVER_1": f"127.0.0.1:{one}", "SERVER_2": f"127.0.0.1:{two}"}
        process = subprocess.Popen([program, "-db", "-f", str(HERE / "haproxy.cfg")], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Both are taken for there until they have been checked.
            time.sleep(1)
            yield port
        finally:
            process.kill()
            process.wait()

    behind("haproxy", binary, run)


def check_nginx(binary, program):
    @contextlib.contextmanager
    def run(one, two):
        port = free_port()
        text = (HERE / "nginx.conf").read_text()
        for old, new in (("8000", port), ("8081", one), ("8082", two)):
            text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            config = Path(folder) / "nginx.conf"
            config.write_text(f"pid {folder}/pid; error_log stderr;\n" + text.replace("http {", "http {\n    access_log off;", 1))
            command = [program, "-c", str(config), "-g", "daemon off;"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                yield port
            finally:
                process.terminate()
                process.wait()

    behind("nginx", binary, run)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run no other programs than chorus")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "chorus", help="the chorus to ask")
    asked = parser.parse_args()
    binary = asked.binary.resolve()
    options = ask_options(binary, "serve")
    print("names, options and times")
    knobs = check_file(binary, options)
    check_names(knobs, options)
    check_times(options)
    print("metrics")
    check_metrics(binary)
    if yaml is None:
        absent.append("PyYAML")
    if not asked.quick:
        print("other programs")
        check_with_programs(binary)
    if absent:
        print(f"not there, and so not asked: {', '.join(absent)}")
    if problems:
        sys.exit(f"{len(problems)} wrong")
    print("all right")


if __name__ == "__main__":
    main()
