"""Settings of a sweep -> Ray Tune's space, searcher and scheduler."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher

from rayapp.config.sweep import Dimension, Space
from rayapp.config.tune import TuneSettings
from rayapp.tune.record import TrialRow
from rayapp.tune.trial import SCORE, WORST

TIME_ATTR = "epoch"  # what trials report; Ray's schedulers stop nothing, silently, where it is missing
PBT_INTERVAL_EPOCHS = 1
# What a trial's config has beside the values: of the trial of an earlier part of the sweep that it is, the id and the
# address of its newest checkpoint
EARLIER, CHECKPOINT = "earlier", "checkpoint"


def to_ray_domain(dimension: Dimension) -> Any:
    """The dimension as Ray Tune writes it; its whole numbers leave out the upper bound."""
    bounds = dimension.bounds
    match dimension.kind:
        case "uniform":
            return tune.uniform(*bounds)
        case "log_uniform":
            return tune.loguniform(*bounds)
        case "integer":
            return tune.randint(bounds[0], bounds[1] + 1)
        case "log_integer":
            return tune.lograndint(bounds[0], bounds[1] + 1)
        case _:
            return tune.choice(bounds)


def clip_to_space(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those that PBT moved out of their range (it multiplies by 0.8 or 1.2) moved back to its end."""
    return {name: space[name].nearest(value) if name in space else value for name, value in values.items()}


def to_python(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values with the numbers of numpy, which searchers give, as Python's."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def searcher(
    settings: TuneSettings, at_once: int, rows: Sequence[TrialRow] = (), folder: str = ""
) -> SearchAlgorithm | Searcher:
    """Who chooses the values, seeded: first those of rows that were cut off, then as if it had chosen for all rows.

    Values that apply only sometimes are always chosen, and left out by TuneSettings.used(). folder: address of what
    rows say of their checkpoints.
    """
    rng = random.Random(settings.search.seed + len(rows))  # noqa: S311 - nothing secret
    points = [{name: d.draw(rng) for name, d in settings.space.items()} | row.values for row in rows]
    cut_off = [
        point | {EARLIER: row.trial_id, CHECKPOINT: row.checkpoint and f"{folder}/{row.checkpoint}"}
        for row, point in zip(rows, points, strict=True)
        if row.state == "running"
    ]
    if settings.search.algorithm in ("random", "grid"):
        # PBT's population is all its trials, which take turns: those that wait count as begun
        max_concurrent = 0 if settings.scheduler.name == "pbt" else at_once
        return BasicVariantGenerator([*cut_off, *_not_begun(settings, rows)], max_concurrent)
    order = sorted(range(len(rows)), key=lambda at: rows[at].state == "running")
    inner = _learner(settings, [points[at] for at in order], settings.search.seed + len(rows))
    inner.set_search_properties(None, None, {name: to_ray_domain(d) for name, d in settings.space.items()})
    for row in rows:
        if row.state != "running":
            inner.suggest(row.trial_id)
            inner.on_trial_complete(row.trial_id, last_result(row))
    return ConcurrencyLimiter(_CutOffFirst(inner, cut_off), max_concurrent=at_once)


def config_keys(settings: TuneSettings) -> dict[str, None]:
    """What the config of each trial has; the values are the searcher's."""
    return dict.fromkeys([*settings.space, EARLIER, CHECKPOINT])


def last_result(row: TrialRow) -> dict[str, float]:
    """What searchers learn from a trial that ended."""
    if row.error or not row.scores:
        return WORST
    return {SCORE: row.scores[-1], "latency_ms": row.latency_ms or WORST["latency_ms"]}


def _not_begun(settings: TuneSettings, rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """The values of all trials of a search that learns nothing, without those of rows."""
    names, rng = list(settings.space), random.Random(settings.search.seed)  # noqa: S311 - nothing secret
    if settings.search.algorithm == "grid":
        lists = [dimension.bounds for dimension in settings.space.values()]
        drawn = [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]
    else:
        drawn = [{name: d.draw(rng) for name, d in settings.space.items()} for _ in range(settings.num_trials)]
    left = [(settings.used(values), values) for values in drawn]
    for row in rows:  # PBT's have other values by now: any is as good as another
        left.remove(next((entry for entry in left if entry[0] == row.values), left[0]))
    return [values for _, values in left]


def _learner(settings: TuneSettings, points: list[dict[str, Any]], seed: int) -> Searcher:
    """HyperOpt or Optuna. A third of the trials is drawn at random before a model of them is trusted."""
    num_random = max(4, settings.num_trials // 3)
    if settings.search.algorithm == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        return HyperOptSearch(
            metric=SCORE,
            mode="max",
            n_initial_points=num_random,
            random_state_seed=seed,
            points_to_evaluate=points or None,
        )
    import optuna
    from optuna.samplers import NSGAIISampler, TPESampler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.search.latency:
        sampler: Any = NSGAIISampler(seed=seed, population_size=max(4, settings.num_trials // 4))
        aims: dict[str, Any] = {"metric": [SCORE, "latency_ms"], "mode": ["max", "min"]}
    else:
        sampler = TPESampler(seed=seed, n_startup_trials=num_random, constant_liar=True)
        aims = {"metric": SCORE, "mode": "max"}
    return OptunaSearch(sampler=sampler, points_to_evaluate=points, **aims)


class _CutOffFirst(Searcher):
    """The searcher inside, whose first suggestions are the trials that an earlier part of the sweep left unfinished."""

    def __init__(self, inner: Searcher, cut_off: list[dict[str, Any]]) -> None:
        super().__init__(inner.metric, inner.mode)
        self._inner, self._cut_off = inner, cut_off

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The values of a new trial."""
        suggested = self._inner.suggest(trial_id)
        return self._cut_off.pop(0) if self._cut_off else suggested

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch is over."""
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial is over."""
        self._inner.on_trial_complete(trial_id, result, error)


def scheduler(settings: TuneSettings, max_epochs: int) -> TrialScheduler:
    """Who stops trials. max_epochs: those of the longest trial."""
    config = settings.scheduler
    aim: dict[str, Any] = {"time_attr": TIME_ATTR, "metric": SCORE, "mode": "max"}
    # the last trials end by themselves, and report their last epoch
    ladder = aim | {"max_t": max_epochs, "reduction_factor": config.reduction_factor, "stop_last_trials": False}
    match config.name:
        case "asha":
            return ASHAScheduler(grace_period=min(config.grace_epochs, max_epochs), **ladder)
        case "hyperband":
            return HyperBandScheduler(**ladder)
        case "median":
            return MedianStoppingRule(grace_period=config.grace_epochs, **aim)
        case "pbt":
            return PopulationBasedTraining(
                perturbation_interval=PBT_INTERVAL_EPOCHS,
                hyperparam_mutations={name: to_ray_domain(dimension) for name, dimension in settings.space.items()},
                custom_explore_fn=partial(clip_to_space, settings.space),
                require_attrs=True,
                **aim,
            )
        case _:
            return FIFOScheduler()
