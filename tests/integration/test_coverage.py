"""What a killed process has run is counted: Ray ends its workers and Serve's replicas by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
# Runs a line of rayapp and sleeps; its child, which it starts as Ray starts a worker, does the same.
PROGRAM = """
import subprocess, sys, time
from rayapp.errors import did_you_mean
did_you_mean("trian", ["train"])
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, sys.argv[1]])
time.sleep(120)
"""


def counted(folder: Path) -> int:
    """The processes whose counts of rayapp/errors.py lie in folder."""
    found = 0
    for file in folder.glob(".coverage.*"):
        with contextlib.suppress(coverage.CoverageException):  # it is being written
            data = coverage.CoverageData(str(file))
            data.read()
            found += any(name.endswith("rayapp/errors.py") for name in data.measured_files())
    return found


def test_a_killed_process_and_its_child_are_counted(tmp_path: Path) -> None:
    """Workers of Ray were not counted at all: they write nothing at their end."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment |= {"PYTHONPATH": str(ROOT / "tests/coverage"), "COVERAGE_FILE": str(tmp_path / ".coverage")}
    words = [sys.executable, "-m", "coverage", "run", f"--rcfile={ROOT / 'pyproject.toml'}", str(program), str(program)]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while counted(tmp_path) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert counted(tmp_path) == 2
