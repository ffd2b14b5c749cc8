"""From the best trial of a sweep to a registered version."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Console

from rayapp.config.commands import EvaluateSettings
from rayapp.config.env import Home
from rayapp.errors import TrainingError
from rayapp.registry.evaluation import evaluate_version
from rayapp.registry.models import ModelVersion, Registry
from rayapp.runtime.progress import print_line
from rayapp.train.driver import train
from rayapp.tune.record import Sweep, best_row


def retrain_best(sweep: Sweep, home: Home, console: Console) -> dict[str, Any]:
    """The best trial's settings trained with several seeds, and the best of these registered and evaluated.

    By validation it is the best; as the challenger its test split is opened, once. What is done is not done again.
    """
    settings = sweep.settings
    best = best_row(sweep.load_trials()[0], settings.search.metric)
    if best is None:
        raise TrainingError(f"no trial of sweep '{sweep.name}' has a result, so there is nothing to train")
    recipe = settings.trial(best.values)
    trained = []
    for n in range(settings.winner.seeds):
        print_line(console, f"winner, seed {n + 1} of {settings.winner.seeds}:")
        changes: dict[str, Any] = {"name": f"{sweep.name}-winner-{n + 1}", "seed": recipe.seed + n, "resume": "auto"}
        if settings.winner.epochs:
            changes["optim"] = recipe.optim.model_copy(update={"epochs": settings.winner.epochs})
        trained.append(train(recipe.model_copy(update=changes), home, console))
    accuracies = [one.best.val_accuracy for one in trained]
    chosen = max(trained, key=lambda one: (one.best.val_accuracy, -one.best.val_loss))
    version = _registered(home, {one.run.run_id for one in trained}, chosen.run.run_id, sweep)
    report = evaluate_version(EvaluateSettings(model=version.uri), home).to_dict()
    return {
        "model_uri": version.uri,
        "model_version": version.version,
        "run_id": chosen.run.run_id,
        "seeds": [one.run.settings.seed for one in trained],
        "val_accuracies": accuracies,
        "val_accuracy_mean": statistics.mean(accuracies),
        "val_accuracy_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        **{name: report[name] for name in ("test_accuracy", "test_accuracy_low", "test_accuracy_high", "n")},
    }


def _registered(home: Home, run_ids: set[str], run_id: str, sweep: Sweep) -> ModelVersion:
    """The version of the chosen run; the one of an earlier part of this sweep where there is one."""
    registry = Registry(home.tracking_uri)
    for version in registry.versions():
        if version.run_id in run_ids:
            return version
    return registry.register_run(run_id, tags={"sweep": sweep.name})
