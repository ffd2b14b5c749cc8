from __future__ import annotations

import numpy as np
import pytest
import torch

from rayapp.config.train import AugmentConfig
from rayapp.data.preprocess import Images
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import Batch, InMemoryLoader, Shard

CPU = torch.device("cpu")


def augment(classes: int = 100, **changes: object) -> Augment:
    config = AugmentConfig(**({"crop_padding_px": 0, "flip": False} | changes))  # type: ignore[arg-type]
    return Augment.from_config(config, height_px=4, flip=False, num_classes=classes)


STILL = augment()


def numbered(n: int) -> Images:
    """Images that carry their own number."""
    images_nhwc = np.zeros((n, 4, 4, 3), np.uint8)
    images_nhwc += np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Images(images_nhwc, np.arange(n, dtype=np.int64))


def training(n: int, batch_size: int, *, rank: int = 0, world: int = 1, **options: object) -> InMemoryLoader:
    options = {"augment": STILL} | options
    return InMemoryLoader(
        numbered(n), np.arange(n), batch_size=batch_size, device=CPU, shard=Shard(rank, world), **options
    )


def labels_of(batches: InMemoryLoader, epoch: int = 0, done: int = 0) -> list[int]:
    return [int(label) for batch in batches.epoch(epoch, done) for label in batch.labels_n]


def test_training_ranks_take_disjoint_images_and_equally_many_batches() -> None:
    parts = [training(50, 8, rank=r, world=2) for r in (0, 1)]
    seen = [labels_of(p) for p in parts]
    assert not set(seen[0]) & set(seen[1])
    assert len(seen[0]) == len(seen[1]) == 24
    assert parts[0].num_batches() == parts[1].num_batches() == 3


def test_each_epoch_has_another_order_and_the_same_epoch_the_same() -> None:
    batches = training(40, 8, seed=1)
    assert labels_of(batches, 0) == labels_of(batches, 0)
    assert labels_of(batches, 0) != labels_of(batches, 1)
    assert sorted(labels_of(batches, 1)) == list(range(40))


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images_nhwc, other.images_nhwc) and torch.equal(one.labels_n, other.labels_n)


@pytest.mark.parametrize("changes", [{"flip": True, "crop_padding_px": 1}, {"random_ops": 2}, {"mixup_alpha": 0.5}])
def test_an_epoch_goes_on_in_its_middle_with_the_same_batches(changes: dict[str, object]) -> None:
    for rank in (0, 1):
        batches = training(50, 4, rank=rank, world=2, augment=augment(classes=50, **changes))
        whole = list(batches.epoch(3))
        assert len(whole) == batches.num_batches() == 6
        for at in range(6):
            rest = list(batches.epoch(3, samples_seen=at * 8))
            assert len(rest) == batches.num_batches(at * 8) == 6 - at
            assert all(same(one, other) for one, other in zip(rest, whole[at:], strict=True))


def test_with_another_number_of_ranks_the_epoch_goes_on_with_the_images_that_are_left() -> None:
    begun = [
        label for r in (0, 1) for batch in list(training(48, 4, rank=r, world=2).epoch(5))[:3] for label in batch[1]
    ]
    rest = [label for r in range(3) for label in labels_of(training(48, 4, rank=r, world=3), 5, done=24)]
    assert sorted([*map(int, begun), *rest]) == list(range(48))


def test_evaluation_counts_every_image_of_every_rank_once() -> None:
    images, rows = numbered(51), np.arange(1, 51)
    parts = [InMemoryLoader(images, rows, batch_size=8, device=CPU, shard=Shard(r, 3)) for r in range(3)]
    assert sorted(label for part in parts for label in labels_of(part)) == list(range(1, 51))
    assert [part.num_batches() for part in parts] == [len(list(part.epoch(0))) for part in parts]


def test_fewer_images_than_a_batch_make_one_smaller_batch() -> None:
    assert sorted(labels_of(training(5, 128))) == [0, 1, 2, 3, 4]


def test_F4_validation_images_are_never_augmented(squares: Images) -> None:
    batches = InMemoryLoader(squares, np.arange(96), batch_size=32, device=CPU)
    out_nhwc = torch.cat([batch.images_nhwc for batch in batches.epoch(3)])
    assert np.array_equal(out_nhwc.numpy(), squares.images_nhwc)


def test_mixed_labels_come_with_mixed_images_and_the_labels_stay() -> None:
    batch = next(iter(training(40, 8, augment=augment(classes=40, mixup_alpha=1.0)).epoch(0)))
    assert batch.targets_nk is not None
    assert batch.targets_nk.shape == (8, 40)
    assert torch.allclose(batch.targets_nk.sum(1), torch.ones(8))
    assert bool((batch.targets_nk.gather(1, batch.labels_n[:, None]) > 0).all())
