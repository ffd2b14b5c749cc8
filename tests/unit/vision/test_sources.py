"""Folders and Parquet files: their classes and labels, and what is said of missing and mislabelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayapp.errors import DataError
from tests.unit.vision.pictures import open_folder, open_parquet, write_folder, write_parquet

# --- folder -----------------------------------------------------------------------------------------------------------


def test_a_folder_has_its_class_names_sorted_and_its_own_size(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/dog": 2, "train/cat": 3, "test/dog": 1})
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    data = open_folder(root, home)

    assert data.info.class_names == ("cat", "dog")
    assert (data.info.height_px, data.info.width_px, data.info.channels) == (12, 16, 3)
    assert data.info.flip
    assert data.train.labels_n.tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels_n.tolist() == [1]
    assert data.train.images_nhwc[0, 0, 0].tolist() == [40, 20, 215]  # cat/0.png


def test_without_a_test_folder_a_fixed_part_is_kept(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    root = write_folder(tmp_path / "set", {"train/a": 10, "train/b": 5})
    data, again = open_folder(root, home), open_folder(root, home / "elsewhere")

    assert (data.info.num_train, data.info.num_test) == (12, 3)
    assert np.bincount(data.test.labels_n).tolist() == [2, 1]
    assert np.array_equal(data.test.images_nhwc, again.test.images_nhwc)
    assert "has no test part: kept 3 of its images" in caplog.text
    trained = {image.tobytes() for image in np.asarray(data.train.images_nhwc)}
    assert not trained & {image.tobytes() for image in np.asarray(data.test.images_nhwc)}


def test_an_empty_class_folder_is_named(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 0, "test/cat": 1})

    with pytest.raises(DataError, match=r"class folder .*train/dog holds no images"):
        open_folder(root, home)


def test_a_class_that_only_test_has_is_named(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/cat": 2, "test/cat": 1, "test/dog": 1})

    with pytest.raises(DataError, match=r"test/dog is a class that train lacks \(there: cat\)"):
        open_folder(root, home)


def test_a_folder_without_classes_says_what_it_found(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"photos": 2})

    with pytest.raises(DataError, match=r"no images in train/CLASS/ \(found: photos\)"):
        open_folder(root, home)
    with pytest.raises(DataError, match=r"nowhere does not exist; check --data.path"):
        open_folder(tmp_path / "nowhere", home)


def test_a_path_at_hugging_face_is_refused_with_what_to_do(home: Path):
    """It was an ImportError of a package that nobody needs."""
    with pytest.raises(DataError, match=r"hf://datasets/a/b lies at Hugging Face, .*; download its Parquet files"):
        open_parquet("hf://datasets/a/b", home)


# --- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_shards_are_read_in_order_with_their_class_names(tmp_path: Path, home: Path):
    data_folder = tmp_path / "set" / "data"
    write_parquet(data_folder / "train-00001-of-00002.parquet", [1, 1], names=["cat", "dog"])
    write_parquet(data_folder / "train-00000-of-00002.parquet", [0, 1, 0, 0], names=["cat", "dog"])
    write_parquet(data_folder / "test-00000-of-00001.parquet", [1])
    data = open_parquet(tmp_path / "set", home)

    assert data.info.class_names == ("cat", "dog")
    assert data.train.labels_n.tolist() == [0, 1, 0, 0, 1, 1]
    assert [image[0, 0, 0] for image in data.train.images_nhwc] == [0, 7, 14, 21, 0, 7]
    assert data.test.labels_n.tolist() == [1]


def test_parquet_without_names_counts_its_classes(tmp_path: Path, home: Path):
    write_parquet(tmp_path / "set" / "train.parquet", [0, 2, 1, 2])
    write_parquet(tmp_path / "set" / "test.parquet", [0])

    assert open_parquet(tmp_path / "set", home).info.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2, 0], ["cat", "dog"], r"row 2: label 2 is out of range \(allowed: 0 to 1; rows concerned: 1\)"),
        ([0, 1, 0, -1], ["cat", "dog"], r"row 3: label -1 is out of range \(allowed: 0 to 1"),
        ([0, -1, -2], None, r"row 1: label -1 is out of range \(allowed: 0 or more; rows concerned: 2\)"),
        ([0, 1, None], ["cat", "dog"], r"row 2: label None is out of range"),
    ],
)
def test_a_label_out_of_range_is_named(
    tmp_path: Path, home: Path, labels: list[Any], names: list[str] | None, message: str
):
    write_parquet(tmp_path / "set" / "train.parquet", labels, names=names)

    with pytest.raises(DataError, match=rf"train\.parquet, {message}"):
        open_parquet(tmp_path / "set", home)


def test_what_is_missing_is_named_with_what_was_found(tmp_path: Path, home: Path):
    write_parquet(tmp_path / "set" / "validation.parquet", [0, 1])
    with pytest.raises(DataError, match=r"no train\.parquet .*\(found: validation\.parquet\)"):
        open_parquet(tmp_path / "set", home)

    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(DataError, match=r"needs the columns image.*\(found: img: binary, label: int64\)"):
        open_parquet(tmp_path / "set", home)

    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        open_parquet(tmp_path / "set", home)
