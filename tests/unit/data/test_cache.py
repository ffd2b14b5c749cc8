"""Decoded images: size, channels, mean and std, corrupt ones, made once and kept."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data import sources
from rayapp.data.cache import decode_chunks, read_ahead
from rayapp.data.chunks import Chunk, Sample
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import DataError
from tests.support.images import open_folder, open_parquet, png, write_folder, write_parquet

# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "size"), [({}, (224, 224)), ({"image_px": 24}, (24, 24))])
def test_images_of_several_sizes_are_brought_to_one(
    tmp_path: Path, home: Path, settings: dict[str, int], size: tuple[int, int]
):
    root = write_folder(tmp_path / "set", {"train/a": 2, "test/a": 1})
    write_folder(root, {"train/b": 2}, size=(20, 20))
    data = open_folder(root, home, **settings)

    assert (data.info.height_px, data.info.width_px) == size
    assert data.train.images_nhwc.shape == (4, *size, 3)
    assert data.test.images_nhwc.shape == (1, *size, 3)


def test_huge_images_of_one_size_are_not_kept_so(tmp_path: Path, home: Path):
    data = open_folder(write_folder(tmp_path / "set", {"train/a": 2, "test/a": 1}, size=(600, 20)), home)

    assert (data.info.height_px, data.info.width_px) == (224, 224)


def test_test_images_of_another_size_get_that_of_training(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 2})
    write_folder(root, {"test/a": 1}, size=(40, 40))

    assert open_folder(root, home).test.images_nhwc.shape == (1, 12, 16, 3)


def test_grey_images_come_with_three_equal_channels(tmp_path: Path, home: Path):
    data = open_folder(write_folder(tmp_path / "set", {"train/a": 3, "test/a": 1}, mode="L"), home)
    images_nhwc = np.asarray(data.train.images_nhwc)

    assert data.info.channels == 1
    assert images_nhwc.shape[-1] == 3
    assert images_nhwc.max() > 0
    assert np.ptp(images_nhwc, axis=-1).max() == 0
    assert len(set(data.info.mean)) == 1


def test_mean_and_std_are_those_of_the_training_images(tmp_path: Path, home: Path):
    data = open_folder(write_folder(tmp_path / "set", {"train/a": 5, "train/b": 4, "test/a": 3, "test/b": 2}), home)
    pixels_nc = np.asarray(data.train.images_nhwc, dtype=np.float64).reshape(-1, 3) / 255

    assert data.info.mean == pytest.approx(pixels_nc.mean(axis=0), abs=1e-12)
    assert data.info.std == pytest.approx(pixels_nc.std(axis=0), abs=1e-12)


# --- corrupt images ---------------------------------------------------------------------------------------------------


def with_corrupt(root: Path) -> Path:
    write_folder(root, {"train/a": 4, "train/b": 4, "test/a": 2})
    (root / "train" / "a" / "1.png").write_bytes(png(3)[:50])
    (root / "train" / "b" / "3.png").write_bytes(b"")
    return root


def test_corrupt_images_are_named_and_counted(tmp_path: Path, home: Path):
    root = with_corrupt(tmp_path / "set")

    with pytest.raises(DataError, match=r"2 of the 8 images .*train/a/1\.png .*train/b/3\.png.*on_error skip"):
        open_folder(root, home)


def test_corrupt_images_are_left_out_where_asked(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture):
    root = with_corrupt(tmp_path / "set")
    data = open_folder(root, home, on_error="skip")

    assert (data.info.num_train, data.info.num_skipped) == (6, 2)
    assert data.train.labels_n.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.images_nhwc.shape == (6, 12, 16, 3)
    assert [image[0, 0, 0] for image in data.train.images_nhwc] == [0, 6, 9, 40, 43, 46]
    assert "2 of the 8 images of folder-train cannot be decoded and were left out" in caplog.text
    with pytest.raises(DataError, match="2 of the 8 images"):  # what was skipped before is not forgotten
        open_folder(root, home)


def test_a_corrupt_row_is_named(tmp_path: Path, home: Path):
    images = [png(1), png(2), png(3), png(4), b"no image", png(5)]
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1, 0, 1, 0, 1], images=images)
    write_parquet(tmp_path / "set" / "test.parquet", [0, 1])

    with pytest.raises(DataError, match=r"1 of the 6 images .*train\.parquet, row 4 \(the image cannot be decoded"):
        open_parquet(tmp_path / "set", home)
    assert open_parquet(tmp_path / "set", home, on_error="skip").train.labels_n.tolist() == [0, 1, 0, 1, 1]


def test_a_data_set_of_corrupt_images_alone_is_refused(tmp_path: Path, home: Path):
    root = tmp_path / "set"
    (root / "train" / "a").mkdir(parents=True)
    for index in range(5):
        (root / "train" / "a" / f"{index}.png").write_bytes(b"x")

    with pytest.raises(DataError, match="none of the 4 images can be decoded"):
        open_folder(root, home, on_error="skip")


# --- a few at a time --------------------------------------------------------------------------------------------------


def test_runs_hold_all_images_in_order_with_corrupt_ones_black(tmp_path: Path, home: Path):
    part = sources.folder(DataConfig(dataset="folder", path=str(with_corrupt(tmp_path / "set"))), home).train
    spec = PreprocessSpec(height_px=12, width_px=16)
    runs = list(decode_chunks(part.chunks, spec, at_once=3))

    assert [run.images_nhwc.shape for run in runs] == [(3, 12, 16, 3), (3, 12, 16, 3), (2, 12, 16, 3)]
    assert [image[0, 0, 0] for run in runs for image in run.images_nhwc] == [0, 0, 6, 9, 40, 43, 46, 0]
    assert np.concatenate([run.labels_n for run in runs]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    problems = [problem for run in runs for problem in run.problems]
    assert [bool(problem) for problem in problems] == [False, True, *[False] * 5, True]
    assert problems[1].endswith("train/a/1.png (the image cannot be decoded)")
    assert runs[0].images_nhwc[1].max() == 0


def test_scattered_images_come_in_order_too_and_a_lost_one_is_named(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 40, "test/a": 1})
    part = sources.folder(DataConfig(dataset="folder", path=str(root)), home).train
    chunks = [replace(chunk, scattered=True) for chunk in part.chunks]
    spec = PreprocessSpec(height_px=12, width_px=16)
    images = [image for run in decode_chunks(chunks, spec, at_once=7) for image in run.images_nhwc]

    names = [Path(item.name).stem for item in part.items()]
    assert [image[0, 0, 0] for image in images] == [3 * int(name) for name in names]
    (root / "train" / "a" / "25.png").unlink()
    with pytest.raises(DataError, match=r"train/a/25\.png does not exist"):
        list(decode_chunks(chunks, spec, at_once=7))


# --- decoded once, test unopened --------------------------------------------------------------------------------------


def test_images_are_decoded_once(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 3, "train/b": 3, "test/a": 2})
    first = open_folder(root, home)
    (entry,) = (home / "decoded").glob("folder-train-*/images.npy")
    before = entry.stat()
    second = open_folder(root, home)
    (same,) = (home / "decoded").glob("folder-train-*/images.npy")

    assert (same.stat().st_ino, same.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second.info == first.info
    assert isinstance(second.train.images_nhwc, np.memmap)
    assert np.array_equal(first.train.images_nhwc, second.train.images_nhwc)


def test_a_changed_image_is_seen(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 3, "train/b": 3, "test/a": 2})
    first = open_folder(root, home)
    (root / "train" / "a" / "0.png").write_bytes(png(200))
    second = open_folder(root, home)

    assert first.info.digest != second.info.digest
    assert second.train.images_nhwc[0, 0, 0].tolist() == [200, 100, 55]


def test_settled_files_are_read_once_for_the_digest(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 3, "test/a": 2})
    file = root / "train" / "a" / "0.png"
    for path in root.rglob("*.png"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    first = open_folder(root, home)
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert open_folder(root, home).info.digest == first.info.digest  # same size and time: not read again

    os.utime(file, (1_000_000_001, 1_000_000_001))
    with pytest.raises(DataError, match="1 of the 3 images"):
        open_folder(root, home)


def test_training_does_not_open_the_test_images(tmp_path: Path, home: Path):
    """F9, F23: loading for training neither decodes nor maps test images."""
    root = write_folder(tmp_path / "set", {"train/a": 3, "test/a": 2})
    (root / "test" / "a" / "1.png").write_bytes(b"broken")
    data = open_folder(root, home)

    assert data.info.num_test == 2
    assert [path.name.rsplit("-", 1)[0] for path in (home / "decoded").glob("*[!k]")] == ["folder-train"]
    with pytest.raises(DataError, match=r"1 of the 2 images of folder-test .*test/a/1\.png"):
        _ = data.test


def test_damaged_and_unwritable_caches_are_said(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 3, "test/a": 2})
    open_folder(root, home)
    (entry,) = (home / "decoded").glob("folder-train-*/images.npy")
    entry.write_bytes(entry.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"folder-train-\w+ is damaged .*delete it"):
        open_folder(root, home)

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "decoded").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"decoded cannot be written to .*make room there, or set RAYAPP_HOME"):
        open_folder(root, tmp_path / "other")


def test_reading_ahead_is_given_up_without_waiting_for_what_is_being_read():
    """Where nobody closed it the garbage collector did, in a thread that was being started, and waited for ever."""
    network = threading.Event()

    def read(number: int) -> bytes:
        if number:
            network.wait(60)
        return b""

    items = [Sample(str(number), partial(read, number)) for number in range(9)]
    chunk = Chunk.whole(lambda: items, np.zeros(9, dtype=np.int64), scattered=True)
    ahead = read_ahead([chunk])
    assert next(ahead).name == "0"
    closing = threading.Thread(target=ahead.close, daemon=True)
    closing.start()
    closing.join(timeout=20)
    waited = closing.is_alive()
    network.set()
    assert not waited


def test_images_taken_all_at_once_can_still_be_read():
    """A batch job takes a block of images and reads then; the end of the reading ahead took back what had not begun."""
    turn = threading.Event()

    def read(number: int) -> bytes:
        assert turn.wait(60)
        return bytes([number])

    items = [Sample(str(number), partial(read, number)) for number in range(40)]
    chunk = Chunk.whole(lambda: items, np.zeros(40, dtype=np.int64), scattered=True)
    samples = list(read_ahead([chunk]))
    turn.set()
    assert [sample.read() for sample in samples] == [bytes([number]) for number in range(40)]
