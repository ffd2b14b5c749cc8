"""Streamed batches for real: which images ranks get, in which order, after a stop too, and corrupt ones."""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from rayapp.config.train import AugmentConfig, DataConfig
from rayapp.data.chunks import SplitSource
from rayapp.data.datasets import load
from rayapp.errors import DataError
from rayapp.vision.augment import Augment
from tests.ray.numbered import KINDS, STILL, folder_set, numbered, numbers, parquet_set, part_of, same, streamed

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]
NUM_IMAGES = 211  # a prime: nothing comes out even


@pytest.fixture(autouse=True)
def several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """These small sets would be decoded by one task."""
    from rayapp.runtime import decode

    monkeypatch.setattr(decode, "TASK_IMAGES", 24)


@pytest.fixture(params=["parquet", "folder"])
def part(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> SplitSource:
    images = [numbered(number) for number in range(NUM_IMAGES)]
    return part_of(request.param, KINDS[request.param](tmp_path / "set", images), home)


# --- which images, in which order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_each_image_once_and_equally_many_batches(part: SplitSource, world: int) -> None:
    ranks = [streamed(part, rank=rank, world=world, batch_size=7, augment=STILL) for rank in range(world)]
    seen = [numbers(rank.epoch(0)) for rank in ranks]

    num_batches = NUM_IMAGES // world // 7
    assert [len(of_rank) for of_rank in seen] == [7 * num_batches] * world
    assert [rank.num_batches() for rank in ranks] == [num_batches] * world
    assert len(set().union(*seen)) == 7 * num_batches * world


def test_each_epoch_has_another_order_and_the_same_epoch_the_same(part: SplitSource) -> None:
    batches, again = streamed(part, augment=STILL, seed=1), streamed(part, augment=STILL, seed=1)
    first = numbers(batches.epoch(0))

    assert first != sorted(first)
    assert first == numbers(again.epoch(0))
    assert first != numbers(batches.epoch(1))
    assert first != numbers(streamed(part, augment=STILL, seed=2).epoch(0))
    left_out = [set(range(NUM_IMAGES)) - set(numbers(batches.epoch(epoch))) for epoch in range(3)]
    assert len(set(map(frozenset, left_out))) > 1  # not the same images in each epoch


def test_classes_are_mixed_also_where_they_come_one_after_the_other(tmp_path: Path, home: Path) -> None:
    part = part_of("folder", folder_set(tmp_path / "set", [numbered(n) for n in range(NUM_IMAGES)]), home)
    labels = [batch.labels_n for batch in streamed(part, batch_size=16, augment=STILL).epoch(0)]

    assert part.labels_n.tolist() == sorted(part.labels_n)
    assert sum(len(set(of_batch.tolist())) > 1 for of_batch in labels) > len(labels) / 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_each_image_once_and_keeps_the_order(part: SplitSource, world: int) -> None:
    ranks = [streamed(part, rank=rank, world=world, batch_size=16) for rank in range(world)]
    seen = [numbers(rank.epoch(0)) for rank in ranks]

    assert list(itertools.chain(*seen)) == numbers(streamed(part, batch_size=5).epoch(9))
    assert sorted(itertools.chain(*seen)) == list(range(NUM_IMAGES))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert [-(-len(of_rank) // 16) for of_rank in seen] == [rank.num_batches() for rank in ranks]


def test_the_order_is_not_that_in_which_tasks_are_done(tmp_path: Path, home: Path) -> None:
    images = [numbered(number, px=1500 if number < 24 else 8) for number in range(96)]
    part = part_of("parquet", parquet_set(tmp_path / "set", images, group=24), home)

    assert numbers(streamed(part).epoch(0)) == list(range(96))


def test_fewer_images_than_a_batch_are_one_smaller_batch(tmp_path: Path, home: Path) -> None:
    part = part_of("parquet", parquet_set(tmp_path / "set", [numbered(n) for n in range(5)]), home)
    batches = streamed(part, augment=STILL)

    assert (batches.num_images, batches.batch_size, batches.num_batches()) == (5, 5, 1)
    assert sorted(numbers(batches.epoch(0))) == list(range(5))


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_F43_an_epoch_goes_on_with_the_same_bits(part: SplitSource, world: int) -> None:
    config = AugmentConfig(cutout_px=2, random_ops=1, mixup_alpha=0.4)
    augment = Augment.from_config(config, height_px=8, flip=True, num_classes=3)
    batches = streamed(part, rank=world - 1, world=world, augment=augment)
    whole = list(batches.epoch(2))

    for num_done in range(len(whole) + 1):
        done = num_done * 10 * world
        assert batches.num_batches(done) == len(whole) - num_done
        if num_done in (0, 1, 3, len(whole) - 1, len(whole)):
            assert same(streamed(part, rank=world - 1, world=world, augment=augment).epoch(2, done), whole[num_done:])
    assert whole[0].targets_nk is not None


def test_each_batch_has_random_numbers_of_its_own(part: SplitSource) -> None:
    seeds: list[int] = []

    def noted(images_nhwc: Tensor, labels_n: Tensor, generator: Generator) -> tuple[Tensor, None]:
        seeds.append(generator.initial_seed())
        return images_nhwc, None

    for rank, epoch in itertools.product(range(2), range(2)):
        list(streamed(part, rank=rank, world=2, augment=noted).epoch(epoch))
    assert len(set(seeds)) == len(seeds) == 40


def test_what_is_done_is_not_read_again(tmp_path: Path, home: Path) -> None:
    root = folder_set(tmp_path / "set", [numbered(n) for n in range(NUM_IMAGES)])
    part = part_of("folder", root, home)
    whole = list(streamed(part, augment=STILL).epoch(0))
    for number in numbers(whole[:10]):
        (Path(root) / "train" / str(number % 3) / f"{number:04}.png").unlink()

    assert same(streamed(part, augment=STILL).epoch(0, 190), whole[19:])
    with pytest.raises(DataError, match=r"^/.*train/\d/\d+\.png does not exist; check --data.path[^\n]*$"):
        list(streamed(part, augment=STILL).epoch(0))


def test_a_file_that_cannot_be_read_for_a_moment_is_tried_again(tmp_path: Path, home: Path) -> None:
    root = folder_set(tmp_path / "set", [numbered(n) for n in range(30)])
    part = part_of("folder", root, home)
    numbers(streamed(part).epoch(0))  # Ray's processes are there now, so that the file is soon asked for
    place = Path(root) / "train" / "2" / "0014.png"
    place.rename(tmp_path / "kept.png")
    place.mkdir()  # so that reading fails, as root too

    def heal() -> None:
        place.rmdir()
        (tmp_path / "kept.png").rename(place)

    healer = threading.Timer(2.0, heal)
    healer.start()
    seen = numbers(streamed(part).epoch(0))
    healer.join()
    assert sorted(seen) == list(range(30))


def test_with_another_number_of_ranks_an_epoch_goes_on_with_about_the_rest(part: SplitSource) -> None:
    ranks = [streamed(part, rank=rank, world=3, batch_size=7, augment=STILL) for rank in range(3)]
    seen = [numbers(rank.epoch(0, samples_seen=100)) for rank in ranks]

    assert [len(of_rank) for of_rank in seen] == [7 * ranks[0].num_batches(100)] * 3
    assert 211 - 100 - 21 <= len(set(itertools.chain(*seen))) <= 211 - 100 + 21


def test_an_epoch_that_is_left_early_ends(part: SplitSource) -> None:
    batches = streamed(part, augment=STILL)
    epoch = batches.epoch(0)
    first = next(epoch)
    epoch.close()

    assert same([first], itertools.islice(batches.epoch(0), 1))
    assert len(numbers(batches.epoch(1))) == 210


# --- what images come out as ------------------------------------------------------------------------------------------


def test_images_of_all_kinds_are_those_of_the_set_in_memory(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for number, mode in enumerate(["RGB", "L", "RGBA", "P", "1", "RGB"] * 4):
        size = (20, 30) if number % 2 else (40, 17)
        folder = root / ("test" if number >= 20 else "train") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
    config = DataConfig(dataset="folder", path=str(root), image_px=24)
    resident = load(config, home).train
    streaming = load(config.model_copy(update={"stream": True}), home)
    batches = list(streamed(streaming.train, preprocess=streaming.info.preprocess, batch_size=3).epoch(0))

    assert np.array_equal(torch.cat([batch.images_nhwc for batch in batches]).numpy(), resident.images_nhwc)
    assert np.array_equal(torch.cat([batch.labels_n for batch in batches]).numpy(), resident.labels_n)
    assert (batches[0].images_nhwc.dtype, batches[0].labels_n.dtype) == (torch.uint8, torch.int64)
    assert all(batch.images_nhwc.is_contiguous() for batch in batches)
    # who keeps a batch keeps nothing else
    assert all(batch.images_nhwc.untyped_storage().nbytes() == batch.images_nhwc.nbytes for batch in batches)


# --- corrupt images ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["parquet", "folder"])
def broken(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> SplitSource:
    """Images 0, 50 and 51 of 100 are corrupt."""
    images = [b"no image" if number in (0, 50, 51) else numbered(number) for number in range(100)]
    return part_of(request.param, KINDS[request.param](tmp_path / "set", images), home)


def test_a_corrupt_image_ends_the_epoch_and_is_named(broken: SplitSource) -> None:
    for options in ({"augment": STILL}, {}):
        with pytest.raises(
            DataError, match=r"set/.*(row \d+|png) \(the image cannot be decoded\); replace it, or .* skip"
        ):
            list(streamed(broken, **options).epoch(0))


def test_the_place_of_a_corrupt_image_is_taken_by_another_one(
    broken: SplitSource, caplog: pytest.LogCaptureFixture
) -> None:
    batches = streamed(broken, augment=STILL, on_error="skip")
    seen = numbers(batches.epoch(0))

    assert (len(seen), batches.num_batches()) == (100, 10)
    assert set(seen) == set(range(100)) - {0, 50, 51}
    assert seen == numbers(batches.epoch(0))
    said = [
        record.message for record in caplog.records if record.levelno == logging.WARNING and "rank 0" in record.message
    ]
    assert len(said) == 2  # once an epoch
    assert said[0].startswith("rank 0 left out 3 corrupt images: ")
    assert "cannot be decoded" in said[0]
    assert seen[70:] == numbers(streamed(broken, augment=STILL, on_error="skip").epoch(0, 70))


def test_evaluation_leaves_corrupt_images_out(broken: SplitSource) -> None:
    seen = numbers(streamed(broken, on_error="skip").epoch(0))

    assert sorted(seen) == sorted(set(range(100)) - {0, 50, 51})


def test_a_window_of_corrupt_images_alone_is_an_error_in_training(tmp_path: Path, home: Path) -> None:
    images = [numbered(number) if number < 5 else b"no image" for number in range(100)]
    part = part_of("parquet", parquet_set(tmp_path / "set", images), home)

    with pytest.raises(DataError, match=r"none of \d+ images in a row can be decoded: .*row \d+ "):
        list(streamed(part, augment=STILL, on_error="skip").epoch(0))
    assert numbers(streamed(part, on_error="skip").epoch(0)) == list(range(5))
