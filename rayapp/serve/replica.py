"""Replica: one model that answers many requests at once, and can be exchanged for another between two of them.

Images are decoded in threads, gathered into batches by what arrives together, and taken through the model in a thread
of its own; the event loop only waits. Nothing here knows Ray or HTTP.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayapp.config import ServeArgs
from rayapp.errors import ImageError, RequestError
from rayapp.registry.names import ModelVersion
from rayapp.vision.predictor import Float32Array, Predictor
from rayapp.vision.preprocess import UInt8Array

MAX_DECODERS = 4  # threads; each may hold one decoded image of max_image_pixels


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded model and all that is said about it. A request takes one reference to it and asks nobody else."""

    predictor: Predictor
    version: ModelVersion
    metadata: Mapping[str, Any]  # the contract's model_metadata

    @property
    def class_names(self) -> tuple[str, ...]:
        """The words for the columns of the probabilities."""
        return self.predictor.bundle.manifest.class_names

    @property
    def label(self) -> str:
        """The version as people say it: its number, or the run's id where it is not registered."""
        return self.version.run_id if self.version.version is None else str(self.version.version)

    @property
    def digest(self) -> str:
        """The digest of the bundle: two versions that are the same model have the same."""
        return self.predictor.bundle.digest

    def info(self) -> dict[str, Any]:
        """The answer of get_model_info."""
        return {
            "model_metadata": {**self.metadata, "bundle_digest": self.digest},
            "device": self.predictor.device,
            "classes": list(self.class_names),
            "num_classes": len(self.class_names),
        }

    def decode(self, files: Sequence[bytes], max_pixels: int) -> list[UInt8Array]:
        """The images of files as the model takes them. Raises ImageError that says which of several is bad."""
        spec = self.predictor.bundle.manifest.preprocess
        images = []
        for at, data in enumerate(files):
            try:
                images.append(spec.decode(data, max_pixels=max_pixels))
            except ImageError as error:
                where = f"image {at + 1} of {len(files)}: " if len(files) > 1 else ""
                raise ImageError(f"{where}{error}", error.status) from error
        return images


class Replica:
    """Probabilities for encoded images, from the model that is served at the moment."""

    def __init__(self, served: Served, args: ServeArgs) -> None:
        self._served = served
        self._args = args
        self._batcher = Batcher(max_batch=args.max_batch, max_wait_s=args.max_wait_ms / 1000)
        self._decoders = ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
        self._num_queued = 0

    @property
    def served(self) -> Served:
        """The model for requests that begin now."""
        return self._served

    @property
    def num_queued(self) -> int:
        """Images that wait for their answer."""
        return self._num_queued

    def exchange(self, served: Served) -> None:
        """Serve another model from the next request on; those under way finish with theirs."""
        self._served = served

    def check_room(self, num_images: int) -> None:
        """Raises RequestError (503) where num_images more would not fit into the queue. An idle replica takes any."""
        if self._num_queued and self._num_queued + num_images > self._args.max_queue:
            raise RequestError(
                f"the server is busy: {self._num_queued} images wait already (limit {self._args.max_queue}); try again",
                status=503,
            )

    async def predict(self, served: Served, files: Sequence[bytes]) -> list[Float32Array]:
        """The probabilities (K,) of each file, in order. Raises ImageError (4xx), or RequestError (503) if full."""
        self.check_room(len(files))
        self._num_queued += len(files)
        try:
            with self._batcher.expecting(len(files)):
                images = await asyncio.get_running_loop().run_in_executor(
                    self._decoders, served.decode, files, self._args.max_image_pixels
                )
            return await self._batcher.submit(served, images)
        finally:
            self._num_queued -= len(files)

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._batcher.close()


@dataclass(frozen=True, eq=False, slots=True)
class _Item:
    served: Served
    image_hwc: UInt8Array
    row_k: asyncio.Future[Float32Array]


class Batcher:
    """Takes images of concurrent requests through the model together.

    While the model works, what arrives gathers for the next batch. An idle model waits, max_wait_s at most, only for
    images that are known to come (they are being decoded): a lone request never waits.
    """

    def __init__(self, *, max_batch: int, max_wait_s: float) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._waiting: deque[_Item] = deque()
        self._num_expected = 0
        self._enough = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

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

    async def submit(self, served: Served, images: Sequence[UInt8Array]) -> list[Float32Array]:
        """The probabilities of images, in order; whatever the model raises is raised here."""
        loop = asyncio.get_running_loop()
        items = [_Item(served, image_hwc, loop.create_future()) for image_hwc in images]
        self._waiting.extend(items)
        if len(self._waiting) >= self._max_batch:
            self._enough.set()
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await asyncio.gather(*(item.row_k for item in items))

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

    def _take(self) -> list[_Item]:
        """The next images that go together: of one model, none whose request has gone."""
        batch: list[_Item] = []
        while self._waiting and len(batch) < self._max_batch:
            if batch and self._waiting[0].served is not batch[0].served:
                break  # the model was exchanged: never both in one batch
            item = self._waiting.popleft()
            if not item.row_k.done():
                batch.append(item)
        return batch

    async def _answer(self, batch: list[_Item]) -> None:
        images_nhwc = np.stack([item.image_hwc for item in batch])
        work = asyncio.get_running_loop().run_in_executor(self._thread, batch[0].served.predictor.predict, images_nhwc)
        await asyncio.wait([work])
        error = work.exception()
        for at, item in enumerate(batch):
            if item.row_k.done():  # the request has gone meanwhile
                continue
            if error is None:
                item.row_k.set_result(work.result()[at])
            else:
                item.row_k.set_exception(error)

    def close(self) -> None:
        """End the model's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
