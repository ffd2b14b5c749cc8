"""Batches that are streamed in: in each epoch a rank has its share of the images read and decoded anew.

    Part ─> pieces, in the order of the epoch ─> the rank's rows ─> decoding.py ─> windows, shuffled ─> Batch

The order of pieces is a function of seed and epoch, that in a window of seed, epoch, place and rank; the sizes of both
follow from memory_bytes. So a resumed run skips what is done without reading it, and decodes again only the window that
it was in. With another number of ranks than before, the rest of that one epoch is only about the rest: each rank's rows
begin elsewhere, and it skips as many as it would have done itself.

Memory: a quarter of what a rank may take is for the window in use, one for the next window, one for images on their
way (in Ray's object store), one for the batches at hand.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayapp.data.cache import NUM_NAMED, DecodedBatch, OnError
from rayapp.data.chunks import Chunk, Int64Array, SplitSource
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import ConfigError, DataError
from rayapp.runtime.decode import Decoder, image_bytes
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import Batch, Shard, mixed_seed

logger = logging.getLogger(__name__)

# Images of a piece. To read a piece of a row group, the group is read from its start, so that small pieces are read in
# vain; large ones shuffle badly, and a window should be of many.
PIECE_IMAGES, PIECES_OF_A_WINDOW = (64, 1024), 16


class StreamingLoader:
    """Batches of the images of part, shuffled within a window: a quarter of memory_bytes, or of a rank's epoch.

    Training batches (augment given) have batch_size images; each rank has equally many, and what is left over is
    dropped from this epoch. The place of a corrupt image is taken by the one before, or it is an error. Evaluation
    batches (augment None) keep the order and drop nothing but corrupt images, and may be smaller than asked for.
    To be made on all ranks before any of them takes a batch. Raises ConfigError where memory_bytes is too little.
    """

    def __init__(
        self,
        part: SplitSource,
        *,
        preprocess: PreprocessSpec,
        batch_size: int,
        device: torch.device,
        memory_bytes: int,
        on_error: OnError,
        augment: Augment | None = None,
        shard: Shard | None = None,
        seed: int = 0,
    ) -> None:
        self.shard = shard or Shard()
        self.device = device
        self.augment = augment
        self.seed = seed
        self.num_images = len(part.labels_n)
        self._rows = _share(self.num_images, self.shard, equal=augment is not None)
        fitting = memory_bytes // 4 // image_bytes(preprocess)
        # a data set smaller than one batch is one smaller batch, not none
        self.batch_size = max(1, min(batch_size, len(self._rows)))
        if augment and self.batch_size > fitting:
            needed_mb = -(-4 * self.batch_size * image_bytes(preprocess) // 2**20)
            raise ConfigError(
                f"data.memory_mb {memory_bytes // 2**20} is too little for batches of {self.batch_size} images of"
                f" {preprocess.height_px}x{preprocess.width_px} px; say {needed_mb} or more, or lower optim.batch_size"
            )
        self.batch_size = max(1, min(self.batch_size, fitting))
        # a quarter of an epoch at most, so that there is a next window to decode while one is trained on
        self._window_images = max(1, min(fitting, len(self._rows) // 4) // self.batch_size) * self.batch_size
        self._pieces = tuple(_pieces(part, int(np.clip(fitting // PIECES_OF_A_WINDOW, *PIECE_IMAGES))))
        self._spec, self._on_error = preprocess, on_error
        self._decoder = Decoder.create(preprocess, memory_bytes // 4, num_consumers=self.shard.world_size)

    def num_batches(self, samples_seen: int = 0) -> int:
        """Batches of this rank that are left in an epoch."""
        if not self.augment:
            return -(-len(self._rows) // self.batch_size)
        return len(self._rows) // self.batch_size - samples_seen // self.shard.world_size // self.batch_size

    def epoch(self, epoch: int, samples_seen: int = 0) -> Iterator[Batch]:
        """Those batches; the same epoch, samples_seen and world size give the same ones.

        Raises DataError on a corrupt image.
        """
        first = samples_seen // self.shard.world_size // self.batch_size * self.batch_size if self.augment else 0
        corrupt: list[str] = []
        stopped = threading.Event()
        windows = self._windows(epoch, first, corrupt, stopped)
        pool = ThreadPoolExecutor(1)
        try:
            coming = pool.submit(next, windows, None)
            while window := coming.result():
                coming = pool.submit(next, windows, None)
                yield from self._batches(window, epoch, first)
        finally:
            stopped.set()
            pool.shutdown(wait=False)  # as in data/cache.py: the garbage collector may come here, where waiting hangs
        if corrupt:
            names = "; ".join(corrupt[:NUM_NAMED]) + ("; ..." if len(corrupt) > NUM_NAMED else "")
            logger.warning("rank %d left out %d corrupt images: %s", self.shard.rank, len(corrupt), names)

    def _batches(self, window: _Window, epoch: int, first: int) -> Iterator[Batch]:
        """The window's batches from row first on."""
        generator = torch.Generator(self.device)
        for at in range(max(0, first - window.start), len(window.labels_n), self.batch_size):
            images_nhwc = self._placed(window.images_nhwc[at : at + self.batch_size])
            labels_n, targets_nk = self._placed(window.labels_n[at : at + self.batch_size]), None
            if self.augment:
                done = (window.start + at) * self.shard.world_size
                generator.manual_seed(mixed_seed((self.seed, epoch, done, self.shard.rank)))
                images_nhwc, targets_nk = self.augment(images_nhwc, labels_n, generator)
            yield Batch(images_nhwc, labels_n, targets_nk)

    def _placed(self, tensor: Tensor) -> Tensor:
        """A copy on the device, so that a batch that is kept does not keep its window.

        The copy to a GPU goes on while the GPU still works on the batch before.
        """
        on_gpu = self.device.type == "cuda"
        return (tensor.pin_memory() if on_gpu else tensor.clone()).to(self.device, non_blocking=on_gpu)

    def _windows(self, epoch: int, first: int, corrupt: list[str], stopped: threading.Event) -> Generator[_Window]:
        """The windows from the one with row first on, until stopped; names of corrupt images are added to corrupt."""
        bounds = [(start, end) for start, end in self._bounds() if end > first]
        if not bounds:
            return
        chunks = self._chunks(epoch, range(bounds[0][0], bounds[-1][1]))
        with closing(self._decoder.runs(chunks)) as runs:
            cut = _Cutter(runs)
            for start, end in bounds:
                filling = _Filling(self._places(epoch, start, end), self._spec)
                for run in cut.take(end - start):
                    if stopped.is_set():
                        return
                    if self._on_error == "fail" and any(run.problems):
                        raise DataError(_first_of(run.problems))
                    filling.add(run)
                corrupt += filter(None, filling.problems)
                yield filling.window(start, mend=self.augment is not None)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        """First row and end of each window; the first ones are smaller, so that training need not wait for long."""
        total = self.num_batches() * self.batch_size if self.augment else len(self._rows)
        size = max(1, self._window_images // 4 // self.batch_size) * self.batch_size
        start = 0
        while start < total:
            yield start, min(start + size, total)
            start, size = start + size, min(2 * size, self._window_images)

    def _chunks(self, epoch: int, rows: range) -> tuple[Chunk, ...]:
        """What holds these of the rank's rows, in the order of the epoch."""
        pieces = self._pieces
        if self.augment:
            rng = np.random.default_rng(mixed_seed((self.seed, epoch)))
            pieces = tuple(pieces[at] for at in rng.permutation(len(pieces)))
        return SplitSource(pieces).subset(self._rows.start + np.arange(rows.start, rows.stop)).chunks

    def _places(self, epoch: int, start: int, end: int) -> Int64Array:
        """The place in its window of each row from start to end."""
        if not self.augment:
            return np.arange(end - start)
        key = (self.seed, epoch, start * self.shard.world_size, self.shard.rank)
        return np.random.default_rng(mixed_seed(key)).permutation(end - start)


class _Window(NamedTuple):
    """Images in the order in which they are taken; start is the rank's row that the first of them stands for."""

    start: int
    images_nhwc: Tensor
    labels_n: Tensor


class _Filling:
    """A window while images come in; the next one goes to the next of places_n."""

    def __init__(self, places_n: Int64Array, spec: PreprocessSpec) -> None:
        self.problems: list[str] = []  # of each image that came in, as in Run
        self._places_n = places_n
        self._images_nhwc = np.empty((len(places_n), spec.height_px, spec.width_px, 3), dtype=np.uint8)
        self._labels_n = np.empty(len(places_n), dtype=np.int64)

    def add(self, run: DecodedBatch) -> None:
        """Copy the images of run."""
        at = self._places_n[len(self.problems) : len(self.problems) + len(run.problems)]
        self._images_nhwc[at] = run.images_nhwc
        self._labels_n[at] = run.labels_n
        self.problems += run.problems

    def window(self, start: int, *, mend: bool) -> _Window:
        """The window; in place of a corrupt image is the good one that came in before it, or none if mend is False.

        Raises DataError where there is no good one.
        """
        good_n = np.array([not problem for problem in self.problems])
        if mend and not good_n.any():
            raise DataError(f"none of {len(good_n)} images in a row can be decoded: {_first_of(self.problems)}")
        if mend:
            # the first good one serves those before it as well
            source_n = np.maximum.accumulate(np.where(good_n, np.arange(len(good_n)), good_n.argmax()))
            to, of = self._places_n[~good_n], self._places_n[source_n[~good_n]]
            self._images_nhwc[to], self._labels_n[to] = self._images_nhwc[of], self._labels_n[of]
        kept = slice(None) if mend or good_n.all() else self._places_n[good_n]
        return _Window(start, torch.from_numpy(self._images_nhwc[kept]), torch.from_numpy(self._labels_n[kept]))


class _Cutter:
    """A stream of runs, of which any number of images can be taken."""

    def __init__(self, runs: Iterator[DecodedBatch]) -> None:
        self._runs = runs
        self._rest: DecodedBatch | None = None

    def take(self, num_images: int) -> Iterator[DecodedBatch]:
        """The next num_images images, in runs."""
        while num_images:
            head, self._rest = (self._rest or next(self._runs)).cut(num_images)
            num_images -= len(head.labels_n)
            yield head


def _share(num_images: int, shard: Shard, *, equal: bool) -> range:
    """The rows of one rank, in a sequence of num_images."""
    if equal:
        each = num_images // shard.world_size
        return range(shard.rank * each, (shard.rank + 1) * each)
    return range(shard.rank * num_images // shard.world_size, (shard.rank + 1) * num_images // shard.world_size)


def _pieces(part: SplitSource, num_images: int) -> Iterator[Chunk]:
    """The chunks of part, those with more than num_images in several."""
    for chunk in part.chunks:
        for rows_n in np.array_split(np.arange(len(chunk)), -(-len(chunk) // num_images)):
            yield chunk.subset(rows_n)


def _first_of(problems: list[str]) -> str:
    return f"{next(filter(None, problems))}; replace it, or leave such images out with --data.on_error skip"
