"""All of CIFAR-10, where it lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.images import open_parquet

CIFAR10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no {CIFAR10}")
def test_all_of_cifar10_in_parquet(home: Path):
    data = open_parquet(CIFAR10, home)

    assert (data.info.num_train, data.info.num_test, data.info.num_skipped) == (50_000, 10_000, 0)
    assert data.info.class_names[:3] == ("airplane", "automobile", "bird")
    assert (data.info.height_px, data.info.width_px, data.info.channels) == (32, 32, 3)
    assert data.train.images_nhwc.shape == (50_000, 32, 32, 3)
    assert data.test.images_nhwc.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.train.labels_n).tolist() == [5000] * 10
    assert np.bincount(data.test.labels_n).tolist() == [1000] * 10
    assert data.info.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)  # of the original files
