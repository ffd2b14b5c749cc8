"""What people see of a sweep: a live table in a terminal, plain lines in a log, and two pictures."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matplotlib.ticker import MaxNLocator
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayapp.config.tune import TuneSettings
from rayapp.registry.tracking import Tracker
from rayapp.runtime.progress import LOG_EVERY_S, format_duration, print_line
from rayapp.tune.record import SweepResult, TrialRow, best_row, count_epochs, pareto_front, ranked, saved_seconds
from rayapp.vision.plots import BLUE, GREY, ORANGE, new_figure, save_figure

# Of a row in the table of MLflow
RECORDED: tuple[str, ...] = ("number", "trial_id", "run_id", "state", "epoch", "num_epochs", "val_accuracy", "val_loss")
RECORDED += ("latency_ms", "seconds", "cost_usd", "error")
MAX_LIVE_ROWS = 20  # in the live table: what runs, and the best
STATE_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}
GOOD_PART = 0.1  # of the trials is drawn in colour
LABEL_BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
WITHOUT = -0.12  # height in the picture of a setting that a trial does not have


class SweepView:
    """Shows the rows while the with block runs; update() may be called often."""

    def __init__(self, console: Console, settings: TuneSettings) -> None:
        self._console, self._settings = console, settings
        self._live = Live(console=console, transient=True, refresh_per_second=2) if console.is_terminal else None
        self._started, self._last_time, self._last_line = time.monotonic(), -LOG_EVERY_S, ""
        self._ended_before: int | None = None

    def __enter__(self) -> Self:
        self._console.print(f"starting up to {self._settings.num_trials} trials ...", highlight=False)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, rows: Sequence[TrialRow]) -> None:
        """Show these rows."""
        line = self._line(rows)
        if self._live:
            running = [row for row in rows if row.state == "running"]
            best = ranked([row for row in rows if row.state != "running"], self._settings.search.metric)
            shown = running + best[: max(0, MAX_LIVE_ROWS - len(running))]
            self._live.update(Group(Text(line), trial_table(shown, self._settings)))
        elif line != self._last_line and time.monotonic() - self._last_time >= LOG_EVERY_S:
            print_line(self._console, line)
            self._last_line, self._last_time = line, time.monotonic()

    def _line(self, rows: Sequence[TrialRow]) -> str:
        """'37/100 trials  2 running  20 stopped  best 0.6120 (trial 7)  $0.03  4:10 left'."""
        counts = Counter[str](row.state for row in rows)
        states = "  ".join(f"{counts[state]} {state}" for state in STATE_STYLES if counts[state])
        best = best_row(rows, self._settings.search.metric)
        text = f"{len(rows)}/{self._settings.num_trials} trials  {states}"
        if best:
            text += f"  best {best.val_accuracy:.4f} (trial {best.number})"
        costs = [row.cost_usd for row in rows if row.cost_usd is not None]
        if costs:
            text += f"  ${sum(costs):.2f}"
        ended = len(rows) - counts["running"]
        self._ended_before = ended if self._ended_before is None else self._ended_before
        if ended > self._ended_before:
            each = (time.monotonic() - self._started) / (ended - self._ended_before)
            text += f"  {format_duration(each * max(0, self._settings.num_trials - ended))} left"
        return text


def trial_table(rows: Sequence[TrialRow], settings: TuneSettings) -> Table:
    """A line a trial: where it stands, its best epoch, its cost and its values."""
    with_latency, with_cost = settings.search.latency, any(row.cost_usd is not None for row in rows)
    table = Table(box=None, header_style="bold")
    for name in ("trial", "state", "epoch", "accuracy", "loss"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    extra = ["ms"] * with_latency + ["s"] + ["USD"] * with_cost
    for name in (*extra, *(name.rpartition(".")[2] for name in settings.space)):
        table.add_column(name, justify="right", overflow="fold")
    pareto = {row.number for row in pareto_front(rows)} if with_latency else set()
    for row in rows:
        state = Text(row.state, STATE_STYLES[row.state])
        cells: list[str | Text] = [
            f"{row.number}{'*' if row.number in pareto else ''}",
            state,
            f"{row.epoch}/{row.num_epochs or '?'}",
        ]
        cells += [number_text(row.val_accuracy, "{:.4f}"), number_text(row.val_loss, "{:.3f}")]
        cells += [number_text(row.latency_ms, "{:.2f}")] * with_latency + [f"{row.seconds:.1f}"]
        cells += [number_text(row.cost_usd, "{:.4f}")] * with_cost
        table.add_row(*cells, *(Text(value_text(row.values.get(name, ""))) for name in settings.space))
    return table


def number_text(value: float | None, form: str) -> str:
    """The number as form says; - for none."""
    return "-" if value is None else form.format(value)


def value_text(value: Any) -> str:
    """A drawn value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot_history(rows: Sequence[TrialRow], metric: str, path: Path) -> None:
    """The best metric of each trial in the order of their starts, the best so far, and their learning curves."""
    figure, (left, right) = new_figure(11, 4, columns=2)
    measured = [(row, value) for row in rows if (value := row.value(metric)) is not None]
    for state, colour in (("stopped", GREY), ("finished", BLUE)):
        part = [(row.number, value) for row, value in measured if row.state == state]
        if part:
            numbers, heights = zip(*part, strict=True)
            left.scatter(numbers, heights, s=16, color=colour, label=f"{state} ({len(part)})")
    better: Callable[[float, float], float] = min if metric == "val_loss" else max
    best_so_far = list(accumulate((value for _, value in measured), better))
    left.step([row.number for row, _ in measured], best_so_far, where="post", color=ORANGE, label="best so far")
    left.set(xlabel="trial", ylabel=metric)
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for row, _ in measured:
        is_whole = row.state == "finished"
        colour, alpha = (BLUE, 0.9) if is_whole else (GREY, 0.6)
        right.plot(range(1, len(row.curve) + 1), row.curve, color=colour, linewidth=1, alpha=alpha, marker=".")
    right.set(xlabel="epoch", ylabel=metric)
    save_figure(figure, path)


