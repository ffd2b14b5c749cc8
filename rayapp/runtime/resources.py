"""What a training asks of the cluster, and whether the cluster can ever give it."""

from __future__ import annotations

import ray
import torch

from rayapp.config.commands import TrainSettings
from rayapp.config.train import ComputeConfig, Device, ray_address
from rayapp.errors import ConfigError
from rayapp.vision.predictor import resolve_device
from rayapp.vision.state import resolve_precision


def check_resources(settings: TrainSettings) -> str:
    """The device kind (cpu, cuda, mps) that each worker gets.

    Raises ConfigError where the cluster can never give num_workers (of a range the lowest) of them: better now than a
    silent wait.
    """
    config, workers = settings.compute, settings.compute.workers
    kind = device_of(config.device)
    if kind == "mps" and workers.high > 1:
        raise ConfigError(
            f"compute.num_workers is {config.num_workers}, but an Apple GPU takes one; say 1, or --compute.device cpu"
        )
    _refuse_for_gpus_only(settings, kind)
    resource, each = _resource_of_a_worker(config, kind)
    there = int(ray.cluster_resources().get(resource, 0))
    if workers.low * each > there:
        raise ConfigError(
            f"compute.num_workers {config.num_workers} needs {workers.low * each} {resource}s, the cluster has"
            f" {there}; at most {max(there // each, 0)} workers fit, or add nodes"
        )
    return kind


def resources_asked(config: ComputeConfig, kind: str) -> dict[str, int]:
    """What all workers together ask of the cluster, as Ray names it; of a range the highest."""
    cpus = {"CPU": config.workers.high * config.threads_per_worker}
    return cpus | ({"GPU": config.workers.high} if kind == "cuda" else {})


def starting(config: ComputeConfig, kind: str) -> str:
    """What stands where the progress line will be until there is one; where other work is in the way, it says so."""
    resource, each = _resource_of_a_worker(config, kind)
    free, there = (int(found.get(resource, 0)) for found in (ray.available_resources(), ray.cluster_resources()))
    needed = config.workers.low * each
    if needed <= free:
        return f"starting {config.num_workers} workers ..."
    return f"waiting for {resource}s: {needed} needed, {free} of the cluster's {there} free, others hold the rest ..."


def _resource_of_a_worker(config: ComputeConfig, kind: str) -> tuple[str, int]:
    """What is scarce, as Ray names it, and how much of it one worker takes."""
    return ("GPU", 1) if kind == "cuda" else ("CPU", config.threads_per_worker)


def _refuse_for_gpus_only(settings: TrainSettings, kind: str) -> None:
    if settings.optim.sync_batch_norm and kind != "cuda":
        raise ConfigError(f"optim.sync_batch_norm is for CUDA devices, this one is {kind}; leave it out")
    if settings.optim.precision != "auto":
        resolve_precision(settings.optim.precision, torch.device(kind))


def device_of(wanted: Device) -> str:
    """The device kind that a worker will have: on a cluster the driver's node may well be without a GPU."""
    if not ray_address():
        return resolve_device(wanted)
    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return wanted
