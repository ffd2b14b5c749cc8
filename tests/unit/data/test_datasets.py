"""Data sets as the rest of the project sees them: digits, splits, and the real CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data import datasets
from rayapp.data.chunks import SplitSource
from rayapp.data.datasets import load
from rayapp.errors import DataError
from tests.support.images import open_folder, write_folder


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


@pytest.mark.parametrize("counts", [{"train/cat": 9}, {"train/cat": 9, "test/cat": 2}])
def test_one_class_alone_is_refused(tmp_path: Path, home: Path, counts: dict[str, int]):
    data = open_folder(write_folder(tmp_path / "set", counts), home)

    with pytest.raises(DataError, match="'cat' is the only class of the data set; a classifier needs 2 or more"):
        data.split(DataConfig())


def test_more_classes_than_validation_images_is_said(tmp_path: Path, home: Path):
    counts = {f"train/{name}": 2 for name in "abcd"}
    data = open_folder(write_folder(tmp_path / "set", counts | {"test/a": 1}), home)

    with pytest.raises(DataError, match=r"8 images at 10% .* 4 classes .*validation_fraction"):
        data.split(DataConfig())


# --- streamed ---------------------------------------------------------------------------------------------------------


def test_a_streamed_set_is_the_same_set_before_it_is_decoded(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 30, "train/b": 20, "test/a": 2})
    whole, streamed = open_folder(root, home), open_folder(root, home, stream=True)
    config = DataConfig()

    assert isinstance(streamed.train, SplitSource)
    assert streamed.info == whole.info  # mean and std too: of a small set all images are looked at
    assert streamed.split(config).digest == whole.split(config).digest
    assert np.array_equal(streamed.train.labels_n, whole.train.labels_n)
    assert np.array_equal(streamed.test.images_nhwc, whole.test.images_nhwc)
    for seen, expected in zip(streamed.validation(config), whole.validation(config), strict=True):
        assert np.array_equal(seen, expected)
    rows_n = whole.split(config).validation_indices
    assert np.array_equal(whole.validation(config).images_nhwc, whole.train.images_nhwc[rows_n])


def test_of_a_streamed_set_only_a_sample_is_decoded(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "SAMPLE", 12)
    monkeypatch.setattr(datasets, "SAMPLE_OF_A_CHUNK", 2)
    root = write_folder(tmp_path / "set", {"train/a": 160, "train/b": 160, "test/a": 2})
    streamed, again = open_folder(root, home, stream=True), open_folder(root, home / "elsewhere", stream=True)
    (sample,) = (home / "decoded").glob("folder-sample-*/labels.npy")

    assert [entry.name.split("-")[1] for entry in (home / "decoded").glob("*[!k]")] == ["sample"]
    assert len(np.load(sample)) == 12
    assert set(np.load(sample)) == {0, 1}
    assert streamed.info == again.info
    assert (streamed.info.num_train, streamed.info.num_skipped) == (320, 0)
    assert streamed.info.mean != open_folder(root, home).info.mean


def test_corrupt_images_do_not_shift_the_validation_images_of_a_streamed_set(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 30, "train/b": 30, "test/a": 2})
    config = DataConfig(dataset="folder", path=str(root), stream=True, on_error="skip")
    rows_n = open_folder(root, home, stream=True).split(config).validation_indices
    names = [item.name for item in open_folder(root, home, stream=True).train.subset(rows_n).items()]
    Path(names[2]).write_bytes(b"broken")
    images = load(config, home).validation(config)

    assert len(images.labels_n) == len(names) - 1
    values = [40 * (Path(name).parent.name == "b") + 3 * int(Path(name).stem) for name in names]
    assert [image[0, 0, 0] for image in images.images_nhwc] == [*values[:2], *values[3:]]
    with pytest.raises(DataError, match=r"1 of the .* images of folder-sample cannot be decoded.*on_error skip"):
        open_folder(root, home, stream=True)


def test_a_streamed_set_of_several_sizes_is_brought_to_one(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "test/a": 1})
    write_folder(root, {"train/b": 2}, size=(20, 20), mode="L")

    info = open_folder(root, home, stream=True).info
    assert (info.height_px, info.width_px, info.channels) == (224, 224, 3)
    info = open_folder(root, home, stream=True, image_px=24).info
    assert (info.height_px, info.width_px) == (24, 24)
