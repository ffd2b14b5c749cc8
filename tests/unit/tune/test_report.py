"""What people see of a sweep: a line a trial, a line of progress, and pictures that are there whatever was found."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.tune import report
from rayapp.tune.record import TrialRow, ranked
from rayapp.tune.report import MAX_LIVE_ROWS, SweepView, plot_history, plot_parallel, trial_table

# All kinds of values, and some that are used only sometimes.
MIXED = {
    "model.name": {"choice": ["resnet9", "mobilenet_v3_small"]},
    "optim.optimizer": {"choice": ["sgd", "adamw"]},
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}},
    "optim.batch_size": {"log_integer": [16, 512]},
    "optim.clip_norm": {"choice": [None, 1.0, 5.0]},
    "augment.flip": {"choice": [True, False]},
}


def sweep(**content: Any) -> TuneSettings:
    return validate(TuneSettings, content)


def row(number: int, val_accuracy: float | None = None, **more: Any) -> TrialRow:
    """A trial of 9 epochs that finished, if it has an accuracy."""
    measured = val_accuracy is not None
    content: dict[str, Any] = {
        "values": {"optim.lr": 0.00123456, "optim.weight_decay": 0.0005, "optim.momentum": 0.9},
        "state": "finished" if measured else "running",
        "epoch": 9 if measured else 0,
        "num_epochs": 9 if measured else 0,
        "val_accuracy": val_accuracy,
        "val_loss": 1 - val_accuracy if val_accuracy is not None else None,
        "curve": [val_accuracy * part / 9 for part in range(1, 10)] if val_accuracy is not None else [],
        "seconds": 4.5,
    }
    return TrialRow(f"t{number}", number, **content | more)


def drawn(settings: TuneSettings, count: int) -> list[TrialRow]:
    """Trials with values as random search draws them."""
    rng = random.Random(0)
    rows = []
    for number in range(1, count + 1):
        values = settings.used({name: dimension.draw(rng) for name, dimension in settings.space.items()})
        rows.append(row(number, rng.uniform(0.1, 0.9), values=values, state=rng.choice(["finished", "stopped"])))
    return rows


def table(rows: list[TrialRow], settings: TuneSettings) -> list[list[str]]:
    """The words of each line."""
    console = Console(file=io.StringIO(), width=200)
    console.print(trial_table(rows, settings))
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines()]


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_line_a_trial_with_what_is_known_of_it() -> None:
    stopped = row(2, 0.75, state="stopped", epoch=3)
    failed = row(3, state="failed", epoch=1, num_epochs=9, error="no memory")

    assert table([row(1, 0.875), stopped, failed, row(4)], sweep()) == [
        ["trial", "state", "epoch", "accuracy", "loss", "s", "lr", "weight_decay", "momentum"],
        ["1", "finished", "9/9", "0.8750", "0.125", "4.5", "0.00123", "0.0005", "0.9"],
        ["2", "stopped", "3/9", "0.7500", "0.250", "4.5", "0.00123", "0.0005", "0.9"],
        ["3", "failed", "1/9", "-", "-", "4.5", "0.00123", "0.0005", "0.9"],
        ["4", "running", "0/?", "-", "-", "4.5", "0.00123", "0.0005", "0.9"],
    ]


def test_cost_is_shown_where_it_is_known() -> None:
    header, first, second = table([row(1, 0.5, cost_usd=0.01234), row(2, 0.5)], sweep())

    at = header.index("USD")
    assert (first[at], second[at]) == ("0.0123", "-")


def test_latency_is_shown_where_it_is_an_aim_and_the_front_is_marked() -> None:
    settings = sweep(search={"algorithm": "optuna", "latency": True}, scheduler={"name": "none"})
    rows = [row(1, 0.9, latency_ms=2.0), row(2, 0.8, latency_ms=1.234), row(3, 0.7, latency_ms=3.0)]

    header, *lines = table(rows, settings)

    assert [line[header.index("ms")] for line in lines] == ["2.00", "1.23", "3.00"]
    assert [line[0] for line in lines] == ["1*", "2*", "3"]


def test_a_value_that_does_not_apply_is_left_empty() -> None:
    settings = sweep(space={name: MIXED[name] for name in ("optim.optimizer", "optim.momentum", "augment.flip")})
    rows = [
        row(1, 0.5, values={"optim.optimizer": "sgd", "optim.momentum": 0.85, "augment.flip": True}),
        row(2, 0.5, values={"optim.optimizer": "adamw", "augment.flip": False}),
    ]

    _, with_sgd, with_adamw = table(rows, settings)

    assert with_sgd[-3:] == ["sgd", "0.85", "True"]
    assert with_adamw[-2:] == ["adamw", "False"]


@pytest.mark.parametrize(("metric", "order"), [("val_accuracy", [2, 1, 4]), ("val_loss", [1, 2, 4])])
def test_the_best_come_first_and_those_without_a_result_last(metric: str, order: list[int]) -> None:
    rows = [
        row(5),
        row(4, 0.5),
        row(3, 0.9, val_loss=0.1, error="the loss is nan", state="failed"),
        row(2, 0.8, val_loss=0.5),
        row(1, 0.7, val_loss=0.3),
    ]

    found = [found.number for found in ranked(rows, metric)]

    assert found[:3] == order
    assert set(found[3:]) == {3, 5}


# --- progress ---------------------------------------------------------------------------------------------------------


def watched(settings: TuneSettings, *updates: list[TrialRow], terminal: bool = False) -> list[str]:
    """What a log (or a terminal) shows of these updates."""
    console = Console(file=io.StringIO(), width=200, height=60, force_terminal=terminal, color_system=None)
    with SweepView(console, settings) as view:
        for rows in updates:
            view.update(rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_gets_a_line_that_says_how_far_and_how_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LOG_EVERY_S", 0.0)
    rows = [row(1, 0.75, cost_usd=0.02), row(2, 0.875, state="stopped", cost_usd=0.01), row(3)]

    first, *lines = watched(sweep(budget={"trials": 7}), rows, rows, [*rows, row(4)])

    assert first == "starting up to 7 trials ..."
    assert lines == [
        "3/7 trials  1 running  1 finished  1 stopped  best 0.8750 (trial 2)  $0.03",
        "4/7 trials  2 running  1 finished  1 stopped  best 0.8750 (trial 2)  $0.03",
    ]


def test_a_log_is_not_flooded() -> None:
    updates = [[row(number) for number in range(1, count)] for count in range(2, 30)]

    assert len(watched(sweep(), *updates)) == 2  # the first line of all, and one of progress


def test_the_time_left_is_told_when_a_trial_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LOG_EVERY_S", 0.0)
    resumed = [row(1, 0.5), row(2)]  # the first ended in an earlier part, whose time is not this one's

    *_, before, after = watched(sweep(), resumed, [row(1, 0.5), row(2, 0.6)])

    assert " left" not in before
    assert after.endswith(" left")


def test_a_terminal_shows_what_runs_and_the_best() -> None:
    rows = [row(number, number / 200) for number in range(1, 101)] + [row(101), row(102)]

    shown = "\n".join(watched(sweep(search={"preset": "hundred"}), rows, terminal=True))

    assert "102/100 trials" in shown
    numbers = {int(number) for number in re.findall(r"^ +(\d+) +(?:running|finished) ", shown, flags=re.MULTILINE)}
    assert numbers == {101, 102, *range(100, 102 - MAX_LIVE_ROWS, -1)}


def test_a_terminal_shows_no_more_than_fits_where_many_run() -> None:
    running = [row(number) for number in range(101, 101 + MAX_LIVE_ROWS + 4)]
    ended = [row(number, number / 200) for number in range(1, 101)]

    shown = "\n".join(watched(sweep(search={"preset": "hundred"}), [*ended, *running], terminal=True))

    assert re.findall(r"^ +\d+ +running ", shown, flags=re.MULTILINE)
    assert not re.findall(r"^ +\d+ +finished ", shown, flags=re.MULTILINE)


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels (H, W, 3) of a PNG that people can look at."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels_hwc = np.asarray(image.convert("RGB"))
    height, width, _ = pixels_hwc.shape
    assert 300 <= height <= 1000
    assert 600 <= width <= 3000
    assert len(np.unique(pixels_hwc @ [1, 256, 65536])) > 20  # colours: not an empty canvas
    return pixels_hwc


def orange(pixels_hwc: np.ndarray[Any, Any]) -> int:
    """How many pixels have the colour of the best."""
    r, g, b = (pixels_hwc[..., channel].astype(int) for channel in range(3))
    return int(((r > 200) & (abs(g - 110) < 30) & (b < 90)).sum())


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize("space", [None, MIXED])
def test_pictures_of_a_sweep(metric: str, count: int, space: dict[str, Any] | None, tmp_path: Path) -> None:
    settings = sweep(search={"metric": metric}, **({"space": space} if space else {}))
    rows = [*drawn(settings, count), row(count + 1, error="no memory", state="failed"), row(count + 2)]

    plot_history(rows, metric, tmp_path / "history.png")
    plot_parallel(rows, settings, tmp_path / "parallel.png")

    assert orange(picture(tmp_path / "history.png")) > 100
    assert orange(picture(tmp_path / "parallel.png")) > 100


def test_pictures_of_one_trial(tmp_path: Path) -> None:
    settings = sweep(space=MIXED)
    (only,) = drawn(settings, 1)

    plot_history([only], "val_accuracy", tmp_path / "history.png")
    plot_parallel([only], settings, tmp_path / "parallel.png")

    picture(tmp_path / "history.png")
    assert orange(picture(tmp_path / "parallel.png")) > 100


@pytest.mark.parametrize("rows", [[], [row(1), row(2, error="no memory", state="failed")]])
def test_pictures_where_nothing_was_measured(rows: list[TrialRow], tmp_path: Path) -> None:
    for settings in (sweep(), sweep(space=MIXED)):
        plot_history(rows, "val_accuracy", tmp_path / "history.png")
        plot_parallel(rows, settings, tmp_path / "parallel.png")

        picture(tmp_path / "history.png")
        assert orange(picture(tmp_path / "parallel.png")) == 0


def test_a_picture_of_one_trial_that_leaves_a_value_out(tmp_path: Path) -> None:
    settings = sweep(space={name: MIXED[name] for name in ("optim.optimizer", "optim.momentum")})

    plot_parallel([row(1, 0.5, values={"optim.optimizer": "adamw"})], settings, tmp_path / "parallel.png")

    assert orange(picture(tmp_path / "parallel.png")) > 100


def test_a_picture_of_values_that_are_all_alike_or_never_used(tmp_path: Path) -> None:
    settings = sweep(
        space={
            "optim.optimizer": {"choice": ["sgd", "adamw"]},
            "optim.momentum": MIXED["optim.momentum"],
            "optim.lr": {"choice": [0.1]},
            "optim.clip_norm": {"choice": [None]},
        }
    )
    alike = {"optim.optimizer": "adamw", "optim.lr": 0.1, "optim.clip_norm": None}

    plot_parallel([row(number, 0.1 * number, values=alike) for number in range(1, 5)], settings, tmp_path / "p.png")

    assert orange(picture(tmp_path / "p.png")) > 100


def test_the_best_tenth_is_in_colour(tmp_path: Path) -> None:
    settings = sweep()
    found = []
    for count in (1, 10, 100):
        plot_parallel(drawn(settings, count), settings, tmp_path / "parallel.png")
        found.append(orange(picture(tmp_path / "parallel.png")))

    assert found[1] < 2 * found[0]  # one line each
    assert found[2] > 3 * found[1]  # ten lines
