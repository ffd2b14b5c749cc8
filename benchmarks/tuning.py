"""`make bench-tuning`: what early stopping saves and a trial costs, and rayapp tune against Optuna's own loop.

search: ASHA with HyperOpt, then random search without stopping with as many epochs as ASHA spent. optuna: the same
space, trials and epochs in `rayapp tune` (Optuna's TPE, ASHA) and in a plain script of Optuna (TPE, successive halving,
a process a core), in pairs: seed by seed, one after the other. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from benchmarks import commands, conditions, data, frame, training
from benchmarks.report import Column, Finding, Report, Row, Versus
from rayapp.config.train import DataConfig
from rayapp.data import datasets
from rayapp.errors import RayAppError

SEARCH, OPTUNA = "search", "optuna"
TRIALS = {SEARCH: 100, OPTUNA: 20}
ASHA, RANDOM = "rayapp, HyperOpt and ASHA", "rayapp, random without stopping"
OURS, THEIRS = "rayapp, Optuna and ASHA", "Optuna's own loop"
RUN_S = 4 * 3600.0  # longest time of a sweep
REDUCTION_FACTOR = 3  # as in peers/optuna_loop.py
SPACE = {  # as in peers/optuna_loop.py
    "optim.lr": {"log_uniform": [0.01, 2.0]},
    "optim.weight_decay": {"log_uniform": [1e-5, 1e-2]},
    "optim.momentum": {"uniform": [0.6, 0.99]},
}
QUICK = {"trials": 4, "seeds": 1, "epochs": 2, "images": 500}
START_S, IMAGES_PER_S = 30, 400  # of a sweep, about, and of a trial on one core
EPOCH_PART = 0.4  # targets: of the epochs that all trials in full would take
OVERHEAD_S = 1.0  # a trial: seconds of a core that are not in fit()
WORSE = 0.005  # than random search without stopping, in validation accuracy (0-1)
BEST = "best val accuracy"
# "whole": of the whole command, so with Python's and Ray's start, the pictures, the end. "search": from when the
# processes of the trials are started to the last trial's end. What Ray's own processes take from fit() while it runs is
# not in the overhead, but is in the rate.
COLUMNS = {
    "trials/min, whole": Column(), "trials/min, search": Column(), "epochs": Column(".0f", timed=False),
    "part of all epochs": Column(".3f", timed=False), "s an epoch": Column(), "overhead s, whole": Column(),
    "overhead s, search": Column(), "unrecorded trials": Column(".0f", timed=False),
    BEST: Column(".4f", timed=False),
}  # fmt: skip

Bench = frame.Bench[Row]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no target is missed, 1 when one is, or nothing could be measured; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def measure(bench: Bench) -> None:
    """All sweeps."""
    options = bench.options
    num_images, images = data.write(options, bench.scratch / "data")
    _warm_up(bench)
    where = {
        "versions": {**conditions.versions(), **{name: metadata.version(name) for name in ("optuna", "hyperopt")}},
        "recipe": f"{options.model} on the CPU, {images}, {options.epochs} epochs, {options.batch_size} images at once;"
        f" {options.at_once} trials at once, 1 thread each",
        "space": ", ".join(f"{name} {kind} {bounds}" for name, d in SPACE.items() for kind, bounds in d.items()),
        "runs": ", ".join(f"{part}: {trials_of(options, part)} trials" for part in options.only)
        + "; images decoded and MLflow's database made before",
    }
    sweeps = {SEARCH: 2, OPTUNA: 2 * options.seeds}
    num_trials = sum(sweeps[part] * trials_of(options, part) for part in options.only)
    trial_s = OVERHEAD_S + EPOCH_PART * options.epochs * num_images / IMAGES_PER_S
    num_rows = sum(sweeps[part] for part in options.only)
    bench.begin(where, num_rows=num_rows, seconds=num_rows * START_S + num_trials * trial_s / options.at_once)
    if SEARCH in options.only:
        _search(bench)
    if OPTUNA in options.only:
        _pairs(bench)


def conclude(bench: Bench) -> dict[str, Any]:
    """The tables, and what stands beside the targets."""
    report = Report(COLUMNS, bench.rows)
    report.show(bench.console)
    return report.conclude(bench.console, findings(report), judge=not bench.options.quick, speed_fails=True)


def findings(report: Report) -> list[Finding]:
    """What early stopping saved and lost, what a trial took beside its training; ours against Optuna's script.

    The best may be worse than Optuna's by a standard error, which is known from two pairs on.
    """
    overhead = "overhead a trial (s)"
    found = [
        *report.single("trials that MLflow does not have, or not ended", ASHA, "unrecorded trials", 0, at_most=True),
        *report.single("epochs run, part of all trials in full", ASHA, "part of all epochs", EPOCH_PART, at_most=True),
        *report.single(f"{overhead}, whole command", ASHA, "overhead s, whole", OVERHEAD_S, at_most=True),
        *report.single(f"{overhead}, without Ray's start", ASHA, "overhead s, search", OVERHEAD_S, at_most=True),
    ]
    if pair := report.difference("best, less that of random search with the same epochs", BEST, ASHA, RANDOM):
        found.append(replace(pair[0], limit=-WORSE))
    for what, figure, factor, least in (
        ("trials a minute, whole command, times Optuna's", "trials/min, whole", 1.0, False),
        ("trials a minute, without the start, times Optuna's", "trials/min, search", 1.0, False),
        ("epochs run, times Optuna's", "epochs", None, False),
        ("epochs a second in fit(), times Optuna's", "s an epoch", None, True),
    ):
        found += report.ratio(Versus(what, figure, OURS, (THEIRS,), factor, least))
    if pair := report.difference("best less Optuna's, mean ± standard error", BEST, OURS, THEIRS):
        found.append(replace(pair[0], limit=None if pair[1] is None else -pair[1]))
    return found


def trials_of(options: argparse.Namespace, part: str) -> int:
    """Of a sweep."""
    trials: int = options.trials or TRIALS[part]
    return trials


# --- runs -------------------------------------------------------------------------------------------------------------


def _search(bench: Bench) -> None:
    """ASHA's sweep, and the one of random search that spends as many epochs."""
    asha = _tune(bench, ASHA, trials_of(bench.options, SEARCH), 0, asha_flags("hyperopt"))
    trials = math.ceil(asha.figures["epochs"] / bench.options.epochs)
    _tune(bench, RANDOM, trials, 0, ["--search.algorithm", "random", "--scheduler.name", "none"])


