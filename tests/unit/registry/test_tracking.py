"""Runs and metrics, against sqlite and against a real server on this machine that is killed and comes back."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import pytest

from rayapp.errors import RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.spool import Spool
from rayapp.registry.tracking import MetricLog, Tracker, mlflow_client
from tests.support.stores import finished, history, new_run

# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_holds_all_its_params_and_tags(tracker: Tracker, uri: str) -> None:
    params = {f"p.{i}": str(i) for i in range(250)} | {"long": "x" * 7000}
    run_id = tracker.open_run("rayapp", "my run", params, {"git_sha": "abc", "empty": "", "long": "x" * 9000})
    with mlflow_client(uri) as client:
        run = client.get_run(run_id)
    assert run.data.params == params | {"long": "x" * 6000}
    assert {k: v for k, v in run.data.tags.items() if k != "long"} == {
        "git_sha": "abc",
        "empty": "",
        "mlflow.runName": "my run",
    }
    assert len(run.data.tags["long"]) == 8000
    assert run.info.status == "RUNNING"


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "FAILED"])
def test_F44_a_closed_run_does_not_stay_running(tracker: Tracker, uri: str, run_id: str, status: str) -> None:
    tracker.close_run(run_id, status)  # type: ignore[arg-type]
    with mlflow_client(uri) as client:
        run = client.get_run(run_id)
    assert run.info.status == status
    assert run.info.end_time >= run.info.start_time


def test_F44_a_resumed_run_is_the_same_run(tracker: Tracker, uri: str, run_id: str) -> None:
    tracker.close_run(run_id, "KILLED")
    tracker.resume_run(run_id)
    with mlflow_client(uri) as client:
        assert client.get_run(run_id).info.status == "RUNNING"
        assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


def test_runs_of_a_name_share_an_experiment(tracker: Tracker, uri: str) -> None:
    runs = [tracker.open_run(name, "r", {}, {}) for name in ("a", "a", "b")]
    with mlflow_client(uri) as client:
        first, second, third = (client.get_run(run).info.experiment_id for run in runs)
    assert first == second != third


def test_artifacts_lie_in_the_home_and_nowhere_else(
    tracker: Tracker, run_id: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a")
    tracker.log_artifact(run_id, tmp_path / "files" / "a.txt")
    tracker.log_artifact(run_id, tmp_path / "files" / "a.txt", "one")
    tracker.log_artifacts(run_id, tmp_path / "files", "all/of/them")
    place = home / "artifacts" / run_id / "artifacts"
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert found == {"a.txt", "one/a.txt", "all/of/them/a.txt"}
    assert not (tmp_path / "mlruns").exists()


def test_a_table_written_twice_holds_the_second_one(tracker: Tracker, uri: str, run_id: str, tmp_path: Path) -> None:
    for recall in (0.5, 0.6):
        tracker.log_table(run_id, {"name": ["cat", "dog"], "recall": [recall, 1.0]}, "evaluation/classes_table.json")
    with mlflow_client(uri) as client:
        path = client.download_artifacts(run_id, "evaluation/classes_table.json", str(tmp_path))
        tables = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert json.loads(Path(path).read_text()) == {"columns": ["name", "recall"], "data": [["cat", 0.6], ["dog", 1.0]]}
    assert tables == [{"path": "evaluation/classes_table.json", "type": "table"}]


def test_a_deleted_experiment_is_named(tracker: Tracker, uri: str, run_id: str) -> None:
    with mlflow_client(uri) as client:
        number = client.get_run(run_id).info.experiment_id
        client.delete_experiment(number)
    with pytest.raises(
        RegistryError, match=rf"experiment 'rayapp' is deleted; .*mlflow experiments restore -x {number}"
    ):
        new_run(tracker)


def test_past_runs_are_the_finished_ones_with_all_tags_newest_first(tracker: Tracker, uri: str) -> None:
    tags = {"recipe": "12ab", "hardware.cpu": "Intel(R) Xeon(R) @ 2.20GHz", "note": "it's old"}
    wanted = [finished(tracker, tags | {"seed": "1"}, experiment) for experiment in ("rayapp", "other", "rayapp")]
    finished(tracker, tags | {"recipe": "34cd"})
    finished(tracker, {"recipe": "12ab"})
    for status in ("KILLED", "FAILED"):
        tracker.close_run(tracker.open_run("rayapp", "r", {}, tags), status)  # type: ignore[arg-type]
    tracker.open_run("rayapp", "r", {}, tags)  # still running
    with mlflow_client(uri) as client:
        for value in (3.0, 2.0):
            client.log_metric(wanted[2], "seconds", value)
    past = tracker.past_runs(tags)
    assert [run.run_id for run in past] == wanted[::-1]
    assert past[0].metrics == {"seconds": 2.0}
    assert past[0].tags["seed"] == "1"
    assert tracker.past_runs({"recipe": "none"}) == []


def test_past_runs_are_not_more_than_twenty(tracker: Tracker) -> None:
    runs = [finished(tracker, {"recipe": "12ab"}) for _ in range(22)]
    assert [run.run_id for run in tracker.past_runs({"recipe": "12ab"})] == runs[:1:-1]


def test_to_ask_for_past_runs_makes_no_database(tmp_path: Path) -> None:
    assert Tracker(f"sqlite:///{tmp_path}/new/mlflow.db").past_runs({"recipe": "12ab"}) == []
    assert not (tmp_path / "new").exists()


# --- what does not answer ---------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_said_in_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        Tracker("http://127.0.0.1:1").open_run("rayapp", "r", {}, {})
    assert time.monotonic() - started < 5
    assert str(caught.value) == (
        "MLflow at http://127.0.0.1:1 does not answer (Connection refused); start it, or set MLFLOW_TRACKING_URI to one"
        " that runs (unset: a database in RAYAPP_HOME)"
    )


def test_a_file_that_is_no_database_is_said_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is a letter, not a database" * 100)
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"MLflow at sqlite:.*mlflow.db failed: file is not a database"):
        Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions()
    assert time.monotonic() - started < 5


def test_an_unknown_run_is_a_registry_error(tracker: Tracker) -> None:
    with pytest.raises(RegistryError, match=r"MLflow at sqlite:.* failed: Run with id=\w+ not found"):
        tracker.close_run("0" * 32, "FAILED")


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_arrive_in_order_on_one_axis_a_name(uri: str, run_id: str, tmp_path: Path) -> None:
    metrics = MetricLog(uri, run_id, tmp_path / "deep" / "spool.jsonl")
    for step in range(1300):  # more than one batch
        metrics.log({"train/loss": 1 / (step + 1), "train/lr": 0.1}, step)
    assert metrics.close(timeout_s=60) == 0
    assert history(uri, run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(1300)]
    assert len(history(uri, run_id, "train/lr")) == 1300


def test_metrics_that_are_not_finite_hold_nothing_up(uri: str, run_id: str, tmp_path: Path) -> None:
    metrics = MetricLog(uri, run_id, tmp_path / "spool")
    metrics.log({"loss": math.nan, "norm": math.inf}, 1)
    metrics.log({"loss": 0.5}, 2)
    assert metrics.close(timeout_s=60) == 0
    (first, second) = history(uri, run_id, "loss")
    assert math.isnan(first[1])
    assert second == (2, 0.5)


def test_metrics_are_sent_while_the_run_goes_on(uri: str, run_id: str, tmp_path: Path) -> None:
    metrics = MetricLog(uri, run_id, tmp_path / "spool")
    metrics.log({"loss": 0.5}, 1)
    deadline = time.monotonic() + 30
    while not history(uri, run_id, "loss") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert history(uri, run_id, "loss") == [(1, 0.5)]
    assert metrics.close(timeout_s=30) == 0


def test_F29_without_a_server_metrics_wait_and_a_later_log_sends_them(
    uri: str, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricLog("http://127.0.0.1:1", run_id, tmp_path / "spool")
    started = time.monotonic()
    for step in range(100):
        metrics.log({"loss": step / 100}, step)
    assert time.monotonic() - started < 1
    with caplog.at_level(logging.WARNING):
        assert metrics.close(timeout_s=1.5) == 100
    assert time.monotonic() - started < 5
    assert f"100 metrics of run {run_id} could not be sent to MLflow; they wait in {tmp_path / 'spool'}" in caplog.text
    later = MetricLog(uri, run_id, tmp_path / "spool")
    later.log({"loss": 1.0}, 100)
    assert later.close(timeout_s=60) == 0
    assert history(uri, run_id, "loss") == [(step, step / 100) for step in range(101)]
    assert int((tmp_path / "spool.sent").read_text()) == (tmp_path / "spool").stat().st_size  # nothing is sent again
    again = MetricLog(uri, run_id, tmp_path / "spool")
    assert again.close(timeout_s=60) == 0
    assert len(history(uri, run_id, "loss")) == 101


def test_a_batch_whose_answer_was_lost_counts_once(uri: str, run_id: str, tmp_path: Path) -> None:
    metrics = MetricLog(uri, run_id, tmp_path / "spool")
    metrics.log({"a": 1.0, "b": 2.0}, 1)
    assert metrics.close(timeout_s=60) == 0
    (tmp_path / "spool.sent").write_text("0")  # as if the process had died before it wrote this
    assert MetricLog(uri, run_id, tmp_path / "spool").close(timeout_s=60) == 0
    assert history(uri, run_id, "a") == [(1, 1.0)]


def test_a_line_that_a_killed_process_left_half_written_is_passed_over(uri: str, run_id: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_text('["loss", 0.5, 1700000000000, 1]\n["loss", 0.4, 17000')
    metrics = MetricLog(uri, run_id, spool)
    metrics.log({"loss": 0.3}, 3)
    assert metrics.close(timeout_s=60) == 0
    assert history(uri, run_id, "loss") == [(1, 0.5), (3, 0.3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_metrics_aloud_and_raises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "spool")
    spool._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - closed below
    spool.append({"a": 1.0, "b": 2.0}, 7)
    spool.close()
    assert spool.num_lost == 2
    assert "2 metrics of step 7 are lost" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_spool_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match=r"metrics cannot be kept in .*file/spool"):
        MetricLog("sqlite://", "run", tmp_path / "file" / "spool")


# --- a real server ----------------------------------------------------------------------------------------------------
