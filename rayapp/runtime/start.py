"""The Ray cluster: joined where RAY_ADDRESS names one, else started in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray

from rayapp.config.env import ray_address

OBJECT_STORE_BYTES = 256 * 2**20  # images stay in the workers; only small things pass through the store

T = TypeVar("T")


@contextlib.contextmanager
def ray_cluster(*, spare_cpus: int = 0, object_bytes: int = 0, show_worker_logs: bool = False) -> Iterator[None]:
    """Ray is there inside the with block. A cluster that this process started ends with it, one it joined goes on.

    spare_cpus are logical CPUs beyond the machine's own, for things that wait more than they compute. object_bytes
    is room in the store for what is shared by many.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": show_worker_logs, "logging_level": logging.WARNING}
    # that tokens are on is as it should be, and nothing to warn of
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if ray_address():
        ray.init(**options)
    else:
        options |= {
            "num_cpus": (os.cpu_count() or 1) + spare_cpus,
            "object_store_memory": OBJECT_STORE_BYTES + object_bytes,
        }
        # by default Ray's workers give way (niceness 15) to whatever else runs here, Ray's own processes among it
        options["_system_config"] = {"worker_niceness": 0}
        with _private_files():
            ray.init("local", include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Ray writes its access token with the default mode; inside the with block that is for this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def interruptible(function: Callable[[], T]) -> T:
    """What function returns or raises. In the main thread Ray would take Ctrl-C for itself and exit with code 0."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below, whatever it is
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True, name="ray-train")
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value