def _pairs(bench: Bench) -> None:
    """For each seed a sweep of ours and one of Optuna's script, in turn."""
    trials = trials_of(bench.options, OPTUNA)
    for seed in range(bench.options.seeds):
        _tune(bench, OURS, trials, seed, asha_flags("optuna"))
        _measured(bench, THEIRS, loop_words(bench.options, bench.scratch, trials, seed), trials, seed)


def asha_flags(algorithm: str) -> list[str]:
    factor = str(REDUCTION_FACTOR)
    return ["--search.algorithm", algorithm, "--scheduler.name", "asha", "--scheduler.reduction_factor", factor]


def _tune(bench: Bench, name: str, trials: int, seed: int, flags: Sequence[str]) -> Row:
    sweep = f"{_slug(name)}-{seed}"
    words = tune_words(bench.options, bench.scratch, trials, seed, ["--name", sweep, *flags])
    return _measured(bench, name, words, trials, seed)


def tune_words(options: argparse.Namespace, scratch: Path, trials: int, seed: int, flags: Sequence[str]) -> list[str]:
    """The command of a sweep of ours; what it searches is written into a file."""
    config = scratch / "sweep.yaml"
    config.write_text(yaml.safe_dump({
        "data": {"dataset": "parquet", "path": str(scratch / "data")},
        "model": {"name": options.model},
        "optim": {"epochs": options.epochs, "batch_size": options.batch_size},
        "compute": {"device": "cpu"},
        "space": SPACE,
    }))  # fmt: skip
    words = [sys.executable, "-m", "rayapp.cli", "tune", "--config", str(config), *flags]
    words += ["--budget.trials", str(trials), "--trials.at_once", str(min(options.at_once, trials))]
    return [*words, "--search.seed", str(seed), "--seed", str(seed)]


def loop_words(options: argparse.Namespace, scratch: Path, trials: int, seed: int) -> list[str]:
    """The command of Optuna's script."""
    return [
        sys.executable, str(training.PEERS / "optuna_loop.py"), "--data", str(scratch / "data"),
        "--model", options.model, "--trials", str(trials), "--epochs", str(options.epochs),
        "--batch-size", str(options.batch_size), "--processes", str(min(options.at_once, trials)), "--seed", str(seed),
    ]  # fmt: skip


