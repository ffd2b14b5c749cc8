"""One row and one MLflow run a trial, in a real sqlite store, whatever dies, starts again or does not answer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run, ViewType
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import RegistryError
from rayapp.registry.tracking import Tracker, connected
from rayapp.tune import recorder as trial_log
from rayapp.tune.record import Sweep, TrialRow, find_sweep
from rayapp.tune.recorder import TrialLog
from rayapp.tune.search import SCORE
from rayapp.tune.trial import WORST, score_of
from rayapp.vision.loop import EpochReport, StepReport

NUM_EPOCHS, STEPS_AN_EPOCH = 3, 10
SPACE = {
    "optim.optimizer": {"choice": ["sgd", "adamw"]},
    "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}},
}
TAGS = {"git_sha": "abc", "model_architecture": "resnet9"}
CLOSED_PORT = "http://127.0.0.1:1"


@dataclass(eq=False)
class FakeTrial:
    """Of Ray Tune's Trial what TrialLog reads."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=lambda: {"optim.optimizer": "sgd", "optim.momentum": 0.9})
    status: str = Trial.RUNNING
    last_result: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    error_file: str | None = None  # before Tune has brought it to the sweep's storage

    def get_error(self) -> Exception | None:
        return self.error


class MovingTracker(Tracker):
    """MLflow in a database that can be put out of reach, behind the address of a server that is not there."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, Home.from_env().artifacts)
        self._there = uri

    def go_away(self) -> None:
        self._uri = CLOSED_PORT

    def come_back(self) -> None:
        self._uri = self._there


@pytest.fixture
def tracker(uri: str) -> MovingTracker:
    return MovingTracker(uri)


@pytest.fixture
def sweep(tracker: Tracker) -> Sweep:
    return new_sweep(tracker)


def new_sweep(tracker: Tracker, **content: Any) -> Sweep:
    settings = validate(TuneSettings, {"space": SPACE, "name": "a1"} | content)
    parent = tracker.open_run(settings.tracking.experiment, "a1", {}, {"kind": "sweep"})
    sweep = Sweep("a1", parent, "searching", Home.from_env().sweeps / "a1", settings)
    sweep.save()
    return sweep


def opened(
    tracker: Tracker,
    *,
    usd_per_second: float | None = None,
    scheduler: TrialScheduler | None = None,
    trials: Sequence[Any] = (),
) -> TrialLog:
    """The log of the sweep on disk as a driver opens it, and Ray Tune begins its loop with these trials."""
    sweep = find_sweep(Home.from_env(), "a1")
    found = TrialLog(sweep, tracker, TAGS, usd_per_second, scheduler or FIFOScheduler())
    found.on_step_begin(0, list(trials))
    return found


def started(log: TrialLog, *trial_ids: str) -> list[Any]:
    trials: list[Any] = [FakeTrial(trial_id) for trial_id in trial_ids]
    for trial in trials:
        log.on_trial_start(0, trials, trial)
    return trials


def epoch(log: TrialLog, trial: Any, number: int, val_accuracy: float = 0.5, **changes: Any) -> None:
    """The trial reports an epoch, and two batches of it."""
    last_step = number * STEPS_AN_EPOCH
    found = EpochReport(
        epoch=number,
        num_epochs=NUM_EPOCHS,
        step=last_step,
        train_loss=1.5,
        train_accuracy=0.4,
        val_loss=1.0 - val_accuracy,
        val_accuracy=val_accuracy,
        lr=0.1,
        seconds=2.0,
        images_per_s=100.0,
        is_best=True,
        is_last=number == NUM_EPOCHS,
    )
    steps = [
        asdict(StepReport(number, NUM_EPOCHS, step, NUM_EPOCHS * STEPS_AN_EPOCH, 1 / step, 0.3, 0.1, 90.0))
        | {"time_ms": 1_700_000_000_000 + step}
        for step in (last_step - 5, last_step)
    ]
    result = asdict(found) | {"steps": steps, "broke_down": "", "fit_seconds": 2.0} | changes
    metric = find_sweep(Home.from_env(), "a1").settings.search.metric
    result[SCORE] = score_of(replace(found, val_loss=result["val_loss"]), metric)
    trial.last_result = result
    log.on_trial_result(0, [trial], trial, result)


def breakdown(log: TrialLog, trial: Any, reason: str) -> None:
    """The trial reports a loss that is not finite, and ends."""
    trial.last_result = {**WORST, "epoch": 0, "num_epochs": 0, "broke_down": reason, "steps": [], "fit_seconds": 0.5}
    log.on_trial_result(0, [trial], trial, trial.last_result)
    log.on_trial_complete(0, [trial], trial)


def after_two_epochs(tracker: Tracker) -> tuple[TrialLog, Any]:
    """A log of one trial, "a", that runs."""
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1, 0.5)
    epoch(log, trial, 2, 0.75)
    return log, trial


def whole(log: TrialLog, trial: Any, val_accuracy: float = 0.5) -> None:
    """The trial runs from its first epoch to its end."""
    for number in range(1, NUM_EPOCHS + 1):
        epoch(log, trial, number, val_accuracy)
    log.on_trial_complete(0, [trial], trial)


def runs_of(uri: str, sweep: Sweep, *, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    """The runs under the sweep's own by trial id, each exactly one."""
    with connected(uri) as client:
        experiment = client.get_run(sweep.run_id).info.experiment_id
        mine = f"tags.`mlflow.parentRunId` = '{sweep.run_id}'"
        found = client.search_runs([experiment], mine, run_view_type=view)
    ids = [run.data.tags["trial_id"] for run in found]
    assert len(ids) == len(set(ids)), ids
    return dict(zip(ids, found, strict=True))


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    with connected(uri) as client:
        return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))


