"""The Ray cluster: joined where RAY_ADDRESS names one, else started in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayapp.config.env import ray_address, ray_folder
from rayapp.errors import ConfigError, RayAppError
from rayapp.runtime.address import FORMS, check_address
from rayapp.runtime.short_paths import short_enough

LONGEST_SOCKET = len("session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
OBJECT_STORE_BYTES = 256 * 2**20  # images stay in the workers; only small things pass through the store

T = TypeVar("T")


@contextlib.contextmanager
def ray_cluster(*, spare_cpus: int = 0, object_bytes: int = 0, show_worker_logs: bool = False) -> Iterator[None]:
    """Ray is there inside the with block. A cluster that this process started ends with it, one it joined goes on.

    spare_cpus are logical CPUs beyond the machine's own, for things that wait more than they compute. object_bytes
    is room in the store for what is shared by many. Raises ConfigError, within 10 s, where no cluster answers at
    RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": show_worker_logs, "logging_level": logging.WARNING}
    # that tokens are on is as it should be, and nothing to warn of
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    address = ray_address()
    if address:
        check_address(address)
    else:
        options |= _own_cluster(spare_cpus, object_bytes)
    with _folder_for_sockets() as folder:
        if folder and not address:  # a cluster that is there has its own
            options["_temp_dir"] = folder
        try:
            with _own_sigterm(), _private_files():
                _init(address, options)
            yield
        finally:
            ray.shutdown()


def _own_cluster(spare_cpus: int, object_bytes: int) -> dict[str, Any]:
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": (os.cpu_count() or 1) + spare_cpus,
        "object_store_memory": OBJECT_STORE_BYTES + object_bytes,
        # by default Ray's workers give way (niceness 15) to whatever else runs here, Ray's own processes among it
        "_system_config": {"worker_niceness": 0},
    }


@contextlib.contextmanager
def _folder_for_sockets() -> Iterator[str | None]:
    """A folder for Ray, gone after the with block, where TMPDIR is too long for the paths of its sockets; else None."""
    usual = ray_folder()
    place = short_enough(usual, LONGEST_SOCKET)
    if place == usual:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rayapp-", dir=place, ignore_cleanup_errors=True) as folder:
        yield folder


def this_node() -> NodeAffinitySchedulingStrategy:
    """The node of this process as the home of an actor: it is not lost before the process that needs it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _init(address: str | None, options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options)
    except Exception as error:  # a plain one where its processes take too long to start
        reason = " ".join(str(error).split())[:400]
        if address:
            raise ConfigError(f"Ray cannot join RAY_ADDRESS={address}: {reason}; set it to {FORMS}") from error
        raise RayAppError(f"Ray cannot be started: {reason}; `rayapp doctor` looks at this machine") from error


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
