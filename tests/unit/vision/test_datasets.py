"""Data sets as the rest of the project sees them: digits, splits, and the real CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayapp.config import DataConfig
from rayapp.errors import DataError
from rayapp.vision.datasets import load
from tests.unit.vision.pictures import open_folder, open_parquet, write_folder

CIFAR10 = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cifar10"


def test_digits_are_all_there_as_grey_32_px_images(home: Path):
    data = load(DataConfig(), home)

    assert (data.info.num_train, data.info.num_test) == (1437, 360)
    assert data.info.class_names == tuple("0123456789")
    assert data.info.channels == 1
    assert not data.info.flip
    assert data.train.images_nhwc.shape == (1437, 32, 32, 3)
    assert data.train.images_nhwc.dtype == np.uint8
    assert data.test.images_nhwc.shape == (360, 32, 32, 3)
    assert data.train.images_nhwc.max() > 250  # 0..16 became 0..255
    assert data.info.digest == load(DataConfig(), home / "elsewhere").info.digest
    assert set(np.bincount(data.test.labels_n)) <= {35, 36, 37}


def test_digits_and_their_split_never_change(home: Path):
    """Accuracies of different days are compared only as long as these hold."""
    data = load(DataConfig(), home)

    assert data.info.digest == "sha256:fcc33b438365568ca55edb0f124b27b1a61f6aae6d324b3ecd016be63207d69b"
    assert data.split(DataConfig()).digest == "sha256:8b74cf17de119ac532e9004b26695c1028d677695550f520445811acd934c65b"


def test_a_split_is_stratified_disjoint_and_whole(home: Path):
    data = load(DataConfig(), home)
    split = data.split(DataConfig(validation_fraction=0.1))
    both = np.concatenate([split.train_indices, split.validation_indices])

    assert sorted(both) == list(range(1437))
    assert len(split.validation_indices) == 144
    assert set(np.bincount(data.train.labels_n[split.validation_indices])) <= {14, 15}
    assert all(np.all(np.diff(part) > 0) for part in (split.train_indices, split.validation_indices))
    assert split.train_indices.dtype == split.validation_indices.dtype == np.int64


def test_the_seed_alone_decides_the_split(home: Path):
    data, again = load(DataConfig(), home), load(DataConfig(), home / "elsewhere")
    digest = data.split(DataConfig(split_seed=3)).digest

    assert digest.startswith("sha256:")
    assert digest == again.split(DataConfig(split_seed=3)).digest
    assert digest != data.split(DataConfig(split_seed=4)).digest


def test_a_class_too_small_to_split_is_named(tmp_path: Path, home: Path):
    data = open_folder(write_folder(tmp_path / "set", {"train/cat": 9, "train/dog": 1, "test/cat": 1}), home)

    with pytest.raises(DataError, match="class 'dog' has 1 training images"):
        data.split(DataConfig())


def test_more_classes_than_validation_images_is_said(tmp_path: Path, home: Path):
    counts = {f"train/{name}": 2 for name in "abcd"}
    data = open_folder(write_folder(tmp_path / "set", counts | {"test/a": 1}), home)

    with pytest.raises(DataError, match=r"8 images at 10% .* 4 classes .*validation_fraction"):
        data.split(DataConfig())


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
