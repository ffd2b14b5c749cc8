"""Settings of a sweep."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from rayapp.config.commands import RUN_NAME, Recipe, TrainSettings
from rayapp.config.parse import _flat, _searchable, validate
from rayapp.config.sweep import (
    OPTIMIZER_SPACE,
    PERTURBABLE,
    PRESETS,
    BudgetConfig,
    SchedulerConfig,
    SearchConfig,
    Space,
    TrialsConfig,
    Value,
    WinnerConfig,
)
from rayapp.errors import ConfigError, did_you_mean

NUM_DRAWS = 64  # of a space, to see whether it can give settings that are refused


class TuneSettings(Recipe):
    """Search the best settings of a recipe: many short trainings, most of them stopped early."""

    base: Path | None = Field(None, description="YAML of the recipe; what is given here goes over it.")
    space: Space = Field(
        OPTIMIZER_SPACE,
        description="Setting -> its values, as optim.lr: {log_uniform: [0.0001, 0.01]}; kinds: uniform, log_uniform,"
        " integer, log_integer, choice, grid [default: learning rate, weight decay and momentum].",
    )
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig = BudgetConfig()
    trials: TrialsConfig = TrialsConfig()
    winner: WinnerConfig = WinnerConfig()
    name: str | None = Field(
        None, pattern=RUN_NAME, description="Name of the sweep; one that exists is refused [default: recipe and time]."
    )
    then_train: bool = Field(
        False,
        description="Train the winner again with several seeds, register the best of them as the challenger, and"
        " evaluate that one on the test split.",
    )
    resume: str | None = Field(None, description="Name of a sweep to go on with; its own settings are used.")
    results: str | None = Field(None, description="Print the table of this sweep, and nothing else.")
    clean: str | None = Field(None, description="Remove the folder and checkpoints of this sweep, after asking.")
    yes: bool = Field(False, description="Do not ask before --clean removes.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not self.space:
            raise ValueError("space is empty; name a setting and its values, as optim.lr: {log_uniform: [0.001, 0.1]}")
        if self.compute.workers.high > 1 and (self.compute.workers.is_elastic or self.trials.shares):
            raise ValueError(
                f"trials of compute.num_workers {self.compute.num_workers} keep their number, and have whole cores or"
                " GPUs; say a number, not a range, and leave out trials.cpus and trials.gpus"
            )
        if self.yes and not self.clean:
            raise ValueError("yes answers the question of clean; add --clean NAME, or leave it out")
        if "winner" in self.model_fields_set and not self.then_train:
            raise ValueError("winner has no effect without then_train; add --then-train")
        given = [name for name in ("resume", "results", "clean") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; leave one out")
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        algorithm, kinds = self.search.algorithm, {d.kind for d in self.space.values()}
        if algorithm == "grid" and kinds - {"choice", "grid"}:
            raise ValueError("search.algorithm 'grid' needs lists (choice or grid) for all of space; say random")
        if algorithm == "grid" and self.budget.trials and self.budget.trials < self.num_trials:
            raise ValueError(
                f"budget.trials is {self.budget.trials}, but a grid runs all its {self.num_trials} combinations; leave"
                " it out, shorten the lists, or say --search.algorithm random"
            )
        if algorithm != "grid" and "grid" in kinds:
            raise ValueError(
                f"space has a grid, which search.algorithm '{algorithm}' does not walk; say choice, or grid"
            )
        if algorithm in ("hyperopt", "optuna") and find_spec(algorithm) is None:
            raise ValueError(
                f"search.algorithm '{algorithm}' needs the package {algorithm}, which is not installed:"
                f" pip install {algorithm}, or say random"
            )
        return self

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        scheduler = self.scheduler.name
        if self.search.latency and scheduler != "none":
            raise ValueError(f"scheduler.name '{scheduler}' stops trials by one aim; with search.latency say none")
        if scheduler != "none" and self.optim.early_stop_patience:
            raise ValueError(
                f"optim.early_stop_patience and scheduler.name '{scheduler}' both stop early; leave one out"
            )
        fixed = [name for name in self.space if not name.startswith(PERTURBABLE)]
        if scheduler == "pbt" and fixed:
            raise ValueError(
                f"scheduler.name 'pbt' changes values while a trial goes on, which {fixed[0]} cannot; allowed in space:"
                f" {', '.join(PERTURBABLE)}*"
            )
        if scheduler == "pbt" and self.search.algorithm != "random":
            raise ValueError("scheduler.name 'pbt' chooses new values itself; add --search.algorithm random")
        return self

    @property
    def joins_ray(self) -> bool:
        """The record of a sweep is read and removed without Ray."""
        return not (self.results or self.clean)

    @property
    def num_trials(self) -> int:
        """Trials at most; of a grid each combination."""
        if self.search.algorithm == "grid":
            return math.prod(len(dimension.bounds) for dimension in self.space.values())
        return self.budget.trials or PRESETS[self.search.preset]

    def used(self, drawn: Mapping[str, Value]) -> dict[str, Value]:
        """Of the drawn values those that apply: a condition looks at those listed before it, else at the recipe's."""
        # trial() leaves out what the recipe has of the settings in space
        defaults = {
            name: value for name, value in _flat(Recipe().model_dump(mode="json")).items() if name in self.space
        }
        known = self._recipe_values() | defaults
        used: dict[str, Value] = {}
        for name, dimension in self.space.items():
            if name in drawn and dimension.applies(known | used):
                used[name] = drawn[name]
        return used

    def _recipe_values(self) -> dict[str, Any]:
        """Setting -> what the recipe says of it."""
        return _flat(self.model_dump(mode="json", include=set(Recipe.model_fields)))

    def trial(self, drawn: Mapping[str, Value]) -> TrainSettings:
        """The settings of a trial. Where a value does not apply, the recipe's of that name is left out as well.

        Raises ConfigError where they do not go together.
        """
        content = self.model_dump(mode="json", include=set(Recipe.model_fields), exclude_unset=True)
        used = self.used(drawn)
        for name in self.space:
            section, _, field = name.rpartition(".")
            fields = content.setdefault(section, {}) if section else content
            fields.pop(field, None)
            if name in used:
                fields[field] = used[name]
        return validate(TrainSettings, content | {"register": False})


