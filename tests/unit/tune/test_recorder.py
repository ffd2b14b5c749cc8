"""One row and one MLflow run a trial, in a real sqlite store, whatever dies, starts again or does not answer."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run, ViewType
from ray.tune import Checkpoint

from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import RegistryError
from rayapp.registry.tracking import Tracker, mlflow_client
from rayapp.tune import recorder
from rayapp.tune.record import Sweep, TrialRow, find_sweep
from rayapp.tune.recorder import TrialRecorder
from rayapp.tune.search import EARLIER
from rayapp.tune.trial import TrialReport, score_of
from rayapp.vision.loop import EpochReport, StepReport

NUM_EPOCHS, STEPS_AN_EPOCH = 3, 10
SPACE = {
    "optim.optimizer": {"choice": ["sgd", "adamw"]},
    "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}},
}
LR = {"optim.lr": {"log_uniform": [1e-4, 1]}}
TAGS = {"git_sha": "abc", "model_architecture": "resnet9"}
CLOSED_PORT = "http://127.0.0.1:1"


@dataclass(eq=False)
class FakeTrial:
    """Of Ray Tune's Trial what TrialRecorder reads."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=lambda: {"optim.optimizer": "sgd", "optim.momentum": 0.9})
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


def opened(tracker: Tracker, *, usd_per_second: float | None = None) -> TrialRecorder:
    """The log of the sweep on disk as a driver opens it."""
    return TrialRecorder(find_sweep(Home.from_env(), "a1"), tracker, TAGS, usd_per_second)


def again(log: TrialRecorder, trial_id: str) -> Any:
    """The trial that was cut off, as Ray Tune starts it in the next part of the sweep: under an id of its own."""
    trial: Any = FakeTrial(f"{trial_id}-again")
    trial.config |= {EARLIER: trial_id}
    log.on_trial_start(0, [], trial)
    return trial


def started(log: TrialRecorder, *trial_ids: str) -> list[Any]:
    trials: list[Any] = [FakeTrial(trial_id) for trial_id in trial_ids]
    for trial in trials:
        log.on_trial_start(0, trials, trial)
    return trials


def epoch(log: TrialRecorder, trial: Any, number: int, val_accuracy: float = 0.5, **changes: Any) -> None:
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
    found = replace(found, **changes)
    metric = find_sweep(Home.from_env(), "a1").settings.search.metric
    own = {name: value for name, value in asdict(found).items() if name in TrialReport.__dataclass_fields__}
    score = score_of(found, metric)
    report = TrialReport(**own, score=score, fit_seconds=2.0, steps=steps, metrics=asdict(found))
    log.on_trial_result(0, [trial], trial, report.as_dict() | {"training_iteration": number})


def breakdown(log: TrialRecorder, trial: Any, reason: str) -> None:
    """The trial reports a loss that is not finite, and ends."""
    log.on_trial_result(0, [trial], trial, TrialReport.of_breakdown(reason, 0.5).as_dict())
    log.on_trial_complete(0, [trial], trial)


def after_two_epochs(tracker: Tracker) -> tuple[TrialRecorder, Any]:
    """A log of one trial, "a", that runs."""
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1, 0.5)
    epoch(log, trial, 2, 0.75)
    return log, trial


def whole(log: TrialRecorder, trial: Any, val_accuracy: float = 0.5) -> None:
    """The trial runs from its first epoch to its end."""
    for number in range(1, NUM_EPOCHS + 1):
        epoch(log, trial, number, val_accuracy)
    log.on_trial_complete(0, [trial], trial)


