"""SIGTERM to the driver, as Kubernetes, systemd, supervisors and `timeout` send it, ends a verb as Ctrl-C does.

ray.init arms a handler of its own that aborts the process 3 seconds after SIGTERM; with it runs stayed open for ever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from tests.support.bundles import write_tiny_bundle
from tests.support.digits import few_digits
from tests.support.images import encoded, picture
from tests.support.stores import home_at

pytestmark = pytest.mark.timeout(1500)


class Driver:
    """A verb in a process and a process group of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self.home, self.said = home, home.parent / "said"
        with self.said.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rayapp.cli", *words],
                env=os.environ | {"RAYAPP_HOME": str(home)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait_until(self, happened: Callable[[], object]) -> None:
        while not happened():
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.05)

    def ended_by_sigterm(self) -> str:
        """What it said, as Kubernetes and systemd end it."""
        self.process.send_signal(signal.SIGTERM)
        return self._said_at_its_end(143, "was stopped by SIGTERM")

    def ended_by_timeout(self) -> str:
        """What it said: SIGTERM to it, and then to its group with Ray's processes."""
        self.process.send_signal(signal.SIGTERM)
        os.killpg(self.process.pid, signal.SIGTERM)
        return self._said_at_its_end(143, "was stopped by SIGTERM")

    def ended_by_ctrl_c(self) -> str:
        """What it said, as a terminal ends it: SIGINT to its group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self._said_at_its_end(130, "was stopped by Ctrl-C")

    def _said_at_its_end(self, expected: int, reason: str) -> str:
        code = self.process.wait(timeout=300)
        said = self.said.read_text()
        assert code == expected, said
        assert reason in said
        assert "Traceback" not in said
        assert "*** SIG" not in said  # what Ray's handler prints
        return said

    def statuses(self) -> Counter[tuple[str, str]]:
        """(kind, status) of all runs."""
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return Counter((run.data.tags.get("kind", "trial"), run.info.status) for run in runs)


def test_ctrl_c_closes_the_run_as_killed_and_resume_finishes_it(ray_cluster: None, home: Path, tmp_path: Path) -> None:
    from rayapp.train.driver import train

    driver = Driver(home, "train", "--data.dataset", "parquet", "--data.path", str(few_digits(tmp_path)),
                    "--optim.epochs", "12")  # fmt: skip
    driver.wait_until(lambda: list(home.glob("runs/*/checkpoint_*/digest.json")))
    assert "go on with: rayapp train --resume parquet-mobilenet_v3_small-" in driver.ended_by_ctrl_c()
    assert driver.statuses() == {("trial", "KILLED"): 1}

    (path,) = home.glob("runs/*/run.json")
    run, state = json.loads(path.read_text()), home_at(home)
    said = train(validate(TrainSettings, {"resume": run["name"]}), state).to_dict()
    assert (said["run_id"], said["epochs"]) == (run["run_id"], 12)
    assert driver.statuses() == {("trial", "FINISHED"): 1}
    epochs = [m.step for m in MlflowClient(state.tracking_uri).get_metric_history(run["run_id"], "val/accuracy")]
    assert sorted(set(epochs)) == list(range(1, 13))


def test_tune_under_timeout_closes_the_runs_of_its_sweep_and_its_trials_as_killed(home: Path) -> None:
    driver = Driver(home, "tune", "--budget.trials", "4", "--optim.epochs", "30", "--name", "stopped")

    def a_trial_has_an_epoch() -> bool:
        rows = home / "sweeps" / "stopped" / "trials.json"
        return rows.exists() and any(row["epoch"] for row in json.loads(rows.read_text())["trials"])

    driver.wait_until(a_trial_has_an_epoch)
    assert "go on with: rayapp tune --resume stopped" in driver.ended_by_timeout()
    assert {status for _, status in driver.statuses()} == {"KILLED"}
    assert driver.statuses()["sweep", "KILLED"] == 1


def test_batch_predict_keeps_what_it_has_and_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run, registry = Tracker(uri, home / "artifacts").open_run("rayapp", "tiny", {}, {}), Registry(uri)
    registry.register(run, registry.log_bundle(run, write_tiny_bundle(tmp_path / "tiny").folder), alias="champion")
    (tmp_path / "set").mkdir()
    content = encoded(picture(0, height=256, width=256, mode="RGB"), "PNG")
    for at in range(5000):  # more than are predicted before the signal arrives
        (tmp_path / "set" / f"{at}.png").write_bytes(content)
    driver = Driver(home, "batch-predict", "--data.path", str(tmp_path / "set"), "--output", str(tmp_path / "out"))
    driver.wait_until(lambda: "predicting 5,000 images" in driver.said.read_text())
    assert "stopped; what is predicted is kept, the same command goes on from there" in driver.ended_by_sigterm()
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_while_ray_starts_it_ends_in_the_same_way(home: Path) -> None:
    driver = Driver(home, "train", "--optim.epochs", "30")
    driver.wait_until(lambda: any("gcs_server" in p.name() for p in psutil.Process(driver.process.pid).children()))
    driver.ended_by_sigterm()
    assert not (home / "runs").exists()
