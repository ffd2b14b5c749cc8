"""The Ray cluster: joined where RAY_ADDRESS names one, else started in this process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray

from rayapp.config import ComputeConfig, ray_address
from rayapp.errors import ConfigError
from rayapp.vision.predictor import resolve_device

OBJECT_STORE_BYTES = 256 * 2**20  # images stay in the workers; only small things pass through the store


@contextlib.contextmanager
def ray_cluster(*, spare_cpus: int = 0) -> Iterator[None]:
    """Ray is there inside the with block. A cluster that this process started ends with it, one it joined goes on.

    spare_cpus are logical CPUs beyond the machine's own, for things that wait more than they compute.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}
    if ray_address():
        ray.init(**quiet)
    else:
        # that tokens are on is as it should be, and nothing to warn of
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        with _private_files():
            num_cpus = (os.cpu_count() or 1) + spare_cpus
            ray.init(
                "local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
            )
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(config: ComputeConfig) -> str:
    """The device kind (cpu, cuda, mps) that each worker gets.

    Raises ConfigError where the cluster can never give num_workers of them: better now than a silent wait.
    """
    kind = resolve_device(config.device) if not ray_address() else _device_of_cluster(config)
    if kind == "mps" and config.num_workers > 1:
        raise ConfigError(
            f"compute.num_workers is {config.num_workers}, but an Apple GPU takes one; say 1, or --compute.device cpu"
        )
    resource, each = ("GPU", 1) if kind == "cuda" else ("CPU", config.threads_per_worker)
    there = int(ray.cluster_resources().get(resource, 0))
    if config.num_workers * each > there:
        raise ConfigError(
            f"compute.num_workers {config.num_workers} needs {config.num_workers * each} {resource}s, the cluster has"
            f" {there}; at most {max(there // each, 0)} workers fit, or add nodes"
        )
    return kind


def _device_of_cluster(config: ComputeConfig) -> str:
    """What a worker elsewhere will have: the driver's node may well be without a GPU."""
    if config.device == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return config.device


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Ray writes its access token with the default mode; inside the with block that is for this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