def check_space(settings: TuneSettings) -> None:
    """Raises ConfigError where the space has an unknown setting, one that is never used, or values that are refused."""
    known, before = _searchable(), set[str]()
    for name, dimension in settings.space.items():
        for mentioned in (name, *dimension.when):
            if mentioned not in known:
                raise ConfigError(f"space has the unknown setting '{mentioned}'.{did_you_mean(mentioned, known)}")
        for mentioned, wanted in dimension.when.items():
            if mentioned in settings.space and mentioned not in before:
                raise ConfigError(f"space.{name} depends on {mentioned}, which does not stand before it; put it there.")
            _refuse_never(settings, name, mentioned, wanted if isinstance(wanted, list) else [wanted])
        before.add(name)
    if settings.model.init and any(name.startswith("model.") for name in settings.space):
        raise ConfigError(f"model.init '{settings.model.init}' is of one model, but space has others; leave one out.")
    _refuse_bad_draws(settings)


def _refuse_never(settings: TuneSettings, name: str, mentioned: str, wanted: Sequence[Value]) -> None:
    other, fixed = settings.space.get(mentioned), settings._recipe_values()
    if not any(other.may_be(value) if other else value == fixed[mentioned] for value in wanted):
        never = " or ".join(map(str, wanted))
        raise ConfigError(f"space.{name} is never used: {mentioned} is never {never}; change its when.")


def _refuse_bad_draws(settings: TuneSettings) -> None:
    rng = random.Random(0)  # noqa: S311 - nothing secret
    for _ in range(NUM_DRAWS):
        drawn = {name: dimension.draw(rng) for name, dimension in settings.space.items()}
        try:
            settings.trial(drawn)
        except ConfigError as error:
            values = ", ".join(f"{name}={value}" for name, value in settings.used(drawn).items())
            raise ConfigError(
                f"space can give settings that are refused, as {values}: {str(error).rstrip('.')};"
                " change its values, or say with when: which of them go together."
            ) from error
