"""uint8 batches of one rank, from images that are resident on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayapp.vision.augment import Augment
from rayapp.vision.datasets import Images

# A sequence of whole numbers that names one stream of random numbers: seed, epoch, rank.
SeedKey = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """Which part of the data a process takes: rank of world."""

    rank: int = 0
    world: int = 1


class Batches:
    """Batches of (images_nhwc uint8, labels_n int64) of one shard, all on one device.

    Training batches (augment given) are shuffled anew each epoch, the same way on every rank, and all have
    batch_size images, so that each rank takes equally many steps; what is left over is dropped from this epoch.
    Evaluation batches (augment None) keep the order and drop nothing, so that a sum over ranks counts each image once.
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
        self.augment = augment
        self.seed = seed
        own = indices if augment else indices[self.shard.rank :: self.shard.world]
        self.images_nhwc = torch.from_numpy(np.ascontiguousarray(images.images_nhwc[own])).to(device)
        self.labels_n = torch.from_numpy(np.ascontiguousarray(images.labels_n[own])).to(device)
        per_rank = len(own) // self.shard.world if augment else len(own)
        # a data set smaller than one batch is one smaller batch, not none
        self.batch_size = max(1, min(batch_size, per_rank))
        self.num_batches = per_rank // self.batch_size if augment else -(-per_rank // self.batch_size)

    @property
    def num_images(self) -> int:
        """Images that this rank delivers in an epoch."""
        return self.num_batches * self.batch_size if self.augment else len(self.labels_n)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch; the same epoch number gives the same batches."""
        order_n = self._order(epoch)
        generator = torch.Generator().manual_seed(mixed_seed((self.seed, epoch, self.shard.rank)))
        for at in range(self.num_batches):
            rows = order_n[at * self.batch_size : (at + 1) * self.batch_size]
            images_nhwc, labels_n = self.images_nhwc[rows], self.labels_n[rows]
            yield (self.augment(images_nhwc, generator) if self.augment else images_nhwc), labels_n

    def _order(self, epoch: int) -> Tensor:
        n = len(self.labels_n)
        if not self.augment:
            return torch.arange(n, device=self.labels_n.device)
        same_everywhere = torch.Generator().manual_seed(mixed_seed((self.seed, epoch)))
        order_n = torch.randperm(n, generator=same_everywhere)[self.shard.rank :: self.shard.world]
        return order_n.to(self.labels_n.device)


def mixed_seed(key: SeedKey) -> int:
    """A seed below 2**63 that differs for each key, also for neighbouring ones."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
