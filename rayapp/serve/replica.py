"""Replica: one model that answers many requests at once, and can be exchanged for another between two of them.

Images are decoded (small ones at once, others in threads), gathered into batches by what arrives together, and taken
through the model in a thread of its own; the event loop only waits. Nothing here knows Ray or HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any, TypeVar

from rayapp.config.serve import ServeArgs
from rayapp.data.preprocess import PreprocessSpec, UInt8Array, peek_image
from rayapp.errors import ImageError, RequestError
from rayapp.registry.uris import ModelVersion
from rayapp.serve.batcher import Batcher
from rayapp.serve.metrics import Metrics
from rayapp.vision.predictor import Float32Array, Predictor

REQUEST_PIXELS = 10  # images of the largest size that a request may hold: more would keep a thread for minutes
MAX_DECODERS = 4  # threads; each may hold one decoded image of max_image_pixels
# What is decoded on the event loop: 0.03 ms for 32x32 pixels, where the way to a thread and back costs 0.1 ms, and 2 ms
# for this many. Files made to be slow (thousands of empty JPEG scans) take 0.15 s at this size, and more at a larger.
SMALL_FILES, SMALL_BYTES, SMALL_PIXELS = 16, 24 * 2**10, 2**17

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model and all that is said about it. A request takes one reference to it and asks nobody else."""

    predictor: Predictor
    version: ModelVersion
    metadata: Mapping[str, Any]  # the contract's model_metadata

    @property
    def class_names(self) -> tuple[str, ...]:
        """The words for the columns of the probabilities."""
        return self.predictor.bundle.manifest.class_names

    @property
    def spec(self) -> PreprocessSpec:
        """How its images are prepared."""
        return self.predictor.bundle.manifest.preprocess

    @cached_property
    def label(self) -> str:
        """The version as people say it: its number, or the run's id where it is not registered."""
        return self.version.run_id if self.version.version is None else str(self.version.version)

    @property
    def digest(self) -> str:
        """The digest of the bundle: two versions that are the same model have the same."""
        return self.predictor.bundle.digest

    @cached_property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Which model answered, for clients and for whoever reads their logs."""
        return (b"x-model-version", self.label.encode()), (b"x-model-digest", self.digest.encode())

    def info(self) -> dict[str, Any]:
        """The answer of get_model_info."""
        return {
            "model_metadata": {**self.metadata, "bundle_digest": self.digest},
            "device": self.predictor.device,
            "classes": list(self.class_names),
            "num_classes": len(self.class_names),
        }

    def decode(
        self, files: Sequence[bytes], max_pixels: int, wanted: Callable[[], bool] = lambda: True
    ) -> list[UInt8Array]:
        """The images of files as the model takes them. Raises ImageError that says which of several is bad.

        All of them may hold REQUEST_PIXELS times max_pixels together. Before each, wanted is asked whether anybody
        still waits; once it says no, the rest is left out.
        """
        images = _map_while(lambda data: peek_image(data, max_pixels=max_pixels), files, wanted)
        if (pixels := sum(image.width * image.height for image in images)) > REQUEST_PIXELS * max_pixels:
            limit = REQUEST_PIXELS * max_pixels
            raise ImageError(
                f"the images hold {pixels} pixels together, more than the limit of {limit}; send fewer", 413
            )
        return _map_while(self.spec.from_image, images, wanted)

    def decode_small(self, files: Sequence[bytes], max_pixels: int) -> list[UInt8Array] | None:
        """The same where all files together are small; None where they are not, which costs next to nothing."""
        if len(files) > SMALL_FILES or sum(map(len, files)) > SMALL_BYTES:
            return None
        images = _map_while(lambda data: peek_image(data, max_pixels=max_pixels), files)
        if sum(image.width * image.height for image in images) > SMALL_PIXELS:
            return None
        return _map_while(self.spec.from_image, images)


def _map_while(function: Callable[[T], R], items: Sequence[T], wanted: Callable[[], bool] = lambda: True) -> list[R]:
    """What function makes of each item; an ImageError says which of several it is about."""
    results: list[R] = []
    for at, item in enumerate(items):
        if not wanted():
            return results
        try:
            results.append(function(item))
        except ImageError as error:
            where = f"image {at + 1} of {len(items)}: " if len(items) > 1 else ""
            raise ImageError(f"{where}{error}", error.status) from error
    return results


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """What a model said of one request: its decoded images (H, W, 3) and their probabilities (K,), in order."""

    served: LoadedModel
    images: list[UInt8Array]
    rows: list[Float32Array]
    seconds: float  # in the queue and the model

    def first(self, count: int) -> Prediction:
        """What was said of the first images of the request."""
        return self if len(self.images) <= count else replace(self, images=self.images[:count], rows=self.rows[:count])


class Replica:
    """Probabilities for encoded images, from the models that are served at the moment."""

    def __init__(self, served: LoadedModel, args: ServeArgs, metrics: Metrics) -> None:
        self._served = served
        self._second: LoadedModel | None = None
        self._args = args
        self._metrics = metrics
        self.batcher = Batcher(
            max_batch=args.max_batch, max_wait_s=args.max_wait_ms / 1000, ran=self._metrics.batch_ran
        )
        self._decoders = ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")
        self._num_queued = 0
        self._metrics.watch_queue(lambda: self._num_queued)

    @property
    def served(self) -> LoadedModel:
        """The champion, for requests that begin now."""
        return self._served

    @property
    def second(self) -> LoadedModel | None:
        """The model beside it that shadow or canary want, once it is there."""
        return self._second

    @property
    def num_queued(self) -> int:
        """Images that wait for their answer."""
        return self._num_queued

    def swap(self, served: LoadedModel, second: LoadedModel | None = None) -> None:
        """Serve other models from the next request on; those under way finish with theirs."""
        self._served, self._second = served, second

    def route(self, key: bytes) -> LoadedModel:
        """The model that answers a client: the canary's for canary.fraction of all keys, always the same ones."""
        canary = self._second
        if canary is None or not self._args.canary.fraction:
            return self._served
        # the version is part of it, so that another canary meets other clients
        point = int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=canary.label.encode()[:16]).digest())
        return canary if point < self._args.canary.fraction * 2**64 else self._served

    def check_room(self) -> None:
        """Raises RequestError (503) while the queue is full. A large batch is no reason: it would never get in."""
        if self._num_queued >= self._args.max_queue:
            raise RequestError(
                f"the server is busy: {self._num_queued} images wait already (limit {self._args.max_queue}); try again",
                status=503,
            )

    async def predict(self, served: LoadedModel, files: Sequence[bytes]) -> Prediction:
        """What served says of files. Raises ImageError (4xx), or RequestError (503) if the queue is full."""
        self.check_room()
        self._num_queued += len(files)
        try:
            images = await self._decode(served, files)
            started = perf_counter()
            rows = await self.batcher.submit(served.predictor, images)
            return Prediction(served, images, rows, perf_counter() - started)
        finally:
            self._num_queued -= len(files)

    async def _decode(self, served: LoadedModel, files: Sequence[bytes]) -> list[UInt8Array]:
        started, max_pixels = perf_counter(), self._args.max_image_pixels
        images = served.decode_small(files, max_pixels)
        if images is None:
            images = await self._decode_in_thread(served, files)
        self._metrics.decoded(perf_counter() - started)
        return images

    async def _decode_in_thread(self, served: LoadedModel, files: Sequence[bytes]) -> list[UInt8Array]:
        gone = threading.Event()  # a thread cannot be stopped, but asked
        loop, max_pixels = asyncio.get_running_loop(), self._args.max_image_pixels
        try:
            with self.batcher.expecting(len(files)):
                return await loop.run_in_executor(
                    self._decoders, served.decode, files, max_pixels, lambda: not gone.is_set()
                )
        finally:
            gone.set()

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()
