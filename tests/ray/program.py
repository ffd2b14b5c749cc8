"""Programs with a process and a Ray cluster of their own, for what pytest's own process would disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

START = """
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
         _temp_dir={folder!r})
"""


def last_line(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What code prints last; it may use ray, and finds arguments in sys.argv."""
    # short: a socket's path has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-c", START.format(folder=folder) + code, *arguments],
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
