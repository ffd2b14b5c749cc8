"""What Ray Tune is given: the same space, seeded searchers, schedulers that see the epochs, and room for the trials."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from rayapp.config.parse import validate
from rayapp.config.sweep import Dimension
from rayapp.config.train import OptimConfig
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError
from rayapp.runtime import resources
from rayapp.runtime.resources import check_room, resources_each, resources_held, share_of_node
from rayapp.tune.driver import _max_epochs
from rayapp.tune.record import TrialRow
from rayapp.tune.search import (
    CHECKPOINT,
    EARLIER,
    TIME_ATTR,
    config_keys,
    last_result,
    scheduler,
    searcher,
    to_ray_domain,
)
from rayapp.tune.trial import SCORE, WORST, TrialReport, score_of
from rayapp.vision.loop import EpochReport
from rayapp.vision.optim import TrainPlan

WHOLE = {"optim.batch_size": {"log_integer": [1, 4]}, "optim.epochs": {"integer": [1, 3]}}
RATES = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "optim.momentum": {"uniform": [0.8, 0.99]}}
LISTS = {"optim.lr": {"grid": [0.1, 0.2, 0.4]}, "model.name": {"choice": ["resnet9", "resnet18"]}}


def sweep(**content: Any) -> TuneSettings:
    return validate(TuneSettings, content)


def begun(settings: TuneSettings, count: int, rows: Sequence[TrialRow] = ()) -> list[dict[str, Any]]:
    """The config of the first count trials (fewer where the search is over), all of them alike good."""
    found: Any = searcher(settings, 1, rows, "/sweeps/a1")
    if isinstance(found, BasicVariantGenerator):
        left = settings.num_trials - sum(row.state != "running" for row in rows)
        trials = {"run": _nothing, "config": config_keys(settings), "num_samples": left}
        found.add_configurations({"a sweep": trials})
        return _variants(found, count)
    suggested = []
    for trial_id in map(str, range(count)):
        suggested.append(found.suggest(trial_id))
        found.on_trial_complete(trial_id, {SCORE: 0.5, "latency_ms": 2.0})
    return suggested


def _nothing(config: dict[str, Any]) -> None:
    """A trial that is never run."""


def _variants(generator: BasicVariantGenerator, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count and (trial := generator.next_trial()):
        found.append(trial.config)
        generator.on_trial_complete(trial.trial_id)
    return found


def values(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what it says of an earlier part of the sweep."""
    return {name: value for name, value in config.items() if name not in (EARLIER, CHECKPOINT)}


# --- the space --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["random", "hyperopt", "optuna"])
def test_whole_numbers_include_both_ends_whoever_searches(algorithm: str) -> None:
    settings = sweep(space=WHOLE, search={"algorithm": algorithm}, budget={"trials": 400})  # a third of them at random
    found = begun(settings, 100)

    assert {values["optim.batch_size"] for values in found} == {1, 2, 3, 4}
    assert {values["optim.epochs"] for values in found} == {1, 2, 3}


@pytest.mark.parametrize("algorithm", ["random", "hyperopt", "optuna"])
def test_fractions_stay_within_their_bounds_whoever_searches(algorithm: str) -> None:
    found = begun(sweep(space=RATES, search={"algorithm": algorithm}, budget={"trials": 30}), 30)

    assert all(1e-4 <= values["optim.lr"] <= 1e-2 for values in found)
    assert all(0.8 <= values["optim.momentum"] <= 0.99 for values in found)


def test_a_log_scale_gives_each_order_of_magnitude_alike() -> None:
    rates = to_ray_domain(Dimension(log_uniform=(1e-5, 1e-1))).sample(size=4000, random_state=np.random.RandomState(0))
    orders = Counter(math.floor(math.log10(rate)) for rate in rates)
    assert set(orders) == {-5, -4, -3, -2}
    assert all(850 < count < 1150 for count in orders.values())

    sizes = to_ray_domain(Dimension(log_integer=(1, 64))).sample(size=4000, random_state=np.random.RandomState(0))
    assert np.mean(np.asarray(sizes) <= 8) > 0.4  # 0.12 of them on a plain scale


