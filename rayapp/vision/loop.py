"""fit(): the one training loop, a generator of reports. It does not know who is watching.

Suffixes of tensors: n images, k classes, h and w pixels, c channels.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayapp.errors import TrainingError
from rayapp.vision.loaders import Batch, Loader, mixed_seed
from rayapp.vision.metrics import Means, MetricSums
from rayapp.vision.models import set_frozen, train_mode
from rayapp.vision.state import TrainState, average_norm_statistics


@dataclass(frozen=True)
class StepReport:
    """The last few optimiser steps of all ranks: means since the report before. step counts from 1 over all epochs."""

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss: float
    accuracy: float
    lr: float
    images_per_s: float  # of all ranks


@dataclass(frozen=True)
class EpochReport:
    """One pass over the training images and one over the validation images, of all ranks. epoch counts from 1.

    After a resume in mid-epoch, losses and accuracies are of the whole epoch, times and rates of the part since then.
    data_seconds: this rank's time until batches were there. memory_peak_mb: of the GPU, else of this process.
    """

    epoch: int
    num_epochs: int
    step: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_s: float
    is_best: bool
    is_last: bool
    data_seconds: float = 0.0
    memory_peak_mb: float = 0.0


def fit(
    state: TrainState,
    train: Loader,
    validation: Loader,
    *,
    distribute: Callable[[nn.Module], nn.Module] | None = None,
    frozen_epochs: int = 0,
    seed: int = 0,
    report_every_steps: int = 20,
) -> Iterator[StepReport | EpochReport]:
    """A StepReport every report_every_steps optimiser steps and an EpochReport per epoch, until state.is_done.

    Runs on every rank alike. distribute wraps state.model (DDP, torch.compile); it is called again when the backbone
    thaws after frozen_epochs. The device is waited for once a report, never a batch. After each report state may be
    saved, and a run that restores it goes on with the same numbers. Raises TrainingError on a loss that is not finite.
    """
    network, frozen = state.model, None
    while not state.is_done:
        if frozen != (state.epoch < frozen_epochs):
            frozen = state.epoch < frozen_epochs
            if frozen_epochs:
                set_frozen(state.model, frozen)
            network = distribute(state.model) if distribute else state.model
        started = time.perf_counter()
        before = state.images_done
        batches = _Timed(train.epoch(state.epoch, before))
        yield from _train_epoch(state, train, batches, network, seed=seed, every=report_every_steps)
        num_images = state.images_done - before
        yield _end_epoch(state, validation, started=started, num_images=num_images, data_seconds=batches.seconds)


def evaluate(state: TrainState, batches: Loader) -> Means:
    """Mean loss (no smoothing) and accuracy over the batches of all ranks; a barrier. Images are not augmented."""
    state.model.eval()
    sums = MetricSums(batches.device)
    with torch.inference_mode():
        for batch in batches.epoch(0):
            with _autocast(state):
                logits_nk = state.model(batch.images_nhwc)
            sums.add(logits_nk, batch.labels_n)
    return sums.means(over_ranks=True)


def _end_epoch(
    state: TrainState, validation: Loader, *, started: float, num_images: int, data_seconds: float
) -> EpochReport:
    average_norm_statistics(state.model)
    means, val = state.sums.means(over_ranks=True), evaluate(state, validation)
    state.epoch, state.images_done, state.sums = state.epoch + 1, 0, MetricSums(validation.device)
    is_best = state.update_best(val)
    patience = state.plan.early_stop_patience
    if patience and state.epoch - state.best_epoch >= patience:
        state.num_epochs = state.epoch
    seconds = time.perf_counter() - started
    return EpochReport(
        epoch=state.epoch,
        num_epochs=state.num_epochs,
        step=state.step,
        train_loss=means.loss,
        train_accuracy=means.accuracy,
        val_loss=val.loss,
        val_accuracy=val.accuracy,
        lr=float(state.optimizer.param_groups[0]["lr"]),
        seconds=seconds,
        images_per_s=num_images / seconds,
        is_best=is_best,
        is_last=state.is_done,
        data_seconds=data_seconds,
        memory_peak_mb=_memory_peak_mb(validation.device),
    )


def _train_epoch(
    state: TrainState,
    train: Loader,
    batches: Iterator[Batch],
    network: nn.Module,
    *,
    seed: int,
    every: int,
) -> Iterator[StepReport]:
    train_mode(network)
    plan, at_once = state.plan, state.plan.images_at_once
    images_an_epoch = max(1, train.num_batches()) * at_once
    left = train.num_batches(state.images_done)
    window = _Window(state)
    while left:
        group = min(plan.accumulate_steps, left)
        left -= group
        for at in range(group):
            # dropout draws from torch's own generator: seeded by the position, a resumed run draws the same numbers
            torch.manual_seed(mixed_seed((seed, state.epoch, state.images_done + at, train.shard.rank)))
            last = at == group - 1
            with _synchronised(network, last):
                logits_nk, loss = _forward(state, network, batch := next(batches))
                state.scaler.scale(loss / group).backward()
            window.sums.add(logits_nk, batch.labels_n, loss)
        done = (state.images_done + group * at_once / 2) / images_an_epoch
        _optimizer_step(state, progress=(state.epoch + min(1.0, done)) / state.num_epochs)
        state.images_done += group * at_once
        if state.step % every == 0:
            yield window.report(state, num_steps=state.step + _steps_left(state, train))
            window = _Window(state)
    state.sums.merge(window.sums)


class _Window:
    """What happens between two step reports."""

    def __init__(self, state: TrainState) -> None:
        self.sums = MetricSums(state.sums.sums_3.device)
        self._started = time.perf_counter()
        self._images_before = state.images_done

    def report(self, state: TrainState, *, num_steps: int) -> StepReport:
        """The means over all ranks, so that all stop together on a loss that is not finite."""
        means, lr = self.sums.means(over_ranks=True), float(state.optimizer.param_groups[0]["lr"])
        if not math.isfinite(means.loss):
            raise TrainingError(
                f"the loss is {means.loss} at step {state.step}; lower --optim.lr ({lr:g} at this step)"
            )
        state.sums.merge(self.sums)
        return StepReport(
            epoch=state.epoch + 1,
            num_epochs=state.num_epochs,
            step=state.step,
            num_steps=num_steps,
            loss=means.loss,
            accuracy=means.accuracy,
            lr=lr,
            images_per_s=(state.images_done - self._images_before) / (time.perf_counter() - self._started),
        )


def _steps_left(state: TrainState, train: Loader) -> int:
    accumulate_steps = state.plan.accumulate_steps
    epochs_left = state.num_epochs - state.epoch - 1
    now, later = train.num_batches(state.images_done), train.num_batches()
    return math.ceil(now / accumulate_steps) + epochs_left * math.ceil(later / accumulate_steps)


def _forward(state: TrainState, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and mean loss. Mixed labels are a distribution, which cross entropy takes as it takes classes."""
    targets = batch.labels_n if batch.targets_nk is None else batch.targets_nk
    with _autocast(state):
        logits_nk = network(batch.images_nhwc)
        return logits_nk, F.cross_entropy(logits_nk, targets, label_smoothing=state.plan.label_smoothing)


def _optimizer_step(state: TrainState, *, progress: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = state.plan.lr_at(progress)
    if state.plan.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), state.plan.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1


def _autocast(state: TrainState) -> contextlib.AbstractContextManager[None]:
    if state.precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=state.precision)


def _synchronised(network: nn.Module, last_of_group: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged between ranks only in the last batch before a step."""
    no_sync = getattr(network, "no_sync", None)  # of DDP; torch.compile's wrapper hands it on
    return no_sync() if no_sync and not last_of_group else contextlib.nullcontext()


class _Timed(Iterator[Batch]):
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - started
        return batch


def _memory_peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
