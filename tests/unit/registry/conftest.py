"""A fresh sqlite store a test, and a tiny bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from tests.support.bundles import write_tiny_bundle
from tests.support.stores import new_run


@pytest.fixture
def tracker(uri: str, home: Path) -> Tracker:
    return Tracker(uri, home / "artifacts")


@pytest.fixture
def registry(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return new_run(tracker)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle").folder