def runs_of(uri: str, sweep: Sweep, *, view: int = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    """The runs under the sweep's own by trial id, each exactly one."""
    with mlflow_client(uri) as client:
        experiment = client.get_run(sweep.run_id).info.experiment_id
        mine = f"tags.`mlflow.parentRunId` = '{sweep.run_id}'"
        found = client.search_runs([experiment], mine, run_view_type=view)
    ids = [run.data.tags["trial_id"] for run in found]
    assert len(ids) == len(set(ids)), ids
    return dict(zip(ids, found, strict=True))


def history(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    with mlflow_client(uri) as client:
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
    monkeypatch.setattr(recorder, "SEND_EVERY_S", 0.0)
    after_two_epochs(tracker)

    run = runs_of(uri, sweep)["a"]
    assert history(uri, run, "val/accuracy") == [(1, 0.5), (2, 0.75)]
    assert history(uri, run, "val/loss") == [(1, 0.5), (2, 0.25)]
    assert history(uri, run, "train/loss") == [(5, 1 / 5), (10, 1 / 10), (15, 1 / 15), (20, 1 / 20)]
    assert history(uri, run, "epoch/images_per_s") == [(1, 100.0), (2, 100.0)]
    assert history(uri, run, "train/images_per_s") == [(step, 90.0) for step in (5, 10, 15, 20)]
    with mlflow_client(uri) as client:
        times = [m.timestamp for m in client.get_metric_history(run.info.run_id, "train/lr")]
    assert sorted(times) == [1_700_000_000_000 + step for step in (5, 10, 15, 20)]  # when it was measured


def test_short_epochs_are_sent_together_and_the_last_with_the_end(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SEND_EVERY_S", 3600.0)
    log, trial = after_two_epochs(tracker)
    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == []

    log.on_trial_complete(0, [], trial)

    assert history(uri, runs_of(uri, sweep)["a"], "val/accuracy") == [(1, 0.5), (2, 0.75)]


def test_a_run_whose_opening_had_no_answer_is_found_again(
    tracker: MovingTracker, uri: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "TRY_AGAIN_S", 0.0)
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
    new_sweep(tracker, space=LR)
    log = opened(tracker)
    trial: Any = FakeTrial("a", {"optim.lr": 0.1})
    log.on_trial_start(0, [], trial)
    trial.config = {"optim.lr": np.float32(0.5)}
    epoch(log, trial, 1)

    assert saved()["a"].values == {"optim.lr": 0.5}


def test_who_watches_is_told_of_all_rows(tracker: MovingTracker, sweep: Sweep) -> None:
    told: list[list[tuple[int, str, int]]] = []
    log = TrialRecorder(
        sweep,
        tracker,
        TAGS,
        None,
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
    log.on_trial_recover(0, [], trial)  # its worker was lost, with all after the checkpoint of epoch 1
    log.on_trial_start(0, [], trial)
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

    log = opened(tracker)
    running = again(log, "running")
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
    started(opened(tracker), "a")
    assert saved()["a"].run_id  # noted as soon as there is one
    file = sweep.folder / "trials.json"
    content = json.loads(file.read_text())
    content["trials"][0]["run_id"] = ""  # killed between the two
    file.write_text(json.dumps(content))

    log = opened(tracker)
    whole(log, again(log, "a"))

    assert runs_of(uri, sweep)["a"].info.status == "FINISHED"


def test_a_trial_whose_driver_died_after_its_last_epoch_ends_with_it(
    tracker: MovingTracker, uri: str, sweep: Sweep
) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    for number in (1, 2, 3):
        epoch(log, trial, number, is_last=False)  # the driver dies before it takes note of the end

    log = opened(tracker)
    epoch(log, again(log, "a"), 3, 0.9)

    assert (saved()["a"].state, saved()["a"].curve) == ("finished", [0.5, 0.5, 0.5])
    assert runs_of(uri, sweep)["a"].info.status == "FINISHED"


def test_a_resumed_trial_runs_again_in_mlflow_too(tracker: MovingTracker, uri: str, sweep: Sweep) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1)
    log.close(interrupted=True)
    assert runs_of(uri, sweep)["a"].info.status == "KILLED"

    again(opened(tracker), "a")

    assert runs_of(uri, sweep)["a"].info.status == "RUNNING"


# --- MLflow away ------------------------------------------------------------------------------------------------------


def test_F29_what_mlflow_misses_is_sent_when_it_is_there_again(
    tracker: MovingTracker,
    uri: str,
    sweep: Sweep,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "SEND_EVERY_S", 0.0)
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

    monkeypatch.setattr(recorder, "TRY_AGAIN_S", 0.0)
    tracker.go_away()
    log = opened(tracker)
    trial = again(log, "a")
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
    log = opened(tracker)
    running = again(log, "running")
    epoch(log, running, 2, 0.5)
    log.on_trial_complete(0, [], running)
    assert log.close(interrupted=False) == 0

    runs = runs_of(uri, sweep)
    assert {name: run.info.status for name, run in runs.items()} == {"done": "FINISHED", "running": "KILLED"}
    assert history(uri, runs["done"], "val/accuracy") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert history(uri, runs["running"], "val/accuracy") == [(1, 0.75), (2, 0.5)]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpointed(log: TrialRecorder, trial: Any, number: int) -> Path:
    """Ray Tune has written the checkpoint of this number."""
    sweep = find_sweep(Home.from_env(), "a1")
    folder = Path(sweep.storage, sweep.name, trial.trial_id, f"checkpoint_{number:06}")
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"x")
    log.on_checkpoint(0, [trial], trial, Checkpoint(str(folder)))
    return folder


def test_a_row_knows_the_newest_checkpoint_and_loses_it_when_its_trial_ends(
    tracker: MovingTracker, sweep: Sweep
) -> None:
    log = opened(tracker)
    first, second = started(log, "a", "b")
    kept = [checkpointed(log, first, 1), checkpointed(log, first, 2), checkpointed(log, second, 1)]
    assert {name: row.checkpoint for name, row in saved().items()} == {
        "a": "a/checkpoint_000002",
        "b": "b/checkpoint_000001",
    }

    whole(log, first)

    assert saved()["a"].checkpoint == ""
    assert [folder.exists() for folder in kept] == [False, False, True]


def test_what_an_earlier_part_left_is_kept_until_there_is_a_newer_checkpoint(
    tracker: MovingTracker, sweep: Sweep
) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    epoch(log, trial, 1)
    before = checkpointed(log, trial, 1)

    log = opened(tracker)
    goes_on = again(log, "a")
    assert before.exists()
    assert saved()["a"].checkpoint == "a/checkpoint_000001"
    checkpointed(log, goes_on, 0)

    assert not before.exists()
    assert saved()["a"].checkpoint == "a-again/checkpoint_000000"


def test_the_others_of_a_population_may_still_need_the_checkpoint_of_one_that_ended(tracker: MovingTracker) -> None:
    new_sweep(tracker, space=LR, scheduler={"name": "pbt"}, search={"algorithm": "random"})
    log = opened(tracker)
    trial: Any = FakeTrial("a", {"optim.lr": 0.1})
    log.on_trial_start(0, [], trial)
    kept = checkpointed(log, trial, 1)
    whole(log, trial)
    assert kept.exists()

    log.close(interrupted=False)

    assert not kept.exists()


def test_checkpoints_are_removed_when_the_search_is_over_and_stay_when_it_is_cut_off(
    tracker: MovingTracker, sweep: Sweep
) -> None:
    log = opened(tracker)
    (trial,) = started(log, "a")
    kept = checkpointed(log, trial, 1)

    log.close(interrupted=True)
    assert kept.exists()
    log.close(interrupted=False)
    assert not kept.exists()


def test_a_trial_whose_process_died_before_it_began_fails_with_the_cause_and_ends_no_sweep(
    tracker: MovingTracker, sweep: Sweep, uri: str, tmp_path: Path
) -> None:
    log, unborn = opened(tracker), FakeTrial("unborn")
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
