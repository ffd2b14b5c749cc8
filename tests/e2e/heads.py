"""A Ray head as a process of its own, as `ray start --head` begins it, and jobs that are submitted to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.support.ports import free_port
from tests.support.processes import children, command, kill

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Head:
    """A Ray head of this test's own, its dashboard's address and the environment of its jobs."""

    def __init__(self, folder: Path, home: Path, env: Mapping[str, str], flags: Sequence[str]) -> None:
        self._folder, self.home = folder, home
        gcs, dashboard, agent = free_port(), free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = os.environ | env
        self.environment |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",  # a job's python is the one of `ray start`
            "RAYAPP_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),  # for the token
            "RAY_AUTH_MODE": "token",
        }
        words = ["ray", "start", "--head", *flags, f"--temp-dir={folder}", f"--port={gcs}"]
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

    def submit(self, *words: str) -> str:
        """What a job's own log says, once it has succeeded."""
        return self.run("ray", "job", "submit", "--working-dir", ".", "--", "python", *words)

    def kill(self) -> None:
        """SIGKILL of the head's node: of all its processes, jobs and their workers."""
        for process in self.processes():
            kill(process)

    def processes(self, part: str = "") -> list[psutil.Process]:
        """All that runs on it, jobs and their workers too, and has this in its command line."""
        own = [process for process in psutil.process_iter() if str(self._folder) in command(process)]
        there = [each for process in own for each in [*children(process), process]]
        return [process for process in there if part in command(process)]

    def run(self, *words: str, timeout_s: float = 600) -> str:
        """stdout and stderr of a command, which must succeed."""
        done = self._done(words, timeout_s)
        return done.stdout + done.stderr

    def stdout(self, *words: str) -> str:
        """stdout alone of a command, which must succeed."""
        return self._done(words, timeout_s=400).stdout

    def _done(self, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done


@contextlib.contextmanager
def started_head(
    home: Path, env: Mapping[str, str] | None = None, flags: Sequence[str] = ("--num-cpus=3",)
) -> Iterator[Head]:
    """A head with its state in a folder with a short path, both gone afterwards. flags: of `ray start`."""
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    try:
        found = Head(folder, home, env or {}, flags)
        try:
            yield found
        finally:
            found.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def json_line(output: str) -> dict[str, Any]:
    """The last line that is JSON."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1])
    return result
