"""batch-predict: every image of a folder or bucket through one model, its predictions as Parquet."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from rayapp.batch.output import PART_IMAGES, Count, Output
from rayapp.batch.pipeline import SCHEMA, Pipeline
from rayapp.config.commands import BatchPredictSettings
from rayapp.config.env import Home
from rayapp.data.chunks import SplitSource
from rayapp.data.unlabelled import Unlabelled, unlabelled
from rayapp.errors import ConfigError
from rayapp.registry.models import ModelVersion, Registry
from rayapp.runtime.progress import ProgressActor, format_duration, live_progress, print_line
from rayapp.runtime.start import ray_cluster
from rayapp.storage import is_remote
from rayapp.vision.bundle import GRAPH, WEIGHTS, Bundle

log = logging.getLogger(__name__)
NUM_NAMED = 5  # images that could not be decoded, in messages


@dataclass(frozen=True)
class BatchPrediction:
    """What was predicted: what the last line of stdout says. images: failed and resumed ones included."""

    model_uri: str
    model_version: int | None
    bundle_digest: str
    images: int
    failed: int  # not decoded: their rows say why
    resumed: int  # predicted by an earlier run that was cut off
    output: str
    source: str
    seconds: float
    images_per_s: float  # of this run, from the first process that starts to the last part that is written
    device: str
    num_workers: int

    def to_dict(self) -> dict[str, Any]:
        """The fields that scripts rely on."""
        return asdict(self)


def batch_predict(settings: BatchPredictSettings, home: Home, console: Console | None = None) -> BatchPrediction:
    """The predictions of all images of settings.data, written to settings.output.

    What can be wrong is checked before Ray starts. One image that cannot be decoded is a row that says so. A run that
    is cut off leaves its parts; the same command goes on from them. Raises a RayAppError.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    output = Output(settings.output)
    output.check(overwrite=settings.overwrite)
    images = unlabelled(settings.data)
    if _inside(output.uri, images.uri):
        raise ConfigError(f"output {output.uri} lies in the folder of the images, {images.uri}; give one outside of it")
    registry = Registry(home.tracking_uri)
    version = registry.resolve(settings.model)
    bundle = registry.download(version, home.bundles)
    model_bytes = sum((bundle.folder / name).stat().st_size for name in (WEIGHTS, GRAPH))
    with ray_cluster(object_bytes=model_bytes):
        pipeline = Pipeline.create(
            settings.compute,
            bundle.manifest.preprocess,
            num_images=len(images.part.labels_n),
            batch_size=settings.batch_size,
        )
        try:
            result = _BatchRun(pipeline, images, bundle, version, output).predict(console, started)
        except KeyboardInterrupt:
            print_line(console, "stopped; what is predicted is kept, the same command goes on from there")
            raise
    print_line(
        console,
        f"{result.images:,} images ({result.failed:,} failed, {result.resumed:,} from an earlier run) predicted with"
        f" {result.model_uri} in {result.seconds:.1f} s, {result.images_per_s:,.0f} images/s: {result.output}",
    )
    return result


