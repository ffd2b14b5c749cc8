"""Parquet files of a data set: each one, of whichever split, is asked the same and answered for in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayapp.data.sources import digest_of
from rayapp.errors import DataError
from tests.support.images import open_folder, open_parquet, png, write_folder, write_parquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, pa.Array], *, metadata: bytes | None = None) -> None:
    """A file with these columns beside four images."""
    images = pa.array([{"bytes": png(value), "path": None} for value in range(4)], IMAGE)
    table = pa.table({"image": images} | columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata and {b"huggingface": metadata}), path)


def named(*names: Any, column: str = "label") -> bytes:
    features = {column: {"names": list(names), "_type": "ClassLabel"}}
    return json.dumps({"info": {"features": features}}).encode()


# --- each split and shard is asked the same ---------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, pa.Array], bytes | None, str]] = {
    "no-label": ({}, None, r"needs the columns image: .* and label: int64 \(found: image: struct<[^()]*>\)"),
    "text-label": ({"label": pa.array(list("abab"))}, None, r"needs the columns .*label: string"),
    "fraction-label": ({"label": pa.array([0.0, 1, 0, 1])}, None, r"needs the columns .*label: double"),
    "list-label": ({"label": pa.array([[0], [1], [0], [1]])}, None, r"needs the columns .*label: list<"),
    "no-bytes": (
        {"image": pa.array(["a.png"] * 4), "label": pa.array([0, 1, 0, 1])},
        None,
        r"needs the columns .*image: string",
    ),
    "bytes-as-text": (
        {"image": pa.array([{"bytes": "a"}] * 4), "label": pa.array([0, 1, 0, 1])},
        None,
        r"needs the columns .*image: struct<bytes: string>",
    ),
    "beyond-int64": (
        {"label": pa.array([0, 1, 2**64 - 1, 1], pa.uint64())},
        named("cat", "dog"),
        r"row 2: label 18446744073709551615 is out of range \(allowed: 0 to 1; rows concerned: 1\)",
    ),
    "missing-uint8": (
        {"label": pa.array([0, None, 0, 1], pa.uint8())},
        named("cat", "dog"),
        r"row 1: label None is out of range",
    ),
    "names-not-utf8": (
        {"label": pa.array([0, 1, 0, 1])},
        named("cat", "dog").replace(b"dog", b"d\xf8g"),
        r"its metadata 'huggingface' is not JSON in UTF-8 \(.*0xf8.*\)",
    ),
    "names-cut-short": ({"label": pa.array([0, 1, 0, 1])}, named("cat", "dog")[:-5], r".*is not JSON in UTF-8"),
    "half-a-letter": (
        {"label": pa.array([0, 1, 0, 1])},
        named("cat", "d\udce9g"),
        r"the class name 'd\\udce9g' in its metadata is not UTF-8",
    ),
    "name-twice": ({"label": pa.array([0, 1, 0, 1])}, named("cat", "cat"), r"the class name 'cat' comes twice"),
    "names-no-list": (
        {"label": pa.array([0, 1, 0, 1])},
        json.dumps({"info": {"features": {"label": {"names": "cat"}}}}).encode(),
        r"the class names in its metadata are no list \('cat'\)",
    ),
}


@pytest.mark.parametrize("file", ["train-0.parquet", "train-1.parquet", "test.parquet"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_faulty_file_of_any_split_is_named_in_one_sentence(tmp_path: Path, home: Path, file: str, fault: str):
    """Only the first training file was looked at: others ended in KeyError, OverflowError or UnicodeDecodeError."""
    for name in ("train-0.parquet", "train-1.parquet", "test.parquet"):
        write_parquet(tmp_path / "set" / name, [0, 1, 0, 1], names=["cat", "dog"])
    columns, metadata, sentence = FAULTS[fault]
    write(tmp_path / "set" / file, columns, metadata=metadata)

    with pytest.raises(DataError, match=rf"/{file}[,:]? {sentence}") as caught:
        open_parquet(tmp_path / "set", home)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_there_twice_is_said(tmp_path: Path, home: Path):
    images = pa.array([{"bytes": png(1), "path": None}] * 2, IMAGE)
    twice = pa.Table.from_arrays([images, pa.array([0, 1]), pa.array([1, 0])], names=["image", "label", "label"])
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1, 0, 1])
    pq.write_table(twice, tmp_path / "set" / "test.parquet")

    with pytest.raises(DataError, match=r"test\.parquet needs the columns .*label: int64, label: int64\)"):
        open_parquet(tmp_path / "set", home)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint16(), pa.int32(), pa.uint32(), pa.uint64()])
def test_labels_of_any_whole_number_are_read(tmp_path: Path, home: Path, kind: pa.DataType):
    """uint64 was an OverflowError."""
    for name in ("train.parquet", "test.parquet"):
        write(tmp_path / "set" / name, {"label": pa.array([1, 0, 1, 0], kind)}, metadata=named("cat", "dog"))
    data = open_parquet(tmp_path / "set", home)

    assert data.train.labels_n.tolist() == data.test.labels_n.tolist() == [1, 0, 1, 0]


# --- names of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"train/cat/caf\xe9.png", b"train/caf\xe9/1.png", b"test/cat/\xff.png"])
def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path, home: Path, name: bytes):
    """It was a UnicodeDecodeError out of pyarrow."""
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(png(1))

    with pytest.raises(DataError, match=r"set/t.*\\x(e9|ff).* has a name that is not UTF-8 .*; rename it"):
        open_folder(root, home)


def test_a_hidden_name_that_is_not_utf8_is_nobodys_matter(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    with open(os.fsencode(root) + b"/train/cat/.caf\xe9", "wb"):
        pass

    assert open_folder(root, home).info.num_train == 4


def test_a_path_that_is_not_utf8_is_said(home: Path):
    with pytest.raises(DataError, match=r"/tmp/caf\\udce9 is not UTF-8 .*; rename it"):
        open_folder(Path(os.fsdecode(b"/tmp/caf\xe9")), home)


# --- classes of several files -----------------------------------------------------------------------------------------


def shards(root: Path, **files: tuple[list[int], list[str] | None]) -> Path:
    """root/train_0.parquet as train-0.parquet, and so on, each with its labels and its names for them."""
    for name, (labels, names) in files.items():
        write_parquet(root / f"{name.replace('_', '-')}.parquet", labels, names=names)
    return root


def test_names_in_another_order_are_taken_by_name(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    """Labels were taken by number: all images of a test file with its names reversed counted as the other class."""
    caplog.set_level("INFO")
    root = shards(
        tmp_path / "set",
        train_0=([0, 1, 1], ["cat", "dog"]),
        train_1=([0, 1, 1], ["dog", "cat"]),
        test=([0, 0, 1], ["dog", "cat"]),
    )
    data = open_parquet(root, home)

    assert data.info.class_names == ("cat", "dog")
    assert data.train.labels_n.tolist() == [0, 1, 1, 1, 0, 0]
    assert data.test.labels_n.tolist() == [1, 1, 0]
    assert caplog.text.count("its labels are taken by name") == 2


def test_a_file_with_some_of_the_names_is_taken_by_name(tmp_path: Path, home: Path):
    root = shards(tmp_path / "set", train=([0, 1, 2] * 2, ["bee", "cat", "dog"]), test=([0, 0], ["dog"]))

    assert open_parquet(root, home).test.labels_n.tolist() == [2, 2]


@pytest.mark.parametrize("file", ["train-1", "test"])
def test_a_name_that_the_first_training_file_lacks_is_refused(tmp_path: Path, home: Path, file: str):
    root = shards(
        tmp_path / "set", train_0=([0, 1] * 2, ["cat", "dog"]), train_1=([1], ["cat", "dog"]), test=([0], None)
    )
    write_parquet(root / f"{file}.parquet", [0, 1], names=["cat", "cow"])

    with pytest.raises(
        DataError, match=rf"{file}\.parquet has the class 'cow' .*train-0\.parquet lacks \(there: cat, "
    ):
        open_parquet(root, home)


def test_a_file_without_names_goes_by_the_numbers_of_the_others(tmp_path: Path, home: Path):
    root = shards(tmp_path / "set", train_0=([1, 0, 0], None), train_1=([0, 1], ["cat", "dog"]), test=([1], None))
    data = open_parquet(root, home)

    assert data.info.class_names == ("cat", "dog")
    assert (data.train.labels_n.tolist(), data.test.labels_n.tolist()) == ([1, 0, 0, 0, 1], [1])
    shards(root, test=([2], None))
    with pytest.raises(DataError, match=r"test\.parquet, row 0: label 2 is out of range \(allowed: 0 to 1"):
        open_parquet(root, home)


def test_names_that_only_test_has_are_refused(tmp_path: Path, home: Path):
    root = shards(tmp_path / "set", train=([0, 1] * 2, None), test=([0, 1], ["cat", "dog"]))

    with pytest.raises(DataError, match=r"test\.parquet has class names \(cat, dog\) and \S+train\.parquet has none"):
        open_parquet(root, home)


def test_an_older_cache_of_decoded_labels_is_not_used(tmp_path: Path, home: Path):
    """The labels that were taken by number lie in caches of the same digest."""
    root = shards(tmp_path / "set", train=([0, 1] * 2, ["cat", "dog"]), test=([0], ["dog", "cat"]))
    first = open_parquet(root, home)
    assert first.test.labels_n.tolist() == [1]
    (entry,) = (home / "decoded").glob("parquet-test-*/labels.npy")
    spec = first.info.preprocess.model_dump()
    assert entry.parent.name != f"parquet-test-{digest_of([1, first.info.digest, spec])[7:23]}"


def test_a_class_name_without_training_images_is_said(tmp_path: Path, home: Path):
    root = shards(tmp_path / "set", train=([0, 2] * 2, ["cat", "cow", "dog", "eel"]))

    sentence = r"train\.parquet has 4 class names, but no training image is of 'cow', 'eel'; add some, or take"
    with pytest.raises(DataError, match=sentence):
        open_parquet(root, home)


@pytest.mark.parametrize(
    ("train", "names", "expected"),
    [([1, 2, 2, 1], ("1", "2"), [0, 1, 1, 0]), ([10**12, 7, 7], ("7", "1000000000000"), [1, 0, 0])],
)
def test_labels_without_names_may_start_anywhere(
    tmp_path: Path, home: Path, train: list[int], names: tuple[str, ...], expected: list[int]
):
    """A class 0 without images was missed; a label of 10^12 took all memory for the names of those below."""
    root = shards(tmp_path / "set", train=(train, None), test=([train[0]], None))
    data = open_parquet(root, home)

    assert data.info.class_names == names
    assert data.train.labels_n.tolist() == expected
    assert data.test.labels_n.tolist() == expected[:1]
    shards(root, test=([3], None))
    with pytest.raises(DataError, match=r"test\.parquet: label 3 is of a class that the training files lack \(there: "):
        open_parquet(root, home)


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_of_other_names_are_named_in_the_settings(tmp_path: Path, home: Path):
    """As in the hub's cifar100. Labels of one column are not those of another, though the files are the same."""
    root = tmp_path / "set"
    for name in ("train.parquet", "test.parquet"):
        write_parquet(root / name, [0, 1] * 2)
        table = pq.read_table(root / name).rename_columns(["img", "fine"])
        table = table.append_column("coarse", pa.array([1, 1, 0, 0]))
        pq.write_table(table.replace_schema_metadata({b"huggingface": named("cat", "dog", column="fine")}), root / name)
    fine = open_parquet(root, home, image_column="img", label_column="fine")
    coarse = open_parquet(root, home, image_column="img", label_column="coarse")

    assert (fine.info.class_names, coarse.info.class_names) == (("cat", "dog"), ("0", "1"))
    assert fine.train.labels_n.tolist() == fine.test.labels_n.tolist() == [0, 1, 0, 1]
    assert coarse.train.labels_n.tolist() == coarse.test.labels_n.tolist() == [1, 1, 0, 0]
    assert fine.info.digest != coarse.info.digest
    hints = r"found: img: .*\); say --data\.image_column img and say --data\.label_column fine or coarse"
    with pytest.raises(DataError, match=hints):
        open_parquet(root, home)
    with pytest.raises(DataError, match=r"coarse: int64\); say --data\.label_column fine or coarse$"):
        open_parquet(root, home, image_column="img")


