"""Folders and Parquet files: their classes and labels, and what is said of missing and mislabelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayapp.config import DataConfig
from rayapp.errors import DataError
from rayapp.vision import sources
from rayapp.vision.decoded import decode_one
from rayapp.vision.preprocess import image_suffixes
from tests.unit.vision.pictures import open_folder, open_parquet, png, write_folder, write_parquet

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


@pytest.mark.parametrize("suffix", image_suffixes())
def test_every_suffix_that_pillow_knows_for_our_formats_is_read(tmp_path: Path, home: Path, suffix: str):
    """Half of a class in .jfif was left out without a word; only a short list of suffixes was read."""
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    image = Image.new("F" if suffix == ".pfm" else "RGB", (16, 12))
    image.save(root / "train" / "cat" / f"UPPER{suffix.upper()}", Image.registered_extensions()[suffix])
    part = sources.folder(DataConfig(dataset="folder", path=str(root)), home).train
    picture = decode_one(None, list(part.items())[2])

    assert part.labels_n.tolist() == [0, 0, 0, 1, 1]
    assert (picture.size, picture.problem) == ((16, 12), "")


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    for at in range(7):
        (root / "train" / "cat" / f"{at}.HEIC").write_bytes(b"x")
    for name in ("README.md", "train/loose.png", "train/dog/icon.ico", "train/dog/picture"):
        (root / name).write_bytes(png(1))
    assert open_folder(root, home).info.num_train == 4

    (line,) = [line for line in caplog.messages if "passed over" in line]
    assert line.startswith(
        f"{root}: 11 of 16 files are passed over (7 .heic, 1 .md, 1 .ico, 1 without suffix, 1 .png):"
        " train/cat/0.HEIC, train/cat/1.HEIC, train/cat/2.HEIC, train/cat/3.HEIC, train/cat/4.HEIC, ...;"
        " only images (.png .apng .jfif .jpe .jpg .jpeg .bmp "
    )


def test_parquet_files_of_no_split_are_named(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for name in ("train", "test", "extra-0"):
        write_parquet(tmp_path / "set" / f"{name}.parquet", [0, 1] * 2)
    open_parquet(tmp_path / "set", home)

    assert "1 of 3 files are passed over (1 .parquet): extra-0.parquet; only train.parquet" in caplog.text


def test_litter_of_operating_systems_is_nobodys_matter(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    for name in (".DS_Store", "train/cat/._0.png", "__MACOSX/train/cat/._0.png", "train/dog/Thumbs.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "train" / "__MACOSX").mkdir()
    open_folder(root, home)

    assert "passed over" not in caplog.text


def test_a_class_of_files_that_are_not_read_names_them(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 0, "test/cat": 1})
    (root / "train" / "dog" / "a.heic").write_bytes(b"x")

    with pytest.raises(DataError, match=r"train/dog holds no images \(\.png .*; found: a\.heic\); put some there"):
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
