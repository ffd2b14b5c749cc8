"""Files that take long come first: the last one that a process takes keeps the others waiting."""

from __future__ import annotations

import pytest

SLOW = ["test_serve_deploy.py", "test_scripts.py", "test_airflow.py", "test_terraform.py", "test_fit.py"]


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