def test_a_setting_that_applies_only_sometimes_is_always_drawn() -> None:
    momentum = {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}}
    settings = sweep(
        space={"optim.optimizer": {"choice": ["sgd", "adamw"]}, "optim.momentum": momentum},
        search={"algorithm": "random", "preset": "default"},
    )

    found = begun(settings, 10)

    assert {values["optim.optimizer"] for values in found} == {"sgd", "adamw"}
    assert all(0.8 <= values["optim.momentum"] <= 0.99 for values in found)


def test_a_grid_begins_each_combination_once() -> None:
    found = begun(sweep(space=LISTS, search={"algorithm": "grid"}), 100)

    pairs = [(values["optim.lr"], values["model.name"]) for values in found]
    assert sorted(pairs) == sorted(itertools.product([0.1, 0.2, 0.4], ["resnet9", "resnet18"]))


# --- the searchers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["random", "hyperopt", "optuna"])
def test_equal_seeds_begin_equal_trials(algorithm: str) -> None:
    def first(seed: int) -> list[dict[str, Any]]:
        return begun(sweep(space=RATES, search={"algorithm": algorithm, "seed": seed}), 6)

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_random_search_begins_as_many_trials_as_were_asked_for() -> None:
    assert len(begun(sweep(space=RATES, search={"algorithm": "random"}, budget={"trials": 7}), 100)) == 7


def test_two_aims_go_to_optuna() -> None:
    settings = sweep(space=RATES, search={"algorithm": "optuna", "latency": True}, scheduler={"name": "none"})
    found: Any = searcher(settings, at_once=1)

    assert (found.searcher.metric, found.searcher.mode) == ([SCORE, "latency_ms"], ["max", "min"])
    assert begun(settings, 6) == begun(settings, 6)


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@pytest.mark.parametrize("algorithm", ["hyperopt", "optuna"])
def test_searchers_look_for_the_highest_score(algorithm: str, metric: str) -> None:
    found = searcher(sweep(search={"algorithm": algorithm, "metric": metric}), at_once=3)

    assert isinstance(found, ConcurrencyLimiter)
    assert (found.searcher.metric, found.searcher.mode, found.max_concurrent) == (SCORE, "max", 3)


# --- after an interruption --------------------------------------------------------------------------------------------


def begun_rows(settings: TuneSettings, count: int) -> list[TrialRow]:
    """The record of a sweep whose first count trials were begun, and all but the last two have ended."""
    found = [settings.used(values(config)) for config in begun(settings, count)]
    rows = [TrialRow(f"t{n}", n, drawn, "finished", scores=[0.1 * n]) for n, drawn in enumerate(found, 1)]
    for row in rows[-2:]:
        row.state = "running"
    rows[-1].checkpoint = "t/checkpoint_000003"
    return rows


@pytest.mark.parametrize("algorithm", ["random", "hyperopt", "optuna", "grid"])
def test_a_resumed_search_begins_with_what_was_cut_off_and_repeats_nothing(algorithm: str) -> None:
    settings = sweep(
        space=LISTS if algorithm == "grid" else RATES, search={"algorithm": algorithm}, budget={"trials": 6}
    )
    rows = begun_rows(settings, 4)

    found = begun(settings, 4, rows)  # of 6 trials 2 have ended

    assert [config.get(EARLIER) for config in found] == ["t3", "t4", None, None]
    assert [config.get(CHECKPOINT) or "" for config in found] == ["", "/sweeps/a1/t/checkpoint_000003", "", ""]
    assert [values(config) for config in found[:2]] == [row.values for row in rows[2:]]
    all_values = [values(config) for config in found] + [row.values for row in rows[:2]]
    assert len({tuple(drawn.items()) for drawn in all_values}) == 6


