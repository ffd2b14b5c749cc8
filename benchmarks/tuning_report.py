"""What a tuning benchmark measured: figures of a sweep, how they stand to the targets, tables for people, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import CALM, Spread

# targets
EPOCH_PART = 0.4  # of the epochs that all trials in full would take
OVERHEAD_S = 1.0  # a trial
WORSE = 0.005  # than random search without stopping, in validation accuracy (0-1)


@dataclass(frozen=True)
class Measured:
    """One sweep. epochs: those that were run; full_epochs: those of all trials in full. best: validation accuracy.

    fit_s: in fit(), of all trials. search_s: from when the processes of the trials are started to the last trial's end;
    command_s: of the whole command, so with Python's and Ray's start, the pictures, the end. recorded: runs of trials
    that MLflow has and that ended; None where there is no MLflow.
    """

    name: str
    seed: int
    at_once: int
    trials: int
    failed: int
    epochs: int
    full_epochs: int
    best: float
    fit_s: float
    search_s: float
    command_s: float
    others_cpu: float
    recorded: int | None = None

    @property
    def remark(self) -> str:
        """Why this run is not to be trusted; nothing where it is."""
        calm = self.others_cpu <= CALM
        return "" if calm else f"  DISTURBED: other programs used {self.others_cpu:.0%} of the machine"

    def overhead_s(self, seconds: float) -> float:
        """Seconds a trial that its core did not spend in fit(), when all of them took so many seconds.

        What Ray's own processes take from fit() while it runs is not in it, but is in the rate.
        """
        return (self.at_once * seconds - self.fit_s) / self.trials

    def rate(self, seconds: float) -> float:
        """Trials a minute, when all of them took so many seconds."""
        return 60 * self.trials / seconds


@dataclass(frozen=True)
class Finding:
    """A figure beside its target: at least limit, or at most. Without a limit it is told, and not judged."""

    what: str
    value: float
    said: str
    limit: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where it is not judged."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


# --- figures ----------------------------------------------------------------------------------------------------------


def search_findings(asha: Measured, random: Measured) -> list[Finding]:
    """What early stopping saved and lost, and what a trial took beside its training."""
    part, better = asha.epochs / asha.full_epochs, asha.best - random.best
    whole_s, alone_s = asha.overhead_s(asha.command_s), asha.overhead_s(asha.search_s)
    recorded = asha.recorded or 0
    return [
        Finding("trials in MLflow that ended", recorded, str(recorded), asha.trials),
        Finding("epochs run, part of all trials in full", part, f"{part:.3f}", EPOCH_PART, at_most=True),
        Finding("overhead a trial (s), whole command", whole_s, f"{whole_s:.2f}", OVERHEAD_S, at_most=True),
        Finding("overhead a trial (s), without Ray's start", alone_s, f"{alone_s:.2f}", OVERHEAD_S, at_most=True),
        Finding("best, less that of random search with the same epochs", better, f"{better:+.4f}", -WORSE),
    ]


def optuna_findings(pairs: Sequence[tuple[Measured, Measured]]) -> list[Finding]:
    """Ours against Optuna's script. The difference of the best is judged from two pairs on."""
    whole = Spread.of([a.rate(a.command_s) / b.rate(b.command_s) for a, b in pairs])
    alone = Spread.of([a.rate(a.search_s) / b.rate(b.search_s) for a, b in pairs])
    epochs = Spread.of([a.epochs / b.epochs for a, b in pairs])
    epoch_s = Spread.of([a.fit_s / a.epochs * b.epochs / b.fit_s for a, b in pairs])
    mean, error = paired([a.best - b.best for a, b in pairs])
    said = f"{mean:+.4f}" + ("" if error is None else f" ± {error:.4f}")
    return [
        Finding("trials a minute, whole command, times Optuna's", whole.median, str(whole), 1.0),
        Finding("trials a minute, without Python's and Ray's start, times Optuna's", alone.median, str(alone), 1.0),
        Finding("epochs run, times Optuna's", epochs.median, str(epochs)),
        Finding("seconds in fit() an epoch, times Optuna's", epoch_s.median, str(epoch_s)),
        Finding("best less Optuna's, mean ± standard error", mean, said, None if error is None else -error),
    ]


def paired(differences: Sequence[float]) -> tuple[float, float | None]:
    """Their mean and its standard error; None of a single one."""
    num = len(differences)
    return fmean(differences), stdev(differences) / math.sqrt(num) if num > 1 else None


# --- tables -----------------------------------------------------------------------------------------------------------


def line(m: Measured) -> str:
    """One sweep in one line, as it happens."""
    return (
        f"seed {m.seed}  {m.trials} trials ({m.failed} failed)  {m.epochs} of {m.full_epochs} epochs  {m.command_s:.0f}"
        f" s, {m.search_s:.0f} s of them search, {m.fit_s:.0f} s in fit()  best {m.best:.4f}{m.remark}"
    )


def show(console: Console, measured: Sequence[Measured], found: Sequence[Finding]) -> None:
    """Print a row a contestant, median (range) over its sweeps, and a row a target."""
    table = Table("", "trials/min", "without start", "epochs", "s an epoch", "overhead s", "best val accuracy")
    for name in dict.fromkeys(m.name for m in measured):
        runs = [m for m in measured if m.name == name]
        best = [m.best for m in runs]
        table.add_row(
            name,
            str(Spread.of([m.rate(m.command_s) for m in runs])),
            str(Spread.of([m.rate(m.search_s) for m in runs])),
            str(Spread.of([m.epochs for m in runs])),
            str(Spread.of([m.fit_s / m.epochs for m in runs])),
            str(Spread.of([m.overhead_s(m.command_s) for m in runs])),
            f"{median(best):.4f} ({min(best):.4f}-{max(best):.4f})",
        )
    console.print(table)
    table = Table("figure", "rayapp", "target", "")
    for f in found:
        target = "" if f.limit is None else f"at {'most' if f.at_most else 'least'} {f.limit:.3g}"
        table.add_row(f.what, f.said, target, {None: "not judged", True: "met", False: "MISSED"}[f.met])
    console.print(table)


def as_json(measured: Sequence[Measured], found: Sequence[Finding]) -> dict[str, Any]:
    """Every sweep and figure, whether all targets that were judged are met, and whether the machine was calm."""
    return {
        "met": all(f.met is not False for f in found),
        "calm": not any(m.remark for m in measured),
        "targets": [_rounded(asdict(f) | {"met": f.met}) for f in found],
        "runs": [_rounded(asdict(m)) for m in measured],
    }


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
