"""Runs a command to its end: its output, and the memory and CPU time of all its processes meanwhile."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import processes, servers
from rayapp.errors import RayAppError

LOOK_S = 1.0  # between two looks at the processes
# of the time may go into counting pages: with the 20 processes of Ray that takes 0.1 s, taken from the training
MEMORY_PART = 0.005
# What the shell may have set, and a contestant is not to be given by accident.
UNSET = ("RAY_ADDRESS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Done:
    """A command that ended well. launched_at: seconds since 1970.

    memory_mib: the most that all its processes had together, pages that they share counted once (Linux; elsewhere in
    each). others_cpu: the part (0-1) of the machine that strangers used meanwhile.
    """

    stdout: str
    launched_at: float
    memory_mib: float
    others_cpu: float


def run(words: Sequence[str], variables: Mapping[str, str], log: Path, *, timeout_s: float) -> Done:
    """What the command did; stderr goes to log. Raises RayAppError where it fails or takes longer than timeout_s."""
    log.parent.mkdir(parents=True, exist_ok=True)
    unset = [word for name in UNSET for word in ("-u", name)]
    pairs = [f"{name}={value}" for name, value in variables.items()]
    own = psutil.Process()
    launched_at, machine_before, own_before = time.time(), processes.machine_cpu_s(), _cpu_s(own)
    with log.open("wb") as errors, tempfile.TemporaryFile() as output:
        started = subprocess.Popen(  # noqa: S603
            ["env", *unset, *pairs, *words],  # noqa: S607 - the rest of our own environment is kept
            stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=servers.ROOT, start_new_session=True,
        )  # fmt: skip
        server = servers.Server("", psutil.Process(started.pid), log)
        try:
            seen = _watch(started, server, timeout_s)
        finally:
            servers.stop(server, started)
        output.seek(0)
        stdout = output.read().decode(errors="replace")
    if started.returncode:
        ended = "did not end in time" if started.returncode < 0 else f"ended with code {started.returncode}"
        raise RayAppError(f"{Path(words[0]).name} {' '.join(words[1:4])} ... {ended}; {log}: {servers.tail(log)}")
    seconds = time.time() - launched_at
    strangers_s = processes.machine_cpu_s() - machine_before - sum(seen.cpu_s.values()) - (_cpu_s(own) - own_before)
    return Done(stdout, launched_at, seen.memory_mib, max(0.0, strangers_s / seconds / processes.NUM_CORES))


@dataclass
class _Seen:
    """What looks at a family of processes found: its peak of memory, and the CPU seconds of each process at last."""

    memory_mib: float = 0.0
    cpu_s: dict[int, float] = field(default_factory=dict)
    _next_count_at: float = 0.0

    def look(self, family: Sequence[psutil.Process]) -> None:
        started, memory = time.monotonic(), 0.0
        count_pages = started >= self._next_count_at
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                self.cpu_s[process.pid] = _cpu_s(process)
                if count_pages:
                    full = process.memory_full_info()
                    memory += getattr(full, "pss", full.rss) / processes.MIB
        if count_pages:
            self.memory_mib = max(self.memory_mib, memory)
            now = time.monotonic()
            self._next_count_at = now + (now - started) / MEMORY_PART


def _watch(started: subprocess.Popen[bytes], server: servers.Server, timeout_s: float) -> _Seen:
    """What was seen until the command ended, or timeout_s passed."""
    seen, deadline = _Seen(), time.monotonic() + timeout_s
    while started.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen.look(server.processes())
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(LOOK_S)
    return seen


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