def test_a_resumed_random_search_or_grid_has_the_values_of_one_that_was_not_cut_off() -> None:
    for algorithm, space in (("random", RATES), ("grid", LISTS)):
        settings = sweep(space=space, search={"algorithm": algorithm}, budget={"trials": 6})
        rows = begun_rows(settings, 4)

        assert [values(c) for c in begun(settings, 9, rows)[2:]] == [values(c) for c in begun(settings, 9)[4:]]


def test_a_resumed_search_learns_from_trials_that_ended() -> None:
    """Those with a high rate were good: Optuna, which is told, looks there; without them it draws at random."""
    settings = sweep(
        space={"optim.lr": {"uniform": [0.0001, 1.0]}}, search={"algorithm": "optuna"}, budget={"trials": 12}
    )
    rows = [
        TrialRow(f"t{n}", n, {"optim.lr": 0.04 * n}, "finished", scores=[1.0 if n > 20 else 0.0]) for n in range(1, 25)
    ]

    mean = {told: np.mean([config["optim.lr"] for config in begun(settings, 10, rows[:told])]) for told in (0, 24)}

    assert mean[24] > 0.75 > mean[0]


def test_a_setting_that_did_not_apply_is_no_obstacle_to_going_on() -> None:
    momentum = {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}}
    space = {"optim.optimizer": {"choice": ["sgd", "adamw"]}, "optim.momentum": momentum}
    for algorithm in ("random", "hyperopt", "optuna"):
        settings = sweep(space=space, search={"algorithm": algorithm})
        rows = [
            TrialRow("t1", 1, {"optim.optimizer": "adamw"}, "finished", scores=[0.5]),
            TrialRow("t2", 2, {"optim.optimizer": "adamw"}),
        ]

        (config,) = begun(settings, 1, rows)

        assert settings.used(config) == {"optim.optimizer": "adamw"}


def test_the_members_of_a_population_go_on_with_the_values_that_they_have_by_now() -> None:
    settings = sweep(space=RATES, search={"algorithm": "random"}, scheduler={"name": "pbt"}, budget={"trials": 4})
    changed = {"optim.lr": 0.00012, "optim.momentum": 0.81}
    rows = [TrialRow("t1", 1, changed), TrialRow("t2", 2, changed, "finished", scores=[0.5])]

    found = begun(settings, 9, rows)

    assert [config[EARLIER] for config in found] == ["t1", None, None]
    assert values(found[0]) == changed


def test_a_trial_that_failed_is_told_as_the_worst() -> None:
    assert last_result(TrialRow("t", 1, {}, error="the loss is nan", scores=[0.9])) == WORST
    assert last_result(TrialRow("t", 1, {}, scores=[0.1, 0.4], latency_ms=2.0)) == {SCORE: 0.4, "latency_ms": 2.0}


# --- the schedulers ---------------------------------------------------------------------------------------------------


def report(epoch: int, val_accuracy: float, metric: str = "val_accuracy") -> dict[str, Any]:
    """What a trial reports after an epoch."""
    found = EpochReport(
        epoch=epoch,
        num_epochs=9,
        step=10 * epoch,
        train_loss=1.0,
        train_accuracy=val_accuracy,
        val_loss=1 - val_accuracy,
        val_accuracy=val_accuracy,
        lr=0.1,
        seconds=1.0,
        images_per_s=100.0,
        is_best=True,
        is_last=epoch == 9,
    )
    own = {name: value for name, value in asdict(found).items() if name in TrialReport.__dataclass_fields__}
    return TrialReport(**own, score=score_of(found, metric), fit_seconds=1.0).as_dict()