@dataclass(frozen=True)
class _BatchRun:
    pipeline: Pipeline
    images: Unlabelled
    bundle: Bundle
    version: ModelVersion
    output: Output

    def predict(self, console: Console, started: float) -> BatchPrediction:
        """Predict what no earlier run has, then commit all."""
        sizes = _part_sizes(len(self.images.part.labels_n))
        done = self.output.begin(self._plan())
        resumed = sum(done.values(), Count())
        pending = [number for number in range(len(sizes)) if number not in done]
        if resumed.images:
            print_line(
                console, f"going on: {resumed.images:,} of {sum(sizes):,} images were predicted by an earlier run"
            )
        predicting = time.monotonic()
        count = self._predict(pending, sizes, resumed, console) if pending else Count()
        predicted_s = time.monotonic() - predicting
        total = resumed + count
        result = BatchPrediction(
            model_uri=self.version.uri,
            model_version=self.version.version,
            bundle_digest=self.bundle.digest,
            images=total.images,
            failed=total.failed,
            resumed=resumed.images,
            output=self.output.uri,
            source=self.images.uri,
            seconds=round(time.monotonic() - started, 2),
            images_per_s=round(count.images / predicted_s, 1) if count.images else 0.0,
            device=self.pipeline.device,
            num_workers=self.pipeline.num_workers,
        )
        self.output.commit(result.to_dict() | {"class_names": self.bundle.manifest.class_names})
        return result

    def _predict(self, pending: Sequence[int], sizes: Sequence[int], before: Count, console: Console) -> Count:
        """Predict and write these parts."""
        chunks = _rows_of(self.images.part, pending).chunks
        board, line = ProgressActor(), _ProgressLine(before, sum(sizes))
        label = self.version.run_id if self.version.version is None else str(self.version.version)
        before_first = f"predicting {sum(sizes):,} images on {self.pipeline.num_workers} workers"
        predicted = self.pipeline.tables(chunks, self.bundle, model_version=label)
        with live_progress(board, console, before_first), closing(predicted):
            parts = _cut(line.watched(predicted, board), [sizes[number] for number in pending])
            count = sum((self.output.write(*part) for part in zip(pending, parts, strict=True)), Count())
        if line.problems:
            more = "; ..." if count.failed > len(line.problems) else ""
            log.warning("%d images could not be decoded: %s%s", count.failed, "; ".join(line.problems), more)
        return count

    def _plan(self) -> dict[str, Any]:
        """What all parts of an output have in common."""
        return {
            "bundle_digest": self.bundle.digest,
            "model_version": self.version.version or self.version.run_id,
            "source": self.images.uri,
            "source_digest": self.images.digest,
            "kind": self.images.kind,
            "device": self.pipeline.device,
            "batch_size": self.pipeline.batch_size,
            "part_images": PART_IMAGES,
        }


class _ProgressLine:
    """The progress line, and the first images that could not be decoded."""

    def __init__(self, before: Count, total: int) -> None:
        self.problems: list[str] = []
        self._before, self._total = before, total

    def watched(self, tables: Iterator[pa.Table], board: ProgressActor) -> Iterator[pa.Table]:
        """The same tables, seen as they come."""
        count, first = Count(), 0
        for table in tables:
            if not first:  # what the processes took to start says nothing of the rest
                started, first = time.monotonic(), len(table)
            count += Count.of(table["error"])
            self._note(table)
            rate = (count.images - first) / max(time.monotonic() - started, 1e-9)
            board.write(self._text(self._before + count, rate))
            yield table

    def _text(self, count: Count, rate: float) -> str:
        text = f"{count.images / self._total:4.0%}  {count.images:,} of {self._total:,} images  {count.failed:,} failed"
        if not rate:
            return text
        return f"{text}  {rate:,.0f} images/s  {format_duration((self._total - count.images) / rate)} left"

    def _note(self, table: pa.Table) -> None:
        bad = table.filter(table["error"].is_valid()).slice(0, NUM_NAMED - len(self.problems))
        for row in bad.select(["path", "row", "error"]).to_pylist():
            where = row["path"] if row["row"] is None else f"{row['path']}, row {row['row']}"
            self.problems.append(f"{where} ({row['error']})")


def _inside(uri: str, folder: str) -> bool:
    """Whether a folder is the other one or below it."""
    here, there = (place if is_remote(place) else os.path.realpath(place) for place in (uri, folder))
    return f"{here}/".startswith(f"{there}/")


def _part_sizes(num_images: int) -> list[int]:
    return [min(PART_IMAGES, num_images - at) for at in range(0, num_images, PART_IMAGES)]


def _rows_of(part: SplitSource, numbers: Sequence[int]) -> SplitSource:
    """The images of these parts of the output."""
    of_part_n = np.arange(len(part.labels_n)) // PART_IMAGES
    return part.subset(np.flatnonzero(np.isin(of_part_n, numbers)))


def _cut(tables: Iterator[pa.Table], sizes: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of tables anew, in tables of these sizes."""
    rest = SCHEMA.empty_table()
    for size in sizes:
        while len(rest) < size:
            rest = pa.concat_tables([rest, next(tables)])
        yield rest.slice(0, size)
        rest = rest.slice(size)
