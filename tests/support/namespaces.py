"""Network namespaces, in which tests have machines of their own. Linux, root only."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def require_namespaces() -> None:
    """Skip where there can be none; fail for root in CI."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    if not shutil.which("ip"):
        sentence = "a network namespace needs the command ip (package iproute2)"
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)


def ip(*words: str) -> None:
    """Run `ip` with these words, which must succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
