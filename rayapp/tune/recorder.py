"""The driver's record of a sweep: a row and an MLflow run a trial, exactly one however often the trial starts again.

Ray Tune calls TrialLog on the driver. What MLflow does not take at once waits on disk; nothing here stops a trial.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pyarrow.fs import FileSelector, FileSystem
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from rayapp.errors import RegistryError
from rayapp.registry.spool import Spool
from rayapp.registry.tracking import SEND_EVERY_S, Status, Tracker
from rayapp.storage import open_fs
from rayapp.tune.distributed_trial import stop_workers
from rayapp.tune.record import Sweep, TrialRow
from rayapp.tune.search import SCORE, plain
from rayapp.tune.trial import WORST

log = logging.getLogger(__name__)
MLFLOW_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
TRY_AGAIN_S = 30.0  # after MLflow did not answer
FORGOTTEN_AFTER_S = 60.0  # Tune writes down where it stands every 10 s, or 20 times what that takes
EPOCH_METRICS = ("train_loss", "train_accuracy", "seconds", "images_per_s", "data_seconds", "memory_peak_mb")
STEP_METRICS = ("loss", "accuracy", "lr", "images_per_s")


class TrialLog(Callback):
    """Rows of all trials, saved at each change, and their runs under the sweep's own."""

    def __init__(
        self,
        sweep: Sweep,
        tracker: Tracker,
        tags: Mapping[str, str],
        usd_per_second: float | None,
        scheduler: TrialScheduler,
        changed: Callable[[Sequence[TrialRow]], object] = lambda rows: None,
    ) -> None:
        """tags: of every run. usd_per_second: of a trial's share of a node. changed: is told of all rows."""
        rows, self._seconds_before = sweep.load_trials()
        self._rows = {row.trial_id: row for row in rows}
        self._sweep, self._tracker, self._tags = sweep, tracker, dict(tags)
        self._usd_per_second, self._scheduler, self._changed = usd_per_second, scheduler, changed
        self._adopted = False
        self._orphans: list[TrialRow] = []
        self._ended_at = {row.trial_id: 0.0 for row in rows if row.state != "running"}
        self._spools: dict[str, Spool] = {}
        self._sent_at: dict[str, float] = {}
        self._unwritten: set[str] = set()  # trials that ended, of which Tune has not written down that there are such
        self._unknown: set[str] = set()  # trials that MLflow was never told of
        self._started, self._not_before = time.monotonic(), 0.0

    @property
    def rows(self) -> list[TrialRow]:
        """In the order in which the trials began."""
        return sorted(self._rows.values(), key=lambda row: row.number)

    @property
    def seconds(self) -> float:
        """What the sweep took so far, its earlier parts included."""
        return self._seconds_before + time.monotonic() - self._started

    # --- what Ray Tune calls ------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Once, at the beginning: what an earlier part of this sweep left."""
        if self._rows and not self._adopted:
            self._adopt(trials)
        self._adopted = True

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A new row, or the one that this trial had before it was cut off; one that ended in time stays as it is."""
        row = self._rows.get(trial.trial_id)
        if row and row.state != "running":
            return
        if row is None:
            row = self._new_row(trial)
        elif row.epoch:
            row.restarts += 1
        self._save()
        self._send(row, status="RUNNING")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The row follows; the metrics go to the trial's run."""
        row = self._rows[trial.trial_id]
        if row.state != "running":
            return
        row.seconds += result["fit_seconds"]
        if self._usd_per_second is not None:
            row.cost_usd = row.seconds * self._usd_per_second
        if not is_new(row, result):
            return
        take_up(row, result, self._sweep.settings.search.metric)
        row.values = plain(self._sweep.settings.used(trial.config))  # PBT changes them
        self._spool_metrics(row, result)
        self._save()
        if time.monotonic() - self._sent_at.get(row.trial_id, 0.0) >= SEND_EVERY_S:  # all trials wait for this
            self._send(row)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """It ended by itself, or the scheduler or the budget ended it."""
        self._stop_workers(trial)
        row = self._rows[trial.trial_id]
        ended_itself = bool(trial.last_result.get("is_last"))
        self._end(row, "failed" if row.error else "finished" if ended_itself else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """It failed for good; with restarts left Tune does not call this.

        Nor did it call on_trial_start where the process died that the trial was about to get from another one.
        """
        self._stop_workers(trial)
        row = self._rows.get(trial.trial_id) or self._new_row(trial)
        row.error = cause_of(trial)
        self._end(row, "failed")

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self, *, interrupted: bool) -> int:
        """The number of trials of which MLflow lacks something. interrupted: what still runs is to be resumed."""
        waiting = 0 if self._delete_orphans() else len(self._orphans)
        for row in self.rows:
            if row.state == "running" and not interrupted:
                row.state = "stopped"  # by the budget, before its first report
        self._not_before = 0.0
        if not interrupted:
            self._unwritten.clear()  # nothing is left to be begun
            self._remove_checkpoints(time.monotonic())
        for row in self.rows:
            waiting += not self._send(row, status="KILLED" if row.state == "running" else None)
        self._save()
        return waiting

    def _adopt(self, trials: Sequence[Trial]) -> None:
        """After a resume: forget rows of trials that Tune does not know any more, and remove their runs.

        Those began in the last moments before a crash, and Tune begins as many others in their place. What ASHA knew
        is told to it again, for Tune does not keep it.
        """
        for trial in trials:
            row = self._rows.get(trial.trial_id)
            if row and isinstance(self._scheduler, ASHAScheduler) and not row.error:
                for epoch, score in enumerate(row.scores, 1):
                    result = {"epoch": epoch, SCORE: score}
                    self._scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]  # unused there
            if row and row.state == "running" and trial.status == Trial.TERMINATED:
                self.on_trial_complete(0, [], trial)
            elif row and row.state == "running" and trial.status == Trial.ERROR:
                self.on_trial_error(0, [], trial)
        for trial_id in set(self._rows) - {trial.trial_id for trial in trials}:
            row = self._rows.pop(trial_id)
            log.info("trial %d was cut off as it began; another one takes its place", row.number)
            self._orphans.append(row)
        self._delete_orphans()
        for number, row in enumerate(self.rows, 1):
            row.number = number
        self._save()

    def _delete_orphans(self) -> bool:
        """Whether MLflow has no run any more of the trials that another one took the place of."""
        try:
            while self._orphans:
                row = self._orphans[-1]
                run_id = row.run_id or self._tracker.child_run(self._sweep.run_id, row.trial_id)
                if run_id:
                    self._tracker.delete_run(run_id)
                self._orphans.pop()
        except RegistryError as error:
            log.warning("%s; runs of %d trials are removed later", error, len(self._orphans))
            return False
        return True

    def _new_row(self, trial: Trial) -> TrialRow:
        values = plain(self._sweep.settings.used(trial.config))
        row = self._rows[trial.trial_id] = TrialRow(trial.trial_id, len(self._rows) + 1, values)
        self._unknown.add(row.trial_id)
        return row

    def _stop_workers(self, trial: Trial) -> None:
        if self._sweep.settings.compute.workers.high > 1:
            stop_workers(trial.trial_id)

    def _end(self, row: TrialRow, state: Any) -> None:
        if row.state != "running":
            return
        row.state = state
        self._unwritten.add(row.trial_id)
        self._save()
        self._send(row)
        self._save()
        self._ended_at[row.trial_id] = time.monotonic()
        self._remove_checkpoints(time.monotonic() - FORGOTTEN_AFTER_S)

    def _remove_checkpoints(self, ended_before: float) -> None:
        """Of trials that ended so long ago that Tune has written it down, and will not go back to them."""
        files, root = open_fs(f"{self._sweep.storage.rstrip('/')}/{self._sweep.name}")
        for trial_id in [trial_id for trial_id, at in self._ended_at.items() if at <= ended_before]:
            del self._ended_at[trial_id]
            folder = FileSelector(f"{root}/{trial_id}", allow_not_found=True)
            for entry in files.get_file_info(folder):
                if entry.base_name.startswith("checkpoint_"):
                    _remove(files, entry.path)

    def _save(self) -> None:
        """A trial counts as ended once Tune would know it after a crash: else it would begin another in its place."""
        rows = self.rows
        if self._unwritten:
            written = self._sweep.tune_state()
            self._unwritten = {trial_id for trial_id in self._unwritten if written and trial_id not in written}
        saved = [replace(row, state="running", sent=False) if row.trial_id in self._unwritten else row for row in rows]
        self._sweep.save_trials(saved, self.seconds)
        self._changed(rows)

    # --- MLflow -------------------------------------------------------------------------------------------------------

    def _spool_metrics(self, row: TrialRow, result: Mapping[str, Any]) -> None:
        spool = self._spool(row)
        for step in result["steps"]:
            spool.append({f"train/{name}": step[name] for name in STEP_METRICS}, step["step"], time_ms=step["time_ms"])
        if result["broke_down"]:
            return
        epoch = {f"val/{name}": result[f"val_{name}"] for name in ("loss", "accuracy")}
        epoch |= {f"epoch/{name}": result[name] for name in EPOCH_METRICS}
        spool.append(epoch, result["epoch"])

    def _spool(self, row: TrialRow) -> Spool:
        if row.trial_id not in self._spools:
            self._spools[row.trial_id] = Spool(self._sweep.folder / "metrics" / f"{row.trial_id}.jsonl")
        return self._spools[row.trial_id]

    def _send(self, row: TrialRow, status: Status | Literal["RUNNING"] | None = None) -> bool:
        """Whether MLflow has all of the row now. status: of its run, if not what the row's state says.

        While MLflow does not answer, it is asked every TRY_AGAIN_S.
        """
        if row.sent:
            return True
        if time.monotonic() < self._not_before:
            return False
        try:
            if not row.run_id:
                row.run_id = self._run_of(row)
                self._save()
            elif status == "RUNNING":
                self._tracker.resume_run(row.run_id)
            self._tracker.log_spooled(row.run_id, self._spool(row))
            self._sent_at[row.trial_id] = time.monotonic()
            status = status or MLFLOW_STATUS.get(row.state)
            if status and status != "RUNNING":
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
        found = None
        if row.trial_id not in self._unknown:
            found = self._tracker.child_run(self._sweep.run_id, row.trial_id)
        self._unknown.discard(row.trial_id)
        if found:
            self._tracker.resume_run(found)
            return found
        params = {name: str(value) for name, value in row.values.items()}
        tags = {"mlflow.parentRunId": self._sweep.run_id, "trial_id": row.trial_id, **self._tags}
        name = f"{self._sweep.name}-{row.number:03}"
        return self._tracker.open_run(self._sweep.settings.tracking.experiment, name, params, tags)


