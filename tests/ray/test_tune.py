"""Sweeps on a real cluster: each trial is recorded once; bad ones stop early; the winner is trained.

That it is so whatever dies is shown by tests/e2e/test_jobs.py.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError, TrainingError
from rayapp.registry.models import Registry
from tests.support.digits import few_digits

pytestmark = pytest.mark.timeout(1500)
SPACE = {"optim.lr": {"log_uniform": [0.01, 2.0]}, "optim.momentum": {"uniform": [0.5, 0.99]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


def home_in(folder: Path) -> Home:
    return Home(folder=folder / "h", tracking_uri=f"sqlite:///{folder / 'h' / 'mlflow.db'}")


def settings(data: Path, **sections: Any) -> TuneSettings:
    recipe = {"data": {"dataset": "parquet", "path": str(data)}, "optim": {"epochs": 3}, "space": SPACE}
    recipe["tracking"] = {"log_every_steps": 5}
    return validate(TuneSettings, recipe | {"budget": {"trials": 4}} | sections)


def tune(settings: TuneSettings, home: Home, console: Console | None = None) -> Any:
    from rayapp.tune.driver import tune as run

    return run(settings, home, console or Console(file=io.StringIO()))


def runs_of(home: Home) -> tuple[Run, list[Run]]:
    """The sweep's own run and its children's."""
    client = MlflowClient(home.tracking_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    return parent, [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def history(home: Home, run: Run, metric: str) -> list[int]:
    return [m.step for m in MlflowClient(home.tracking_uri).get_metric_history(run.info.run_id, metric)]


def checkpoints(home: Home) -> list[Path]:
    return list(home.sweeps.glob("*/ray/*/*/checkpoint_*"))


@pytest.fixture(scope="module")
def swept(ray_cluster: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Any, str]:
    """A sweep that is done: its home, its result, and what it said."""
    own_home, said = home_in(tmp_path_factory.mktemp("swept")), io.StringIO()
    tuned = tune(settings(data, budget={"trials": 6}), own_home, Console(file=said, width=160))
    return own_home, tuned, said.getvalue()


def test_F8_F44_a_sweep_stops_the_bad_trials_early_and_records_each_once(swept: tuple[Home, Any, str]) -> None:
    own_home, tuned, said = swept
    parent, children = runs_of(own_home)
    result = tuned.to_dict()
    assert result["trials"] == len(children) == 6
    assert result["stopped"] >= 1
    assert result["epochs"] < result["epochs_without_stopping"] == 18
    statuses = Counter(run.info.status for run in children)
    assert statuses == {"FINISHED": result["finished"], "KILLED": result["stopped"]}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_val_accuracy"] == result["best_val_accuracy"]
    (best,) = [run for run in children if run.data.tags["best_trial"] == "true"]
    assert best.info.run_id == result["best_run_id"]
    accuracies = MlflowClient(own_home.tracking_uri).get_metric_history(best.info.run_id, "val/accuracy")
    assert max(m.value for m in accuracies) == result["best_val_accuracy"]
    for row, run in zip(tuned.rows, sorted(children, key=lambda run: run.info.run_name), strict=True):
        assert history(own_home, run, "val/accuracy") == list(range(1, row.epoch + 1))
        assert history(own_home, run, "train/loss")
        assert {name: float(value) for name, value in run.data.params.items()} == row.values
    files = {f.path for f in MlflowClient(own_home.tracking_uri).list_artifacts(parent.info.run_id)}
    assert {"history.png", "parallel_coordinates.png", "trials.json"} <= files
    assert checkpoints(own_home) == []  # those of ended trials are of no use
    table = [line for line in said.splitlines() if line.split()[1:2] in (["finished"], ["stopped"])]
    assert len(table) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_breaks_down_fails_alone_and_is_not_tried_again(data: Path, own_home: Home) -> None:
    space = {"optim.lr": {"grid": [0.2, 1e30]}}
    tuned = tune(settings(data, space=space, search={"algorithm": "grid"}, scheduler={"name": "none"}), own_home)

    by_lr = {row.values["optim.lr"]: row for row in tuned.rows}
    assert by_lr[0.2].state == "finished"
    assert (by_lr[1e30].state, by_lr[1e30].restarts) == ("failed", 0)
    assert "the loss is nan" in by_lr[1e30].error
    assert tuned.best is by_lr[0.2]
    assert Counter(run.info.status for run in runs_of(own_home)[1]) == {"FINISHED": 1, "FAILED": 1}


@pytest.mark.usefixtures("ray_cluster")
def test_where_no_trial_is_any_good_the_sweep_fails_with_the_reason(data: Path, own_home: Home) -> None:
    with pytest.raises(TrainingError, match=r"no trial .* has a result: the loss is nan"):
        tune(settings(data, space={"optim.lr": {"uniform": [1e30, 1e31]}}, budget={"trials": 1}), own_home)
    assert runs_of(own_home)[0].info.status == "FAILED"


@pytest.mark.usefixtures("ray_cluster")
def test_a_budget_of_time_ends_a_sweep_with_the_best_so_far(data: Path, own_home: Home) -> None:
    tuned = tune(settings(data, optim={"epochs": 40}, budget={"trials": 50, "minutes": 0.35}), own_home)

    assert 1 <= len(tuned.rows) < 50
    assert tuned.best is not None
    assert {run.info.status for run in runs_of(own_home)[1]} <= {"KILLED", "FINISHED"}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("scheduler", "algorithm"), [("pbt", "random"), ("hyperband", "optuna"), ("median", "hyperopt")]
)
def test_each_scheduler_runs_its_trials_to_an_end(data: Path, own_home: Home, scheduler: str, algorithm: str) -> None:
    sections = {"scheduler": {"name": scheduler}, "search": {"algorithm": algorithm}}
    tuned = tune(settings(data, **sections, trials={"cpus": 0.5}), own_home)

    assert len(tuned.rows) == 4
    assert {row.state for row in tuned.rows} <= {"finished", "stopped"}, [row.error for row in tuned.rows]
    assert any(row.state == "finished" for row in tuned.rows)
    assert all(run.info.status in ("FINISHED", "KILLED") for run in runs_of(own_home)[1])


@pytest.mark.usefixtures("ray_cluster")
def test_accuracy_and_latency_are_both_looked_for(data: Path, own_home: Home) -> None:
    sections: dict[str, Any] = {
        "space": {
            "model.name": {"choice": ["mobilenet_v3_small", "resnet9"]},
            "optim.lr": {"log_uniform": [0.05, 0.5]},
        },
        "search": {"algorithm": "optuna", "latency": True},
        "scheduler": {"name": "none"},
        "optim": {"epochs": 1},
    }
    tuned = tune(settings(data, **sections), own_home)

    assert [row.state for row in tuned.rows] == ["finished"] * 4
    assert all(row.latency_ms and row.latency_ms > 0 for row in tuned.rows)


@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_two_workers_stop_early_and_leave_their_places_free(data: Path, own_home: Home) -> None:
    import ray

    sections: dict[str, Any] = {"compute": {"num_workers": 2}, "trials": {"at_once": 1}}
    sections |= {"space": {"optim.lr": {"grid": [0.3, 1e-6]}}, "search": {"algorithm": "grid", "metric": "val_loss"}}
    tuned = tune(settings(data, **sections), own_home)

    assert {row.values["optim.lr"]: row.state for row in tuned.rows} == {0.3: "finished", 1e-6: "stopped"}
    assert len(runs_of(own_home)[1]) == 2
    while ray.available_resources().get("CPU") != 2.0:  # Ray counts a moment later; where it never does, time is up
        time.sleep(0.2)


def test_F24_the_winner_is_trained_again_registered_and_evaluated_once(swept: tuple[Home, Any, str]) -> None:
    own_home, before, _ = swept
    winner = {"seeds": 2, "epochs": 2}
    tuned = tune(validate(TuneSettings, {"resume": before.sweep.name, "then_train": True, "winner": winner}), own_home)

    assert tuned.rows == before.rows
    found = tuned.to_dict()["winner"]
    assert len(found["val_accuracies"]) == 2
    (version,) = Registry(own_home.tracking_uri).versions()
    assert (version.uri, version.aliases) == (found["model_uri"], ("challenger",))
    assert version.tags["test_opened"] == "1"
    assert float(version.tags["test_accuracy"]) == found["test_accuracy"]
    params = MlflowClient(own_home.tracking_uri).get_run(found["run_id"]).data.params
    assert float(params["optim.lr"]) == tuned.best.values["optim.lr"]
    with pytest.raises(ConfigError, match="is done"):
        tune(validate(TuneSettings, {"resume": tuned.sweep.name}), own_home)


@pytest.mark.usefixtures("ray_cluster")
def test_more_trials_at_once_than_fit_are_refused_before_any_run_is_opened(data: Path, own_home: Home) -> None:
    with pytest.raises(ConfigError, match=r"9 trials at once need .* at most \d+ fit"):
        tune(settings(data, trials={"at_once": 9, "cpus": 1.0}), own_home)
    assert not own_home.sweeps.exists()
