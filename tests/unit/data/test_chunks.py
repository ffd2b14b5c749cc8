"""Parts: what is read of which chunk, and that chunks can be read elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data import sources
from rayapp.data.chunks import SplitSource, in_groups
from rayapp.errors import DataError
from tests.support.images import png, write_folder, write_parquet


def names(part: SplitSource) -> list[str]:
    return [item.name.rsplit("set/", 1)[1] for item in part.items()]


@pytest.fixture
def rows(tmp_path: Path, home: Path) -> SplitSource:
    """Eight rows of two files, in row groups of 3, 2 and 3."""
    write_parquet(tmp_path / "set" / "train-0.parquet", [0, 1, 0, 1, 0])
    write_parquet(tmp_path / "set" / "train-1.parquet", [1, 1, 0])
    write_parquet(tmp_path / "set" / "test.parquet", [0])
    return sources.parquet(DataConfig(dataset="parquet", path=str(tmp_path / "set")), home).train


def test_a_chunk_of_parquet_is_a_row_group(rows: SplitSource):
    assert [len(chunk) for chunk in rows.chunks] == [3, 2, 3]
    assert rows.starts_m.tolist() == [0, 3, 5]
    assert [chunk.labels_n.tolist() for chunk in rows.chunks] == [[0, 1, 0], [1, 0], [1, 1, 0]]
    assert [item.name.split("/")[-1] for item in rows.chunks[1].items()] == [
        "train-0.parquet, row 3",
        "train-0.parquet, row 4",
    ]
    assert [item.read() for item in rows.items()] == [png(7 * index) for index in (0, 1, 2, 3, 4, 0, 1, 2)]


def test_a_chunk_of_a_folder_is_a_few_files_of_one_class(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 20, "train/b": 3, "test/a": 1})
    part = sources.folder(DataConfig(dataset="folder", path=str(root)), home).train

    assert [len(chunk) for chunk in part.chunks] == [16, 4, 3]
    assert [set(chunk.labels_n.tolist()) for chunk in part.chunks] == [{0}, {0}, {1}]
    assert names(part)[:2] == ["train/a/0.png", "train/a/1.png"]
    assert not any(chunk.scattered for chunk in part.chunks)


def test_a_subset_of_a_subset_keeps_order_names_and_labels(rows: SplitSource):
    odd = rows.subset(np.array([1, 3, 4, 6, 7]))
    some = odd.subset(np.array([0, 2, 4]))

    assert names(odd) == [names(rows)[index] for index in (1, 3, 4, 6, 7)]
    assert odd.labels_n.tolist() == [1, 1, 0, 1, 0]
    assert names(some) == [names(rows)[index] for index in (1, 4, 7)]
    assert [item.read() for item in some.items()] == [png(7 * index) for index in (1, 4, 2)]


def test_groups_have_so_many_images_whatever_the_chunks(rows: SplitSource):
    for num_images in (1, 2, 3, 4, 8, 100):
        groups = [SplitSource(tuple(group)) for group in in_groups(rows.chunks, num_images)]

        assert [len(group.labels_n) for group in groups[:-1]] == [num_images] * (len(groups) - 1)
        assert [name for group in groups for name in names(group)] == names(rows)


def test_a_chunk_without_wanted_images_is_gone(rows: SplitSource):
    assert [len(chunk) for chunk in rows.subset(np.array([0, 5])).chunks] == [1, 1]
    assert names(rows.subset(np.array([7]))) == ["train-1.parquet, row 2"]


def test_a_chunk_can_be_read_elsewhere(rows: SplitSource):
    sent = pickle.dumps(rows.subset(np.array([4, 5])).chunks)
    chunks = pickle.loads(sent)

    assert [item.read() for chunk in chunks for item in chunk.items()] == [png(28), png(0)]
    assert len(sent) < 3000  # a chunk goes over the network: the list of all files must not go with it


def test_nothing_behind_the_last_wanted_image_is_read(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 5, "test/a": 1})
    part = sources.folder(DataConfig(dataset="folder", path=str(root)), home).train
    for index in (0, 2, 3, 4):
        (root / "train" / "a" / f"{index}.png").unlink()

    assert [item.read() for item in part.subset(np.array([1])).items()] == [png(3)]
    with pytest.raises(DataError, match=r"train/a/2\.png does not exist"):
        [item.read() for item in part.subset(np.array([1, 2])).items()]
