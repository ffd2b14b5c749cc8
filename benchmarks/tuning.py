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
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from rich.console import Console

from benchmarks import commands, conditions, training
from benchmarks import tuning_report as report
from benchmarks.paths import path
from benchmarks.tuning_report import Measured
from rayapp.config import DataConfig
from rayapp.errors import RayAppError
from rayapp.vision import datasets

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


@dataclass
class Bench:
    """What all runs share."""

    options: argparse.Namespace
    scratch: Path
    console: Console
    measured: list[Measured] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """RAYAPP_HOME of all runs."""
        return self.scratch / "home"

    @property
    def tracking_uri(self) -> str:
        """MLflow's database."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def trials(self, part: str) -> int:
        """Of a sweep."""
        trials: int = self.options.trials or TRIALS[part]
        return trials


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every target that was measured is met, 1 when one is not, or nothing could be measured."""
    return training.judged(_options().parse_args(argv), compare)


def compare(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; tables go to the console."""
    bench = Bench(options, scratch, console)
    num_train = training.write_subset(options.data, scratch / "data", options.images)
    _warm_up(bench)
    where = {
        "machine": conditions.machine(),
        "versions": {**conditions.versions(), **{name: metadata.version(name) for name in ("optuna", "hyperopt")}},
        "recipe": f"{options.model} on the CPU, {num_train:,} training images, a tenth of them for validation,"
        f" {options.epochs} epochs, {options.batch_size} images at once; {options.at_once} trials at once, 1 thread"
        " each",
        "space": ", ".join(f"{name} {kind} {bounds}" for name, d in SPACE.items() for kind, bounds in d.items()),
        "runs": ", ".join(f"{part}: {bench.trials(part)} trials" for part in options.only)
        + "; images decoded and MLflow's database made before",
    }
    conditions.show(console, where)
    found = report.search_findings(*_search(bench)) if SEARCH in options.only else []
    found += report.optuna_findings(_pairs(bench)) if OPTUNA in options.only else []
    report.show(console, bench.measured, found)
    return {"conditions": where, **report.as_json(bench.measured, found)}


# --- runs -------------------------------------------------------------------------------------------------------------


def _search(bench: Bench) -> tuple[Measured, Measured]:
    """ASHA's sweep, and the one of random search that spends as many epochs."""
    asha = _tune(bench, ASHA, bench.trials(SEARCH), 0, _asha("hyperopt"))
    trials = math.ceil(asha.epochs / bench.options.epochs)
    return asha, _tune(bench, RANDOM, trials, 0, ["--search.algorithm", "random", "--scheduler.name", "none"])


def _pairs(bench: Bench) -> list[tuple[Measured, Measured]]:
    """For each seed a sweep of ours and one of Optuna's script, in turn."""
    pairs, trials = [], bench.trials(OPTUNA)
    for seed in range(bench.options.seeds):
        ours = _tune(bench, OURS, trials, seed, _asha("optuna"))
        pairs.append((ours, _measure(bench, THEIRS, loop_words(bench, trials, seed), trials, seed)))
    return pairs


def _asha(algorithm: str) -> list[str]:
    factor = str(REDUCTION_FACTOR)
    return ["--search.algorithm", algorithm, "--scheduler.name", "asha", "--scheduler.reduction_factor", factor]


def _tune(bench: Bench, name: str, trials: int, seed: int, flags: Sequence[str]) -> Measured:
    return _measure(bench, name, tune_words(bench, f"{_slug(name)}-{seed}", trials, seed, flags), trials, seed)


def tune_words(bench: Bench, sweep: str, trials: int, seed: int, flags: Sequence[str]) -> list[str]:
    """The command of a sweep of ours; what it searches is written into a file."""
    options, config = bench.options, bench.scratch / "sweep.yaml"
    config.write_text(yaml.safe_dump({
        "data": {"dataset": "parquet", "path": str(bench.scratch / "data")},
        "model": {"name": options.model},
        "optim": {"epochs": options.epochs, "batch_size": options.batch_size},
        "compute": {"device": "cpu"},
        "space": SPACE,
    }))  # fmt: skip
    words = [sys.executable, "-m", "rayapp.cli", "tune", "--config", str(config), "--name", sweep, *flags]
    words += ["--budget.trials", str(trials), "--trials.at_once", str(min(options.at_once, trials))]
    return [*words, "--search.seed", str(seed), "--seed", str(seed)]


def loop_words(bench: Bench, trials: int, seed: int) -> list[str]:
    """The command of Optuna's script."""
    options = bench.options
    return [
        sys.executable, str(training.PEERS / "optuna_loop.py"), "--data", str(bench.scratch / "data"),
        "--model", options.model, "--trials", str(trials), "--epochs", str(options.epochs),
        "--batch-size", str(options.batch_size), "--processes", str(min(options.at_once, trials)), "--seed", str(seed),
    ]  # fmt: skip


def _measure(bench: Bench, name: str, words: Sequence[str], trials: int, seed: int) -> Measured:
    """The command's sweep, of which a line is printed."""
    log = bench.options.logs / f"tuning-{_slug(name)}.log"
    variables = {"RAYAPP_HOME": str(bench.home), "MLFLOW_TRACKING_URI": bench.tracking_uri}
    variables |= {"RAY_TMPDIR": str(bench.scratch)} | training.ONE_THREAD
    done = commands.run(words, variables, log, timeout_s=RUN_S)
    command_s = time.time() - done.launched_at
    said = json.loads(done.stdout.splitlines()[-1])
    if said["trials"] != trials:
        raise RayAppError(f"{name} ran {said['trials']} trials, not {trials}; see {log}")
    found = Measured(
        name, seed, min(bench.options.at_once, trials), trials, said["failed"], said["epochs"],
        trials * bench.options.epochs, said["best_val_accuracy"], said["fit_seconds"], said["seconds"], command_s,
        done.others_cpu, ended_runs(bench.tracking_uri, said["run_id"]) if "run_id" in said else None,
    )  # fmt: skip
    bench.measured.append(found)
    num_runs = 2 * (SEARCH in bench.options.only) + 2 * bench.options.seeds * (OPTUNA in bench.options.only)
    text = f"{len(bench.measured):>3}/{num_runs}  {name:<32} {report.line(found)}"
    bench.console.print(text, highlight=False, soft_wrap=True)
    return found


def ended_runs(tracking_uri: str, sweep: str) -> int:
    """How many runs below that of the sweep ended, by themselves or stopped."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_run(sweep).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{sweep}'", max_results=50_000)
    return sum(run.info.status != "RUNNING" for run in runs)


def _warm_up(bench: Bench) -> None:
    """What is made once in a home's life, and would else be the first run's."""
    bench.home.mkdir()
    datasets.load(DataConfig(dataset="parquet", path=str(bench.scratch / "data")), bench.home / "data")
    MlflowClient(bench.tracking_uri).search_experiments()


def _slug(name: str) -> str:
    return re.sub("[^A-Za-z0-9]+", "-", name)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-tuning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=path, required=True, help="folder of CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--only", nargs="+", choices=tuple(TRIALS), default=tuple(TRIALS), help="what to measure [all]")
    parser.add_argument("--trials", type=_count, help="trials of a sweep [search 100, optuna 20]")
    parser.add_argument("--seeds", type=_count, default=5, help="pairs of sweeps of optuna [5]; search has seed 0")
    parser.add_argument("--images", type=_count, default=4000, help="training and validation images [4000]")
    parser.add_argument("--epochs", type=_count, default=9, help="epochs of a trial that is not stopped [9]")
    parser.add_argument("--batch-size", type=_count, default=128, help="images a trial takes at once [128]")
    parser.add_argument("--model", default="mobilenet_v3_small", help="architecture [mobilenet_v3_small]")
    cores = os.cpu_count() or 1
    parser.add_argument("--at-once", type=_count, default=cores, help="trials that run at once [one a core]")
    parser.add_argument("--logs", type=path, default="bench-logs", help="folder of the contestants' messages")
    parser.add_argument("--output", type=path, metavar="FILE.json", help="write the result to a file too")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of things; give 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