def plot_parallel(rows: Sequence[TrialRow], settings: TuneSettings, path: Path) -> None:
    """Parallel coordinates: a line for each trial through its values to its metric; the best tenth is in colour."""
    metric, names = settings.search.metric, list(settings.space)
    order = [row for row in ranked(rows, metric) if row.value(metric) is not None]
    num_good = max(1, math.ceil(GOOD_PART * len(order)))
    figure, (axes,) = new_figure(max(6, 2 * (len(names) + 1)), 4.5)
    columns = [axis_of([row.values.get(name) for row in order], settings.space[name].kind) for name in names]
    columns.append(axis_of([row.value(metric) for row in order], "uniform"))
    for rank in reversed(range(len(order))):
        good = rank < num_good
        heights = [heights[rank] for heights, _ in columns]
        colour, alpha = (ORANGE, 0.9) if good else (GREY, 0.6)
        axes.plot(range(len(heights)), heights, color=colour, alpha=alpha, linewidth=1.8 if good else 1.0)
    for x, (_, labels) in enumerate(columns):
        axes.axvline(x, color="black", linewidth=0.8)
        for label, height in labels.items():
            axes.annotate(
                label, (x, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center", bbox=LABEL_BOX,
                parse_math=False,
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), [*names, metric])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.15, len(columns) - 0.55)
    axes.set_title(f"{len(order)} trials; the best {num_good} in colour", fontsize=10)
    save_figure(figure, path)


def axis_of(values: Sequence[Any], kind: str) -> tuple[list[float], dict[str, float]]:
    """The height (0-1) of each value on an axis of its own, and of the labels there; below all stands None."""
    there = [value for value in values if value is not None]
    labels = {"not used": WITHOUT} if len(there) < len(values) else {}
    if kind in ("choice", "grid"):  # evenly
        places = sorted(set(there), key=_number_or_text)
        height = {value: at / max(1, len(places) - 1) for at, value in enumerate(places)}
        labels |= {value_text(value): height[value] for value in places}
    else:
        unit: Callable[[float], float] = math.log if kind in ("log_uniform", "log_integer") else float
        low, high = min(there, default=1.0), max(there, default=1.0)
        height = {value: (unit(value) - unit(low)) / ((unit(high) - unit(low)) or 1.0) for value in there}
        labels |= {f"{low:.3g}": 0.0, f"{high:.3g}": 1.0}
    return [WITHOUT if value is None else height[value] for value in values], labels


def _number_or_text(value: Any) -> tuple[bool, float, str]:
    """A key to sort by: numbers by size, then all else by its text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not is_number, value if is_number else 0.0, value_text(value)


def show(tuned: SweepResult, console: Console) -> None:
    """The table of all trials, the best first, and what the sweep took."""
    settings, best = tuned.sweep.settings, tuned.best
    console.print(trial_table(ranked(tuned.rows, settings.search.metric), settings))
    epochs = count_epochs(tuned.rows)
    saved = epochs["epochs_without_stopping"] - epochs["epochs"]
    cost = "" if tuned.cost_usd is None else f", ${tuned.cost_usd:.2f}"
    print_line(
        console,
        f"{len(tuned.rows)} trials in {format_duration(tuned.seconds)}{cost}; {epochs['epochs']:,} epochs of"
        f" {epochs['epochs_without_stopping']:,}: early stopping saved {saved:,}, about"
        f" {format_duration(saved_seconds(tuned.rows))} of training",
    )
    if best:
        values = ", ".join(f"{name} {value}" for name, value in best.values.items())
        accuracy = (f"{best.val_accuracy:.4f}", "bold")
        print_line(
            console, Text.assemble(f"best: trial {best.number}, validation accuracy ", accuracy, f" with {values}")
        )
    if settings.search.latency:
        print_line(console, "* beaten by no other in both accuracy and latency")
    if tuned.winner:
        w = tuned.winner
        print_line(
            console,
            Text.assemble(
                f"winner, {len(w['seeds'])} seeds: validation {w['val_accuracy_mean']:.4f}"
                f" ± {w['val_accuracy_sd']:.4f}; test accuracy of the best ",
                (f"{w['test_accuracy']:.4f}", "bold"),
                " -> ",
                (f"{w['model_uri']} @challenger", "bold"),
            ),
        )


def record(tuned: SweepResult, best: TrialRow, tracker: Tracker, usd_per_trial_second: float | None) -> None:
    """Figures, pictures and table go to the sweep's run; the best trial's run is marked."""
    sweep, rows = tuned.sweep, tuned.rows
    settings, saved = sweep.settings, saved_seconds(rows)
    metrics = {
        "best_val_accuracy": best.val_accuracy or 0.0,
        "best_val_loss": best.val_loss or 0.0,
        "trials": len(rows),
        **count_epochs(rows),
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
