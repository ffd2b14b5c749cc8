"""The folder of a sweep: what was written is found again, by one process at a time, and the best row is the best."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayapp.config.commands import RUN_NAME
from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError
from rayapp.tune.driver import Budget
from rayapp.tune.record import Sweep, TrialRow, best_row, find_sweep, new_sweep_name, pareto_front


def sweep(home: Path, name: str = "lr-digits", **content: Any) -> Sweep:
    """A sweep on disk."""
    settings = validate(TuneSettings, content | {"name": name})
    found = Sweep(name, f"run-of-{name}", "searching", Home.from_env().sweeps / name, settings)
    found.save()
    assert found.folder.is_relative_to(home)
    return found


def row(number: int, val_accuracy: float | None = None, val_loss: float | None = None, **more: Any) -> TrialRow:
    return TrialRow(f"t{number}", number, {}, val_accuracy=val_accuracy, val_loss=val_loss, **more)


def test_nodes_that_are_still_on_their_way_do_not_use_up_a_budget_of_time(home: Path) -> None:
    new = sweep(home)
    budget = Budget(new, limit_s=0.0)
    assert not budget.stop_all()

    new.save_trials([row(1)], seconds=0.0)

    assert budget.stop_all()
    assert pickle.loads(pickle.dumps(budget)).stop_all()  # Ray Tune writes down what it is given


# --- what is on disk --------------------------------------------------------------------------------------------------


def test_a_sweep_is_found_again_as_it_was(home: Path) -> None:
    space: dict[str, Any] = {
        "optim.optimizer": {"choice": ["sgd", "adamw"]},
        "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}},
    }
    content: dict[str, Any] = {
        "optim": {"epochs": 3},
        "space": space,
        "search": {"algorithm": "random"},
        "budget": {"minutes": 1.5},
    }
    saved = sweep(home, **content)

    assert find_sweep(Home.from_env(), "lr-digits") == saved
    assert find_sweep(Home.from_env(), "lr-digits").settings.model_fields_set == {*content, "name"}


@pytest.mark.parametrize("usd_per_second", [None, 0.00125])
def test_what_its_nodes_cost_is_kept(home: Path, usd_per_second: float | None) -> None:
    saved = replace(sweep(home), usd_per_second=usd_per_second).at("searched")

    assert saved.usd_per_second == usd_per_second
    assert find_sweep(Home.from_env(), "lr-digits") == saved


def test_the_stage_is_kept(home: Path) -> None:
    assert sweep(home).at("searched").stage == "searched"
    assert find_sweep(Home.from_env(), "lr-digits").stage == "searched"


def test_rows_are_loaded_as_they_were_saved(home: Path) -> None:
    saved = sweep(home)
    assert saved.load_trials() == ([], 0.0)
    rows = [
        TrialRow(
            trial_id="abc_1",
            number=1,
            values={"optim.lr": 0.00123456789, "model.name": "resnet9", "augment.flip": True, "optim.epochs": None},
            state="stopped",
            run_id="run",
            epoch=2,
            num_epochs=9,
            best_epoch=1,
            val_accuracy=0.75,
            val_loss=0.5,
            latency_ms=1.25,
            seconds=3.5,
            cost_usd=0.01,
            error="",
            restarts=1,
            checkpoint="abc_1/checkpoint_000002",
            curve=[0.75, 0.7],
            scores=[0.7499995, 0.6999994],
        ),
        row(2, error="lost its node", state="failed"),
    ]

    saved.save_trials(rows, 12.5)

    assert saved.load_trials() == (rows, 12.5)
    assert find_sweep(Home.from_env(), "lr-digits").load_trials() == (rows, 12.5)


def test_rows_that_cannot_be_written_leave_the_old_ones(home: Path) -> None:
    saved = sweep(home)
    saved.save_trials([row(1)], 1.0)

    with pytest.raises(TypeError):
        saved.save_trials([TrialRow("t2", 2, {"optim.lr": object()})], 2.0)

    assert saved.load_trials() == ([row(1)], 1.0)


def test_checkpoints_lie_in_the_folder_or_where_the_settings_say(home: Path) -> None:
    assert sweep(home).storage == str(Home.from_env().sweeps / "lr-digits" / "ray")
    assert sweep(home, "far", compute={"storage_path": "s3://bucket/x"}).storage == "s3://bucket/x"


def test_a_sweep_that_is_not_there_names_the_nearest(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep 'a1'\. There is no sweep in .*sweeps yet\."):
        find_sweep(Home.from_env(), "a1")
    sweep(home)
    sweep(home, "all-of-it")

    with pytest.raises(ConfigError, match=r"^no sweep 'lr-digit'\. Did you mean 'lr-digits'\?$"):
        find_sweep(Home.from_env(), "lr-digit")
    with pytest.raises(ConfigError, match=r"^no sweep 'zzz'\. Allowed: all-of-it, lr-digits\.$"):
        find_sweep(Home.from_env(), "zzz")
    with pytest.raises(ConfigError, match=r"^no sweep 'lr-digits/sweep\.json'"):
        find_sweep(Home.from_env(), "lr-digits/sweep.json")


def test_a_name_that_exists_is_refused(home: Path) -> None:
    settings = sweep(home).settings

    with pytest.raises(ConfigError) as caught:
        new_sweep_name(Home.from_env(), settings)

    assert str(caught.value) == (
        "sweep 'lr-digits' exists already; give another --name, go on with it: --resume lr-digits,"
        " or remove it: --clean lr-digits"
    )


def test_a_name_that_is_free_is_taken(home: Path) -> None:
    sweep(home)

    assert new_sweep_name(Home.from_env(), validate(TuneSettings, {"name": "another"})) == "another"


def test_sweeps_without_a_name_get_different_ones(home: Path) -> None:
    settings = validate(TuneSettings, {"model": {"name": "resnet9"}})
    names = {new_sweep_name(Home.from_env(), settings) for _ in range(3)}

    assert len(names) == 3
    assert all(re.match(RUN_NAME, name) and name.startswith("sweep-digits-resnet9-") for name in names)


# --- one process at a time --------------------------------------------------------------------------------------------


def test_a_sweep_is_run_once_at_a_time(home: Path) -> None:
    first, other = sweep(home), sweep(home, "other")
    again = find_sweep(Home.from_env(), "lr-digits")

    with first.locked():
        with pytest.raises(ConfigError, match="sweep 'lr-digits' is being run by another process; wait for it"):
            again.locked().__enter__()
        with other.locked():
            pass
    with again.locked():
        pass


def test_a_lock_is_let_go_when_its_sweep_fails(home: Path) -> None:
    found = sweep(home)

    with pytest.raises(ZeroDivisionError), found.locked():
        raise ZeroDivisionError
    with found.locked():
        pass


HOLD = """
import sys
from rayapp.tune.record import find_sweep
from rayapp.config.env import Home
with find_sweep(Home.from_env(), "lr-digits").locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_does_not_outlive_a_killed_process(home: Path) -> None:
    found = sweep(home)
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match="is being run by another process"):
            found.locked().__enter__()
        holder.send_signal(signal.SIGKILL)
    with found.locked():
        pass


