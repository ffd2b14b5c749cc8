"""With a TMPDIR of 90 characters, as Slurm gives it, Ray's sockets and HAProxy's would have paths that are too long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)
PROGRAM = """
import pathlib, ray
from rayapp.runtime.start import ray_cluster
with ray_cluster():
    print(ray.get(ray.remote(lambda: 7).remote()))
    folder = pathlib.Path(ray.get_runtime_context().get_session_name())
print([str(path) for path in pathlib.Path("/tmp").glob(f"rayapp-*/{folder}")])
"""


def test_ray_starts_in_a_short_folder_of_ours_that_is_gone_afterwards(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    environment = os.environ | {"TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["7", "[]"]), done.stderr
    assert not list(long.iterdir())