def is_new(row: TrialRow, result: Mapping[str, Any]) -> bool:
    """Whether the report is not one that was seen before, and comes again after a restart."""
    return bool(result["broke_down"]) or result["epoch"] > row.epoch


def last_report(row: TrialRow) -> dict[str, Any]:
    """What a trial that ended reports when Tune, which does not know that, starts it once more."""
    figures = WORST
    if not row.error and row.scores:
        figures = {"val_accuracy": row.val_accuracy or 0.0, "val_loss": row.val_loss or 0.0, SCORE: row.scores[-1]}
    return {
        "epoch": row.epoch,
        "num_epochs": row.num_epochs,
        "steps": [],
        "broke_down": row.error,
        "fit_seconds": 0.0,
        "latency_ms": row.latency_ms,
        **figures,
    }


def take_up(row: TrialRow, result: Mapping[str, Any], metric: str) -> None:
    """The row with one more report in it."""
    row.error = result["broke_down"]
    if row.error:
        return
    row.epoch, row.num_epochs = result["epoch"], result["num_epochs"]
    row.latency_ms = result.get("latency_ms", row.latency_ms)
    if result[SCORE] > max(row.scores, default=-math.inf):
        row.best_epoch, row.val_accuracy, row.val_loss = row.epoch, result["val_accuracy"], result["val_loss"]
    row.curve.append(result[metric])
    row.scores.append(result[SCORE])


def cause_of(trial: Trial) -> str:
    """Why the trial failed, a line: the last one of what Tune wrote down, here or already in the sweep's storage."""
    here = Path(trial.error_file) if trial.error_file else None
    error = here.read_text(encoding="utf-8") if here and here.is_file() else trial.get_error()
    cause = getattr(error, "cause", None) or error
    return (str(cause or "").strip().splitlines() or ["Ray Tune does not say why"])[-1]


def _remove(files: FileSystem, path: str) -> None:
    try:
        files.delete_dir(path)
    except OSError as error:
        log.warning("a checkpoint that is of no use any more could not be removed: %s", error)


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
