"""The one record of a sweep: its settings, where it stands, and a row for each trial. Ray Tune's own is not read.

RAYAPP_HOME/sweeps/NAME/sweep.json    name, MLflow run, stage, settings
                        trials.json   the rows, and the seconds that all parts of the sweep took so far
                        metrics/      metrics on their way to MLflow, a spool for each trial
STORAGE/NAME/TRIAL/checkpoint_...     the newest of each trial that runs; removed when the search is over
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pyarrow.fs import FileType

from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError, did_you_mean
from rayapp.storage import atomic_write, below, exclusive_lock, open_fs

SWEEP_FILE, TRIALS_FILE = "sweep.json", "trials.json"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class TrialRow:
    """What is known of a trial. values: those that were drawn and apply. The metrics are of its best epoch.

    state: stopped means by the scheduler or the budget, before its last epoch. seconds: in fit(), of all its parts.
    cost_usd: of its share of a node; None where the price is not known. curve, scores: the metric, and what schedulers
    compare, after each epoch. checkpoint: the newest, below STORAGE/NAME. sent: whether MLflow has all of it, with its
    last status.
    """

    trial_id: str
    number: int
    values: dict[str, Any]
    state: State = "running"
    run_id: str = ""
    epoch: int = 0
    num_epochs: int = 0
    best_epoch: int = 0
    val_accuracy: float | None = None
    val_loss: float | None = None
    latency_ms: float | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    error: str = ""
    restarts: int = 0
    checkpoint: str = ""
    curve: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    sent: bool = False

    def value(self, metric: str) -> float | None:
        """The metric of its best epoch; None where it has none, or broke down."""
        found = self.val_loss if metric == "val_loss" else self.val_accuracy
        return None if self.error else found


@dataclass(frozen=True)
class Sweep:
    """One search. stage: searching (may be resumed), searched (the winner is still to be trained), done.

    usd_per_second: of all nodes of the cluster that it began on; None where a price is not known.
    """

    name: str
    run_id: str
    stage: Literal["searching", "searched", "done"]
    folder: Path
    settings: TuneSettings
    usd_per_second: float | None = None

    @property
    def storage(self) -> str:
        """The folder or s3:// address below which Ray Tune has a folder for this sweep."""
        return self.settings.compute.storage_path or str(self.folder / "ray")

    @property
    def has_begun(self) -> bool:
        """Whether a trial was begun."""
        return (self.folder / TRIALS_FILE).exists()

    def save(self) -> None:
        """Write sweep.json, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "run_id": self.run_id,
            "stage": self.stage,
            "usd_per_second": self.usd_per_second,
            "settings": self.settings.model_dump(mode="json", by_alias=True, exclude_unset=True),
        }
        atomic_write(self.folder / SWEEP_FILE, json.dumps(content, indent=2) + "\n")

    def at(self, stage: Literal["searching", "searched", "done"]) -> Sweep:
        """The same sweep at another stage, saved."""
        sweep = replace(self, stage=stage)
        sweep.save()
        return sweep

    def save_trials(self, rows: Sequence[TrialRow], seconds: float) -> None:
        """Write trials.json, whole or not at all. seconds: what the sweep took so far."""
        content = {"seconds": seconds, "trials": [vars(row) for row in rows]}
        # without indent, with which Python does it ten times slower, and this is done at each change
        atomic_write(self.folder / TRIALS_FILE, json.dumps(content) + "\n")

    def load_trials(self) -> tuple[list[TrialRow], float]:
        """The rows in the order in which their trials began, and the seconds that the sweep took."""
        try:
            content = json.loads((self.folder / TRIALS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [], 0.0
        return [TrialRow(**row) for row in content["trials"]], float(content["seconds"])

    def locked(self) -> AbstractContextManager[None]:
        """Nobody else on this machine runs this sweep inside. Raises ConfigError where somebody does."""
        return exclusive_lock(self.folder, f"sweep '{self.name}' is being run")


def new_sweep_name(home: Home, settings: TuneSettings) -> str:
    """The name of a new sweep. Raises ConfigError where there is one of that name."""
    if settings.name and (home.sweeps / settings.name / SWEEP_FILE).exists():
        raise ConfigError(
            f"sweep '{settings.name}' exists already; give another --name, go on with it: --resume {settings.name},"
            f" or remove it: --clean {settings.name}"
        )
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return settings.name or f"sweep-{settings.data.dataset}-{settings.model.name}-{now}-{secrets.token_hex(2)}"


def find_sweep(home: Home, name: str) -> Sweep:
    """The sweep of this name. Raises ConfigError naming the nearest one."""
    try:
        content = json.loads((home.sweeps / name / SWEEP_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        known = [path.parent.name for path in home.sweeps.glob(f"*/{SWEEP_FILE}")]
        hint = did_you_mean(name, known) if known else f" There is no sweep in {home.sweeps} yet."
        raise ConfigError(f"no sweep '{name}'.{hint}") from error
    settings = validate(TuneSettings, content["settings"])
    folder, usd_per_second = home.sweeps / name, content["usd_per_second"]
    return Sweep(content["name"], content["run_id"], content["stage"], folder, settings, usd_per_second)


def ranked(rows: Sequence[TrialRow], metric: str) -> list[TrialRow]:
    """The best first, those without a result last; a tie goes to the lower loss, then to the earlier trial."""

    def worse(row: TrialRow) -> tuple[bool, float, float, int]:
        value, loss = row.value(metric), row.val_loss or 0.0
        return value is None, loss if metric == "val_loss" else -(value or 0.0), loss, row.number

    return sorted(rows, key=worse)


def best_row(rows: Sequence[TrialRow], metric: str) -> TrialRow | None:
    """The first of ranked(); None where no row has a result."""
    return next((row for row in ranked(rows, metric) if row.value(metric) is not None), None)


def pareto_front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Those that no other row beats in both accuracy and latency, the fastest first."""
    measured = [row for row in rows if row.val_accuracy is not None and row.latency_ms is not None and not row.error]
    found: list[TrialRow] = []
    for row in sorted(measured, key=lambda row: (row.latency_ms, -(row.val_accuracy or 0))):
        if not found or (row.val_accuracy or 0) > (found[-1].val_accuracy or 0):
            found.append(row)
    return found


