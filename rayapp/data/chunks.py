"""Parts: the training or the test images of a source before they are decoded, in chunks that can be read anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayapp.data.preprocess import UInt8Array

Int64Array = NDArray[np.int64]
UNLABELLED = -1


class Sample(NamedTuple):
    """An image before it is decoded: what to find it by, and what reads its file, or its (H, W[, 3]) array.

    path: of the image file, or of the Parquet file that has it in this row.
    """

    path: str
    read: Callable[[], bytes | UInt8Array]
    row: int | None = None

    @property
    def name(self) -> str:
        """The image as messages call it."""
        return self.path if self.row is None else f"{self.path}, row {self.row}"


@dataclass(frozen=True)
class Chunk:
    """Images that are read one after the other, in any process: it can be pickled if read can.

    read gives items in a fixed order; those at rows_n, which are sorted, are the chunk's. labels_n: of these.
    scattered: each item's read is a request over the network, so that several are worth being made at once. Images
    that are only to be predicted have the label UNLABELLED.
    """

    read: Callable[[], Iterable[Sample]]
    rows_n: Int64Array
    labels_n: Int64Array
    scattered: bool = False

    @classmethod
    def whole(cls, read: Callable[[], Iterable[Sample]], labels_n: Int64Array, *, scattered: bool = False) -> Chunk:
        """All that read gives."""
        return cls(read, np.arange(len(labels_n)), labels_n, scattered)

    def __len__(self) -> int:
        return len(self.rows_n)

    def items(self) -> Iterator[Sample]:
        """Its images; nothing behind the last of them is read."""
        wanted_n = np.zeros(self.rows_n[-1] + 1, dtype=bool)
        wanted_n[self.rows_n] = True
        return (item for wanted, item in zip(wanted_n.tolist(), self.read(), strict=False) if wanted)

    def subset(self, indices_n: Int64Array) -> Chunk:
        """The images at indices_n, which are sorted."""
        return Chunk(self.read, self.rows_n[indices_n], self.labels_n[indices_n], self.scattered)


@dataclass(frozen=True)
class SplitSource:
    """The training or the test images of a source in a fixed order; no chunk is empty."""

    chunks: tuple[Chunk, ...]

    @classmethod
    def of_arrays(cls, images: UInt8Array, labels: ArrayLike) -> SplitSource:
        """Images that are in memory."""
        return cls((Chunk.whole(partial(_array_items, images), np.asarray(labels, dtype=np.int64)),))

    @cached_property
    def labels_n(self) -> Int64Array:
        """The label of each image."""
        return np.concatenate([chunk.labels_n for chunk in self.chunks])

    @cached_property
    def starts_m(self) -> Int64Array:
        """The index of the first image of each chunk."""
        sizes_m = np.array([len(chunk) for chunk in self.chunks], dtype=np.int64)
        return np.cumsum(sizes_m) - sizes_m

    def items(self) -> Iterator[Sample]:
        """All images; each call starts anew."""
        return chain.from_iterable(chunk.items() for chunk in self.chunks)

    def subset(self, indices_n: Int64Array) -> SplitSource:
        """The images at indices_n, which are sorted."""
        own = np.split(indices_n, np.searchsorted(indices_n, self.starts_m[1:]))
        found = zip(self.chunks, own, self.starts_m, strict=True)
        return SplitSource(tuple(chunk.subset(rows_n - start) for chunk, rows_n, start in found if len(rows_n)))


def in_groups(chunks: Iterable[Chunk], num_images: int) -> Iterator[list[Chunk]]:
    """The chunks in order, cut so that each group has num_images, the last one fewer."""
    group, room = list[Chunk](), num_images
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            group.append(chunk.subset(np.arange(at, min(at + room, len(chunk)))))
            at, room = at + len(group[-1]), room - len(group[-1])
            if not room:
                yield group
                group, room = [], num_images
    if group:
        yield group


def _array_items(images: UInt8Array) -> Iterator[Sample]:
    return (Sample(f"image {index}", partial(images.__getitem__, index)) for index in range(len(images)))
