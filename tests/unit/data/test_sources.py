"""Folders and Parquet files: their classes and labels, and what is said of missing and mislabelled ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayapp.config.train import DataConfig
from rayapp.data import sources
from rayapp.data.cache import decode_one
from rayapp.data.preprocess import image_suffixes
from rayapp.errors import ConfigError, DataError
from tests.support.images import open_folder, open_parquet, png, write_folder, write_parquet

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


# --- validation images of its own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_folder_of_validation_images_is_used_as_such(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture, name: str, stream: bool
):
    """It was ignored without a word, and a tenth of the training images taken instead."""
    caplog.set_level("INFO")
    root = write_folder(tmp_path / "set", {"train/a": 5, "train/b": 1, f"{name}/a": 1, f"{name}/b": 2, "test/a": 1})
    data = open_folder(root, home, stream=stream)
    split, validation = data.split(DataConfig()), data.validation(DataConfig())

    assert split.train_indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert validation.labels_n.tolist() == [0, 1, 1]
    assert [image[0, 0, 0] for image in validation.images_nhwc] == [80, 120, 123]
    assert "has 3 images for validation: none is taken from training" in caplog.text
    assert "passed over" not in caplog.text


@pytest.mark.parametrize("file", ["validation.parquet", "data/validation-00000-of-00001.parquet", "val-0.parquet"])
def test_parquet_files_of_validation_images_are_used_as_such(tmp_path: Path, home: Path, file: str):
    """Its labels are taken by name too."""
    root = tmp_path / "set"
    write_parquet(root / "train.parquet", [0, 1] * 3, names=["cat", "dog"])
    write_parquet(root / "test.parquet", [0], names=["cat", "dog"])
    without = open_parquet(root, home).info.digest
    write_parquet(root / file, [0, 0, 1], names=["dog", "cat"])
    data = open_parquet(root, home)

    assert data.split(DataConfig()).validation_indices.tolist() == [6, 7, 8]
    assert data.validation(DataConfig()).labels_n.tolist() == [1, 1, 0]
    assert data.info.digest != without


def test_without_a_test_part_validation_images_stay_out_of_it(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 10, "train/b": 5, "val/a": 2, "val/b": 1})
    data = open_folder(root, home)

    assert (data.info.num_train, data.info.num_test) == (15, 3)
    assert data.validation(DataConfig()).labels_n.tolist() == [0, 0, 1]


def test_validation_images_of_two_names_are_refused(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "validation/a": 1})

    with pytest.raises(DataError, match=r"validation images under several names \(validation, val\); keep one"):
        open_folder(root, home)


def test_validation_images_are_asked_the_same_as_others(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/c": 1, "test/a": 1})
    with pytest.raises(DataError, match=r"val/c is a class that train lacks"):
        open_folder(root, home)

    write_parquet(tmp_path / "rows" / "train.parquet", [0, 1] * 3, names=["cat", "dog"])
    write_parquet(tmp_path / "rows" / "validation.parquet", [0, 2])
    with pytest.raises(DataError, match=r"validation\.parquet, row 1: label 2 is out of range"):
        open_parquet(tmp_path / "rows", home)


def test_corrupt_images_do_not_shift_those_for_validation(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 1})
    for name in ("train/a/1.png", "val/a/0.png"):
        (root / name).write_bytes(b"x")
    data = open_folder(root, home, on_error="skip")

    assert data.split(DataConfig()).train_indices.tolist() == list(range(7))
    assert data.validation(DataConfig()).labels_n.tolist() == [0, 1, 1]
    for name in ("val/a/1.png", "val/b/0.png", "val/b/1.png"):
        (root / name).write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 4 images for validation can be decoded"):
        open_folder(root, home, on_error="skip")


@pytest.mark.parametrize("given", [{"validation_fraction": 0.1}, {"split_seed": 0}])
def test_settings_of_a_split_have_no_effect_beside_validation_images(tmp_path: Path, home: Path, given: dict[str, Any]):
    root = write_folder(tmp_path / "set", {"train/a": 2, "train/b": 2, "val/a": 1, "test/a": 1})
    data = open_folder(root, home)

    with pytest.raises(
        ConfigError, match=rf"data\.{next(iter(given))} has no effect: the data set has 1 images for val"
    ):
        data.split(DataConfig(**given))
    with pytest.raises(ConfigError, match=r"data\.split_seed has no effect"):
        data.require_effect(["optim.lr", "data.split_seed"])
    whole = DataConfig.model_validate(DataConfig(dataset="folder", path=str(root)).model_dump())
    assert data.split(whole).validation_indices.tolist() == [4]  # what a worker gets, with all fields set


def test_the_digest_of_a_data_set_never_changes(tmp_path: Path, home: Path):
    """Models remember the digest of their data: it is of the bytes of train and test, and of no setting."""
    root = tmp_path / "set"
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/a/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    folder = sources.folder(DataConfig(dataset="folder", path=str(root)), home)
    assert folder.digest == "sha256:f4c021db0d67199fe03dba9e3687aeb80592cfc17ae7d3f28a4e036713672d98"

    files = {name: write_parquet(tmp_path / "rows" / name, [0, 1] * 2) for name in ("train-0.parquet", "test.parquet")}
    rows = sources.parquet(DataConfig(dataset="parquet", path=str(tmp_path / "rows")), home)
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert rows.digest == "sha256:" + hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


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
