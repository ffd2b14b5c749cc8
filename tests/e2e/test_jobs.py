"""`ray job submit` and `serve deploy` on a cluster that `ray start --head` began, watched through its dashboard."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.e2e.heads import ROOT, Head, json_line, started_head
from tests.support.digits import few_digits
from tests.support.ports import free_port
from tests.support.processes import kill
from tests.support.wait import until

pytestmark = [pytest.mark.timeout(1500), pytest.mark.cluster]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started_head(tmp_path_factory.mktemp("home")) as found:
        yield found


def test_train_evaluate_promote_as_jobs_and_serve_deploy(head: Head, tmp_path: Path) -> None:
    output = head.submit("jobs/train.py", "--compute.num_workers", "2", "--optim.epochs", "2")
    assert "epoch 2/2" in output  # progress is readable in the job's log
    trained = json_line(output)
    assert trained["model_uri"] == "models:/vision/1"

    assert httpx.get(f"{head.dashboard}/api/jobs/", timeout=30).status_code == 401
    bearer = {"Authorization": f"Bearer {head.token}"}
    jobs = httpx.get(f"{head.dashboard}/api/jobs/", headers=bearer, timeout=30).json()
    assert "SUCCEEDED" in [job["status"] for job in jobs if "jobs/train.py" in job["entrypoint"]]

    evaluated = json_line(head.submit("jobs/evaluate.py", "--model", "models:/vision@challenger"))
    assert evaluated["n"] == 360
    assert json_line(head.submit("jobs/promote.py"))["verdict"] == "promoted"

    config = yaml.safe_load((ROOT / "serve_configs/local.yaml").read_text())
    config["http_options"]["port"] = free_port()
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(config))
    head.run("serve", "deploy", str(path))
    assert served_version(config["http_options"]["port"]) == "1"


def test_a_job_with_a_wrong_setting_fails_with_the_sentence_in_its_log(head: Head) -> None:
    words = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/train.py", "--optim.lr", "-1"]
    done = subprocess.run(words, cwd=ROOT, env=head.environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "optim.lr is '-1': it must be greater than 0" in done.stdout + done.stderr


def served_version(port: int) -> str:
    until = time.monotonic() + 600
    while True:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"http://127.0.0.1:{port}/get_model_info", timeout=5)
            if answer.status_code == 200:
                return str(answer.json()["model_metadata"]["version"])
        assert time.monotonic() < until, "the deployed application does not answer"
        time.sleep(0.5)


def test_F44_a_sweep_whose_trials_and_then_whose_head_were_killed_repeats_nothing(head: Head, tmp_path: Path) -> None:
    data = ("--data.dataset", "parquet", "--data.path", str(few_digits(tmp_path)))
    words = ["jobs/tune.py", "--config", "jobs/configs/sweep-digits.yaml", "--name", "killed", *data]
    words += ["--budget.trials", "10", "--optim.epochs", "4"]
    with started_head(head.home, flags=("--num-cpus=2",)) as first:
        first.run("ray", "job", "submit", "--no-wait", "--working-dir", ".", "--", "python", *words)
        # the recipe stops none before its third epoch: one of the processes is in the middle of a trial
        until(lambda: len(ended(head)) >= 2 and (2, "running") in epochs_and_states(head), patience_s=600)
        num_ended = len(ended(head))
        killed = [kill(process) for process in trial_workers(first)]
        assert any(killed)
        until(lambda: len(ended(head)) >= num_ended + 2 and any(r["restarts"] for r in rows(head)), patience_s=600)
        first.kill()
    before = ended(head)

    log = head.submit("jobs/tune.py", "--resume", "killed")

    result, after = json_line(log), ended(head)
    assert result["trials"] == len(after) == 10
    assert sum(" finished " in line for line in log.splitlines()) >= result["finished"]  # the table
    assert {trial_id: after[trial_id] for trial_id in before} == before
    assert any(row["restarts"] for row in rows(head))
    # another process may have been killed between two trials; Ray Tune does not try that one again
    assert result["failed"] <= 1
    client = MlflowClient(f"sqlite:///{head.home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(children) == 10
    statuses = {"FINISHED": result["finished"], "KILLED": result["stopped"], "FAILED": result["failed"]}
    assert Counter(run.info.status for run in children) == Counter(statuses)
    epochs = {row["trial_id"]: row["epoch"] for row in rows(head)}
    for run in children:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val/accuracy")]
        assert steps == list(range(1, epochs[run.data.tags["trial_id"]] + 1))


def trial_workers(head: Head) -> list[psutil.Process]:
    """Their names are those of their class, or while they work of the one that tune.with_parameters makes of it."""
    return head.processes("ray::TrialTrainable") + head.processes("ray::_Inner")


def rows(head: Head) -> list[dict[str, Any]]:
    """What is known of the trials of the sweep."""
    file = head.home / "sweeps/killed/trials.json"
    found: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
    return found


def epochs_and_states(head: Head) -> set[tuple[int, str]]:
    return {(row["epoch"], row["state"]) for row in rows(head)}


def ended(head: Head) -> dict[str, tuple[object, ...]]:
    """What is known of the trials that ended, by id."""
    told = ("state", "epoch", "seconds", "val_accuracy", "run_id")
    return {row["trial_id"]: tuple(row[name] for name in told) for row in rows(head) if row["state"] != "running"}
