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
    log.unlink(missing_ok=True)  # what is quoted is to be of this run
    launched_at, strangers = time.time(), processes.Strangers()
    with tempfile.TemporaryFile() as output:
        with servers.started(words, variables, log, stdout=output) as (server, process):
            seen = _watch(process, server, timeout_s)
            others_cpu = strangers.part(sum(seen.cpu_s.values()), ended=process.returncode is not None)
        output.seek(0)
        stdout = output.read().decode(errors="replace")
    if process.returncode:
        ended = "did not end in time" if process.returncode < 0 else f"ended with code {process.returncode}"
        raise RayAppError(f"{Path(words[0]).name} {' '.join(words[1:4])} ... {ended}; {log}: {servers.tail(log)}")
    return Done(stdout, launched_at, seen.memory_mib, others_cpu)


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
                times = process.cpu_times()
                self.cpu_s[process.pid] = float(times.user + times.system)
                if count_pages:
                    full = process.memory_full_info()
                    memory += getattr(full, "pss", full.rss) / processes.MIB
        if count_pages:
            self.memory_mib = max(self.memory_mib, memory)
            now = time.monotonic()
            self._next_count_at = now + (now - started) / MEMORY_PART


def _watch(process: subprocess.Popen[bytes], server: servers.Server, timeout_s: float) -> _Seen:
    """What was seen until the command ended, or timeout_s passed."""
    seen, deadline = _Seen(), time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen.look(server.processes())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    return seen
