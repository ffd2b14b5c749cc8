"""The driver's record of a sweep: a row and an MLflow run a trial, exactly one however often the trial starts again.

Ray Tune calls TrialRecorder on the driver. What MLflow does not take at once waits on disk; nothing here stops a trial.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow.fs import FileType
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial

from rayapp.errors import RegistryError
from rayapp.registry.spool import Spool
from rayapp.registry.tracking import SEND_EVERY_S, Status, Tracker
from rayapp.storage import below, open_fs
from rayapp.tune.record import State, Sweep, TrialRow
from rayapp.tune.search import EARLIER, to_python
from rayapp.tune.trial import TrialReport

log = logging.getLogger(__name__)
MLFLOW_STATUS: dict[State, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TRY_AGAIN_S = 30.0  # after MLflow did not answer
EPOCH_METRICS = ("train_loss", "train_accuracy", "seconds", "images_per_s", "data_seconds", "memory_peak_mb")
STEP_METRICS = ("loss", "accuracy", "lr", "images_per_s")


class TrialRecorder(Callback):
    """Rows of all trials in the order in which they began, saved at each change, and their runs under the sweep's."""

    def __init__(
        self,
        sweep: Sweep,
        tracker: Tracker,
        tags: Mapping[str, str],
        usd_per_second: float | None,
        changed: Callable[[Sequence[TrialRow]], object] = lambda rows: None,
    ) -> None:
        """tags: of every run. usd_per_second: of a trial's share of a node. changed: is told of all rows."""
        self.rows, self._seconds_before = sweep.load_trials()
        self._sweep, self._tracker, self._tags = sweep, tracker, dict(tags)
        self._usd_per_second, self._changed = usd_per_second, changed
        self._row_of: dict[str, TrialRow] = {}  # by the id that Ray Tune gives in this part of the sweep
        self._spools: dict[str, Spool] = {}
        self._sent_at: dict[str, float] = {}
        self._started, self._not_before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """What the sweep took so far, its earlier parts included."""
        return self._seconds_before + time.monotonic() - self._started

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A new row, or the one that this trial had before it was cut off. Also after each pause of a trial."""
        self._begun(trial)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process was lost; it starts again."""
        self._begun(trial).restarts += 1

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The row follows; the metrics go to the trial's run."""
        row, report = self._begun(trial), TrialReport.from_dict(result)
        row.seconds += report.fit_seconds
        if self._usd_per_second is not None:
            row.cost_usd = row.seconds * self._usd_per_second
        if report.error or report.epoch > row.epoch:  # else it was seen before, and comes again after a restart
            update_row(row, report, self._sweep.settings.search.metric)
            row.values = to_python(self._sweep.settings.used(trial.config))  # PBT changes them
            self._spool_metrics(row, report)
        self._save()
        if report.is_last:
            self._end(row, "failed" if row.error else "finished")
        elif time.monotonic() - self._sent_at.get(row.trial_id, 0.0) >= SEND_EVERY_S:  # all trials wait for this
            self._send(row)

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """It could go on from there. Ray Tune removes the checkpoint before, but not one of an earlier part."""
        row = self._begun(trial)
        before, row.checkpoint = row.checkpoint, f"{trial.trial_id}/{Path(checkpoint.path).name}"
        self._save()
        if before and not before.startswith(trial.trial_id):
            self._remove_folder(before)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The scheduler or the budget ended it, if it has not ended by itself."""
        self._end(self._begun(trial), "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """It failed for good; with restarts left Tune does not call this.

        Nor did it call on_trial_start where the process died that the trial was about to get from another one.
        """
        row = self._begun(trial)
        row.error = error_message(trial)
        self._end(row, "failed")

    def close(self, *, interrupted: bool) -> int:
        """The number of trials of which MLflow lacks something. interrupted: what still runs is to be resumed."""
        self._not_before = 0.0
        for row in self.rows:
            if row.state == "running" and not interrupted:
                row.state = "stopped"  # by the budget, before its first report
        waiting = sum(not self._send(row, status="KILLED" if row.state == "running" else None) for row in self.rows)
        if not interrupted:
            self._remove_folder()
        self._save()
        return waiting

    def _begun(self, trial: Trial) -> TrialRow:
        if trial.trial_id in self._row_of:
            return self._row_of[trial.trial_id]
        row = next((row for row in self.rows if row.trial_id == trial.config.get(EARLIER)), None)
        if row:
            row.restarts += 1
        else:
            values = to_python(self._sweep.settings.used(trial.config))
            row = TrialRow(trial.trial_id, len(self.rows) + 1, values)
            self.rows.append(row)
        self._row_of[trial.trial_id] = row
        self._save()
        self._send(row, begin=True)
        return row

    def _end(self, row: TrialRow, state: State) -> None:
        if row.state != "running":
            return
        row.state = state
        self._save()
        self._send(row)
        if self._sweep.settings.scheduler.name != "pbt" and row.checkpoint:  # there others may be about to take it over
            self._remove_folder(row.checkpoint)
            row.checkpoint = ""
        self._save()

    def _remove_folder(self, checkpoint: str = "") -> None:
        """That of the trial whose checkpoint this is; without one that of all trials."""
        files, root = open_fs(below(self._sweep.storage, self._sweep.name))
        path = f"{root}/{checkpoint.partition('/')[0]}" if checkpoint else root
        try:
            if files.get_file_info(path).type == FileType.Directory:
                files.delete_dir(path)
        except OSError as error:
            log.warning("checkpoints that are of no use any more could not be removed: %s", error)

    def _save(self) -> None:
        self._sweep.save_trials(self.rows, self.seconds)
        self._changed(self.rows)

    def _spool_metrics(self, row: TrialRow, report: TrialReport) -> None:
        spool = self._spool(row)
        for step in report.steps:
            values = {f"train/{name}": step[name] for name in STEP_METRICS}
            spool.append(values, int(step["step"]), time_ms=int(step["time_ms"]))
        if not report.error:
            epoch = {"val/loss": report.val_loss, "val/accuracy": report.val_accuracy}
            spool.append(epoch | {f"epoch/{name}": report.metrics[name] for name in EPOCH_METRICS}, report.epoch)

    def _spool(self, row: TrialRow) -> Spool:
        if row.trial_id not in self._spools:
            self._spools[row.trial_id] = Spool(self._sweep.folder / "metrics" / f"{row.trial_id}.jsonl")
        return self._spools[row.trial_id]

    def _send(self, row: TrialRow, status: Status | None = None, *, begin: bool = False) -> bool:
        """Whether MLflow has all of the row now. status: of its run, if not what the row's state says.

        While MLflow does not answer, it is asked every TRY_AGAIN_S.
        """
        if row.sent:
            return True
        if time.monotonic() < self._not_before:
            return False
        try:
            if begin and row.run_id:
                self._tracker.resume_run(row.run_id)
            if not row.run_id:
                row.run_id = self._run_of(row)
                self._save()
            self._tracker.log_spooled(row.run_id, self._spool(row))
            self._sent_at[row.trial_id] = time.monotonic()
            if status := status or MLFLOW_STATUS.get(row.state):
                self._tracker.close_run(row.run_id, status, _outcome(row))
                self._spools.pop(row.trial_id).close()
                row.sent = row.state != "running"
        except RegistryError as error:
            self._not_before = time.monotonic() + TRY_AGAIN_S
            log.warning("%s; the sweep goes on, what trials report waits in %s", error, self._sweep.folder / "metrics")
            return False
        return True

    def _run_of(self, row: TrialRow) -> str:
        """The run of this trial, running; found by its tag where we died, or had no answer, before we could note it."""
        found = self._tracker.child_run(self._sweep.run_id, row.trial_id)
        if found:
            self._tracker.resume_run(found)
            return found
        params = {name: str(value) for name, value in row.values.items()}
        tags = {"mlflow.parentRunId": self._sweep.run_id, "trial_id": row.trial_id, **self._tags}
        name = f"{self._sweep.name}-{row.number:03}"
        return self._tracker.open_run(self._sweep.settings.tracking.experiment, name, params, tags)


def update_row(row: TrialRow, report: TrialReport, metric: str) -> None:
    """The row with one more report in it."""
    row.error = report.error
    if row.error:
        return
    row.epoch, row.num_epochs, row.latency_ms = report.epoch, report.num_epochs, report.latency_ms
    if report.score > max(row.scores, default=-math.inf):
        row.best_epoch, row.val_accuracy, row.val_loss = row.epoch, report.val_accuracy, report.val_loss
    row.curve.append(report.val_loss if metric == "val_loss" else report.val_accuracy)
    row.scores.append(report.score)


def error_message(trial: Trial) -> str:
    """Why the trial failed, a line: the last one of what Tune wrote down, here or already in the sweep's storage."""
    here = Path(trial.error_file) if trial.error_file else None
    error = here.read_text(encoding="utf-8") if here and here.is_file() else trial.get_error()
    return (str(error or "").strip().splitlines() or ["Ray Tune does not say why"])[-1]


def _outcome(row: TrialRow) -> dict[str, str]:
    found = {
        "trial_state": row.state,
        "best_val_accuracy": row.val_accuracy,
        "best_epoch": row.best_epoch,
        "latency_ms": row.latency_ms,
        "cost_usd": row.cost_usd,
        "error": row.error or None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