def test_where_no_column_fits_it_is_said_what_would(tmp_path: Path, home: Path):
    root = tmp_path / "set"
    root.mkdir()
    pq.write_table(pa.table({"file": ["a.png"], "class": ["cat"]}), root / "train.parquet")

    sentence = r"write a column of bytes and path and name it with --data\.image_column and write a column of whole"
    with pytest.raises(DataError, match=rf"\(found: file: string, class: string\); {sentence}"):
        open_parquet(root, home)


def test_paths_without_bytes_are_said(tmp_path: Path, home: Path):
    """It was: none of the images can be decoded, the image is empty."""
    paths = pa.array([{"bytes": None, "path": f"{at}.png"} for at in range(4)], IMAGE)
    labels = {"label": pa.array([0, 1, 0, 1])}
    write(tmp_path / "set" / "train.parquet", labels)
    write(tmp_path / "set" / "test.parquet", labels | {"image": paths})
    with pytest.raises(
        DataError, match=r"test\.parquet holds no bytes of its images, only paths .* into 'image\.bytes'"
    ):
        open_parquet(tmp_path / "set", home)

    pq.write_table(pa.table({"image": paths} | labels), tmp_path / "set" / "train.parquet", write_statistics=False)
    write(tmp_path / "set" / "test.parquet", labels)
    with pytest.raises(DataError, match=r"row 0 \(the row has the path of its image \(0\.png\) and not its bytes\)"):
        open_parquet(tmp_path / "set", home)


def test_a_row_with_its_path_alone_is_an_image_that_cannot_be_decoded(tmp_path: Path, home: Path):
    images = [{"bytes": None if at == 1 else png(at), "path": f"{at}.png"} for at in range(4)]
    write(tmp_path / "set" / "train.parquet", {"label": pa.array([0, 1, 0, 1]), "image": pa.array(images, IMAGE)})
    write(tmp_path / "set" / "test.parquet", {"label": pa.array([0, 1, 0, 1])})

    with pytest.raises(
        DataError, match=r"1 of the 4 images .*row 1 \(the row has the path of its image \(1\.png\) and"
    ):
        open_parquet(tmp_path / "set", home)
    assert open_parquet(tmp_path / "set", home, on_error="skip").train.labels_n.tolist() == [0, 0, 1]
