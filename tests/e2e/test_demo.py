"""`make demo`, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.processes import running


@pytest.mark.timeout(1500)
def test_the_demo_passes_every_step_and_leaves_nothing_running(tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {
        "RAYAPP_HOME": str(tmp_path / "else where" / ".rayapp"),
        "http_proxy": "http://127.0.0.1:9",
    }
    environment.pop("NO_PROXY")
    process = subprocess.Popen(
        [sys.executable, "-m", "rayapp.cli", "demo", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output, errors = process.communicate(timeout=1400)
    assert process.returncode == 0, errors[-3000:]
    said = json.loads(output.splitlines()[-1])
    assert said["passed"]
    assert len(said["steps"]) == 11
    assert all(step["passed"] for step in said["steps"])
    evaluated = [line for line in errors.splitlines() if line.startswith("PASS evaluate the second")]
    accuracy = float(evaluated[0].split("test accuracy ")[1].split()[0])
    assert accuracy >= 0.97
    assert running(str(tmp_path)) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not (tmp_path / "else where" / ".rayapp").exists()  # the demo has a home of its own
    (advice,) = [line for line in errors.splitlines() if line.startswith("next: ")]
    models = advice.removeprefix("next: ").split(" | ")[0]
    shown = subprocess.run(models, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "champion" in shown.stdout  # as typed, from where it was printed
