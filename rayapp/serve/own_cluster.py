"""The processes of the Ray cluster that this process started: what happens to a server when they die before it.

A supervisor sends SIGTERM to all processes of a service at once, and memory may run out. Then nobody answers what this
process asks of its cluster: Ray tries for a minute, and ends it with exit code 1.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn

import psutil

from rayapp.errors import RayAppError

NEEDED = ("gcs_server", "raylet")  # the others (log monitor, autoscaler's monitor) may go
LOOK_S = 0.5
GRACE_S = 2.0


class ClusterLost(RayAppError):  # noqa: N818 - what happened, and to what
    """A process without which there is no cluster has ended."""


class OwnCluster:
    """Ray's processes that this one has started; none where it joined a cluster."""

    def __init__(self) -> None:
        self._alive = [(child, child.name()) for child in psutil.Process().children()]
        self._is_ending = False

    def watch(self) -> NoReturn:
        """Wait until a process that is needed ends; raises ClusterLost then."""
        while True:
            time.sleep(LOOK_S)
            for name, pid in self._ended():
                if name in NEEDED:
                    self._is_ending = True
                    raise ClusterLost(
                        f"Ray's {name} (pid {pid}) has ended, and with it the service: start it again; where memory ran"
                        " out, give it more or lower app.num_replicas"
                    )

    def finish(self, work: Callable[[], None]) -> None:
        """Do what asks the cluster, unless it ends as well: then end the rest of it at once."""
        done: Future[None] = Future()
        if not self._is_ending:
            threading.Thread(target=_do, args=(work, done), daemon=True).start()
        while not (done.done() or self._is_ending):
            time.sleep(LOOK_S / 5)
            self._is_ending = bool(self._ended())
        if self._is_ending:
            self._end()
        else:
            done.result()

    def _end(self) -> None:
        """A raylet that ends by itself ends its workers at once; one that is killed leaves them and its agents."""
        started = psutil.Process().children(recursive=True)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process, _ in self._alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            until = time.monotonic() + GRACE_S
            while self._alive and time.monotonic() < until:
                time.sleep(LOOK_S / 5)
                self._ended()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _ended(self) -> list[tuple[str, int]]:
        """Name and pid of those that ended since this was asked last."""
        ended = [(process, name) for process, name in self._alive if not _is_alive(process)]
        self._alive = [one for one in self._alive if one not in ended]
        return [(name, process.pid) for process, name in ended]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # Ray waits for it later
    except psutil.NoSuchProcess:
        return False


def _do(work: Callable[[], None], done: Future[None]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
        done.set_exception(error)
    else:
        done.set_result(None)
