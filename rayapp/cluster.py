"""The Ray cluster: joined where RAY_ADDRESS names one, else started in this process."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import ray

from rayapp.config import ray_address

KEEP_IDLE_MS = 30_000  # processes that wait for their first work; Ray's own second is over before there can be any
OBJECT_STORE_BYTES = 256 * 2**20  # images stay in the workers; only small things pass through the store


@contextlib.contextmanager
def ray_cluster(
    *,
    spare_cpus: int = 0,
    object_bytes: int = 0,
    show_worker_logs: bool = False,
    workers_import: Sequence[str] = (),
    driver_imports: Sequence[str] = (),
) -> Iterator[None]:
    """Ray is there inside the with block. A cluster that this process started ends with it, one it joined goes on.

    spare_cpus are logical CPUs beyond the machine's own, for things that wait more than they compute. object_bytes
    is room in the store for what is shared by many. Modules that take seconds to import are imported while Ray starts,
    or while there is no work yet: workers_import by the workers of a cluster that is started here, driver_imports by
    this process.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": show_worker_logs, "logging_level": logging.WARNING}
    # that tokens are on is as it should be, and nothing to warn of
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if not ray_address():
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": (os.cpu_count() or 1) + spare_cpus,
            "object_store_memory": OBJECT_STORE_BYTES + object_bytes,
        }
        # by default Ray's workers give way (niceness 15) to whatever else runs here, Ray's own processes among it
        options["_system_config"] = {"worker_niceness": 0}
        if workers_import:
            early = {
                "preload_python_modules": list(workers_import),
                "idle_worker_killing_time_threshold_ms": KEEP_IDLE_MS,
            }
            options["_system_config"] |= early
    try:
        with _own_sigterm(), _private_files(), _imported_meanwhile(driver_imports):
            ray.init(**options)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """The handler of SIGTERM stands again after the with block, and ends what is in it.

    ray.init sets two: a Python one that leaves with SystemExit, and a C++ one that prints a stack and aborts the
    process 3 seconds later, whatever Python does. Setting ours anew takes both away.
    """
    ours, stopped = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit as left:
        stopped = left.code == signal.SIGTERM
        if not stopped:
            raise
        signal.alarm(0)  # the one that would abort
    finally:
        if threading.current_thread() is threading.main_thread():  # no other sets handlers, nor does Ray there
            signal.signal(signal.SIGTERM, ours)
    if stopped:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _imported_meanwhile(modules: Sequence[str]) -> Iterator[None]:
    """They are imported when the with block is left, which mostly waits for other processes."""

    def import_them() -> None:
        for name in modules:
            importlib.import_module(name)

    thread = Thread(target=import_them, daemon=True)
    thread.start()
    yield
    thread.join()


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Ray writes its access token with the default mode; inside the with block that is for this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
