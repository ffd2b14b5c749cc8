"""A data set that a small network learns in a second: coloured squares."""

from __future__ import annotations

import pytest

from rayapp.data.preprocess import Images
from tests.support.images import coloured_squares


@pytest.fixture
def squares() -> Images:
    return coloured_squares(96)
