"""What a sweep found: as JSON, as a table, and in MLflow."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rayapp.config.tune import TuneSettings
from rayapp.registry.tracking import Tracker
from rayapp.runtime.progress import clock, say
from rayapp.tune.record import Sweep, TrialRow, best_row, ranked
from rayapp.tune.report import plot_history, plot_parallel, trial_table

# Of a row in the table of MLflow
RECORDED: tuple[str, ...] = ("number", "trial_id", "run_id", "state", "epoch", "num_epochs", "val_accuracy", "val_loss")
RECORDED += ("latency_ms", "seconds", "cost_usd", "error")


@dataclass(frozen=True)
class Tuned:
    """The result of a sweep: what the last line of stdout says."""

    sweep: Sweep
    rows: tuple[TrialRow, ...]
    seconds: float
    winner: dict[str, Any] | None = None

    @property
    def cost_usd(self) -> float | None:
        """Of the nodes while it searched; None where a price is not known."""
        return None if self.sweep.usd_per_second is None else self.sweep.usd_per_second * self.seconds

    @property
    def best(self) -> TrialRow | None:
        """The best trial; None where none has a result."""
        return best_row(self.rows, self.sweep.settings.search.metric)

    def as_json(self) -> dict[str, Any]:
        """The fields that scripts rely on, and where to look."""
        best, states = self.best, Counter(row.state for row in self.rows)
        content = {
            "run_id": self.sweep.run_id,
            "sweep": self.sweep.name,
            "best_trial": best.trial_id if best else None,
            "best_run_id": best.run_id if best else None,
            "best_val_accuracy": best.val_accuracy if best else None,
            "best_values": best.values if best else None,
            "trials": len(self.rows),
            **{state: states[state] for state in ("finished", "stopped", "failed")},
            **epochs_of(self.rows),
            "fit_seconds": round(sum(row.seconds for row in self.rows), 2),
            "seconds": round(self.seconds, 2),
            "cost_usd": self.cost_usd,
        }
        return content | ({"winner": self.winner} if self.winner else {})


def show(tuned: Tuned, console: Console) -> None:
    """The table of all trials, the best first, and what the sweep took."""
    settings, best = tuned.sweep.settings, tuned.best
    console.print(trial_table(ranked(tuned.rows, settings.search.metric), settings))
    epochs = epochs_of(tuned.rows)
    saved = epochs["epochs_without_stopping"] - epochs["epochs"]
    cost = "" if tuned.cost_usd is None else f", ${tuned.cost_usd:.2f}"
    say(
        console,
        f"{len(tuned.rows)} trials in {clock(tuned.seconds)}{cost}; {epochs['epochs']:,} epochs of"
        f" {epochs['epochs_without_stopping']:,}: early stopping saved {saved:,}, about"
        f" {clock(saved_seconds(tuned.rows))} of training",
    )
    if best:
        values = ", ".join(f"{name} {value}" for name, value in best.values.items())
        accuracy = (f"{best.val_accuracy:.4f}", "bold")
        say(console, Text.assemble(f"best: trial {best.number}, validation accuracy ", accuracy, f" with {values}"))
    if settings.search.latency:
        say(console, "* beaten by no other in both accuracy and latency")
    if tuned.winner:
        w = tuned.winner
        say(
            console,
            Text.assemble(
                f"winner, {len(w['seeds'])} seeds: validation {w['val_accuracy_mean']:.4f}"
                f" ± {w['val_accuracy_sd']:.4f}; test accuracy of the best ",
                (f"{w['test_accuracy']:.4f}", "bold"),
                " -> ",
                (f"{w['model_uri']} @challenger", "bold"),
            ),
        )


def epochs_of(rows: Sequence[TrialRow]) -> dict[str, int]:
    """Epochs that were trained, and those that all trials together would have had."""
    longest = max((row.num_epochs for row in rows), default=0)
    return {
        "epochs": sum(row.epoch for row in rows),
        "epochs_without_stopping": sum(row.num_epochs or longest for row in rows),
    }


def saved_seconds(rows: Sequence[TrialRow]) -> float:
    """What the epochs that were not trained would have taken, each as long as the trial's others."""
    return sum((row.num_epochs - row.epoch) * row.seconds / row.epoch for row in rows if row.epoch)


def record(tuned: Tuned, best: TrialRow, tracker: Tracker, usd_per_trial_second: float | None) -> None:
    """Figures, pictures and table go to the sweep's run; the best trial's run is marked."""
    sweep, rows = tuned.sweep, tuned.rows
    settings, saved = sweep.settings, saved_seconds(rows)
    metrics = {
        "best_val_accuracy": best.val_accuracy or 0.0,
        "best_val_loss": best.val_loss or 0.0,
        "trials": len(rows),
        **epochs_of(rows),
        "seconds": tuned.seconds,
        "fit_seconds": sum(row.seconds for row in rows),
        "saved_seconds": saved,
    }
    if tuned.cost_usd is not None and usd_per_trial_second is not None:
        metrics |= {"cost_usd": tuned.cost_usd, "saved_usd": saved * usd_per_trial_second}
    tracker.log_metrics(sweep.run_id, metrics)
    tracker.tag_run(sweep.run_id, {"best_trial": best.trial_id, "best_run_id": best.run_id})
    for row in rows:
        if row.run_id:
            tracker.tag_run(row.run_id, {"best_trial": str(row is best).lower()})
    with tempfile.TemporaryDirectory() as folder:
        plot_history(rows, settings.search.metric, Path(folder, "history.png"))
        plot_parallel(rows, settings, Path(folder, "parallel_coordinates.png"))
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, sweep.folder)
        tracker.log_artifacts(sweep.run_id, Path(folder))
    tracker.log_table(sweep.run_id, _columns(rows, settings), "trials.json")
    tracker.close_run(sweep.run_id, "FINISHED")


def _columns(rows: Sequence[TrialRow], settings: TuneSettings) -> dict[str, list[Any]]:
    order = ranked(rows, settings.search.metric)
    columns = {name: [getattr(row, name) for row in order] for name in RECORDED}
    return columns | {name: [row.values.get(name) for row in order] for name in settings.space}