def saved() -> dict[str, TrialRow]:
    rows, _ = find_sweep(Home.from_env(), "a1").load_trials()
    return {row.trial_id: row for row in rows}


# --- one trial --------------------------------------------------------------------------------------------------------


def test_a_trial_has_a_run_under_the_sweep_with_its_values(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    adamw: Any = FakeTrial("b", {"optim.optimizer": "adamw", "optim.momentum": np.float64(0.85)})
    for trial in (*started(log, "a"), adamw):
        log.on_trial_start(0, [], trial)

    runs = runs_of(uri, sweep)
    assert runs["a"].data.params == {"optim.optimizer": "sgd", "optim.momentum": "0.9"}
    assert runs["b"].data.params == {"optim.optimizer": "adamw"}  # momentum does not apply
    assert [runs[name].info.run_name for name in "ab"] == ["a1-001", "a1-002"]
    assert all(TAGS.items() <= run.data.tags.items() and run.info.status == "RUNNING" for run in runs.values())
    assert saved()["b"].values == {"optim.optimizer": "adamw"}


def test_metrics_of_batches_go_by_step_and_those_of_epochs_by_epoch(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_log, "SEND_EVERY_S", 0.0)
    after_two_epochs(tracker)

    run = runs_of(uri, sweep)["a"]
    assert history(uri, run, "val/accuracy") == [(1, 0.5), (2, 0.75)]
    assert history(uri, run, "val/loss") == [(1, 0.5), (2, 0.25)]
    assert history(uri, run, "train/loss") == [(5, 1 / 5), (10, 1 / 10), (15, 1 / 15), (20, 1 / 20)]
    assert history(uri, run, "epoch/images_per_s") == [(1, 100.0), (2, 100.0)]
    assert history(uri, run, "train/images_per_s") == [(step, 90.0) for step in (5, 10, 15, 20)]
    with connected(uri) as client:
        times = [m.timestamp for m in client.get_metric_history(run.info.run_id, "train/lr")]
    assert sorted(times) == [1_700_000_000_000 + step for step in (5, 10, 15, 20)]  # when it was measured


def test_short_epochs_are_sent_together_and_the_last_with_the_end(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_log, "SEND_EVERY_S", 3600.0)
    log, trial = after_two_epochs(tracker)
    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == []

    log.on_trial_complete(0, [], trial)

    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == [(1, 0.5), (2, 0.75)]


def test_a_run_whose_opening_had_no_answer_is_found_again(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_log, "TRY_AGAIN_S", 0.0)
    open_run = tracker.open_run

    def lose_the_answer(*args: Any) -> str:
        open_run(*args)
        monkeypatch.setattr(tracker, "open_run", open_run)
        raise RegistryError("no answer")

    log = opened(tracker)
    monkeypatch.setattr(tracker, "open_run", lose_the_answer)
    (trial,) = started(log, "a")
    whole(log, trial)

    assert {name: run.info.status for name, run in runs_of(uri, sweep).items()} == {"a": "FINISHED"}


def test_a_trial_counts_as_ended_once_tune_would_know_it_after_a_crash(tracker: MovingTracker, sweep: Sweep) -> None:
    state = Path(sweep.storage) / sweep.name / "experiment_state-2026-11-25_09-00-00.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    log = opened(tracker)
    first, second = started(log, "a", "b")
    whole(log, first)
    assert saved()["a"].state == "running"

    state.write_text('{"trial_data": ["a"]}')
    epoch(log, second, 1)

    assert saved()["a"].state == "finished"


def test_a_row_is_of_its_best_epoch(tracker: MovingTracker, sweep: Sweep) -> None:
    log = opened(tracker, usd_per_second=0.01)
    (trial,) = started(log, "a")
    for number, accuracy in enumerate((0.5, 0.75, 0.625), 1):
        epoch(log, trial, number, accuracy)

    row = saved()["a"]
    assert (row.best_epoch, row.val_accuracy, row.val_loss) == (2, 0.75, 0.25)
    assert (row.epoch, row.num_epochs, row.curve) == (3, 3, [0.5, 0.75, 0.625])
    assert row.seconds == 6.0
    assert row.cost_usd == pytest.approx(0.06)


def test_an_epoch_that_is_as_accurate_with_a_lower_loss_is_better(tracker: MovingTracker, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    for number, loss in enumerate((0.5, 0.25, 0.375), 1):
        epoch(log, trial, number, 0.75, val_loss=loss)

    assert (saved()["a"].best_epoch, saved()["a"].val_loss, saved()["a"].cost_usd) == (2, 0.25, None)


def test_of_epochs_that_are_all_alike_the_first_is_the_best(tracker: MovingTracker, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    whole(log, trial)

    assert (saved()["a"].best_epoch, saved()["a"].epoch) == (1, 3)


def test_where_loss_is_the_metric_the_best_epoch_has_the_lowest(tracker: MovingTracker) -> None:
    new_sweep(tracker, search={"metric": "val_loss"})
    log = opened(tracker)
    (trial,) = started(log, "a")
    for number, (accuracy, loss) in enumerate(((0.9, 0.5), (0.8, 0.25), (0.9, 0.375)), 1):
        epoch(log, trial, number, accuracy, val_loss=loss)

    row = saved()["a"]
    assert (row.best_epoch, row.val_accuracy, row.val_loss, row.curve) == (2, 0.8, 0.25, [0.5, 0.25, 0.375])


def test_values_that_pbt_changes_are_followed(tracker: MovingTracker) -> None:
    new_sweep(tracker, space={"optim.lr": {"log_uniform": [1e-4, 1]}})
    log = opened(tracker)
    trial: Any = FakeTrial("a", {"optim.lr": 0.1})
    log.on_trial_start(0, [], trial)
    trial.config = {"optim.lr": np.float32(0.5)}
    epoch(log, trial, 1)

    assert saved()["a"].values == {"optim.lr": 0.5}


def test_who_watches_is_told_of_all_rows(tracker: MovingTracker, sweep: Sweep) -> None:
    told: list[list[tuple[int, str, int]]] = []
    log = TrialLog(
        sweep,
        tracker,
        TAGS,
        None,
        FIFOScheduler(),
        lambda rows: told.append([(row.number, row.state, row.epoch) for row in rows]),
    )
    first, _ = started(log, "a", "b")
    whole(log, first)

    assert told[0] == [(1, "running", 0)]
    assert [(1, "running", 0), (2, "running", 0)] in told
    assert told[-1] == [(1, "finished", 3), (2, "running", 0)]


# --- how trials end ---------------------------------------------------------------------------------------------------


def test_F44_runs_are_closed_as_their_trials_ended(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    done, stopped, broken, lost, never = started(log, "done", "stopped", "broken", "lost", "never")
    whole(log, done)
    epoch(log, stopped, 1)
    log.on_trial_complete(0, [], stopped)
    epoch(log, broken, 1, 0.9)
    breakdown(log, broken, "the loss is nan at step 12")
    lost.error = RuntimeError("Traceback ...\n  in fit\nValueError: no memory left\n")
    log.on_trial_error(0, [], lost)
    assert runs_of(uri, sweep)["never"].info.status == "RUNNING"

    assert log.close(interrupted=False) == 0

    assert {row.trial_id: row.state for row in log.rows} == {
        "done": "finished",
        "stopped": "stopped",
        "broken": "failed",
        "lost": "failed",
        "never": "stopped",
    }
    runs = runs_of(uri, sweep)
    assert {name: run.info.status for name, run in runs.items()} == {
        "done": "FINISHED",
        "stopped": "KILLED",
        "broken": "FAILED",
        "lost": "FAILED",
        "never": "KILLED",
    }
    assert runs["done"].data.tags["best_val_accuracy"] == "0.5"
    assert runs["broken"].data.tags["error"] == saved()["broken"].error == "the loss is nan at step 12"
    assert runs["lost"].data.tags["error"] == saved()["lost"].error == "ValueError: no memory left"
    assert never.trial_id in saved()
    assert saved() == {row.trial_id: row for row in log.rows}


def test_a_breakdown_leaves_no_false_zero_among_the_metrics(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1, 0.9)
    breakdown(log, trial, "the loss is nan")

    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == [(1, 0.9)]
    row = saved()["a"]
    assert (row.curve, row.epoch, row.seconds) == ([0.9], 1, 2.5)
    assert len(row.scores) == 1


def test_an_interrupted_sweep_closes_its_runs_and_keeps_its_rows_open(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    done, running = started(log, "done", "running")
    whole(log, done)
    epoch(log, running, 1)

    assert log.close(interrupted=True) == 0

    assert {name: run.info.status for name, run in runs_of(uri, sweep).items()} == {
        "done": "FINISHED",
        "running": "KILLED",
    }
    assert {name: row.state for name, row in saved().items()} == {"done": "finished", "running": "running"}


def test_a_run_ends_when_its_trial_ends(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    whole(log, trial)
    ended = runs_of(uri, sweep)["a"].info.end_time
    time.sleep(0.05)

    log.close(interrupted=False)

    assert runs_of(uri, sweep)["a"].info.end_time == ended


# --- starting again ---------------------------------------------------------------------------------------------------


def test_F44_a_trial_that_starts_again_keeps_its_run_and_counts_no_epoch_twice(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1, 0.5)
    epoch(log, trial, 2, 0.75)
    log.on_trial_start(0, [], trial)  # its worker was lost, with all after the checkpoint of epoch 1
    epoch(log, trial, 2, 0.25)
    epoch(log, trial, 3, 0.625)
    log.on_trial_complete(0, [], trial)

    row, run = saved()["a"], runs_of(uri, sweep)["a"]
    assert (row.restarts, row.state, row.curve) == (1, "finished", [0.5, 0.75, 0.625])
    assert history(uri, run, "val/accuracy") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert [step for step, _ in history(uri, run, "train/loss")] == [5, 10, 15, 20, 25, 30]
    assert run.info.status == "FINISHED"


def test_an_epoch_that_is_done_twice_is_paid_twice(tracker: MovingTracker, sweep: Sweep) -> None:
    log = opened(tracker, usd_per_second=0.01)
    (trial,) = started(log, "a")
    epoch(log, trial, 1)
    epoch(log, trial, 1)
    epoch(log, trial, 2)

    row = saved()["a"]
    assert (row.epoch, row.seconds) == (2, 6.0)
    assert row.cost_usd == pytest.approx(0.06)


def test_F44_a_driver_that_was_killed_leaves_nothing_double_or_open(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    done, running = started(log, "done", "running")
    whole(log, done)
    epoch(log, running, 1, 0.5)
    before = saved()
    del log  # killed: nobody closes anything

    log = opened(tracker, trials=[done, running])
    log.on_trial_start(0, [], running)
    epoch(log, running, 1, 0.25)  # again, from before its checkpoint
    epoch(log, running, 2, 0.75)
    epoch(log, running, 3, 0.625)
    log.on_trial_complete(0, [], running)
    assert log.close(interrupted=False) == 0

    assert saved()["done"] == before["done"]
    row = saved()["running"]
    assert (row.restarts, row.curve, row.run_id) == (1, [0.5, 0.75, 0.625], before["running"].run_id)
    runs = runs_of(uri, sweep)
    assert {name: run.info.status for name, run in runs.items()} == {"done": "FINISHED", "running": "FINISHED"}
    assert history(uri, runs["running"], "val/accuracy") == [(1, 0.5), (2, 0.75), (3, 0.625)]


def test_F44_a_run_whose_id_was_not_noted_is_found_again(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    (trial,) = started(opened(tracker), "a")
    assert saved()["a"].run_id  # noted as soon as there is one
    file = sweep.folder / "trials.json"
    content = json.loads(file.read_text())
    content["trials"][0]["run_id"] = ""  # killed between the two
    file.write_text(json.dumps(content))

    log = opened(tracker, trials=[trial])
    log.on_trial_start(0, [], trial)
    whole(log, trial)

    assert runs_of(uri, sweep)["a"].info.status == "FINISHED"


def test_a_resumed_trial_runs_again_in_mlflow_too(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1)
    log.close(interrupted=True)
    assert runs_of(uri, sweep)["a"].info.status == "KILLED"

    opened(tracker, trials=[trial]).on_trial_start(0, [], trial)

    assert runs_of(uri, sweep)["a"].info.status == "RUNNING"


def test_trials_that_tune_forgot_are_removed_with_their_runs(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    first, forgotten, third = started(opened(tracker), "a", "b", "c")
    assert set(runs_of(uri, sweep)) == {"a", "b", "c"}

    log = opened(tracker, trials=[first, third])
    assert {row.trial_id: row.number for row in log.rows} == {"a": 1, "c": 2}
    log.on_trial_start(0, [], another := FakeTrial("d"))  # type: ignore[arg-type]
    assert {name: row.number for name, row in saved().items()} == {"a": 1, "c": 2, "d": 3}
    assert set(runs_of(uri, sweep)) == {"a", "c", another.trial_id}
    assert set(runs_of(uri, sweep, view=ViewType.DELETED_ONLY)) == {forgotten.trial_id}


def test_a_forgotten_run_whose_id_was_not_noted_is_removed_too(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    first, _ = started(opened(tracker), "a", "b")
    file = sweep.folder / "trials.json"
    content = json.loads(file.read_text())
    content["trials"][1]["run_id"] = ""
    file.write_text(json.dumps(content))

    opened(tracker, trials=[first])

    assert set(runs_of(uri, sweep)) == {"a"}


def test_F29_forgotten_runs_are_removed_when_mlflow_is_there_again(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    first, *_ = started(opened(tracker), "a", "b", "c")
    tracker.go_away()

    log = opened(tracker, trials=[first])

    assert set(saved()) == {"a"}
    assert log.close(interrupted=True) == 3  # a itself lacks its end
    tracker.come_back()
    assert log.close(interrupted=True) == 0
    assert set(runs_of(uri, sweep)) == {"a"}


def test_a_trial_that_failed_as_the_driver_died_is_closed(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    (trial,) = started(opened(tracker), "a")
    trial.status, trial.error = Trial.ERROR, RuntimeError("no memory left")

    opened(tracker, trials=[trial])

    assert (saved()["a"].state, saved()["a"].error) == ("failed", "no memory left")
    assert runs_of(uri, sweep)["a"].info.status == "FAILED"


def test_a_trial_that_ended_as_the_driver_died_is_closed(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    done, stopped = started(log, "done", "stopped")
    for number in (1, 2, 3):
        epoch(log, done, number)
    epoch(log, stopped, 1)
    done.status = stopped.status = Trial.TERMINATED

    opened(tracker, trials=[done, stopped])

    assert {name: row.state for name, row in saved().items()} == {"done": "finished", "stopped": "stopped"}
    assert {name: run.info.status for name, run in runs_of(uri, sweep).items()} == {
        "done": "FINISHED",
        "stopped": "KILLED",
    }


def test_a_trial_that_ended_is_not_opened_again_by_a_tune_that_does_not_know(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    (done,) = started(log, "done")
    whole(log, done, 0.75)
    before = saved()

    done.status = Trial.PENDING
    log = opened(tracker, trials=[done])
    log.on_trial_start(0, [], done)
    epoch(log, done, 3, 0.1)
    done.last_result = {}
    log.on_trial_complete(0, [], done)

    assert saved() == before
    assert runs_of(uri, sweep)["done"].info.status == "FINISHED"


@pytest.mark.parametrize("resumed", [True, False])
def test_asha_knows_after_a_resume_what_it_knew_before(tracker: MovingTracker, sweep: Sweep, resumed: bool) -> None:
    log = opened(tracker)
    for trial in started(log, "a", "b", "c"):
        whole(log, trial, 0.9)
    asha: Any = ASHAScheduler(time_attr="epoch", metric=SCORE, mode="max", max_t=NUM_EPOCHS, stop_last_trials=False)
    trials: list[Any] = [Trial("f", config={}, trial_id=name, stub=True) for name in "abcd"]
    for trial in trials:
        asha.on_trial_add(None, trial)
    if resumed:
        opened(tracker, scheduler=asha, trials=trials)

    decision = asha.on_trial_result(None, trials[-1], {"epoch": 1, SCORE: 0.1})

    assert decision == (TrialScheduler.STOP if resumed else TrialScheduler.CONTINUE)


# --- MLflow away ------------------------------------------------------------------------------------------------------


def test_F29_what_mlflow_misses_is_sent_when_it_is_there_again(
    tracker: MovingTracker,
    uri: str,
    sweep: Sweep,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_log, "SEND_EVERY_S", 0.0)
    log = opened(tracker)
    (first,) = started(log, "a")
    epoch(log, first, 1, 0.5)
    tracker.go_away()
    epoch(log, first, 2, 0.75)
    assert f"MLflow at {CLOSED_PORT} does not answer" in caplog.text
    (second,) = started(log, "b")
    epoch(log, first, 3, 0.625)
    log.on_trial_complete(0, [], first)
    whole(log, second)
    assert log.close(interrupted=False) == 2
    assert {name: row.state for name, row in saved().items()} == {"a": "finished", "b": "finished"}

    tracker.come_back()
    assert log.close(interrupted=False) == 0

    runs = runs_of(uri, sweep)
    assert {name: run.info.status for name, run in runs.items()} == {"a": "FINISHED", "b": "FINISHED"}
    assert history(uri, runs["a"], "val/accuracy") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert [step for step, _ in history(uri, runs["b"], "train/loss")] == [5, 10, 15, 20, 25, 30]
    assert runs["b"].data.params == {"optim.optimizer": "sgd", "optim.momentum": "0.9"}


def test_F29_mlflow_is_asked_again_only_after_a_while(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tracker)
    tracker.go_away()
    (trial,) = started(log, "a")
    tracker.come_back()
    epoch(log, trial, 1)
    assert runs_of(uri, sweep) == {}  # it is not asked at each report, which could take seconds

    monkeypatch.setattr(trial_log, "TRY_AGAIN_S", 0.0)
    tracker.go_away()
    log = opened(tracker, trials=[trial])
    log.on_trial_start(0, [], trial)
    tracker.come_back()
    epoch(log, trial, 2)
    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == [(1, 0.5), (2, 0.5)]


def test_F29_a_driver_that_dies_while_mlflow_is_away_loses_nothing(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    tracker.go_away()
    done, running = started(log, "done", "running")
    whole(log, done)
    epoch(log, running, 1, 0.75)
    del log

    tracker.come_back()
    log = opened(tracker, trials=[done, running])
    log.on_trial_start(0, [], running)
    epoch(log, running, 2, 0.5)
    log.on_trial_complete(0, [], running)
    assert log.close(interrupted=False) == 0

    runs = runs_of(uri, sweep)
    assert {name: run.info.status for name, run in runs.items()} == {"done": "FINISHED", "running": "KILLED"}
    assert history(uri, runs["done"], "val/accuracy") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert history(uri, runs["running"], "val/accuracy") == [(1, 0.75), (2, 0.5)]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(sweep: Sweep) -> Path:
    """Where Ray Tune keeps those of this sweep, a folder a trial."""
    root = Path(sweep.storage) / sweep.name
    for trial_id in ("a", "b"):
        (root / trial_id / "checkpoint_000001").mkdir(parents=True)
        (root / trial_id / "checkpoint_000001" / "state.pt").write_bytes(b"x")
        (root / trial_id / "params.json").write_text("{}")
    return root


def test_checkpoints_are_removed_when_the_search_is_over(tracker: MovingTracker, checkpoints: Path) -> None:
    log = opened(tracker)
    first, second = started(log, "a", "b")
    whole(log, first)
    epoch(log, second, 1)

    log.close(interrupted=True)
    assert len(list(checkpoints.glob("*/checkpoint_*"))) == 2  # Tune may go back to them

    log = opened(tracker, trials=[first, second])
    log.on_trial_start(0, [], second)
    log.on_trial_complete(0, [], second)
    log.close(interrupted=False)
    assert list(checkpoints.glob("*/checkpoint_*")) == []
    assert len(list(checkpoints.glob("*/params.json"))) == 2


def test_a_checkpoint_stays_as_long_as_tune_may_go_back_to_it(
    tracker: MovingTracker, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tracker)
    first, second = started(log, "a", "b")
    whole(log, first)
    assert (checkpoints / "a/checkpoint_000001/state.pt").exists()

    monkeypatch.setattr(trial_log, "FORGOTTEN_AFTER_S", 0.0)
    log.on_trial_complete(0, [], second)
    assert not (checkpoints / "a/checkpoint_000001").exists()


def test_a_trial_whose_process_died_before_it_began_fails_with_the_cause_and_ends_no_sweep(
    tracker: MovingTracker, sweep: Sweep, uri: str, tmp_path: Path
) -> None:
    log, unborn = opened(tracker), FakeTrial("unborn", status=Trial.PENDING)
    Path(tmp_path, "error.txt").write_text("Failure # 1\nTraceback ...\nThe actor died unexpectedly\n")
    unborn.error_file = str(tmp_path / "error.txt")

    log.on_trial_error(0, [], unborn)

    (row,) = log.rows
    assert (row.state, row.error, row.number) == ("failed", "The actor died unexpectedly", 1)
    assert runs_of(uri, sweep)["unborn"].info.status == "FAILED"


def test_a_trial_that_failed_without_a_word_says_so(tracker: MovingTracker, sweep: Sweep) -> None:
    log, silent = opened(tracker), FakeTrial("silent")
    log.on_trial_start(0, [], silent)

    log.on_trial_error(0, [], silent)

    assert log.rows[0].error == "Ray Tune does not say why"