class Controller:
    """Of Ray Tune's controller what schedulers ask of it: the trials, and to stop one that is paused."""

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = trials
        self.stopped: set[str] = set()
        self.search_alg = SimpleNamespace(searcher=None)

    def get_trials(self) -> list[Trial]:
        return self._trials

    def get_live_trials(self) -> set[Trial]:
        return {trial for trial in self._trials if not trial.is_finished()}

    def stop_trial(self, trial: Trial) -> None:
        trial.set_status(Trial.TERMINATED)
        self.stopped.add(trial.trial_id)

    def _unpause_trial(self, trial: Trial) -> None:
        trial.set_status(Trial.PENDING)


def stopped_by(settings: TuneSettings, accuracies: list[float]) -> set[int]:
    """The trials (from 0) that the scheduler stopped before their end. All train at once, and always alike well."""
    stops = scheduler(settings, max_epochs=9)
    trials = [Trial("a trial", config={}, trial_id=str(at), stub=True) for at in range(len(accuracies))]
    controller: Any = Controller(trials)
    for trial in trials:
        trial.set_status(Trial.RUNNING)
        stops.on_trial_add(controller, trial)
    for epoch in range(1, 10):
        for trial, accuracy in zip(trials, accuracies, strict=True):
            if trial.status == Trial.PENDING:
                trial.set_status(Trial.RUNNING)
            if trial.status == Trial.RUNNING:
                decision = stops.on_trial_result(controller, trial, report(epoch, accuracy, settings.search.metric))
                if decision == TrialScheduler.PAUSE:
                    trial.set_status(Trial.PAUSED)
                if decision == TrialScheduler.STOP and epoch < 9:
                    controller.stop_trial(trial)
    return {int(trial_id) for trial_id in controller.stopped}


FALLING = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


# hyperband begins with a ladder of 3 that all run to their end, then takes 5, of which 2 go on; the last waits for more
@pytest.mark.parametrize(("name", "bad"), [("asha", {6, 7, 8}), ("hyperband", {5, 6, 7}), ("median", {6, 7, 8})])
def test_F8_schedulers_stop_bad_trials_by_what_trials_report(name: str, bad: set[int]) -> None:
    stopped = stopped_by(sweep(scheduler={"name": name}), FALLING)

    assert bad <= stopped
    assert 0 not in stopped


def test_F8_asha_lets_a_third_go_on_at_each_rung() -> None:
    assert stopped_by(sweep(), FALLING) >= {3, 4, 5, 6, 7, 8}
    assert stopped_by(sweep(scheduler={"grace_epochs": 9}), FALLING) == set()


@pytest.mark.parametrize("name", ["asha", "median"])
def test_the_best_is_the_lowest_where_loss_is_the_metric(name: str) -> None:
    stopped = stopped_by(sweep(search={"metric": "val_loss"}, scheduler={"name": name}), FALLING)

    assert 8 in stopped
    assert 0 not in stopped


def test_without_a_scheduler_all_run_to_their_end() -> None:
    assert stopped_by(sweep(scheduler={"name": "none"}), FALLING) == set()


@pytest.mark.parametrize("name", ["asha", "hyperband", "median", "pbt"])
@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_F8_schedulers_look_at_what_trials_report(name: str, metric: str) -> None:
    found: Any = scheduler(
        sweep(search={"algorithm": "random", "metric": metric}, scheduler={"name": name}), max_epochs=9
    )

    assert found._time_attr == TIME_ATTR == "epoch"
    assert {found._time_attr, found._metric} <= set(report(1, 0.5, metric))


def test_pbt_takes_what_trials_report_and_refuses_less() -> None:
    stops = scheduler(sweep(search={"algorithm": "random"}, scheduler={"name": "pbt"}), max_epochs=9)
    trial = Trial("a trial", config={}, trial_id="a", stub=True)
    trial.set_status(Trial.RUNNING)
    controller: Any = Controller([trial])
    stops.on_trial_add(controller, trial)

    assert stops.on_trial_result(controller, trial, report(1, 0.5)) == TrialScheduler.CONTINUE
    with pytest.raises(RuntimeError, match="Cannot find time_attr epoch"):
        stops.on_trial_result(controller, trial, {SCORE: 0.5})


