"""The same clean environment for every test, whatever the shell that started them exports.

Set before any test module is imported, because torch, Ray and MLflow read these at import. Nothing else is shared here:
fixtures stand beside the tests that use them.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two threads a process are slower than one on small machines
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how soon a lost worker is seen
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "AWS_EC2_METADATA_DISABLED": "true",  # boto3 would look for a role, slowly
    "NO_PROXY": "127.0.0.1,localhost",
}
TESTS = Path(__file__).parent
SLOW_FIRST = ("e2e", "ray", "integration", "deploy", "cluster", "contract", "unit")
_patch = pytest.MonkeyPatch()


def pytest_configure() -> None:
    for name in list(os.environ):
        if name.startswith(("RAYAPP_", "RAY_", "MLFLOW_", "AWS_")):
            _patch.delenv(name)
    for name, value in ENVIRONMENT.items():
        _patch.setenv(name, value)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` ignores it, and so would all it starts


def pytest_unconfigure() -> None:
    _patch.undo()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files whose tests take long go first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: SLOW_FIRST.index(item.path.relative_to(TESTS).parts[0]))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test (RAYAPP_HOME; not made yet). Ray workers that run already do not see it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RAYAPP_HOME", str(folder))
    return folder
