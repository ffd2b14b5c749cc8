"""A data set that a small network learns in a second: coloured squares."""

from __future__ import annotations

import numpy as np
import pytest

from rayapp.data.preprocess import Images


def coloured_squares(n: int, *, classes: int = 3, px: int = 8, seed: int = 0) -> Images:
    """n noisy images whose strongest channel is their class."""
    rng = np.random.default_rng(seed)
    labels_n = np.arange(n) % classes
    images_nhwc = rng.integers(0, 120, (n, px, px, 3))
    images_nhwc[np.arange(n), :, :, labels_n] += 100
    return Images(images_nhwc.astype(np.uint8), labels_n.astype(np.int64))


@pytest.fixture
def squares() -> Images:
    return coloured_squares(96)
