"""A search the way Optuna's users write it: processes that share a study, TPE, successive halving. A file of its own.

    python optuna_loop.py --data FOLDER --trials 20 --processes 2

FOLDER holds train.parquet and test.parquet. Each process loads the images once and then takes trial after trial, with
one thread; the model and its training are rayapp's fit(), so that only the search around it differs. No checkpoints, no
tracking: nothing is left of it but the study. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from rayapp.config.env import Home
from rayapp.config.train import AugmentConfig, DataConfig, ModelConfig, OptimConfig
from rayapp.data import datasets
from rayapp.data.preprocess import Images
from rayapp.errors import TrainingError
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import InMemoryLoader
from rayapp.vision.loop import EpochReport, fit
from rayapp.vision.memory import keep_freed_memory
from rayapp.vision.models import build_model
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.state import TrainState

VALIDATION_BATCH = 512  # as in rayapp/compute/worker.py
STUDY = "peer"


@dataclass
class Process:
    """What a process keeps between two trials. fit_s: seconds in fit(), of all its trials."""

    options: argparse.Namespace
    study: optuna.Study
    data: DataConfig
    dataset: datasets.Dataset
    fit_s: float = 0.0


_process: Process  # of each process of the pool


# --- a trial ----------------------------------------------------------------------------------------------------------


def suggest(trial: Trial) -> dict[str, float]:
    """The space."""
    return {
        "lr": trial.suggest_float("lr", 0.01, 2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        "momentum": trial.suggest_float("momentum", 0.6, 0.99),
    }


def objective(process: Process, trial: Trial) -> float:
    """The last validation accuracy (0-1). Raises TrialPruned, and TrainingError on a loss that is not finite."""
    options, info = process.options, process.dataset.info
    optim = OptimConfig(epochs=options.epochs, batch_size=options.batch_size, **suggest(trial))
    torch.manual_seed(options.seed)
    plan = TrainPlan.of(optim, len(process.dataset.split(process.data).train_indices))
    train, validation = _batches(process, plan)
    size = {"num_classes": info.num_classes, "image_px": min(info.height_px, info.width_px)}
    model = build_model(ModelConfig(name=options.model), **size, mean=info.mean, std=info.std)
    state, accuracy = TrainState.create(model, build_optimizer(model, plan), plan), 0.0
    started = time.monotonic()
    for report in fit(state, train, validation, seed=options.seed):
        if isinstance(report, EpochReport):
            process.fit_s += time.monotonic() - started
            accuracy = report.val_accuracy
            trial.report(accuracy, report.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
            started = time.monotonic()
    return accuracy


def _batches(process: Process, plan: TrainPlan) -> tuple[InMemoryLoader, InMemoryLoader]:
    images, split, info = process.dataset.train, process.dataset.split(process.data), process.dataset.info
    assert isinstance(images, Images)  # nothing is streamed here
    train = InMemoryLoader(
        images,
        split.train_indices,
        batch_size=plan.batch_size,
        device=torch.device("cpu"),
        augment=Augment.from_config(
            AugmentConfig(), height_px=info.height_px, flip=info.flip, num_classes=info.num_classes
        ),
        seed=process.options.seed,
    )
    device = torch.device("cpu")
    return train, InMemoryLoader(images, split.validation_indices, batch_size=VALIDATION_BATCH, device=device)


# --- processes --------------------------------------------------------------------------------------------------------


def open_study(journal: Path) -> optuna.Study:
    """The study in this file, which is made where it is not there."""
    return optuna.create_study(
        study_name=STUDY,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        direction="maximize",
        load_if_exists=True,
    )


def start(options: argparse.Namespace, journal: Path) -> None:
    """Make this process ready for its first trial."""
    global _process  # multiprocessing's pools have no other place for it
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = DataConfig(dataset="parquet", path=str(options.data))
    _process = Process(options, open_study(journal), data, datasets.load(data, Home.from_env().data))


def run_trial(number: int) -> float:
    """Seconds in fit() of one more trial. A loss that is not finite makes it a failed one, which is not tried again."""
    before = _process.fit_s
    # one seed for all processes would have them draw the same values
    _process.study.sampler = TPESampler(seed=1000 * _process.options.seed + number)
    _process.study.optimize(partial(objective, _process), n_trials=1, catch=(TrainingError,))
    return _process.fit_s - before


def search(options: argparse.Namespace, journal: Path) -> dict[str, float]:
    """What all processes found. seconds: from their start on, what they import and load included."""
    open_study(journal)
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(options.processes, initializer=start, initargs=(options, journal)) as pool:
        fit_s = sum(pool.imap_unordered(run_trial, range(options.trials)))
        seconds = time.monotonic() - started
        pool.close()
        pool.join()
    return {**figures(open_study(journal).get_trials(deepcopy=False)), "fit_seconds": fit_s, "seconds": seconds}


def figures(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How many trials and epochs there were, and the best epoch's accuracy of all trials that did not fail."""
    good = [max(t.intermediate_values.values()) for t in trials if t.state != TrialState.FAIL and t.intermediate_values]
    return {
        "trials": len(trials),
        "failed": sum(t.state == TrialState.FAIL for t in trials),
        "epochs": sum(len(t.intermediate_values) for t in trials),
        "best_val_accuracy": max(good, default=0.0),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Search, and print a JSON line."""
    options = command_line().parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = search(options, Path(folder, "journal"))
    print(json.dumps(found))


def command_line() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--model", default="mobilenet_v3_small", help="architecture, one of rayapp's")
    parser.add_argument("--trials", type=int, default=20, help="trials of all processes together")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a trial that is not stopped")
    parser.add_argument("--batch-size", type=int, default=128, help="images a trial takes at once")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trials at once")
    parser.add_argument("--seed", type=int, default=0, help="of the search, the weights and the order of the images")
    return parser


if __name__ == "__main__":
    main()
