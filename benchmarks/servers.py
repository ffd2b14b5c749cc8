"""Starts and stops what is measured: `rayapp serve` with a home of its own, and the servers it is compared with.

Each server is a tree of processes of its own with a port of its own; its output goes to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from benchmarks import frame
from benchmarks.frame import Bench
from rayapp.config.env import Home
from rayapp.errors import RayAppError
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from rayapp.registry.uris import ModelVersion

ROOT = Path(__file__).resolve().parents[1]
START_S = 300.0  # longest wait for the first answer
STOP_S = 45.0  # HAProxy drains what it has
# What the shell may have set, and a contestant is not to be given by accident.
UNSET = ("RAY_ADDRESS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Site:
    """A home with a registry: bundles become versions, and the alias is moved."""

    home: Home
    registry: Registry

    @classmethod
    def at(cls, folder: Path, *, tracking_uri: str | None = None) -> Site:
        """A site in a new folder, with its own database or on an MLflow server."""
        folder.mkdir(parents=True, exist_ok=True)
        home = Home(folder=folder, tracking_uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}")
        return cls(home, Registry(home.tracking_uri))

    def register(self, bundle: Path) -> ModelVersion:
        """A new version made of the bundle in a folder."""
        tracker = Tracker(self.home.tracking_uri, self.home.artifacts)
        with contextlib.redirect_stdout(sys.stderr):  # MLflow prints links to its pages
            run_id = tracker.open_run("benchmark", bundle.name, params={"model.name": "mobilenet_v3_small"}, tags={})
            source = self.registry.log_bundle(run_id, bundle)
            tracker.close_run(run_id, "FINISHED")
            return self.registry.register(run_id, source)

    def promote(self, version: ModelVersion) -> None:
        """Point champion at a version."""
        self.registry.set_alias(version, "champion")


@dataclass(frozen=True)
class Command:
    """How a server is started: its words and variables of its environment.

    {port} in them stands for the port it listens on, other names in braces for other free ports.
    """

    words: Sequence[str]
    ready: str  # method and path that answer 200 once it serves
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: psutil.Process
    log: Path

    def processes(self) -> list[psutil.Process]:
        """All that belong to it now."""
        return [self.process, *self.process.children(recursive=True)]


def rayapp(site: Site, scratch: Path, settings: Sequence[str] = (), *, num_replicas: int = 1) -> Command:
    """`rayapp serve` for the champion of a site. scratch has to be a short path: Ray's sockets lie below it."""
    haproxy, replicas = scratch / "haproxy", free_port()
    return Command(
        words=[
            sys.executable, "-m", "rayapp.cli", "serve", "--port", "{port}",
            "--app.device", "cpu", "--app.num_replicas", str(num_replicas), *settings,
        ],
        ready="GET /readyz",
        variables={
            "RAYAPP_HOME": str(site.home.folder),
            "MLFLOW_TRACKING_URI": site.home.tracking_uri,
            "RAY_TMPDIR": str(scratch),
            # The defaults of these are the same for every cluster of a machine: two of them would mix.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": "{stats}",
            "RAY_SERVE_HAPROXY_METRICS_PORT": "{metrics}",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "{fallback}",
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": "{grpc}",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas + 200),
        },
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the benchmarks that work on one `rayapp serve`."""
    parser.add_argument("--replicas", type=frame.count, default=2, help="replicas of rayapp serve [2]")
    parser.add_argument("--serve-args", default="", metavar="'--app.x Y'", help="more settings for rayapp serve")


@contextlib.contextmanager
def champion(bench: Bench[Any], site: Site, log: str) -> Iterator[Server]:
    """`rayapp serve` for the champion of a site, as a benchmark's options say."""
    options = bench.options
    command = rayapp(site, bench.scratch, options.serve_args.split(), num_replicas=options.replicas)
    with running(command, options.logs / log) as server:
        yield server


def bentoml(python: Path, service: Path, scratch: Path, *, workers: int) -> Command:
    """`bentoml serve` of a service's file, with so many workers of one torch thread."""
    name = "VisionClassifier"
    return Command(
        words=[
            str(python.with_name("bentoml")), "serve", f"{service.stem}:{name}", "--working-dir", str(service.parent),
            "--host", "127.0.0.1", "--port", "{port}", "--timeout", "60",
        ],
        ready="GET /readyz",
        variables={
            "BENTOML_HOME": str(scratch / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_CONFIG_OPTIONS": f"services.{name}.workers={workers}",
            "TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        folder=service.parent,
    )  # fmt: skip


def litserve(python: Path, bundle: Path, *, workers: int) -> Command:
    """LitServe with so many inference workers and as many API servers."""
    script = str(Path(__file__).with_name("peers") / "lit_service.py")
    return Command(
        words=[str(python), script, "--bundle", str(bundle), "--port", "{port}", "--workers", str(workers)],
        ready="GET /health",
        variables={"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )


@contextlib.contextmanager
def running(command: Command, log: Path, *, port: int | None = None) -> Iterator[Server]:
    """A server that answers inside the with block. Raises RayAppError with the end of its output where it does not."""
    ports = _FreePorts({"port": port} if port else {})
    words = [word.format_map(ports) for word in command.words]
    variables = {name: value.format_map(ports) for name, value in command.variables.items()}
    url = f"http://127.0.0.1:{ports['port']}"
    with started(words, variables, log, folder=command.folder, url=url) as (server, process):
        wait_until_ready(server, command.ready, process)
        yield server


@contextlib.contextmanager
def started(
    words: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    *,
    folder: Path = ROOT,
    url: str = "",
    stdout: IO[bytes] | None = None,
) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """A process in a session of its own, which ends with all its children when the with block does.

    What it says goes to the end of log, but stdout to a file where one is given.
    """  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    unset = [word for name in UNSET for word in ("-u", name)]
    pairs = [f"{name}={value}" for name, value in variables.items()]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            ["env", *unset, *pairs, *words],  # noqa: S607 - the rest of our own environment is kept
            stdin=subprocess.DEVNULL, stdout=stdout or output, stderr=output, cwd=folder, start_new_session=True,
        )  # fmt: skip
    server = Server(url, psutil.Process(process.pid), log)
    try:
        yield server, process
    finally:
        stop(server, process)


def wait_until_ready(server: Server, ready: str, started: subprocess.Popen[bytes]) -> None:
    """Returns once `ready` ("GET /path") answers 200. Raises RayAppError where the server ends or START_S pass."""
    method, path = ready.split()
    deadline = time.monotonic() + START_S
    while started.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.request(method, server.url + path, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    ended = started.returncode is not None
    why = f"ended with code {started.returncode}" if ended else f"did not answer in {START_S:g} s"
    raise RayAppError(f"the server {why}; {server.log} ends with: {tail(server.log)}")


def stop(server: Server, started: subprocess.Popen[bytes]) -> None:
    """End a server: SIGTERM, and SIGKILL for what is left of its processes after STOP_S or after its parent's end."""
    if started.poll() is not None:
        return
    family = server.processes()
    started.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(STOP_S)
    _, alive = psutil.wait_procs(family, timeout=2)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


class _FreePorts(dict[str, int]):
    """A free port for each name that is asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = free_port()
        return self[name]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path, chars: int = 600) -> str:
    """The end of a file."""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-chars:]
