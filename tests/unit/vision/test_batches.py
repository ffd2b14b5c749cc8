from __future__ import annotations

import numpy as np
import torch

from rayapp.config import AugmentConfig
from rayapp.vision.augment import GREY, Augment
from rayapp.vision.batches import Batches, Shard
from rayapp.vision.datasets import Images

CPU = torch.device("cpu")
STILL = Augment(crop_padding_px=0, flip=False, cutout_px=0)


def numbered(n: int) -> Images:
    """Images that carry their own number."""
    images_nhwc = np.zeros((n, 4, 4, 3), np.uint8)
    images_nhwc += np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Images(images_nhwc, np.arange(n, dtype=np.int64))


def labels_of(batches: Batches, epoch: int = 0) -> list[int]:
    return [int(label) for _, labels_n in batches.epoch(epoch) for label in labels_n]


def test_training_ranks_take_disjoint_images_and_equally_many_batches() -> None:
    images, rows = numbered(50), np.arange(50)
    parts = [Batches(images, rows, batch_size=8, device=CPU, augment=STILL, shard=Shard(r, 2)) for r in (0, 1)]
    seen = [labels_of(p) for p in parts]
    assert not set(seen[0]) & set(seen[1])
    assert len(seen[0]) == len(seen[1]) == 24
    assert parts[0].num_batches == parts[1].num_batches == 3


def test_each_epoch_has_another_order_and_the_same_epoch_the_same() -> None:
    batches = Batches(numbered(40), np.arange(40), batch_size=8, device=CPU, augment=STILL, seed=1)
    assert labels_of(batches, 0) == labels_of(batches, 0)
    assert labels_of(batches, 0) != labels_of(batches, 1)
    assert sorted(labels_of(batches, 1)) == list(range(40))


def test_evaluation_counts_every_image_of_every_rank_once() -> None:
    images, rows = numbered(51), np.arange(1, 51)
    parts = [Batches(images, rows, batch_size=8, device=CPU, shard=Shard(r, 3)) for r in range(3)]
    assert sorted(label for part in parts for label in labels_of(part)) == list(range(1, 51))


def test_fewer_images_than_a_batch_make_one_smaller_batch() -> None:
    batches = Batches(numbered(5), np.arange(5), batch_size=128, device=CPU, augment=STILL)
    assert sorted(labels_of(batches)) == [0, 1, 2, 3, 4]


def test_F4_validation_images_are_never_augmented(squares: Images) -> None:
    batches = Batches(squares, np.arange(96), batch_size=32, device=CPU)
    out_nhwc = torch.cat([images_nhwc for images_nhwc, _ in batches.epoch(3)])
    assert np.array_equal(out_nhwc.numpy(), squares.images_nhwc)


def test_crop_and_flip_move_pixels_but_invent_none(squares: Images) -> None:
    augment = Augment(crop_padding_px=2, flip=True, cutout_px=0)
    images_nhwc = torch.from_numpy(squares.images_nhwc)
    changed_nhwc = augment(images_nhwc, torch.Generator().manual_seed(0))
    assert changed_nhwc.shape == images_nhwc.shape
    assert changed_nhwc.dtype == torch.uint8
    assert not torch.equal(changed_nhwc, images_nhwc)
    assert torch.equal(images_nhwc, torch.from_numpy(squares.images_nhwc))  # a copy was changed, not the data set
    allowed = set(images_nhwc[5].flatten().tolist()) | {0}
    assert set(changed_nhwc[5].flatten().tolist()) <= allowed


def test_a_flip_without_a_crop_is_the_mirror_image_or_the_image() -> None:
    images_nhwc = torch.arange(8 * 3 * 5 * 3, dtype=torch.uint8).reshape(8, 3, 5, 3)
    changed_nhwc = Augment(0, True, 0)(images_nhwc, torch.Generator().manual_seed(3))
    mirrored = [torch.equal(c, i.flip(1)) for c, i in zip(changed_nhwc, images_nhwc, strict=True)]
    kept = [torch.equal(c, i) for c, i in zip(changed_nhwc, images_nhwc, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


def test_cutout_paints_one_grey_square_at_most_as_large_as_asked() -> None:
    images_nhwc = torch.zeros(16, 8, 8, 3, dtype=torch.uint8)
    changed_nhwc = Augment(0, False, 4)(images_nhwc, torch.Generator().manual_seed(0))
    painted_n = (changed_nhwc[..., 0] == GREY).flatten(1).sum(1)
    assert int(painted_n.max()) <= 16
    assert int(painted_n.min()) >= 1


def test_digits_are_not_mirrored_unless_asked() -> None:
    assert not Augment.from_config(AugmentConfig(), height_px=32, flip=False).flip
    assert Augment.from_config(AugmentConfig(flip=True), height_px=32, flip=False).flip
    assert Augment.from_config(AugmentConfig(), height_px=32, flip=True).crop_padding_px == 4
