"""An sqlite store of MLflow for each test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import home_at


@pytest.fixture
def uri(home: Path) -> str:
    """Of a store in the home of the test."""
    return home_at(home).tracking_uri
