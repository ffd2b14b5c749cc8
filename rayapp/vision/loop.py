"""fit(): the one training loop, a generator of reports. It does not know who is watching.

Suffixes of tensors: n images, k classes, h and w pixels, c channels.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rayapp.config import OptimConfig
from rayapp.errors import TrainingError
from rayapp.vision.batches import Batches, mixed_seed
from rayapp.vision.metrics import Means, MetricSums
from rayapp.vision.models import train_mode

REFERENCE_BATCH = 256  # the world batch that OptimConfig.lr is meant for
CHECKPOINT = "state.pt"


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
    """One pass over the training images and one over the validation images, of all ranks. epoch counts from 1."""

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


@dataclass
class TrainState:
    """All that a run needs to go on: model, optimiser, schedule, scaler, best weights, position."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    num_epochs: int
    steps_per_epoch: int
    epoch: int = 0  # epochs done
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def create(cls, model: nn.Module, train: Batches, config: OptimConfig) -> TrainState:
        """The state before the first step. The learning rate follows the world batch (Goyal et al. 2017)."""
        world_batch = train.batch_size * train.shard.world * config.accumulate_steps
        num_epochs = config.num_epochs(len(train.labels_n))
        steps_per_epoch = -(-train.num_batches // config.accumulate_steps)
        optimizer = _optimizer(model, config, lr=config.peak_lr * world_batch / REFERENCE_BATCH)
        schedule = LambdaLR(optimizer, _lr_factor(config, num_epochs * steps_per_epoch))
        device = next(model.parameters()).device
        precision = resolve_precision(config.precision, device)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        return cls(model, optimizer, schedule, scaler, precision, num_epochs, steps_per_epoch)

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.num_epochs

    def save(self, folder: Path) -> None:
        """Write folder/state.pt: whole or not at all, so that a full disk cannot leave half a checkpoint."""
        partial = folder / f"{CHECKPOINT}.partial"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "scaler": self.scaler.state_dict(),
                "position": {name: getattr(self, name) for name in _POSITION},
                "best_weights": self.best_weights,
            },
            partial,
        )
        os.replace(partial, folder / CHECKPOINT)

    def restore(self, folder: Path) -> None:
        """Take up what save() wrote. Raises TrainingError where it is not of this model and recipe."""
        device = next(self.model.parameters()).device
        try:
            saved: dict[str, Any] = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"checkpoint {folder} does not fit this run ({error}); start a new run") from error
        # the schedule is a pure function of the step: its position is all there is to restore
        self.schedule.last_epoch = saved["schedule"]["last_epoch"]
        self.scaler.load_state_dict(saved["scaler"])
        for name, value in saved["position"].items():
            setattr(self, name, value)
        self.best_weights = {name: tensor.cpu() for name, tensor in saved["best_weights"].items()}

    def note(self, validation: Means) -> bool:
        """Whether these are the best weights so far; if so they are kept. A tie goes to the lower loss."""
        better = (validation.accuracy, -validation.loss) > (self.best_accuracy, -self.best_loss)
        if better:
            self.best_accuracy, self.best_loss, self.best_epoch = validation.accuracy, validation.loss, self.epoch
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        return better


_POSITION = ("epoch", "num_epochs", "best_accuracy", "best_loss", "best_epoch")


def fit(
    state: TrainState,
    train: Batches,
    validation: Batches,
    config: OptimConfig,
    *,
    network: nn.Module | None = None,
    seed: int = 0,
    report_every_steps: int = 20,
) -> Iterator[StepReport | EpochReport]:
    """A StepReport every report_every_steps optimiser steps and an EpochReport an epoch, until state.is_done.

    Runs on every rank alike; network is state.model wrapped for DDP. The device is waited for once a report, never a
    batch. After an EpochReport state is at an epoch's end and may be saved. Raises TrainingError on a loss that is
    not finite.
    """
    while not state.is_done:
        started = time.perf_counter()
        # dropout draws from torch's own generator: seeded anew each epoch, a resumed run draws the same numbers
        torch.manual_seed(mixed_seed((seed, state.epoch, train.shard.rank)))
        sums = MetricSums(train.labels_n.device)
        yield from _train_epoch(state, train, config, network or state.model, sums, report_every_steps)
        _average_buffers(state.model)
        means, val = sums.means(over_ranks=True), evaluate(state, validation)
        state.epoch += 1
        is_best = state.note(val)
        if config.early_stop_patience and state.epoch - state.best_epoch >= config.early_stop_patience:
            state.num_epochs = state.epoch
        seconds = time.perf_counter() - started
        yield EpochReport(
            epoch=state.epoch,
            num_epochs=state.num_epochs,
            step=state.schedule.last_epoch,
            train_loss=means.loss,
            train_accuracy=means.accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            lr=float(state.schedule.get_last_lr()[0]),
            seconds=seconds,
            images_per_s=means.num_images / seconds,
            is_best=is_best,
            is_last=state.is_done,
        )


