"""Batcher: images of concurrent requests go through the model together, one model a batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from rayapp.data.preprocess import UInt8Array
from rayapp.vision.predictor import Float32Array, Predictor


@dataclass(eq=False, slots=True)
class _Group:
    """The images of one request; they may go in several batches and are answered together."""

    predictor: Predictor
    images: Sequence[UInt8Array]
    rows: asyncio.Future[list[Float32Array]]
    done: list[Float32Array] = field(default_factory=list)


class Batcher:
    """Takes images of concurrent requests through the model together.

    While the model works, what arrives gathers for the next batch. An idle model waits, max_wait_s at most, only for
    images that are known to come (they are being decoded): a lone request never waits.
    """

    def __init__(self, *, max_batch: int, max_wait_s: float, ran: Callable[[int, float], None] | None = None) -> None:
        """ran is told the size of each batch and the seconds that the model took."""
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._ran = ran
        self._waiting: deque[tuple[_Group, UInt8Array]] = deque()
        self._num_expected = 0
        self._enough = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def idle(self) -> bool:
        """Whether the model has nothing to do."""
        return self._runner is None

    @contextmanager
    def expecting(self, num_images: int) -> Iterator[None]:
        """Inside the with block num_images are on their way to submit()."""
        self._num_expected += num_images
        try:
            yield
        finally:
            self._num_expected -= num_images
            if not self._num_expected:
                self._enough.set()

    async def submit(self, predictor: Predictor, images: Sequence[UInt8Array]) -> list[Float32Array]:
        """The probabilities (K,) of images, in order; whatever the model raises is raised here."""
        assert images, "an empty group would never be answered"
        loop = asyncio.get_running_loop()
        group = _Group(predictor, images, loop.create_future())
        self._waiting.extend((group, image_hwc) for image_hwc in images)
        if len(self._waiting) >= self._max_batch:
            self._enough.set()
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await group.rows

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gather_more()
                if batch := self._take():
                    await self._answer(batch)
        finally:
            self._runner = None

    async def _gather_more(self) -> None:
        if not self._num_expected or len(self._waiting) >= self._max_batch:
            return
        self._enough.clear()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._enough.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[tuple[_Group, UInt8Array]]:
        """The next images that go together: of one model, none whose request has gone or failed."""
        batch: list[tuple[_Group, UInt8Array]] = []
        while self._waiting and len(batch) < self._max_batch:
            if batch and self._waiting[0][0].predictor is not batch[0][0].predictor:
                break  # the model was exchanged: never both in one batch
            item = self._waiting.popleft()
            if not item[0].rows.done():
                batch.append(item)
        return batch

    async def _answer(self, batch: Sequence[tuple[_Group, UInt8Array]]) -> None:
        started = perf_counter()
        images, predictor = [image_hwc for _, image_hwc in batch], batch[0][0].predictor
        work = asyncio.get_running_loop().run_in_executor(self._thread, _predict, predictor, images)
        await asyncio.wait([work])
        if self._ran:
            self._ran(len(batch), perf_counter() - started)
        error = work.exception()
        for at, (group, _) in enumerate(batch):
            if group.rows.done():  # the request has gone meanwhile, or an image before failed
                continue
            if error is not None:
                group.rows.set_exception(error)
                continue
            group.done.append(work.result()[at])
            if len(group.done) == len(group.images):
                group.rows.set_result(group.done)

    def close(self) -> None:
        """End the model's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _predict(predictor: Predictor, images: Sequence[UInt8Array]) -> Float32Array:
    return predictor.predict(np.stack(images))