def test_pbt_stays_within_the_space() -> None:
    """Its own moves, times 0.8 or 1.2, led to a momentum of 1.14, which fails the trial."""
    space = {"optim.momentum": {"uniform": [0.8, 0.99]}, "optim.lr": {"log_uniform": [0.1, 0.11]}}
    stops: Any = scheduler(sweep(space=space, search={"algorithm": "random"}, scheduler={"name": "pbt"}), max_epochs=9)
    trial = Trial("a trial", config={"optim.momentum": 0.98, "optim.lr": 0.101}, trial_id="a", stub=True)

    moved = [stops._get_new_config(trial, trial)[0] for _ in range(50)]

    assert all(0.8 <= values["optim.momentum"] <= 0.99 and 0.1 <= values["optim.lr"] <= 0.11 for values in moved)
    assert {0.8 * 0.98, 0.99} & {values["optim.momentum"] for values in moved}


def test_grace_beyond_the_longest_trial_is_no_error() -> None:
    assert scheduler(sweep(scheduler={"grace_epochs": 20}), max_epochs=3)


def test_the_longest_trial_is_as_long_as_any_may_be() -> None:
    default = TrainPlan.of(OptimConfig(), 100).epochs
    names = {"choice": ["resnet9", "resnet18"]}
    few_of_resnet9 = {"integer": [1, 4], "when": {"model.name": "resnet9"}}

    def longest(space: dict[str, Any]) -> int:
        return _max_epochs(sweep(space=space, optim={"epochs": default + 50}), num_images=100)

    assert longest(RATES) == default + 50
    assert longest({"optim.epochs": {"integer": [1, 4]}}) == 4
    assert longest({"optim.epochs": {"choice": [4, default + 1]}}) == default + 1
    assert longest({"optim.epochs": {"choice": [None, 4]}}) == default
    assert longest({"model.name": names, "optim.epochs": few_of_resnet9}) == default  # not the recipe's: see trial()


# --- room -------------------------------------------------------------------------------------------------------------

CORES = os.cpu_count() or 1


def room(**trials: float) -> int:
    settings = sweep(trials=trials, budget={"trials": 1000})
    return check_room(settings, resources_each(settings, "cpu"))


def test_a_trial_takes_what_it_was_given() -> None:
    assert resources_each(sweep(compute={"threads_per_worker": 2}), "cpu") == {"cpu": 2.0}
    assert resources_each(sweep(trials={"cpus": 0.5}), "mps") == {"cpu": 0.5}
    assert resources_each(sweep(compute={"threads_per_worker": 2}), "cuda") == {"cpu": 2.0, "gpu": 1.0}
    assert resources_each(sweep(trials={"cpus": 1, "gpus": 0.25}), "cuda") == {"cpu": 1.0, "gpu": 0.25}


def test_a_share_of_a_gpu_where_trials_run_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trials.gpus is 0\.25, but trials run on cpu; leave it out"):
        resources_each(sweep(trials={"gpus": 0.25}), "cpu")


def test_no_gpu_where_trials_run_on_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trials.gpus is 0, but trials run on cuda; leave it out, or say"):
        resources_each(sweep(trials={"gpus": 0}), "cuda")


def test_the_workers_of_a_trial_ask_for_what_it_takes_themselves() -> None:
    one, four = sweep(), sweep(compute={"num_workers": 4, "threads_per_worker": 2})

    assert resources_each(four, "cpu") == {"cpu": 8.0}
    assert resources_each(four, "cuda") == {"cpu": 8.0, "gpu": 4.0}
    assert resources_held(one, "cpu") == resources_each(one, "cpu")
    held = resources_held(four, "cuda")
    assert held["cpu"] == held.get("gpu", 0) == 0
    assert any(held.values())  # Tune takes none for one CPU