# --- the best ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "by_accuracy", "by_loss"),
    [
        ([row(1, 0.8, 0.4), row(2, 0.9, 0.6), row(3, 0.7, 0.3)], 2, 3),
        ([row(1, 0.9, 0.5), row(2, 0.9, 0.4), row(3, 0.8, 0.4)], 2, 2),  # as accurate: the lower loss
        ([row(2, 0.9, 0.4), row(1, 0.9, 0.4)], 1, 1),  # all alike: the earlier
        ([row(1, 0.9, 0.1, error="the loss is nan"), row(2, 0.2, 2.0)], 2, 2),
        ([row(1), row(2, 0.0, 2.3)], 2, 2),  # no accuracy at all is one
        ([row(1), row(2, 0.9, 0.1, error="x")], None, None),
        ([], None, None),
    ],
)
def test_the_best_row(rows: list[TrialRow], by_accuracy: int | None, by_loss: int | None) -> None:
    for metric, wanted in (("val_accuracy", by_accuracy), ("val_loss", by_loss)):
        best = best_row(rows, metric)
        assert (best.number if best else None) == wanted, metric


def test_the_front_is_what_nothing_beats_in_both_aims() -> None:
    rows = [
        row(1, 0.90, 0.3, latency_ms=3.0),
        row(2, 0.80, 0.3, latency_ms=1.0),
        row(3, 0.85, 0.3, latency_ms=4.0),  # beaten by 1 in both
        row(4, 0.80, 0.3, latency_ms=2.0),  # as accurate as 2, slower
        row(5, 0.95, 0.3, latency_ms=9.0),
        row(6, 0.85, 0.3, latency_ms=3.0),  # as fast as 1, worse
        row(7, 0.99, 0.3, latency_ms=0.1, error="the loss is nan"),
        row(8, None, None, latency_ms=0.1),
        row(9, 0.99, 0.3),  # not measured
    ]

    assert [found.number for found in pareto_front(rows)] == [2, 1, 5]
    assert [found.number for found in pareto_front(rows[::-1])] == [2, 1, 5]
    assert pareto_front([]) == []
