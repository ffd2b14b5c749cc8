"""Settings of a sweep -> Ray Tune's space, searcher, scheduler and resources."""

from __future__ import annotations

from collections.abc import Mapping
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

TIME_ATTR = "epoch"  # what trials report; Ray's schedulers stop nothing, silently, where it is missing (FAULTS 8)
SCORE = "score"  # what trials report of search.metric, more is better (tune/trial.py)
PBT_INTERVAL_EPOCHS = 1


def domain(dimension: Dimension) -> Any:
    """The dimension as Ray Tune writes it, a Domain or for a grid a dict; whole numbers leave out the upper bound."""
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
        case "choice":
            return tune.choice(bounds)
        case _:
            return tune.grid_search(bounds)


def param_space(settings: TuneSettings) -> dict[str, Any]:
    """Setting -> domain. Settings that apply only sometimes are drawn always, and left out by TuneSettings.used()."""
    as_grid = settings.search.algorithm == "grid"
    return {
        name: tune.grid_search(dimension.bounds) if as_grid else domain(dimension)
        for name, dimension in settings.space.items()
    }


def within(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those that PBT moved out of their range (it multiplies by 0.8 or 1.2) moved back to its end."""
    return {name: space[name].nearest(value) if name in space else value for name, value in values.items()}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values with the numbers of numpy, which searchers give, as Python's."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def searcher(settings: TuneSettings, at_once: int) -> SearchAlgorithm | Searcher:
    """Who chooses the values, seeded. A third of the trials is drawn at random before a model of them is trusted."""
    search = settings.search
    num_random = max(4, settings.num_trials // 3)
    if search.algorithm == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch

        found: Searcher = HyperOptSearch(
            metric=SCORE, mode="max", n_initial_points=num_random, random_state_seed=search.seed
        )
        return ConcurrencyLimiter(found, max_concurrent=at_once)
    if search.algorithm == "optuna":
        import optuna
        from optuna.samplers import NSGAIISampler, TPESampler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        metric: Any = [SCORE, "latency_ms"] if search.latency else SCORE
        mode: Any = ["max", "min"] if search.latency else "max"
        sampler = (
            NSGAIISampler(seed=search.seed, population_size=max(4, settings.num_trials // 4))
            if search.latency
            else TPESampler(seed=search.seed, n_startup_trials=num_random, constant_liar=True)
        )
        return ConcurrencyLimiter(OptunaSearch(metric=metric, mode=mode, sampler=sampler), max_concurrent=at_once)
    # PBT's population is all its trials, which take turns: those that wait count as begun
    all_at_once = settings.scheduler.name == "pbt"
    return BasicVariantGenerator(max_concurrent=0 if all_at_once else at_once, random_state=search.seed)


def scheduler(settings: TuneSettings, max_epochs: int) -> TrialScheduler:
    """Who stops trials. max_epochs: those of the longest trial."""
    config = settings.scheduler
    aim: dict[str, Any] = {"metric": SCORE, "mode": "max"}
    match config.name:
        case "asha":
            return ASHAScheduler(
                time_attr=TIME_ATTR,
                max_t=max_epochs,
                grace_period=min(config.grace_epochs, max_epochs),
                reduction_factor=config.reduction_factor,
                stop_last_trials=False,  # they end by themselves, and report their last epoch
                **aim,
            )
        case "hyperband":
            return HyperBandScheduler(
                time_attr=TIME_ATTR,
                max_t=max_epochs,
                reduction_factor=config.reduction_factor,
                stop_last_trials=False,
                **aim,
            )
        case "median":
            return MedianStoppingRule(time_attr=TIME_ATTR, grace_period=config.grace_epochs, **aim)
        case "pbt":
            return PopulationBasedTraining(
                time_attr=TIME_ATTR,
                perturbation_interval=PBT_INTERVAL_EPOCHS,
                hyperparam_mutations={name: domain(dimension) for name, dimension in settings.space.items()},
                custom_explore_fn=partial(within, settings.space),
                require_attrs=True,
                **aim,
            )
        case _:
            return FIFOScheduler()
