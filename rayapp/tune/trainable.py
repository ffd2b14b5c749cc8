"""What Ray Tune runs: the epochs of a trial, one a step, in an actor that is used again for the next trial.

Every few seconds a trial is checkpointed, so that another process, or with PBT another trial, can go on from there.
MLflow is the driver's: a trial only reports (tune/recorder.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from rayapp.errors import TrainingError
from rayapp.storage import open_fs
from rayapp.train.checkpoints import STATE
from rayapp.tune.search import CHECKPOINT, to_python
from rayapp.tune.trial import Snapshot, TrialContext, TrialReport, reports_of
from rayapp.vision.state import from_bytes, to_bytes

CHECKPOINT_EVERY_S = 10.0  # at the end of an epoch; what a trial loses at most, beside the epoch it is in
PAUSING = ("hyperband", "pbt")  # schedulers that let a trial wait, and need to know after each epoch where it stands

Reports = Iterator[tuple[TrialReport, Callable[[], Snapshot]]]


class TrialTrainable(tune.Trainable):
    """A trial, from its first epoch or from a checkpoint. Its config: the drawn values, and those of search.py."""

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]  # of with_parameters
        """Begin the first trial of this actor."""
        self._context, self._sweep = context, context.sweep()
        self._reports: Reports | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial."""
        self.cleanup()
        self._values, self._kept_at = new_config, -math.inf
        self._snapshot: Snapshot | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Train for an epoch. A loss that is not finite is a result, the worst one, and ends the trial."""
        started = time.monotonic()
        try:
            self._reports = self._reports or self._begin()
            report, take_snapshot = next(self._reports)
            keep = self._sweep.scheduler.name in PAUSING or started - self._kept_at >= CHECKPOINT_EVERY_S
            if keep and not report.is_last:
                self._snapshot, self._kept_at = take_snapshot(), time.monotonic()
                return report.as_dict() | {"should_checkpoint": True}
        except TrainingError as error:
            report = TrialReport.of_breakdown(str(error), time.monotonic() - started)
        return report.as_dict()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write where the trial stood after its last epoch."""
        assert self._snapshot is not None  # each step before takes one
        Path(checkpoint_dir, STATE).write_bytes(to_bytes(self._snapshot))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # a folder, as save_checkpoint's
        """Go on from there; with PBT it may be another trial's."""
        self._snapshot = dict(from_bytes(Path(checkpoint, STATE).read_bytes()))

    def cleanup(self) -> None:
        """End the trial."""
        if self._reports is not None:
            self._reports.close()  # type: ignore[attr-defined]  # of a generator
        self._reports = None

    def _begin(self) -> Reports:
        """Those of reports_of(), trained here or by several workers."""
        address: str | None = self._values.get(CHECKPOINT)
        if self._snapshot is None and address:
            files, path = open_fs(address)
            with tune.Checkpoint(path, files).as_directory() as folder:
                self.load_checkpoint(folder)
        settings = self._sweep.trial(to_python(self._values))
        if settings.compute.workers.high == 1:
            device = torch.device(self._context.device)
            return reports_of(settings, self._sweep, self._context, self._snapshot, device=device)
        from rayapp.tune.distributed_trial import distributed_reports  # with Ray Train, which takes a second

        config = {
            "settings": settings.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "context": ray.put(self._context),
            "before": ray.put(self._snapshot),
        }
        return distributed_reports(self.trial_id, config)
