"""Runs wrk, the load generator: a closed loop of so many clients that costs little beside the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import children_cpu_s
from rayapp.errors import RayAppError

SCRIPT = Path(__file__).with_name("post_image.lua")
TIMEOUT_S = 10  # of one request; wrk's own 2 s would count a slow peer's answers as errors


@dataclass(frozen=True)
class Load:
    """So many clients, each of which posts again as soon as it has its answer; batch is None for /predict_image."""

    clients: int
    batch: int | None = None

    @property
    def images(self) -> int:
        """Images in one request."""
        return self.batch or 1

    def __str__(self) -> str:
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{clients}, batch of {self.batch}" if self.batch else f"{clients}, single image"


@dataclass(frozen=True)
class Run:
    """What one run of wrk measured; client_cpu_s is wrk's own CPU time."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    non2xx: int
    socket: int
    timeout: int
    client_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        """Requests without a good answer: a run that has some is invalid."""
        return self.non2xx + self.socket + self.timeout


def parse(output: str, *, client_cpu_s: float = 0.0) -> Run:
    """The run that wrk's output tells of. Raises RayAppError where there is no RESULT line."""
    line = re.search(r"^RESULT (.+)$", output, flags=re.MULTILINE)
    if line is None:
        raise RayAppError(f"wrk printed no RESULT line, but: {output.strip()[-400:]!r}; is the server there?")
    values = dict(pair.split("=") for pair in line[1].split())
    return Run(
        requests=int(values["requests"]),
        seconds=float(values["seconds"]),
        p50_ms=float(values["p50_ms"]),
        p90_ms=float(values["p90_ms"]),
        p99_ms=float(values["p99_ms"]),
        non2xx=int(values["non2xx"]),
        socket=int(values["socket"]),
        timeout=int(values["timeout"]),
        client_cpu_s=client_cpu_s,
    )


def run(url: str, load: Load, *, image: Path, seconds: int) -> Run:
    """What so many seconds of load on the server at url gave. Raises RayAppError where wrk fails."""
    variables = [f"IMAGE={image}", *([f"BATCH={load.batch}"] if load.batch else [])]
    command = ["wrk", "-t1", f"-c{load.clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", f"-s{SCRIPT}", url]
    before = children_cpu_s()
    done = subprocess.run(["env", *variables, *command], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise RayAppError(f"wrk failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return parse(done.stdout, client_cpu_s=children_cpu_s() - before)


def version() -> str:
    """The version of the wrk on PATH. Raises RayAppError where there is none."""
    if shutil.which("wrk") is None:
        raise RayAppError("wrk, the load generator, is not on PATH; install it with: apt-get install wrk")
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)  # noqa: S607
    found = re.search(r"wrk (?:debian/)?(\S+)", said.stdout + said.stderr)
    return found[1] if found else "unknown"
