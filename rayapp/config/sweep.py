"""The sections of a sweep: a space over any setting, how it is searched, when trials stop, and what it may cost."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rayapp.config.base import Section

Value = bool | int | float | str | None
Algorithm = Literal["hyperopt", "optuna", "random", "grid"]
SchedulerName = Literal["asha", "hyperband", "pbt", "median", "none"]
PRESETS = {"quick": 5, "default": 10, "extensive": 50, "hundred": 100}
# PBT changes these while a trial goes on from another one's checkpoint; others would not fit the weights or the order
PERTURBABLE = (
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "optim.label_smoothing",
    "optim.clip_norm",
    "augment.",
)


def _low_and_high(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds {list(bounds)} must be [low, high] with low < high")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_low_and_high)]
Whole = Annotated[tuple[int, int], AfterValidator(_low_and_high)]


class Dimension(Section):
    """The values that one setting may have: exactly one of the kinds, and when it is used at all."""

    uniform: Bounds | None = Field(None, description="[low, high], all values alike.")
    log_uniform: Bounds | None = Field(None, description="[low, high], all orders of magnitude alike.")
    integer: Whole | None = Field(None, description="[low, high], whole numbers, both included.")
    log_integer: Whole | None = Field(None, description="[low, high], whole numbers, all orders of magnitude alike.")
    choice: list[Value] | None = Field(None, min_length=1, description="One of a list.")
    grid: list[Value] | None = Field(None, min_length=1, description="Each of a list; goes with the grid algorithm.")
    when: dict[str, Value | list[Value]] = Field(
        default_factory=dict, description="Other settings and the value (or values) that they must have."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a setting in space needs one of {', '.join(KINDS)}; given: {', '.join(given) or 'none'}")
        low_high = self.log_uniform or self.log_integer
        if low_high and low_high[0] <= 0:
            raise ValueError(f"{self.kind} {list(low_high)} must begin above 0; say uniform or integer, or raise it")
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def bounds(self) -> Any:
        """What stands behind the kind: [low, high] or the list of values."""
        return getattr(self, self.kind)

    def draw(self, rng: random.Random) -> Value:
        """A value as random search would draw it."""
        if self.kind in ("choice", "grid"):
            value: Value = rng.choice(self.bounds)
            return value
        low, high = self.bounds
        if self.kind == "integer":
            return rng.randint(low, high)
        if self.kind == "uniform":
            return rng.uniform(low, high)
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        return round(drawn) if self.kind == "log_integer" else min(max(drawn, low), high)

    def may_be(self, value: Any) -> bool:
        """Whether this value can be drawn; one number of a range without gaps never is."""
        if self.kind in ("choice", "grid"):
            return value in self.bounds
        whole = self.kind in ("integer", "log_integer") and isinstance(value, int)
        return whole and self.bounds[0] <= value <= self.bounds[1]

    def nearest(self, value: Any) -> Any:
        """The value, or the bound that it lies beyond."""
        if self.kind in ("choice", "grid"):
            return value
        low, high = self.bounds
        return min(max(value, low), high)

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the settings in values ("section.field" -> value) are those that it needs."""
        return all(
            values.get(name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in self.when.items()
        )


KINDS = ("uniform", "log_uniform", "integer", "log_integer", "choice", "grid")
Space = dict[str, Dimension]

# What the replaced system searched.
OPTIMIZER_SPACE: Space = {
    "optim.lr": Dimension(log_uniform=(1e-4, 1e-2)),
    "optim.weight_decay": Dimension(log_uniform=(1e-5, 1e-3)),
    "optim.momentum": Dimension(uniform=(0.8, 0.99)),
}


class SearchConfig(Section):
    """How values are chosen, and what is wanted of them."""

    algorithm: Algorithm = Field("hyperopt", description="Who chooses the values.")
    preset: Literal["quick", "default", "extensive", "hundred"] = Field(
        "default", description="Number of trials: quick 5, default 10, extensive 50, hundred 100."
    )
    metric: Literal["val_accuracy", "val_loss"] = Field("val_accuracy", description="What makes a trial the best.")
    latency: bool = Field(
        False,
        description="Look for low latency (ms, one image on the trial's device) beside the metric; goes with optuna and"
        " scheduler.name none.",
    )
    seed: int = Field(0, ge=0, description="Seed of the search; the trials' own is --seed.")

    @model_validator(mode="after")
    def _latency_needs_optuna(self) -> Self:
        if self.latency and self.algorithm != "optuna":
            raise ValueError(
                f"search.latency needs an algorithm that takes two aims, and '{self.algorithm}' does not; say optuna"
            )
        return self


class SchedulerConfig(Section):
    """Which trials stop early."""

    name: SchedulerName = Field(
        "asha",
        description="asha: after grace_epochs, and each reduction_factor times that, only the best go on. hyperband:"
        " several such ladders. median: worse than half of the others stop. pbt: the worst take over weights and"
        " values of the best. none: all run to their end.",
    )
    grace_epochs: int = Field(1, ge=1, description="Epochs that every trial may run.")
    reduction_factor: int = Field(3, ge=2, description="Of so many trials one goes on, for so many times the epochs.")


class BudgetConfig(Section):
    """What a sweep may take. It ends at the first of them, with the best so far."""

    trials: int | None = Field(None, ge=1, description="Trials [default: what search.preset says].")
    minutes: float | None = Field(None, gt=0, description="Time (minutes), all parts of a resumed sweep together.")
    usd: float | None = Field(None, gt=0, description="Cost of the nodes (USD); needs their prices.")


class TrialsConfig(Section):
    """What one trial gets."""

    cpus: float | None = Field(
        None, gt=0, description="CPU cores a trial; fractions as 0.5 share one [default: compute.threads_per_worker]."
    )
    gpus: float | None = Field(None, ge=0, description="GPUs a trial; fractions as 0.25 share one [default: 1, or 0].")
    at_once: int | None = Field(None, ge=1, description="Trials that run at once [default: as many as there is room].")

    @property
    def shares(self) -> bool:
        """Whether it says what a trial takes."""
        return self.cpus is not None or self.gpus is not None


class WinnerConfig(Section):
    """What becomes of the best trial."""

    seeds: int = Field(3, ge=1, description="Times the winner is trained again, each with another seed.")
    epochs: int | None = Field(None, ge=1, description="Epochs of these trainings [default: the trial's own].")
