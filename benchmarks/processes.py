"""CPU time and memory of the processes that make up a server, by what they are for."""

from __future__ import annotations

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

import psutil

MIB = 2**20
NUM_CORES = psutil.cpu_count() or 1
REPLICAS, HAPROXY, REST = "replicas", "HAProxy", "rest"
MANAGER, CONTROLLER, ROLLOUT, PROXY = "HAProxy's manager", "Serve's controller", "rollout", "Serve's proxy"
# How the name of a process begins -> what it is for. The rest is Ray's own, or all of a server that is not Ray.
_ROLES = {
    "ray::ServeReplica:rayapp-serve:Rollout": ROLLOUT,  # it follows the alias for all replicas
    "ray::ServeReplica": REPLICAS,
    "haproxy": HAPROXY,
    "ray::ProxyActor": PROXY,
    "ray::HAProxyManager": MANAGER,
    "ray::ServeController": CONTROLLER,
}


def role(name: str) -> str:
    """What a process of that name is for."""
    return next((meaning for beginning, meaning in _ROLES.items() if name.startswith(beginning)), REST)


def in_role(processes: Iterable[psutil.Process], wanted: str) -> list[psutil.Process]:
    """The processes that are for one thing."""
    return [process for process in processes if _role_of(process) == wanted]


def cpu_s(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """CPU seconds used so far, by role; a process that has gone counts for nothing."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[role(process.name())] += times.user + times.system
    return used


def rss_mib(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Resident memory (MiB) by role; pages that processes share count in each."""
    resident: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            resident[role(process.name())] += process.memory_info().rss / MIB
    return resident


def machine_cpu_s() -> float:
    """CPU seconds that all programs have used so far, with what other guests of the host took."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


class Strangers:
    """What other programs use of the machine, from here on."""

    def __init__(self) -> None:
        self._machine_s, self._own_s = machine_cpu_s(), _used_s(resource.RUSAGE_SELF)
        self._children_s, self._at = children_cpu_s(), time.monotonic()

    def part(self, family_s: float = 0.0, *, ended: bool = False) -> float:
        """The part (0-1) of the machine. family_s: CPU seconds of what is measured, as far as they were seen.

        ended: it was a child of ours and has ended, so that the kernel tells of those of its processes that it awaited.
        """
        children_s = children_cpu_s() - self._children_s
        ours_s = max(children_s, family_s) if ended else children_s + family_s
        ours_s += _used_s(resource.RUSAGE_SELF) - self._own_s
        strangers_s = machine_cpu_s() - self._machine_s - ours_s
        return min(1.0, max(0.0, strangers_s / (time.monotonic() - self._at) / NUM_CORES))


def children_cpu_s() -> float:
    """CPU time of the children that have ended so far: servers run on, so what a run of a client adds is its own."""
    return _used_s(resource.RUSAGE_CHILDREN)


def _used_s(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What was added between two readings, by role."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _role_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return role(process.name())
    return ""
