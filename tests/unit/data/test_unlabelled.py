"""Which images are predicted, of a folder and of Parquet files, and what is said where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayapp.config.batch import ImagesConfig
from rayapp.data.chunks import UNLABELLED
from rayapp.data.unlabelled import Unlabelled, unlabelled
from rayapp.errors import DataError
from tests.support.images import png


def files(root: Path, *names: str) -> Path:
    for at, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(at))
    return root


def rows(path: Path, images: list[bytes | None], *, group: int = 2, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct({"bytes": "binary", "path": "string"})
    )
    pq.write_table(pa.table({"image": image, **columns}), path, row_group_size=group)


def found(root: Path, **config: str) -> Unlabelled:
    return unlabelled(ImagesConfig(path=str(root), **config))  # type: ignore[arg-type]


def names(images: Unlabelled) -> list[str]:
    return [item.name.removeprefix(f"{images.uri}/") for item in images.part.items()]


def test_every_image_below_a_folder_is_one(tmp_path: Path) -> None:
    several = [f"b/{number:02}.JPG" for number in range(40)]
    several += ["a.png", "cat/1.png", "train/dog/x/2.webp"]
    root = files(tmp_path / "set", *several, "cat/notes.txt", ".cache/3.png")
    images = found(root)

    assert (images.kind, images.uri) == ("folder", str(root))
    assert names(images) == sorted(several)
    assert set(images.part.labels_n) == {UNLABELLED}
    assert len(images.part.labels_n) == 43


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """batch-predict left files out without a word."""
    caplog.set_level("INFO")
    root = files(tmp_path / "set", "a.jfif", "b/c.jpe", "b/d.heic", "e", ".DS_Store")

    assert names(found(root)) == ["a.jfif", "b/c.jpe"]
    assert f"{root}: 2 of 4 files are passed over (1 .heic, 1 without suffix): b/d.heic, e; only images" in caplog.text


def test_every_row_of_every_parquet_file_is_one(tmp_path: Path) -> None:
    rows(tmp_path / "set" / "test.parquet", [png(number) for number in range(5)])
    rows(tmp_path / "set" / "more" / "x.parquet", [png(7), None], label=["cat", "dog"])
    rows(tmp_path / "set" / "none.parquet", [])
    images = found(tmp_path / "set")

    assert images.kind == "parquet"
    assert names(images) == [f"more/x.parquet, row {row}" for row in range(2)] + [
        f"test.parquet, row {row}" for row in range(5)
    ]
    assert [item.row for item in images.part.items()] == [0, 1, 0, 1, 2, 3, 4]
    assert [item.read() for item in images.part.items()][:3] == [png(7), b"", png(0)]
    assert [len(chunk) for chunk in images.part.chunks] == [2, 2, 2, 1]


def test_the_digest_is_of_what_lies_there(tmp_path: Path) -> None:
    root = files(tmp_path / "set", "a.png", "b.png")
    first = found(root).digest
    os.utime(root / "a.png", (1, 1))
    second = found(root).digest
    files(root, "c.png")

    assert len({first, second, found(root).digest}) == 3
    assert found(root).digest == found(root).digest


def test_images_and_parquet_files_in_one_folder_have_to_be_told_apart(tmp_path: Path) -> None:
    root = files(tmp_path / "set", "a.png", "b.png")
    rows(root / "c.parquet", [png(3)])

    with pytest.raises(DataError, match=r"holds 2 images and 1 Parquet files; say which .* --data.dataset folder"):
        found(root)
    assert names(found(root, dataset="folder")) == ["a.png", "b.png"]
    assert names(found(root, dataset="parquet")) == ["c.parquet, row 0"]


def test_a_column_of_another_name_is_named_in_the_settings(tmp_path: Path) -> None:
    rows(tmp_path / "set" / "a.parquet", [png(1), png(2)])
    table = pq.read_table(tmp_path / "set" / "a.parquet").rename_columns(["img"])
    pq.write_table(table, tmp_path / "set" / "a.parquet")

    assert [item.read() for item in found(tmp_path / "set", image_column="img").part.items()] == [png(1), png(2)]
    with pytest.raises(DataError, match=r"a\.parquet needs the column image: .*; say --data\.image_column img$"):
        found(tmp_path / "set")
    with pytest.raises(DataError, match=r"data\.image_column has no effect on the image files"):
        found(files(tmp_path / "other", "a.png"), image_column="img")


def test_files_with_paths_alone_are_said(tmp_path: Path) -> None:
    image = pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": "binary", "path": "string"}))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": image}), tmp_path / "set" / "a.parquet")

    with pytest.raises(DataError, match=r"a\.parquet holds no bytes of its images, only paths at most"):
        found(tmp_path / "set")


def test_what_holds_no_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rows(tmp_path / "rows" / "a.parquet", [])
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"label": [1]}), tmp_path / "other" / "no.parquet")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.parquet").write_bytes(b"PAR1 is not all it takes")
    sentences = {
        "gone": r"gone does not exist; check --data.path",
        "empty": r"empty holds no image or Parquet files \(images: .png .*; found: nothing\); check --data.path",
        "rows": r"rows: a.parquet have no rows; check --data.path",
        "other": r"no.parquet needs the column image: struct<bytes, path> \(found: label: int64\)",
        "bad": r"bad/a.parquet cannot be read \(",
    }
    for name, sentence in sentences.items():
        with pytest.raises(DataError, match=sentence):
            found(tmp_path / name)
    with pytest.raises(DataError, match=r"other holds no image files \(images"):
        found(tmp_path / "other", dataset="folder")
