"""What Ray Tune runs: a plain function, in an actor that is used again for the next trial.

After each epoch a trial reports, and every few seconds checkpoints its state, so that another process, or with PBT
another trial, can go on from there. MLflow is the driver's: a trial only reports (tune/recorder.py).
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train._internal.session import get_session

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import TrainingError
from rayapp.train.checkpoints import STATE
from rayapp.tune.distributed_trial import wide_reports
from rayapp.tune.search import plain
from rayapp.tune.trial import WORST, Shared, reports_of
from rayapp.vision.memory import give_back_freed_memory
from rayapp.vision.state import from_bytes, to_bytes

CHECKPOINT_EVERY_S = 10.0  # at the end of an epoch; what a trial loses at most, beside the epoch it is in
PAUSING = ("hyperband", "pbt")  # schedulers that let a trial wait, and need to know after each epoch where it stands
END_TIMEOUT_S = 60.0


class Patient:
    """Of Tune's actor: waits for a stopped trial to end. With Tune's own 2 s a busy machine loses the next trial."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Whether another trial can begin here."""
        session = get_session()
        if session:
            session.finish(timeout=END_TIMEOUT_S)
        return bool(super().reset_config(new_config))  # type: ignore[misc]  # Tune puts FunctionTrainable beside this


def run_trial(drawn: dict[str, Any], shared: Shared) -> None:
    """Train with the drawn settings, and report after each epoch until Tune stops it or the epochs are over.

    A loss that is not finite is a result, the worst one: it ends the trial and is not tried again.
    """
    # of the trial before, which ran in a thread of its own: else an actor grows by 70 MB a trial
    give_back_freed_memory()
    last = shared.ended.get(tune.get_context().get_trial_id())
    if last is not None:
        tune.report(dict(last))
        return
    sweep = validate(TuneSettings, shared.settings)
    settings = sweep.trial(plain(drawn))
    # the first epoch is kept at once: it is then that Tune writes down that there is such a trial
    since, kept_at = time.monotonic(), -math.inf
    try:
        for report in _reports(settings, sweep, shared):
            keep = sweep.scheduler.name in PAUSING or time.monotonic() - kept_at >= CHECKPOINT_EVERY_S
            snapshot = report.pop("snapshot")
            with _checkpointed(snapshot) if keep else contextlib.nullcontext() as checkpoint:
                tune.report(report, checkpoint=checkpoint)
            since = time.monotonic()
            kept_at = since if keep else kept_at
    except TrainingError as error:
        seconds = time.monotonic() - since
        tune.report(
            {**WORST, "epoch": 0, "num_epochs": 0, "broke_down": str(error), "steps": [], "fit_seconds": seconds}
        )


run_trial.__mixins__ = (Patient,)  # type: ignore[attr-defined]  # of these Tune makes the actor's class


def _reports(settings: TrainSettings, sweep: TuneSettings, shared: Shared) -> Iterator[dict[str, Any]]:
    """Those of reports_of() from where the trial was cut off, trained here or by several workers."""
    before = _checkpoint()
    if settings.compute.workers.high == 1:
        yield from reports_of(settings, sweep, shared, before, device=torch.device(shared.device))
        return
    config = {
        "settings": settings.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "sweep": shared.settings,
        "device": shared.device,
        "shared": ray.put(shared),
        "before": ray.put(before),
    }
    yield from wide_reports(tune.get_context().get_trial_id(), config)


@contextlib.contextmanager
def _checkpointed(snapshot: dict[str, Any]) -> Iterator[tune.Checkpoint]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, STATE).write_bytes(to_bytes(snapshot))
        yield tune.Checkpoint(folder)


def _checkpoint() -> dict[str, Any] | None:
    """The state that this trial, or with PBT a better one, was checkpointed in."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return dict(from_bytes(Path(folder, STATE).read_bytes()))
