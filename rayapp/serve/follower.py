"""Follower: loads what the rollout wants beside what this replica serves, and takes it when it is told to."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rayapp.config.serve import ServeArgs
from rayapp.errors import BundleError, RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.uris import ModelVersion
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import LoadedModel, Replica
from rayapp.serve.rollout import Refusal, ReplicaStatus, result_or_error, to_refusal, unknown_error
from rayapp.storage import atomic_write
from rayapp.vision.predictor import Predictor

VERSION = TypeAdapter(ModelVersion)
MAX_PAUSE_S = 15.0  # between two attempts to start: what has come right serves half a minute later, its load included

T = TypeVar("T")
log = logging.getLogger(__name__)


async def once_possible(attempt: Callable[[], Awaitable[T]], *passing: type[Exception]) -> T:
    """What attempt gives, tried again for as long as it fails for what may come right without us: errors of passing.

    KubeRay submits no configuration twice: a service whose start has failed is down until somebody deletes it.
    """
    pause_s = MAX_PAUSE_S / 16
    while True:
        try:
            return await attempt()
        except passing as error:
            log.error("not ready retry_in_s=%.1f reason=%s", pause_s, error)
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_PAUSE_S, 2 * pause_s)


def prepare(registry: Registry, version: ModelVersion, cache: Path, args: ServeArgs) -> LoadedModel:
    """The model of version, downloaded into cache (or found there), verified, loaded and warm.

    Raises RegistryError, BundleError or ConfigError (no such device here).
    """
    predictor = Predictor.load(registry.download(version, cache), device=args.device, num_threads=args.num_threads)
    warm(predictor, args.max_batch)
    return LoadedModel(predictor, version, registry.metadata(version))


def first_served(
    registry: Registry, wanted: ModelVersion | None, last: LastServed, cache: Path, args: ServeArgs
) -> LoadedModel:
    """The model that a new replica begins with: wanted (what the others serve), else what args.model means now.

    Where that cannot be had, be it MLflow, the bundle or the disk, it is what this machine served last.
    Raises RegistryError, BundleError or ConfigError where there is nothing to go back to.
    """
    try:
        return prepare(registry, wanted or registry.resolve(args.model), cache, args)
    except (RegistryError, BundleError, OSError) as error:
        found = last.read(args.model)
        if found is None:
            raise
        version, metadata = found
        log.error("starting with the last model served version=%s reason=%s", version.version, error)
        predictor = Predictor.load(registry.download(version, cache), device=args.device, num_threads=args.num_threads)
        warm(predictor, args.max_batch)
        return LoadedModel(predictor, version, metadata)


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


class Follower:
    """One replica's part of a rollout. It holds two models at most: a new one takes the place of the second."""

    def __init__(
        self, replica: Replica, registry: Registry, cache: Path, args: ServeArgs, metrics: Metrics, last: LastServed
    ) -> None:
        self._replica = replica
        self._registry = registry
        self._cache = cache
        self._args = args
        self._metrics = metrics
        self._last = last
        self._ready: LoadedModel | None = None  # prepared, and not yet taken
        self._loading = asyncio.Lock()  # a coordinator that starts anew asks again while the first load runs
        metrics.alias_resolved(True)
        self._tell_served()
        last.write(args.model, replica.served.version, replica.served.metadata)

    def poll(self, *, resolved: bool, refused: Refusal | None) -> ReplicaStatus:
        """What is served; the gauges say whether the alias was resolved and which version is refused."""
        self._metrics.alias_resolved(resolved)
        if refused:
            self._metrics.rollout_failed(refused.version, refused.kind)
        elif resolved:
            self._metrics.rollout_fine()
        second = self._replica.second
        return ReplicaStatus(self._replica.served.version, second.version if second else None)

    async def prepare(self, version: ModelVersion) -> Refusal | None:
        """None once version can be taken; otherwise why it cannot, and nothing has changed."""
        async with self._loading:
            loaded = self._loaded(version)
            if loaded is None:
                served, error = await self._load(version)
            else:  # its role may be new, and so what is said of it
                metadata, error = await result_or_error(self._registry.metadata, version)
                served = replace(loaded, version=version, metadata=metadata) if metadata is not None else None
        if served is None:
            assert error is not None
            log.error(
                "model refused version=%s serving_on=%s reason=%s",
                version.version, self._replica.served.label, error, exc_info=unknown_error(error),
            )  # fmt: skip
            self._metrics.refused(str(version.version), type(error).__name__)
            return to_refusal(version, error)
        self._ready = served
        return None

    async def _load(self, version: ModelVersion) -> tuple[LoadedModel | None, BaseException | None]:
        """The model of version beside the champion, or why there is none; at most two models are ever in memory."""
        _, error = await result_or_error(self._registry.download, version, self._cache)
        if error is not None:
            return None, error
        self._ready = None
        if self._replica.second is not None:
            self._replica.swap(self._replica.served)
            self._tell_served()
        return await result_or_error(prepare, self._registry, version, self._cache, self._args)

    def commit(self, champion: ModelVersion, second: ModelVersion | None) -> None:
        """Serve champion, and second beside it, from the next request on. What is not ready here stays as it is."""
        taken = self._loaded(champion)
        if taken is None:
            log.warning("not ready version=%s: the next look of the rollout prepares it", champion.version)
            return
        before = self._replica.served
        self._replica.swap(taken, self._loaded(second) if second else None)
        self._ready = None
        self._tell_served()
        self._metrics.rollout_fine()
        if taken.version.uri != before.version.uri:
            self._metrics.swapped()
            log.info("model exchanged version=%s before=%s", taken.label, before.label)
        self._last.write(self._args.model, taken.version, taken.metadata)

    def _loaded(self, version: ModelVersion) -> LoadedModel | None:
        """The model of version, if it is in memory; what was made ready goes before what is served."""
        models = (self._ready, self._replica.served, self._replica.second)
        return next((one for one in models if one is not None and one.version.uri == version.uri), None)

    def _tell_served(self) -> None:
        served, second = self._replica.served, self._replica.second
        self._metrics.serves(served.label, served.digest, (second.label, second.digest) if second else None)


class LastServed:
    """One file beside the downloaded bundles: model URI -> the version that it meant, and what is said of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last_served.json"

    def read(self, model: str) -> tuple[ModelVersion, dict[str, Any]] | None:
        """What was served last under a model URI; None where nothing was, or the note is damaged."""
        found = self._notes().get(model)
        if not isinstance(found, dict):
            return None
        try:
            return VERSION.validate_python(found["version"]), dict(found["metadata"])
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            log.warning("cannot use %s: %s", self._path, " ".join(str(error).split()))
            return None

    def write(self, model: str, version: ModelVersion, metadata: Mapping[str, Any]) -> None:
        """Note what is served from now on. A note that cannot be written is logged: serving goes on without."""
        note = {"version": VERSION.dump_python(version, mode="json"), "metadata": dict(metadata)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, json.dumps({**self._notes(), model: note}))
        except OSError as error:
            log.warning("cannot note the served model in %s: %s", self._path, error)

    def _notes(self) -> dict[str, Any]:
        try:
            notes = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: the next write replaces it
            return {}
        return notes if isinstance(notes, dict) else {}
