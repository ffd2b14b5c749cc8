"""`ray job submit` and `serve deploy` on a cluster that `ray start --head` began, watched through its dashboard."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from mlflow import MlflowClient

from tests.e2e.heads import ROOT, Head, json_line, started_head
from tests.support.ports import free_port

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


def test_F44_a_sweep_as_a_job_goes_on_on_another_head_after_its_own_was_killed(head: Head) -> None:
    words = ["jobs/tune.py", "--config", "jobs/configs/sweep-digits.yaml", "--name", "killed"]
    words += ["--budget.trials", "8", "--optim.epochs", "2"]
    trials = head.home / "sweeps/killed/trials.json"
    with started_head(head.home) as first:
        first.run("ray", "job", "submit", "--no-wait", "--working-dir", ".", "--", "python", *words)
        until = time.monotonic() + 600
        while not trials.exists() or len(ended(trials)) < 3:
            assert time.monotonic() < until, "the job does not search"
            time.sleep(0.1)
        first.kill()
    before = ended(trials)

    log = head.submit("jobs/tune.py", "--resume", "killed")

    result = json_line(log)
    assert result["trials"] == 8
    assert sum(" finished " in line for line in log.splitlines()) >= result["finished"]  # the table
    after = ended(trials)
    assert len(after) == 8
    assert {trial_id: after[trial_id] for trial_id in before} == before
    client = MlflowClient(f"sqlite:///{head.home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    children = Counter(run.info.status for run in runs if "mlflow.parentRunId" in run.data.tags)
    assert children == Counter({"FINISHED": result["finished"], "KILLED": result["stopped"]})


def ended(trials: Path) -> dict[str, tuple[object, ...]]:
    """What is known of the trials that ended, by id."""
    rows = json.loads(trials.read_text())["trials"]
    told = ("state", "epoch", "seconds", "val_accuracy", "run_id")
    return {row["trial_id"]: tuple(row[name] for name in told) for row in rows if row["state"] != "running"}
