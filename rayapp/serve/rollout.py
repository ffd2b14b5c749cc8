"""Follows the alias: loads the version that it names beside the old one, then exchanges one reference.

A version that cannot be downloaded, verified, loaded or warmed changes nothing for clients, and neither does a registry
that does not answer: the old model serves on, a log line and a gauge of /metrics say why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from rayapp.config import ServeArgs
from rayapp.errors import BundleError, RayAppError
from rayapp.registry.models import Registry
from rayapp.registry.names import ModelVersion
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Replica, Served
from rayapp.vision.predictor import Predictor

MAX_RETRY_S = 60.0  # between two attempts at a version that fails; the alias itself is looked at every poll_s

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


def prepare(registry: Registry, version: ModelVersion, cache: Path, args: ServeArgs) -> Served:
    """The model of version, downloaded into cache (or found there), verified, loaded and warm.

    Raises RegistryError, BundleError or ConfigError (no such device here).
    """
    predictor = Predictor.load(registry.download(version, cache), device=args.device, num_threads=args.num_threads)
    warm(predictor, args.max_batch)
    return Served(predictor, version, registry.metadata(version))


def warm(predictor: Predictor, max_batch: int) -> None:
    """Run the smallest and the largest batch, so that no request pays for the first run.

    Raises BundleError where what comes out is not one probability a class.
    """
    manifest = predictor.bundle.manifest
    spec, num_classes = manifest.preprocess, len(manifest.class_names)
    for size in (1, max_batch):
        probabilities_nk = predictor.predict(np.full((size, spec.height_px, spec.width_px, 3), 128, dtype=np.uint8))
        if probabilities_nk.shape != (size, num_classes) or not np.isfinite(probabilities_nk).all():
            raise BundleError(
                f"the model of {predictor.bundle.folder} gives {probabilities_nk.shape} for {size} images of"
                f" {num_classes} classes, or no finite numbers; train it again"
            )


class Rollout:
    """Keeps a replica on the version that an alias names."""

    def __init__(self, replica: Replica, registry: Registry, cache: Path, args: ServeArgs, metrics: Metrics) -> None:
        self._replica = replica
        self._registry = registry
        self._cache = cache
        self._args = args
        self._metrics = metrics
        self._refused: ModelVersion | None = None  # the version that failed last
        self._retry_at = 0.0  # time.monotonic() of the next attempt at it
        self._pause_s = 0.0
        self._reached = True
        metrics.alias_resolved(True)
        self._tell_served()

    async def follow(self) -> None:
        """Looks at the alias every poll_s, for ever. Returns at once where the model is not named by an alias."""
        if self._replica.served.version.alias is None:
            return
        while True:
            await asyncio.sleep(self._args.poll_s)
            await self.look()

    async def look(self) -> None:
        """One look at the alias, and the exchange if it names another version."""
        wanted, error = await _outcome(self._registry.resolve, self._args.model)
        self._tell_reached(error)
        if wanted is None:
            return
        if wanted.uri == self._replica.served.version.uri:
            self._refused, self._pause_s = None, 0.0
            self._metrics.rollout_fine()
            return
        if self._refused is not None and self._refused.uri == wanted.uri and time.monotonic() < self._retry_at:
            return
        started = time.monotonic()
        served, error = await _outcome(prepare, self._registry, wanted, self._cache, self._args)
        if served is None:
            self._refuse(wanted, error)
            return
        before = self._replica.served.label
        self._replica.exchange(served)
        self._refused, self._pause_s = None, 0.0
        self._tell_served()
        log.info("model exchanged version=%s before=%s seconds=%.1f", served.label, before, time.monotonic() - started)

    def _refuse(self, wanted: ModelVersion, error: BaseException | None) -> None:
        same = self._refused is not None and self._refused.uri == wanted.uri
        self._pause_s = min(MAX_RETRY_S, 2 * self._pause_s if same else self._args.poll_s)
        self._refused, self._retry_at = wanted, time.monotonic() + self._pause_s
        self._metrics.rollout_failed(str(wanted.version), type(error).__name__)
        log.error(
            "model refused version=%s serving_on=%s retry_in_s=%.0f reason=%s", wanted.version,
            self._replica.served.label, self._pause_s, error, exc_info=_unknown(error),
        )  # fmt: skip

    def _tell_reached(self, error: BaseException | None) -> None:
        """Says once that the registry is lost, and once that it is back."""
        if error is not None and self._reached:
            log.error(
                "alias not resolved model=%s serving_on=%s reason=%s", self._args.model,
                self._replica.served.label, error, exc_info=_unknown(error),
            )  # fmt: skip
        if error is None and not self._reached:
            log.info("alias resolved again model=%s", self._args.model)
        self._reached = error is None
        self._metrics.alias_resolved(self._reached)

    def _tell_served(self) -> None:
        served = self._replica.served
        self._metrics.serves(served.label, served.digest)


async def _outcome(
    function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> tuple[R | None, BaseException | None]:
    """What function returned in a thread, or what it raised: whatever that is, the old model has to serve on."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    await asyncio.wait([work])
    error = work.exception()
    return (work.result(), None) if error is None else (None, error)


def _unknown(error: BaseException | None) -> BaseException | None:
    """The error if it is not one of ours, so that its traceback is logged."""
    return None if isinstance(error, RayAppError | OSError) else error
