"""The part of train that runs on each worker: data, fit(), checkpoints; rank 0 also reports to MLflow and the board."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch import nn

from rayapp.compute.progress import Narrator
from rayapp.errors import RayAppError
from rayapp.registry.tracking import MetricLog
from rayapp.settings import TrainSettings, validate
from rayapp.vision.augment import Augment
from rayapp.vision.batches import Batches, Shard
from rayapp.vision.datasets import DatasetInfo, load
from rayapp.vision.loop import EpochReport, StepReport, TrainState, fit
from rayapp.vision.models import Classifier, build_model

HISTORY = "history.json"
VALIDATION_BATCH = 512


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's epochs and training seconds, or the sentence of a RayAppError, which no restart would heal."""
    try:
        return _train_rank(config)
    except RayAppError as error:
        return {"error": str(error)}


def _train_rank(config: dict[str, Any]) -> dict[str, Any]:
    settings = validate(TrainSettings, config["settings"])
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(settings.compute.threads_per_worker)
    torch.manual_seed(settings.seed)
    device = torch.device(config["device"]) if config["device"] != "cuda" else ray.train.torch.get_device()
    train, validation, info = _batches(settings, Path(config["data_folder"]), shard, device)
    model = model_for(settings, info).to(device)
    state = TrainState.create(model, train, settings.optim)
    epochs = _restore(state, config["resume_from"])
    reports = fit(
        state,
        train,
        validation,
        settings.optim,
        network=_distributed(model, shard, device),
        seed=settings.seed,
        report_every_steps=settings.tracking.log_every_steps,
    )
    started = time.monotonic()
    watcher = _Watcher(config, state) if shard.rank == 0 else None
    for report in reports:
        if watcher:
            watcher.see(report)
        if isinstance(report, EpochReport):
            epochs.append(report)
            _checkpoint(state, epochs, shard.rank)
    unsent = watcher.close() if watcher else 0
    return {"epochs": [asdict(e) for e in epochs], "seconds": time.monotonic() - started, "unsent": unsent}


def model_for(settings: TrainSettings, info: DatasetInfo) -> Classifier:
    """The untrained model of a data set; the same on every rank and on the driver."""
    return build_model(
        settings.model,
        num_classes=info.num_classes,
        image_px=min(info.height_px, info.width_px),
        mean=info.mean,
        std=info.std,
    )


def _batches(
    settings: TrainSettings, data_folder: Path, shard: Shard, device: torch.device
) -> tuple[Batches, Batches, DatasetInfo]:
    dataset = load(settings.data, data_folder)
    split, info, optim = dataset.split(settings.data), dataset.info, settings.optim
    train = Batches(
        dataset.train,
        split.train_indices,
        batch_size=optim.worker_batch(len(split.train_indices), shard.world),
        device=device,
        augment=Augment.from_config(settings.augment, height_px=info.height_px, flip=info.flip),
        shard=shard,
        seed=settings.seed,
    )
    validation = Batches(
        dataset.train, split.validation_indices, batch_size=VALIDATION_BATCH, device=device, shard=shard
    )
    return train, validation, info


def _distributed(model: Classifier, shard: Shard, device: torch.device) -> nn.Module:
    if shard.world == 1:
        return model
    # buffers are averaged once an epoch by fit(): sending them with every batch would cost a second exchange
    options = {"broadcast_buffers": False}
    return ray.train.torch.prepare_model(model, move_to_device=device, parallel_strategy_kwargs=options)


def _restore(state: TrainState, resumed: Checkpoint | None) -> list[EpochReport]:
    """The epochs done so far, with state where they left it; none in a new run. Ray's checkpoint is this attempt's."""
    checkpoint = ray.train.get_checkpoint() or resumed
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        state.restore(Path(folder))
        return [EpochReport(**row) for row in json.loads((Path(folder) / HISTORY).read_text(encoding="utf-8"))]


def _checkpoint(state: TrainState, epochs: list[EpochReport], rank: int) -> None:
    """Hand rank 0's state to Ray, which copies it to the storage; a barrier for all ranks."""
    latest = epochs[-1]
    metrics = {"epoch": latest.epoch, "val_accuracy": latest.val_accuracy, "val_loss": latest.val_loss}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            state.save(Path(folder))
            (Path(folder) / HISTORY).write_text(json.dumps([asdict(e) for e in epochs]), encoding="utf-8")
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


class _Watcher:
    """Sends rank 0's reports to MLflow and to the progress line; neither can hold up the loop."""

    def __init__(self, config: dict[str, Any], state: TrainState) -> None:
        self._metrics = MetricLog(config["tracking_uri"], config["run_id"], Path(config["spool"]))
        self._board = config["board"]
        self._num_steps = state.num_epochs * state.steps_per_epoch
        self._narrator = Narrator(state.schedule.last_epoch)

    def see(self, report: StepReport | EpochReport) -> None:
        """Log one report: step metrics by optimiser step, epoch metrics by epoch; one axis a name (FAULTS 17)."""
        if isinstance(report, StepReport):
            names = ("loss", "accuracy", "lr", "images_per_s")
            self._metrics.log({f"train/{n}": getattr(report, n) for n in names}, report.step)
        else:
            self._metrics.log({"val/loss": report.val_loss, "val/accuracy": report.val_accuracy}, report.epoch)
            names = ("train_loss", "train_accuracy", "seconds", "images_per_s")
            self._metrics.log({f"epoch/{n}": getattr(report, n) for n in names}, report.epoch)
        self._board.write.remote(self._narrator.line(report, self._num_steps))

    def close(self) -> int:
        """The number of metrics that could not leave in a moment; the spool keeps them for the driver to send."""
        return self._metrics.close(timeout_s=5.0)