def test_as_many_trials_run_at_once_as_there_is_room_for() -> None:
    assert room(cpus=1) == CORES
    assert room(cpus=CORES) == 1
    assert room(cpus=0.5) == 2 * CORES
    assert room(cpus=0.5, at_once=1) == 1


def test_equal_parts_of_a_machine_all_fit() -> None:
    settings = sweep(budget={"trials": 1000})
    for parts in range(1, 200):  # in floating point 2 / (2 / 93) is less than 93
        assert check_room(settings, {"cpu": CORES / parts}) == parts


def test_no_more_run_at_once_than_there_are() -> None:
    settings = sweep(trials={"cpus": 0.01}, budget={"trials": 3})

    assert check_room(settings, resources_each(settings, "cpu")) == 3


def test_more_trials_at_once_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        room(cpus=1, at_once=CORES + 1)
    assert str(caught.value) == (
        f"{CORES + 1} trials at once need {CORES + 1} CPUs, there are {CORES} CPUs: at most {CORES} fit;"
        " lower --trials.at_once or --trials.cpus, or add nodes"
    )


def test_a_trial_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=rf"need {2 * CORES} CPUs, there are {CORES} CPUs: at most 0 fit"):
        room(cpus=2 * CORES)


def test_gpus_bound_the_room_too() -> None:
    gpus = torch.cuda.device_count()
    settings = sweep(trials={"cpus": 0.01, "gpus": 0.5, "at_once": 2 * gpus + 1})

    with pytest.raises(ConfigError, match=rf"GPUs, there are .* and {gpus} GPUs: at most {2 * gpus} fit"):
        check_room(settings, resources_each(settings, "cuda"))


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two nodes with 2 CPUs and a GPU, and of one that was lost."""
    there = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}}
    lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(resources, "ray_address", lambda: "ray://head:10001")
    monkeypatch.setattr(ray, "nodes", lambda: [there, lost, there])


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.parametrize(
    ("content", "device", "at_once"),
    [
        ({"trials": {"cpus": 1}}, "cpu", 4),
        ({"trials": {"cpus": 2}}, "cpu", 2),
        ({"trials": {"cpus": 1.5}}, "cpu", 2),  # half a core is left on each node
        ({"trials": {"cpus": 0.5, "gpus": 0.5}}, "cuda", 4),
        ({"compute": {"num_workers": 4}}, "cpu", 1),  # two workers on each node
    ],
)
def test_a_trial_fits_on_one_node(content: dict[str, Any], device: str, at_once: int) -> None:
    settings = sweep(**content, budget={"trials": 1000})

    assert check_room(settings, resources_each(settings, device)) == at_once


@pytest.mark.usefixtures("two_nodes")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"trials": {"cpus": 4}}, "1 trials at once need 4 CPUs, there are 4 CPUs: at most 0 fit"),
    ],
)
def test_a_trial_that_fits_on_no_node_is_refused(content: dict[str, Any], sentence: str) -> None:
    settings = sweep(**content)

    with pytest.raises(ConfigError, match=sentence):
        check_room(settings, resources_each(settings, "cpu"))


@pytest.mark.parametrize(
    ("resources", "node", "share"),
    [
        ({"cpu": 1.0}, {"CPU": 4.0}, 0.25),
        ({"cpu": 0.5}, {"CPU": 2.0}, 0.25),
        ({"cpu": 8.0}, {"CPU": 2.0}, 1.0),
        ({"cpu": 1.0, "gpu": 0.25}, {"CPU": 64.0, "GPU": 1.0}, 0.25),
        ({"cpu": 32.0, "gpu": 1.0}, {"CPU": 64.0, "GPU": 8.0}, 0.125),
        ({"cpu": 2.0, "gpu": 0.0}, {"CPU": 8.0, "GPU": 8.0}, 0.25),
    ],
)
def test_a_trial_pays_for_its_part_of_a_node(resources: dict[str, float], node: dict[str, float], share: float) -> None:
    assert share_of_node(resources, {"Resources": node}) == share
