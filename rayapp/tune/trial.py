"""The training of one trial, on each of its ranks: fit(), and what a sweep wants to know of it after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.data.datasets import Dataset, DatasetInfo, Split, load
from rayapp.data.preprocess import Images
from rayapp.errors import DataError
from rayapp.train.setup import build_model_for, make_loaders, setup_device
from rayapp.vision.loaders import Shard
from rayapp.vision.loop import EpochReport, StepReport, fit
from rayapp.vision.models import Classifier
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.state import TrainState

Snapshot = dict[str, Any]  # of TrainState
SCORE = "score"  # what trials report of search.metric, more is better
# What a trial that broke down reports: worse than any that learned something, and finite, for searchers learn from it.
WORST = {SCORE: -1e3, "latency_ms": 1e6}
TIE_BREAK = 1e-6  # of the loss: less than one image of a million
LATENCY_WARM_UP, LATENCY_RUNS = 5, 30


@dataclass(frozen=True)
class TrialContext:
    """What all trials have in common: in the object store once a node.

    images, split: of the sweep's data settings, where the images are not streamed; else each trial gets its own.
    weights: what the model starts from.
    """

    settings: dict[str, Any]
    images: Images | None
    split: Split | None
    info: DatasetInfo
    device: str
    data_folder: str
    weights: Mapping[str, Tensor] | None

    def sweep(self) -> TuneSettings:
        """The settings of the sweep."""
        return validate(TuneSettings, self.settings)


@dataclass(frozen=True)
class TrialReport:
    """What a trial tells after each epoch; where its loss was not finite, why (error), and nothing else.

    epoch counts from 1. score: what schedulers and searchers compare, more is better. fit_seconds: in fit(), since the
    report before. latency_ms: of one image, where it is asked for. steps: the StepReports of the epoch, each with
    time_ms (since 1970). metrics: the other fields of the EpochReport.
    """

    epoch: int
    num_epochs: int
    is_last: bool
    val_accuracy: float
    val_loss: float
    score: float
    fit_seconds: float
    latency_ms: float | None = None
    error: str = ""
    steps: Sequence[Mapping[str, float]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_breakdown(cls, error: str, fit_seconds: float) -> TrialReport:
        """The last report of a trial whose loss was not finite."""
        score, latency_ms = WORST[SCORE], WORST["latency_ms"]
        return cls(0, 0, True, 0.0, 1e3, score, fit_seconds, latency_ms, error)

    def as_dict(self) -> dict[str, Any]:
        """As Ray Tune takes it: "done" ends the trial."""
        return {**vars(self), "done": self.is_last}

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> TrialReport:
        """Out of as_dict(), to which Ray Tune has added keys of its own."""
        return cls(**{one.name: result[one.name] for one in fields(cls)})


def reports_of(
    settings: TrainSettings,
    sweep: TuneSettings,
    context: TrialContext,
    before: Snapshot | None,
    *,
    device: torch.device,
    shard: Shard | None = None,
    distribute: Callable[[nn.Module], nn.Module] | None = None,
) -> Iterator[tuple[TrialReport, Callable[[], Snapshot]]]:
    """A report for each epoch, and what takes the snapshot of the state then. Runs on every rank alike.

    before: the snapshot to go on from. Raises TrainingError on a loss that is not finite.
    """
    shard = shard or Shard()
    setup_device(settings, device)
    dataset, split = _data(settings, sweep, context)
    plan = TrainPlan.of(settings.optim, len(split.train_indices), shard.world_size)
    train, validation = make_loaders(dataset, split, settings, plan, shard, device)
    model = build_model_for(settings.model, dataset.info, blank=context.weights is not None)
    if context.weights is not None:
        model.load_state_dict(dict(context.weights))
    model = model.to(device)
    state = TrainState.create(model, build_optimizer(model, plan), plan)
    if before:
        _restore(state, before, shard)
    latency_ms = latency_of(model, dataset.info, device) if sweep.search.latency else None
    steps: list[dict[str, float]] = []
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
        found = asdict(report)
        own = {one.name: found.pop(one.name) for one in fields(TrialReport) if one.name in found}
        yield (
            TrialReport(
                **own,
                score=score_of(report, sweep.search.metric),
                fit_seconds=time.monotonic() - started,
                latency_ms=latency_ms,
                steps=steps,
                metrics=found,
            ),
            state.snapshot,
        )
        steps, started = [], time.monotonic()


def _restore(state: TrainState, before: Snapshot, shard: Shard) -> None:
    """Take up the snapshot with the rates of this trial: with PBT it is another one's."""
    hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in state.optimizer.param_groups]
    state.restore(before, rank=shard.rank, world=shard.world_size)
    for group, own in zip(state.optimizer.param_groups, hyperparameters, strict=True):
        group.update(own)


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


def _data(settings: TrainSettings, sweep: TuneSettings, context: TrialContext) -> tuple[Dataset, Split]:
    """The images of all trials and their split, where the trial's are the sweep's, and they are not streamed."""
    if context.images is None or context.split is None or settings.data != sweep.data:
        dataset = load(settings.data, Path(context.data_folder))
        return dataset, dataset.split(settings.data)
    return Dataset(context.info, context.images, test=_not_here, decode=_not_here), context.split


def _not_here(*_: object) -> NoReturn:
    raise DataError("a trial has no test images")