def evaluate(state: TrainState, batches: Batches) -> Means:
    """Mean loss (no smoothing) and accuracy over the batches of all ranks; a barrier. Images are not augmented."""
    state.model.eval()
    sums = MetricSums(batches.labels_n.device)
    with torch.inference_mode():
        for images_nhwc, labels_n in batches.epoch(0):
            with _autocast(state):
                logits_nk = state.model(images_nhwc)
            sums.add(logits_nk, labels_n)
    return sums.means(over_ranks=True)


def resolve_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. Raises TrainingError for a half precision on a device that gains nothing by it."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if wanted != "fp32" and device.type != "cuda":
        raise TrainingError(
            f"optim.precision '{wanted}' is for CUDA devices and slower on this one ({device.type}); say auto or fp32"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def _train_epoch(
    state: TrainState, train: Batches, config: OptimConfig, network: nn.Module, sums: MetricSums, every: int
) -> Iterator[StepReport]:
    train_mode(network)
    window, window_started, window_images = MetricSums(train.labels_n.device), time.perf_counter(), 0
    first_of_group = 0
    for at, (images_nhwc, labels_n) in enumerate(train.epoch(state.epoch)):
        last_of_group = min(first_of_group + config.accumulate_steps, train.num_batches) - 1
        steps_now = at == last_of_group
        with _synchronised(network, steps_now):
            with _autocast(state):
                logits_nk = network(images_nhwc)
                loss = F.cross_entropy(logits_nk, labels_n, label_smoothing=config.label_smoothing)
            state.scaler.scale(loss / (last_of_group - first_of_group + 1)).backward()
        sums.add(logits_nk, labels_n, loss)
        window.add(logits_nk, labels_n, loss)
        window_images += len(labels_n)
        if not steps_now:
            continue
        first_of_group = at + 1
        lr = float(state.schedule.get_last_lr()[0])
        _optimizer_step(state, config)
        step = state.schedule.last_epoch
        if step % every == 0:
            means = window.means(over_ranks=True)  # so that all ranks stop together on a loss that is not finite
            if not math.isfinite(means.loss):
                raise TrainingError(f"the loss is {means.loss} at step {step}; lower --optim.lr ({lr:g} at this step)")
            rate = window_images * train.shard.world / (time.perf_counter() - window_started)
            yield StepReport(
                epoch=state.epoch + 1,
                num_epochs=state.num_epochs,
                step=step,
                num_steps=state.num_epochs * state.steps_per_epoch,
                loss=means.loss,
                accuracy=means.accuracy,
                lr=lr,
                images_per_s=rate,
            )
            window, window_started, window_images = MetricSums(train.labels_n.device), time.perf_counter(), 0


def _optimizer_step(state: TrainState, config: OptimConfig) -> None:
    if config.clip_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()


def _autocast(state: TrainState) -> contextlib.AbstractContextManager[None]:
    if state.precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=state.precision)


def _synchronised(network: nn.Module, steps_now: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are exchanged between ranks only in the last batch before a step."""
    if steps_now or not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


def _average_buffers(model: nn.Module) -> None:
    """Each rank's batch norms saw other images: their mean is the better estimate, and makes all ranks equal again."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def _optimizer(model: nn.Module, config: OptimConfig, *, lr: float) -> torch.optim.Optimizer:
    """The optimiser; weight decay on matrices and filters only (FAULTS 25)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def _lr_factor(config: OptimConfig, num_steps: int) -> Callable[[int], float]:
    """A function from the step to the part (0-1) of the peak rate.

    cosine: linear warm-up, then half a cosine to zero. one_cycle: half a cosine up from 1/25, half a cosine down to
    1/10,000 of that (Smith and Topin 2018, arXiv 1708.07120, with the constants of torch's OneCycleLR).
    """
    one_cycle = config.schedule == "one_cycle"
    start, end = (1 / 25, 1 / 250_000) if one_cycle else (0.0, 0.0)
    warm_steps = config.warmup * num_steps

    def factor(step: int) -> float:
        if step < warm_steps:
            rising = (step + 1) / (warm_steps + 1)
            return start + (1 - start) * ((1 - math.cos(math.pi * rising)) / 2 if one_cycle else rising)
        done = min(1.0, (step - warm_steps) / max(1.0, num_steps - warm_steps))
        return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

    return factor
