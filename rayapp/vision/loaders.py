"""uint8 batches of one rank: what the loop asks for, and how images that are resident on the device give it.

Nothing in an epoch depends on what was drawn before: order and augmentation are functions of seed, epoch, position and
rank, so the position is all that a resumed run has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.data.preprocess import Images
from rayapp.vision.augment import Augment

# A sequence of whole numbers that names one stream of random numbers: seed, epoch, position, rank.
SeedKey = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """Which part of the data a process takes: rank of world_size ranks."""

    rank: int = 0
    world_size: int = 1


class Batch(NamedTuple):
    """images_nhwc: (N, H, W, 3) uint8. labels_n: (N,) int64. targets_nk: (N, K) float32 where labels are mixed."""

    images_nhwc: Tensor
    labels_n: Tensor
    targets_nk: Tensor | None = None


class Loader(Protocol):
    """The batches of one rank. samples_seen counts images of an epoch that all ranks together have taken.

    batch_size: images that a rank takes at once. num_images: of all ranks, before any are dropped. Training ranks take
    equally many batches, so that none waits for ever for another one's gradients.
    """

    shard: Shard
    device: torch.device
    batch_size: int
    num_images: int

    def num_batches(self, samples_seen: int = 0) -> int:
        """Batches of this rank that are left in an epoch."""

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """Those batches; the same epoch, samples_seen and world give the same ones."""


class InMemoryLoader:
    """Batches of images that all lie on the device as uint8.

    Training batches (augment given) are slices of a permutation that is the same on every rank, of which each rank
    takes its share, so that a run goes on exactly with another number of ranks; what is left over is dropped from this
    epoch. Evaluation batches (augment None) keep the order and drop nothing: a sum over ranks counts each image once.
    """

    def __init__(
        self,
        images: Images,
        indices: NDArray[np.int64],
        *,
        batch_size: int,
        device: torch.device,
        augment: Augment | None = None,
        shard: Shard | None = None,
        seed: int = 0,
    ) -> None:
        self.shard = shard or Shard()
        self.device = device
        self.augment = augment
        self.seed = seed
        self.num_images = len(indices)
        own = indices if augment else indices[self.shard.rank :: self.shard.world_size]
        self._images_nhwc = torch.from_numpy(np.ascontiguousarray(images.images_nhwc[own])).to(device)
        self._labels_n = torch.from_numpy(np.ascontiguousarray(images.labels_n[own])).to(device)
        # a data set smaller than one batch is one smaller batch, not none
        self.batch_size = max(1, min(batch_size, len(indices) // self.shard.world_size))

    def num_batches(self, samples_seen: int = 0) -> int:
        """Batches of this rank that are left in an epoch."""
        if self.augment:
            return (self.num_images - samples_seen) // (self.batch_size * self.shard.world_size)
        return -(-len(self._labels_n) // self.batch_size)

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """Those batches; the same epoch, samples_seen and world give the same ones."""
        return self._training(self.augment, epoch, samples_seen) if self.augment else self._evaluation()

    def _training(self, augment: Augment, epoch: int, samples_seen: int) -> Iterator[Batch]:
        rank, world = self.shard.rank, self.shard.world_size
        same_everywhere = torch.Generator().manual_seed(mixed_seed((self.seed, epoch)))
        order_n = torch.randperm(self.num_images, generator=same_everywhere).to(self.device)
        generator = torch.Generator(self.device)
        world_batch = self.batch_size * world
        for at in range(samples_seen, samples_seen + self.num_batches(samples_seen) * world_batch, world_batch):
            rows = order_n[at + rank : at + world_batch : world]
            labels_n = self._labels_n[rows]
            generator.manual_seed(mixed_seed((self.seed, epoch, at, rank)))
            images_nhwc, targets_nk = augment(self._images_nhwc[rows], labels_n, generator)
            yield Batch(images_nhwc, labels_n, targets_nk)

    def _evaluation(self) -> Iterator[Batch]:
        parts = (self._images_nhwc.split(self.batch_size), self._labels_n.split(self.batch_size))
        yield from (Batch(images_nhwc, labels_n) for images_nhwc, labels_n in zip(*parts, strict=True))


def mixed_seed(key: SeedKey) -> int:
    """A seed below 2**63 that differs for each key, also for neighbouring ones."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
