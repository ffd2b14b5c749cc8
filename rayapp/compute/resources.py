"""What a training asks of the cluster, and whether the cluster can ever give it."""

from __future__ import annotations

import ray

from rayapp.config import ComputeConfig, ray_address
from rayapp.errors import ConfigError
from rayapp.vision.predictor import resolve_device


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
