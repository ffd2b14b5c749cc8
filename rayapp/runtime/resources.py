"""Whether the cluster can ever give what a verb asks of it: better said now than waited for in silence.

torch is imported where it is needed: `rayapp serve` asks here too, and does without.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import ray

from rayapp.config.base import Device
from rayapp.config.batch import PredictorsConfig
from rayapp.config.commands import TrainSettings
from rayapp.config.env import ray_address
from rayapp.config.train import ComputeConfig
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError
from rayapp.vision.predictor import resolve_device


def check_fits(asked: str, count: int, resource: str, each: int, instead: str) -> int:
    """How many things that take so much each of a resource (CPU, GPU) the cluster has room for.

    asked: the setting that says count. instead: what to do. Raises ConfigError where there is no room for count.
    """
    there = int(ray.cluster_resources().get(resource, 0))
    if count * each > there:
        raise ConfigError(
            f"{asked} needs {count * each} {resource}s, the cluster has {there}; at most {there // each} {instead}"
        )
    return there // each


def check_workers(config: ComputeConfig | PredictorsConfig, kind: str, count: int, threads: int = 1) -> int:
    """How many workers of a device kind the cluster has room for. Raises ConfigError where that is less than count."""
    if kind == "mps":
        if count > 1:
            raise ConfigError(
                f"compute.num_workers is {config.num_workers}, but an Apple GPU takes one; say 1, or"
                " --compute.device cpu"
            )
        return 1
    asked = f"compute.num_workers {config.num_workers or count} on {kind}"
    instead = "workers fit, choose another --compute.device, or add nodes"
    return check_fits(asked, count, *_resource_of_a_worker(kind, threads), instead)


def check_resources(settings: TrainSettings) -> str:
    """The device kind (cpu, cuda, mps) that each worker gets.

    Raises ConfigError where the cluster can never give num_workers (of a range the lowest) of them.
    """
    compute, workers = settings.compute, settings.compute.workers
    kind = worker_device(compute.device)
    _refuse_for_gpus_only(settings, kind)
    check_workers(compute, kind, workers.high if kind == "mps" else workers.low, compute.threads_per_worker)
    return kind


def requested_resources(config: ComputeConfig, kind: str) -> dict[str, int]:
    """What all workers together ask of the cluster, as Ray names it; of a range the highest."""
    cpus = {"CPU": config.workers.high * config.threads_per_worker}
    return cpus | ({"GPU": config.workers.high} if kind == "cuda" else {})


def starting_line(config: ComputeConfig, kind: str) -> str:
    """What stands where the progress line will be until there is one; where other work is in the way, it says so."""
    resource, each = _resource_of_a_worker(kind, config.threads_per_worker)
    free, there = (int(found.get(resource, 0)) for found in (ray.available_resources(), ray.cluster_resources()))
    needed = config.workers.low * each
    if needed <= free:
        return f"starting {config.num_workers} workers ..."
    return f"waiting for {resource}s: {needed} needed, {free} of the cluster's {there} free, others hold the rest ..."


def _resource_of_a_worker(kind: str, threads: int) -> tuple[str, int]:
    """What is scarce, as Ray names it, and how much of it one worker takes."""
    return ("GPU", 1) if kind == "cuda" else ("CPU", threads)


def _refuse_for_gpus_only(settings: TrainSettings, kind: str) -> None:
    if settings.optim.sync_batch_norm and kind != "cuda":
        raise ConfigError(f"optim.sync_batch_norm is for CUDA devices, this one is {kind}; leave it out")
    if settings.optim.precision != "auto":
        import torch

        from rayapp.vision.optim import resolve_precision

        resolve_precision(settings.optim.precision, torch.device(kind))


def worker_device(wanted: Device) -> str:
    """The device kind that a worker will have: on a cluster the driver's node may well be without a GPU."""
    if not ray_address():
        return resolve_device(wanted)
    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return wanted


def resources_each(settings: TuneSettings, device: str) -> dict[str, float]:
    """What a trial takes, as Ray Tune names it."""
    trials, num_workers = settings.trials, settings.compute.workers.high
    cpus = float(settings.compute.threads_per_worker) if trials.cpus is None else trials.cpus
    if device != "cuda":
        if trials.gpus:
            raise ConfigError(f"trials.gpus is {trials.gpus:g}, but trials run on {device}; leave it out")
        return {"cpu": cpus * num_workers}
    if trials.gpus == 0:
        raise ConfigError("trials.gpus is 0, but trials run on cuda; leave it out, or say --compute.device cpu")
    return {"cpu": cpus * num_workers, "gpu": num_workers * (1.0 if trials.gpus is None else trials.gpus)}


def resources_held(settings: TuneSettings, device: str) -> dict[str, float]:
    """What Ray Tune keeps for a trial itself: all of it, but where it has workers, they ask for theirs on their own.

    A byte of memory then stands for nothing, which Ray does not let one ask for.
    """
    return resources_each(settings, device) if settings.compute.workers.high == 1 else {"cpu": 0, "memory": 1}


def check_room(settings: TuneSettings, resources: Mapping[str, float]) -> int:
    """How many trials run at once. Raises ConfigError where there is no room for one, or for trials.at_once."""
    if ray_address():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    else:
        import torch

        nodes = [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    asked = {name.upper(): each for name, each in resources.items() if each}
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in asked}
    # a trial is on one node; its workers, where it has several, may be on any
    places = nodes if settings.compute.workers.high == 1 else [there]
    room = sum(min(math.floor(at.get(name, 0.0) / each + 1e-9) for name, each in asked.items()) for at in places)
    wanted = settings.trials.at_once or 1
    if wanted > room:
        needs = " and ".join(f"{each * wanted:g} {name}s" for name, each in asked.items())
        has = " and ".join(f"{there[name]:g} {name}s" for name in asked)
        smaller = " or ".join(f"--trials.{name.lower()}s" for name in asked)
        raise ConfigError(
            f"{wanted} trials at once need {needs}, there are {has}: at most {room} fit; lower --trials.at_once or"
            f" {smaller}, or add nodes"
        )
    return min(settings.trials.at_once or room, settings.num_trials)


def share_of_node(resources: Mapping[str, float], node: Mapping[str, Any]) -> float:
    """The part (0-1) of a node that a trial takes: of its GPUs where it has some, else of its cores."""
    total: Mapping[str, float] = node["Resources"]
    if resources.get("gpu"):
        return min(1.0, resources["gpu"] / total.get("GPU", 1.0))
    return min(1.0, resources["cpu"] / total.get("CPU", 1.0))
