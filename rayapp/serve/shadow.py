"""Shadow: a sampled copy of the traffic goes to the challenger after the answer is sent, and nobody waits for it.

It takes the model only while that has nothing else to do. A copy that finds no such moment in time is dropped and
counted: under load the copies go first.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Any

from prometheus_client.core import Metric, Sample

from rayapp.config.serve import ServeArgs
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import LoadedModel, Prediction, Replica
from rayapp.vision.predictor import Float32Array

MAX_WAITING = 64  # copies; each holds the files of one request
MAX_BYTES = 64 * 2**20  # of all of them
MAX_AGE_S = 1.0
PAUSE_S = 0.005  # between two looks whether the model is idle

log = logging.getLogger(__name__)


class Shadow:
    """Sends copies of a replica's requests to its second model."""

    def __init__(self, replica: Replica, args: ServeArgs, metrics: Metrics) -> None:
        self._replica = replica
        self._fraction = args.shadow.fraction
        self._most = args.max_batch  # images of a request: more would keep the model from the champion's next
        self._metrics = metrics.shadow
        self._max_pixels = args.max_image_pixels
        self._waiting: deque[tuple[float, Prediction, Sequence[bytes]]] = deque()
        self._num_bytes = 0
        self._runner: asyncio.Task[None] | None = None
        self._failing: str | None = None  # the version

    def offer(self, predicted: Prediction, files: Sequence[bytes]) -> None:
        """Take a copy of an answered request, if it is drawn and there is room. Never waits."""
        if self._replica.second is None or random.random() >= self._fraction:  # noqa: S311 - no secret
            return
        predicted, files = predicted.first(self._most), files[: self._most]
        num_bytes = _size(predicted, files)
        if len(self._waiting) >= MAX_WAITING or self._num_bytes + num_bytes > MAX_BYTES:
            self._metrics.dropped.inc(len(files))
            return
        self._num_bytes += num_bytes
        self._waiting.append((monotonic(), predicted, files))
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(PAUSE_S)
                if self._replica.batcher.idle or monotonic() - self._waiting[0][0] > MAX_AGE_S:
                    came, predicted, files = self._waiting.popleft()
                    self._num_bytes -= _size(predicted, files)
                    if self._replica.second is None or monotonic() - came > MAX_AGE_S:
                        self._metrics.dropped.inc(len(files))
                    else:
                        await self._compare(predicted, files, self._replica.second)
        finally:
            self._runner = None

    async def _compare(self, predicted: Prediction, files: Sequence[bytes], challenger: LoadedModel) -> None:
        if challenger.predictor is predicted.served.predictor:  # the canary answered it already
            return
        started = perf_counter()
        copy = asyncio.ensure_future(self._ask(predicted, files, challenger))
        await asyncio.wait([copy])
        if (error := copy.exception()) is not None:
            self._metrics.failed.inc(len(files))
            if self._failing != challenger.label:  # once, not for every copy
                # a text, for whoever keeps the error keeps the model that is in its traceback
                log.error("shadow fails version=%s reason=%s", challenger.label, repr(error))
            self._failing = challenger.label
            return
        self._failing = None
        pair = predicted.served.label, challenger.label
        self._metrics.seconds.labels(*pair).observe(perf_counter() - started)
        for agrees in ("true", "false"):  # both are there from the first copy on
            self._metrics.images.labels(*pair, agrees)
        for ours, theirs in zip(predicted.rows, copy.result(), strict=True):
            same = _winner(predicted.served, ours) == _winner(challenger, theirs)
            self._metrics.images.labels(*pair, str(same).lower()).inc()
            self._metrics.shift.labels(*pair).observe(float(theirs.max() - ours.max()))

    async def _ask(self, predicted: Prediction, files: Sequence[bytes], challenger: LoadedModel) -> list[Float32Array]:
        images = predicted.images
        if challenger.spec != predicted.served.spec:
            images = await asyncio.to_thread(challenger.decode, files, self._max_pixels)
        return await self._replica.batcher.submit(challenger.predictor, images)


def _size(predicted: Prediction, files: Sequence[bytes]) -> int:
    return sum(map(len, files)) + sum(image.nbytes for image in predicted.images)


def _winner(served: LoadedModel, row_k: Float32Array) -> str:
    return served.class_names[int(row_k.argmax())]


def report(replicas: Mapping[str, Iterable[Metric]]) -> dict[str, Any]:
    """What /shadow tells: for each pair of versions, over all replicas, how they compare.

    images copied, agreement (0-1), mean_confidence_shift (challenger less champion, -1 to 1), mean_seconds of the
    challenger for a request; and the images that were dropped under load or failed.
    """
    samples = [s for families in replicas.values() for family in families for s in family.samples]
    pairs = sorted({_pair(s) for s in samples if s.name == "rayapp_shadow_images_total"})
    return {
        "pairs": [_compared(pair, samples) for pair in pairs],
        "dropped_images": int(_sum(samples, "rayapp_shadow_dropped_images_total")),
        "failed_images": int(_sum(samples, "rayapp_shadow_failed_images_total")),
    }


def _compared(pair: tuple[str, str], samples: Sequence[Sample]) -> dict[str, Any]:
    own = [s for s in samples if s.name.startswith("rayapp_shadow_") and _pair(s) == pair]
    images = _sum(own, "rayapp_shadow_images_total")
    agreeing = _sum((s for s in own if s.labels.get("agrees") == "true"), "rayapp_shadow_images_total")
    shift = _sum(own, "rayapp_shadow_confidence_shift_sum") / images
    seconds = _sum(own, "rayapp_shadow_seconds_sum") / _sum(own, "rayapp_shadow_seconds_count")
    return {
        "champion_version": pair[0],
        "challenger_version": pair[1],
        "images": int(images),
        "agreement": agreeing / images,
        "mean_confidence_shift": shift,
        "mean_seconds": seconds,
    }


def _pair(sample: Sample) -> tuple[str, str]:
    return sample.labels.get("champion_version", ""), sample.labels.get("challenger_version", "")


def _sum(samples: Iterable[Sample], name: str) -> float:
    return sum(s.value for s in samples if s.name == name)
