"""The training of one trial, on each of its ranks: fit(), and what a sweep wants to know of it after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rayapp.config.commands import TrainSettings
from rayapp.config.tune import TuneSettings
from rayapp.data.datasets import Dataset, DatasetInfo, Split, load
from rayapp.data.preprocess import Images
from rayapp.errors import DataError
from rayapp.train.setup import batches_of, model_for, prepared
from rayapp.tune.search import SCORE
from rayapp.vision.loaders import Shard
from rayapp.vision.loop import EpochReport, StepReport, fit
from rayapp.vision.models import Classifier
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.state import TrainState

# What a trial that broke down reports: worse than any that learned something, and finite, for searchers learn from it.
WORST = {"val_accuracy": 0.0, "val_loss": 1e3, SCORE: -1e3}
TIE_BREAK = 1e-6  # of the loss: less than one image of a million
LATENCY_WARM_UP, LATENCY_RUNS = 5, 30


@dataclass(frozen=True)
class Shared:
    """What all trials have in common: in the object store once a node.

    images, split: of the sweep's data settings, where the images are not streamed; else each trial gets its own.
    weights: what the model starts from. ended: the last report of trials (by id) that ended in an earlier part of the
    sweep, of which Tune may not know it yet.
    """

    settings: dict[str, Any]
    images: Images | None
    split: Split | None
    info: DatasetInfo
    device: str
    data_folder: str
    weights: Mapping[str, Tensor] | None
    ended: Mapping[str, Mapping[str, Any]]


def reports_of(
    settings: TrainSettings,
    sweep: TuneSettings,
    shared: Shared,
    before: dict[str, Any] | None,
    *,
    device: torch.device,
    shard: Shard | None = None,
    distribute: Callable[[nn.Module], nn.Module] | None = None,
) -> Iterator[dict[str, Any]]:
    """For each epoch an EpochReport as a dict, with its batch metrics under "steps" and the state under "snapshot".

    before: the snapshot to go on from. Runs on every rank alike.
    """
    shard = shard or Shard()
    prepared(settings, device)
    dataset, split = _data(settings, sweep, shared)
    plan = TrainPlan.of(settings.optim, len(split.train_indices), shard.world)
    train, validation = batches_of(dataset, split, settings, plan, shard, device)
    model = model_for(settings.model, dataset.info, blank=shared.weights is not None)
    if shared.weights is not None:
        model.load_state_dict(dict(shared.weights))
    model = model.to(device)
    state = TrainState.create(model, build_optimizer(model, plan), plan)
    if before:
        hyperparameters = [_without_parameters(group) for group in state.optimizer.param_groups]
        state.restore(before, rank=shard.rank, world=shard.world)
        for group, own in zip(state.optimizer.param_groups, hyperparameters, strict=True):
            group.update(own)  # with PBT the checkpoint is another trial's, the values are our own
    latency_ms = latency_of(model, dataset.info, device) if sweep.search.latency else None
    if state.is_done:  # cut off between its last checkpoint and its end
        yield _again(before)
        return
    steps: list[dict[str, Any]] = []
    started = time.monotonic()
    for report in fit(
        state,
        train,
        validation,
        distribute=distribute,
        frozen_epochs=settings.model.epochs_frozen,
        seed=settings.seed,
        report_every_steps=settings.tracking.log_every_steps,
    ):
        if isinstance(report, StepReport):
            steps.append({"time_ms": time.time_ns() // 1_000_000, **asdict(report)})
            continue
        content = _content(report, steps, sweep.search.metric) | {"fit_seconds": time.monotonic() - started}
        if latency_ms is not None:
            content["latency_ms"] = latency_ms
        yield content | {"snapshot": {**state.snapshot(), "report": content | {"steps": []}}}
        steps, started = [], time.monotonic()


def latency_of(model: Classifier, info: DatasetInfo, device: torch.device) -> float:
    """The shortest time (ms) of one image through the model, evaluated as in training.

    The shortest, because the trials beside this one can only make it longer.
    """
    image_nhwc = torch.zeros((1, info.height_px, info.width_px, 3), dtype=torch.uint8, device=device)
    seconds = []
    model.eval()
    with torch.inference_mode():
        for _ in range(LATENCY_WARM_UP + LATENCY_RUNS):
            started = time.perf_counter()
            float(model(image_nhwc).sum())  # waits for the device
            seconds.append(time.perf_counter() - started)
    return 1e3 * min(seconds[LATENCY_WARM_UP:])


def score_of(report: EpochReport, metric: str) -> float:
    """What schedulers and searchers compare, more is better. Of equal accuracies, which few images and early epochs
    give, the lower loss wins: where all were as good as the best third, a scheduler would stop none.
    """
    return -report.val_loss if metric == "val_loss" else report.val_accuracy - TIE_BREAK * report.val_loss


def _content(report: EpochReport, steps: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return {**asdict(report), SCORE: score_of(report, metric), "steps": steps, "broke_down": ""}


def _again(before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The last report of a trial whose epochs are over already."""
    assert before is not None
    return {**before["report"], "fit_seconds": 0.0, "snapshot": before}


def _data(settings: TrainSettings, sweep: TuneSettings, shared: Shared) -> tuple[Dataset, Split]:
    """The shared images and their split, where the trial's are the sweep's, and they are not streamed."""
    if shared.images is None or shared.split is None or settings.data != sweep.data:
        dataset = load(settings.data, Path(shared.data_folder))
        return dataset, dataset.split(settings.data)
    return Dataset(shared.info, shared.images, test=_not_here, decode=_not_here), shared.split


def _not_here(*_: object) -> NoReturn:
    raise DataError("a trial has no test images")


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