@dataclass(frozen=True)
class SweepResult:
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

    def to_dict(self) -> dict[str, Any]:
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
            **count_epochs(self.rows),
            "fit_seconds": round(sum(row.seconds for row in self.rows), 2),
            "seconds": round(self.seconds, 2),
            "cost_usd": self.cost_usd,
        }
        return content | ({"winner": self.winner} if self.winner else {})


def results(home: Home, name: str) -> SweepResult:
    """A sweep as far as it went."""
    return result_of(find_sweep(home, name))


def result_of(sweep: Sweep) -> SweepResult:
    """What its rows say so far."""
    rows, seconds = sweep.load_trials()
    return SweepResult(sweep, tuple(rows), seconds)


def clean(home: Home, name: str) -> list[str]:
    """What was removed: the sweep's folder, and its part of a storage elsewhere. Its runs in MLflow stay."""
    sweep = find_sweep(home, name)
    with sweep.locked():
        removed = [str(sweep.folder)]
        if sweep.settings.compute.storage_path:
            files, root = open_fs(below(sweep.storage, sweep.name))
            if files.get_file_info(root).type == FileType.Directory:
                files.delete_dir(root)
                removed.append(f"{sweep.storage}/{sweep.name}")
    shutil.rmtree(sweep.folder)
    return removed


def count_epochs(rows: Sequence[TrialRow]) -> dict[str, int]:
    """Epochs that were trained, and those that all trials together would have had."""
    longest = max((row.num_epochs for row in rows), default=0)
    return {
        "epochs": sum(row.epoch for row in rows),
        "epochs_without_stopping": sum(row.num_epochs or longest for row in rows),
    }


def saved_seconds(rows: Sequence[TrialRow]) -> float:
    """What the epochs that were not trained would have taken, each as long as the trial's others."""
    return sum((row.num_epochs - row.epoch) * row.seconds / row.epoch for row in rows if row.epoch)
