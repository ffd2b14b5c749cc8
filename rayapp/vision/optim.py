"""The optimiser and its schedule, and the one place where the settings of `optim` become the numbers in force."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from rayapp.config.train import OptimConfig
from rayapp.errors import TrainingError

REFERENCE_BATCH = 256  # the world batch that OptimConfig.lr is meant for
DEFAULT_LR = {"sgd": 0.4, "adamw": 0.003}
DEFAULT_MOMENTUM = {"sgd": 0.9, "adamw": 0.0}
DEFAULT_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
DEFAULT_WARMUP = {"one_cycle": 0.25, "cosine": 0.05}


@dataclass(frozen=True)
class TrainPlan:
    """The numbers in force of one training: each default of OptimConfig resolved, for its images and its workers.

    Made once, by the driver; dry run, MLflow, workers, state and loop read it. lr is for a world batch of 256 images,
    peak_lr for the one in force. batch_size is what a worker takes at once. warmup is a fraction (0-1) of all steps.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: float
    epochs: int
    batch_size: int
    num_workers: int
    accumulate_steps: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    early_stop_patience: int | None = None
    precision: str = "auto"

    @classmethod
    def of(cls, config: OptimConfig, num_images: int, num_workers: int = 1) -> TrainPlan:
        """The plan for num_images training images that num_workers share.

        Defaults: an epoch of at least 20 steps where the images allow it, and about 600,000 images shown in all.
        """
        optimizer, schedule = config.optimizer, config.schedule
        batch_size = config.batch_size or min(128, max(16, num_images // (20 * num_workers)))
        return cls(
            optimizer=optimizer,
            lr=_given(config.lr, DEFAULT_LR[optimizer]),
            momentum=_given(config.momentum, DEFAULT_MOMENTUM[optimizer]),
            weight_decay=_given(config.weight_decay, DEFAULT_WEIGHT_DECAY[optimizer]),
            schedule=schedule,
            warmup=_given(config.warmup_fraction, DEFAULT_WARMUP[schedule]),
            epochs=config.epochs or min(20, max(8, round(600_000 / num_images))),
            # a data set smaller than one batch is one smaller batch, not none
            batch_size=max(1, min(batch_size, num_images // num_workers)),
            num_workers=num_workers,
            accumulate_steps=config.accumulate_steps,
            clip_norm=config.clip_norm,
            label_smoothing=config.label_smoothing,
            early_stop_patience=config.early_stop_patience,
            precision=config.precision,
        )

    def shared_by(self, num_workers: int) -> TrainPlan:
        """The plan on another number of workers, as elastic training has it: the world batch and its rate follow."""
        return replace(self, num_workers=num_workers)

    @property
    def images_at_once(self) -> int:
        """Images that all workers together take at once."""
        return self.batch_size * self.num_workers

    @property
    def world_batch(self) -> int:
        """Images an optimiser step."""
        return self.images_at_once * self.accumulate_steps

    @property
    def peak_lr(self) -> float:
        """The highest learning rate: it follows the world batch (Goyal et al. 2017, arXiv 1706.02677)."""
        return self.lr * self.world_batch / REFERENCE_BATCH

    def lr_at(self, progress: float) -> float:
        """The learning rate when this part (0-1) of the training is done.

        cosine: linear warm-up, then half a cosine to zero. one_cycle: half a cosine up from 1/25, half a cosine down to
        1/10,000 of that (Smith and Topin 2018, arXiv 1708.07120, with the constants of torch's OneCycleLR).
        """
        one_cycle = self.schedule == "one_cycle"
        start, end = (1 / 25, 1 / 250_000) if one_cycle else (0.0, 0.0)
        if progress < self.warmup:
            rising = progress / self.warmup
            factor = start + (1 - start) * ((1 - math.cos(math.pi * rising)) / 2 if one_cycle else rising)
        else:
            falling = min(1.0, (progress - self.warmup) / (1 - self.warmup))
            factor = end + (1 - end) * (1 + math.cos(math.pi * falling)) / 2
        return self.peak_lr * factor


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def build_optimizer(model: nn.Module, plan: TrainPlan) -> torch.optim.Optimizer:
    """The optimiser; weight decay on matrices and filters only, never on norms and biases. fit() sets the rate."""
    parameters = list(model.parameters())  # frozen ones too: they may be thawed later, and without a gradient they stay
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=plan.peak_lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=plan.peak_lr, momentum=plan.momentum, nesterov=plan.momentum > 0, fused=True)
    if plan.momentum:
        for p in parameters:  # the fused step (torch 2.14) fails where some have a buffer and thawed ones have none
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def resolve_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass. Raises TrainingError for a half precision on a device that gains nothing by it."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if wanted != "fp32" and device.type != "cuda":
        raise TrainingError(
            f"optim.precision '{wanted}' is for CUDA devices and slower on this one ({device.type}); say auto or fp32"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
