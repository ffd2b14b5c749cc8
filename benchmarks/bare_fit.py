"""fit() as `rayapp train` calls it, without Ray and MLflow. Takes its flags, prints a JSON line an epoch.

    torchrun --nproc-per-node 2 -m benchmarks.bare_fit --data.dataset parquet --data.path FOLDER

What Ray Train adds to an epoch is the difference between the two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rayapp.config.commands import TrainSettings
from rayapp.config.env import Home
from rayapp.config.parse import load
from rayapp.data import datasets
from rayapp.data.preprocess import Images
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import InMemoryLoader, Shard
from rayapp.vision.loop import EpochReport, fit
from rayapp.vision.memory import keep_freed_memory
from rayapp.vision.models import build_model
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.predictor import resolve_device
from rayapp.vision.state import TrainState

VALIDATION_BATCH = 512  # as in rayapp/compute/worker.py


def main() -> None:
    """Train as rank 0 or another one that torchrun started."""
    settings = load(TrainSettings, sys.argv[1:], prog="benchmarks/bare_fit.py")
    device = torch.device(resolve_device(settings.compute.device))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    shard = Shard(dist.get_rank(), dist.get_world_size())
    if device.type == "cuda":
        device = torch.device("cuda", shard.rank)  # torchrun on one machine
        torch.cuda.set_device(device)
    _prepare(settings)
    train, validation, info, plan = _batches(settings, shard, device)
    size = {"num_classes": info.num_classes, "image_px": min(info.height_px, info.width_px)}
    model = build_model(settings.model, **size, mean=info.mean, std=info.std).to(device)
    state = TrainState.create(model, build_optimizer(model, plan), plan)
    reports = fit(
        state,
        train,
        validation,
        distribute=_distribute(shard),
        seed=settings.seed,
        report_every_steps=settings.tracking.log_every_steps,
    )
    for report in reports:
        if shard.rank == 0 and isinstance(report, EpochReport):
            print(json.dumps(_line(report)), flush=True)
    dist.destroy_process_group()


def _prepare(settings: TrainSettings) -> None:
    torch.set_num_threads(settings.compute.threads_per_worker)
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def _batches(
    settings: TrainSettings, shard: Shard, device: torch.device
) -> tuple[InMemoryLoader, InMemoryLoader, datasets.DatasetInfo, TrainPlan]:
    dataset = datasets.load(settings.data, Home.from_env().data)
    assert isinstance(dataset.train, Images)  # nothing is streamed here
    split, info = dataset.split(settings.data), dataset.info
    plan = TrainPlan.of(settings.optim, len(split.train_indices), shard.world_size)
    augment = Augment.from_config(
        settings.augment, height_px=info.height_px, flip=info.flip, num_classes=info.num_classes
    )
    train = InMemoryLoader(
        dataset.train,
        split.train_indices,
        batch_size=plan.batch_size,
        device=device,
        augment=augment,
        shard=shard,
        seed=settings.seed,
    )
    validation = InMemoryLoader(
        dataset.train, split.validation_indices, batch_size=VALIDATION_BATCH, device=device, shard=shard
    )
    return train, validation, info, plan


def _distribute(shard: Shard) -> Callable[[nn.Module], nn.Module] | None:
    if shard.world_size == 1:
        return None
    return lambda model: DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def _line(report: EpochReport) -> dict[str, float]:
    return {
        "epoch": report.epoch,
        "ended_at": time.time(),
        "seconds": report.seconds,
        "images_per_s": report.images_per_s,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
    }


if __name__ == "__main__":
    main()