def _measured(bench: Bench, name: str, words: Sequence[str], trials: int, seed: int) -> Row:
    """The command's sweep."""
    options, uri = bench.options, _tracking_uri(bench)
    log = options.logs / f"tuning-{_slug(name)}.log"
    variables = {"RAYAPP_HOME": str(bench.scratch / "home"), "MLFLOW_TRACKING_URI": uri}
    variables |= {"RAY_TMPDIR": str(bench.scratch)} | training.ONE_THREAD
    done = commands.run(words, variables, log, timeout_s=RUN_S)
    said = json.loads(done.stdout.splitlines()[-1]) | {"command_s": time.time() - done.launched_at}
    if said["trials"] != trials:
        raise RayAppError(f"{name} ran {said['trials']} trials, not {trials}; see {log}")
    recorded = ended_runs(uri, said["run_id"]) if "run_id" in said else None
    at_once = min(options.at_once, trials)
    row = row_of(name, seed, said, at_once=at_once, full_epochs=trials * options.epochs, recorded=recorded)
    row = replace(row, others_cpu=done.others_cpu)
    bench.add(row, Report(COLUMNS, bench.rows).line(row))
    return row


def row_of(
    name: str, seed: int, said: dict[str, Any], *, at_once: int, full_epochs: int, recorded: int | None = None
) -> Row:
    """A sweep as a row. said: what it printed, and command_s. recorded: its trials in MLflow that ended."""
    trials, fit_s, whole_s, search_s = said["trials"], said["fit_seconds"], said["command_s"], said["seconds"]
    epochs = said["epochs"]
    figures = {
        "trials/min, whole": 60 * trials / whole_s, "trials/min, search": 60 * trials / search_s,
        "epochs": epochs, "part of all epochs": epochs / full_epochs, "s an epoch": fit_s / max(1, epochs),
        "overhead s, whole": (at_once * whole_s - fit_s) / trials,
        "overhead s, search": (at_once * search_s - fit_s) / trials,
        BEST: said["best_val_accuracy"],
    }  # fmt: skip
    if recorded is not None:
        figures["unrecorded trials"] = trials - recorded
    details = {"trials": trials, "failed_trials": said["failed"], "fit_s": fit_s, "command_s": whole_s}
    return Row(name, seed, figures, others_cpu=0.0, details=details)


def ended_runs(tracking_uri: str, sweep: str) -> int:
    """How many runs below that of the sweep ended, by themselves or stopped."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_run(sweep).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep}'", max_results=50_000)
    return sum(run.info.status != "RUNNING" for run in runs)


def _warm_up(bench: Bench) -> None:
    """What is made once in a home's life, and would else be the first run's."""
    home = bench.scratch / "home"
    home.mkdir()
    datasets.load(DataConfig(dataset="parquet", path=str(bench.scratch / "data")), home / "data")
    MlflowClient(_tracking_uri(bench)).search_experiments()


def _tracking_uri(bench: Bench) -> str:
    return f"sqlite:///{bench.scratch / 'home' / 'mlflow.db'}"


def _slug(name: str) -> str:
    return re.sub("[^A-Za-z0-9]+", "-", name)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("tuning", __doc__, quick=QUICK)
    data.add_options(parser)
    count = frame.count
    parser.add_argument("--only", nargs="+", choices=tuple(TRIALS), default=tuple(TRIALS), help="what to measure [all]")
    parser.add_argument("--trials", type=count, help="trials of a sweep [search 100, optuna 20]")
    parser.add_argument("--seeds", type=count, default=5, help="pairs of sweeps of optuna [5]; search has seed 0")
    parser.add_argument("--epochs", type=count, default=9, help="epochs of a trial that is not stopped [9]")
    parser.add_argument("--batch-size", type=count, default=128, help="images a trial takes at once [128]")
    parser.add_argument("--model", default="mobilenet_v3_small", help="architecture [mobilenet_v3_small]")
    cores = os.cpu_count() or 1
    parser.add_argument("--at-once", type=count, default=cores, help="trials that run at once [one per core]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
