"""`ray job submit` and `serve deploy` on a cluster that `ray start --head` began, watched through its dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

pytestmark = [pytest.mark.timeout(900), pytest.mark.cluster]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Head:
    """A Ray head of this test's own, its dashboard's address and the environment of its jobs."""

    def __init__(self, folder: Path, home: Path) -> None:
        gcs, dashboard, agent = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",  # a job's python is the one of `ray start`
            "RAYAPP_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),  # for the token
            "RAY_AUTH_MODE": "token",
        }
        words = ["ray", "start", "--head", "--num-cpus=3", f"--temp-dir={folder}", f"--port={gcs}"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
        words += [f"--dashboard-agent-listen-port={agent}"]  # the default's one port is the other tests' cluster's
        self.run("ray", "get-auth-token", "--generate")
        self.token = (home / ".ray/auth_token").read_text().strip()
        self.run(*words)
        self.environment |= {"RAY_ADDRESS": self.dashboard, "RAY_DASHBOARD_ADDRESS": self.dashboard}
        self._wait_for_agent()

    def _wait_for_agent(self) -> None:
        """`ray start` returns before the agent that takes jobs is there."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            words = ["ray", "job", "submit", "--", "true"]
            done = subprocess.run(
                words, cwd="/", env=self.environment, capture_output=True, text=True, timeout=60, check=False
            )
            if done.returncode == 0:
                return
            time.sleep(1)
        raise AssertionError(f"the Ray head takes no jobs: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def run(self, *words: str, timeout_s: float = 400) -> str:
        """stdout and stderr of a command, which must succeed."""
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    before = {p.pid for p in psutil.process_iter()}
    try:
        yield Head(folder, tmp_path_factory.mktemp("home"))
    finally:
        ours = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
        for process in ours:
            if str(folder) in " ".join(process.info["cmdline"] or []):
                for each in [*process.children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
        shutil.rmtree(folder, ignore_errors=True)


def json_line(output: str) -> dict[str, object]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result: dict[str, object] = json.loads(lines[-1])
    return result


def submit(head: Head, *words: str) -> str:
    return head.run("ray", "job", "submit", "--working-dir", ".", "--", "python", *words)


def test_train_evaluate_promote_as_jobs_and_serve_deploy(head: Head, tmp_path: Path) -> None:
    output = submit(head, "jobs/train.py", "--compute.num_workers", "2", "--optim.epochs", "2")
    assert "epoch 2/2" in output  # progress is readable in the job's log
    trained = json_line(output)
    assert trained["model_uri"] == "models:/vision/1"

    assert httpx.get(f"{head.dashboard}/api/jobs/", timeout=30).status_code == 401
    bearer = {"Authorization": f"Bearer {head.token}"}
    jobs = httpx.get(f"{head.dashboard}/api/jobs/", headers=bearer, timeout=30).json()
    assert "SUCCEEDED" in [job["status"] for job in jobs if "jobs/train.py" in job["entrypoint"]]

    evaluated = json_line(submit(head, "jobs/evaluate.py", "--model", "models:/vision@challenger"))
    assert evaluated["n"] == 360
    assert json_line(submit(head, "jobs/promote.py"))["verdict"] == "promoted"

    config = yaml.safe_load((ROOT / "serve_configs/local.yaml").read_text())
    (config["http_options"]["port"],) = free_ports(1)
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
    until = time.monotonic() + 240
    while True:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"http://127.0.0.1:{port}/get_model_info", timeout=5)
            if answer.status_code == 200:
                return str(answer.json()["model_metadata"]["version"])
        assert time.monotonic() < until, "the deployed application does not answer"
        time.sleep(0.5)
