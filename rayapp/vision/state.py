"""TrainState: all that a run needs to go on, from any optimiser step, with the same numbers.

Suffixes of tensors: r ranks, s statistics of one rank.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayapp.errors import TrainingError
from rayapp.vision.metrics import Means, MetricSums
from rayapp.vision.optim import TrainPlan, resolve_precision

_POSITION = (
    "num_epochs", "epoch", "images_done", "step", "best_accuracy", "best_loss", "best_epoch",
)  # fmt: skip

Snapshot = dict[str, Any]


@dataclass
class TrainState:
    """Model, optimiser, scaler, best weights, sums of the epoch, position; and the plan, which is not saved with them.

    Random numbers are functions of the seed and the position (see loaders.py) and the learning rate is one of the
    progress, so neither has a state of its own.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: torch.dtype
    plan: TrainPlan
    num_epochs: int  # early stopping makes it fewer than the plan's
    sums: MetricSums  # of this rank, in this epoch
    epoch: int = 0  # epochs done
    images_done: int = 0  # by all ranks, in this epoch
    step: int = 0  # optimiser steps done
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def create(cls, model: nn.Module, optimizer: torch.optim.Optimizer, plan: TrainPlan) -> TrainState:
        """The state before the first step. Raises TrainingError where the precision does not suit the device."""
        device = next(model.parameters()).device
        precision = resolve_precision(plan.precision, device)
        return cls(
            model=model,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
            precision=precision,
            plan=plan,
            num_epochs=plan.epochs,
            sums=MetricSums(device),
        )

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.num_epochs

    def update_best(self, validation: Means) -> bool:
        """Whether these are the best weights so far; if so they are kept. A tie goes to the lower loss."""
        better = (validation.accuracy, -validation.loss) > (self.best_accuracy, -self.best_loss)
        if better:
            self.best_accuracy, self.best_loss, self.best_epoch = validation.accuracy, validation.loss, self.epoch
            self.best_weights = _on_cpu(self.model.state_dict())
        return better

    def snapshot(self) -> Snapshot:
        """Copies on the CPU of all that restore() needs, to be written while training goes on.

        A collective: every rank calls it, and rank 0's is the one to keep. Raises TrainingError where weights are not
        finite, so that a run that broke down cannot overwrite its last good checkpoint.
        """
        if not bool(nn.utils.get_total_norm(list(self.model.parameters())).isfinite()):
            raise TrainingError(f"weights are not finite at step {self.step}; lower --optim.lr")
        ranks_rs = _gathered(torch.cat([self.sums.sums_3, *(t.flatten() for t in _norm_statistics(self.model))]))
        return {
            "model": _on_cpu(self.model.state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "position": {name: getattr(self, name) for name in _POSITION},
            "best_weights": self.best_weights,
            "ranks": ranks_rs.cpu(),
        }

    def restore(self, snapshot: Snapshot, *, rank: int = 0, world: int = 1) -> None:
        """Take up a snapshot, on as many ranks as it was made by or on others.

        Raises TrainingError where it is not of this model and recipe.
        """
        try:
            self.model.load_state_dict(snapshot["model"])
            self.optimizer.load_state_dict(snapshot["optimizer"])
            self.scaler.load_state_dict(snapshot["scaler"])
            for name in _POSITION:
                setattr(self, name, snapshot["position"][name])
            self.best_weights = snapshot["best_weights"]
            self._restore_rank(snapshot["ranks"], rank, world)
        except (RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"the checkpoint does not fit this run ({error}); start a new run") from error

    def _restore_rank(self, ranks_rs: Tensor, rank: int, world: int) -> None:
        """This rank's own sums and norm statistics; other ranks than before share the sums and take the mean."""
        ranks_rs = ranks_rs.to(self.sums.sums_3.device)
        if len(ranks_rs) == world:
            own_s = ranks_rs[rank]
        else:
            own_s = ranks_rs.mean(0)
            own_s[:3] = ranks_rs[:, :3].sum(0) / world
        statistics = _norm_statistics(self.model)
        sizes = [3, *(tensor.numel() for tensor in statistics)]
        self.sums.sums_3, *saved = own_s.split(sizes)
        for tensor, values in zip(statistics, saved, strict=True):
            tensor.copy_(values.view_as(tensor))


def to_bytes(snapshot: Snapshot) -> bytes:
    """The snapshot as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> Snapshot:
    """What to_bytes() made, without running any code in it. Raises RuntimeError or UnpicklingError on other bytes."""
    snapshot: Snapshot = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return snapshot


def average_norm_statistics(model: nn.Module) -> None:
    """Each rank's batch norms saw other images: their mean is the better estimate, and makes all ranks equal again."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for tensor in _norm_statistics(model):
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def _norm_statistics(model: nn.Module) -> list[Tensor]:
    """What batch norms remember of the images they saw: the one thing in which ranks differ between two epochs."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]


def _gathered(own_s: Tensor) -> Tensor:
    """(R, S): the vectors of all ranks."""
    if not dist.is_initialized():
        return own_s[None]
    ranks = [torch.empty_like(own_s) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, own_s)
    return torch.stack(ranks)


def _on_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
