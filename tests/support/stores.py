"""Stores of MLflow in sqlite that take a moment to make, and what tests put into them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from rayapp.config.env import Home
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.tracking import Tracker, mlflow_client

PARAMS = {"model.name": "resnet18", "data.dataset": "digits", "data.path": "/secret/place", "plan.batch_size": "128"}
PARAMS |= {"plan.peak_lr": "0.4", "plan.epochs": "8", "seed": "0", "compute.storage_path": "s3://secret"}
TAGS = {"model_architecture": "resnet18", "git_sha": "abc", "mlflow.user": "alice", "hardware.cpu": "secret"}


@cache
def _tables() -> bytes:
    """A database with MLflow's tables, which take 3 s to make."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        with mlflow_client(f"sqlite:///{path}"):
            pass
        return path.read_bytes()


def home_at(folder: Path) -> Home:
    """A home in a folder; where no store is there yet, with an empty one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "mlflow.db").exists():
        (folder / "mlflow.db").write_bytes(_tables())
    return Home(folder=folder, tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def new_run(tracker: Tracker) -> str:
    return tracker.open_run("rayapp", "a run", PARAMS, TAGS)


def registered(tracker: Tracker, registry: Registry, folder: Path) -> ModelVersion:
    """A new version with a run and a bundle of its own."""
    run = new_run(tracker)
    return registry.register(run, registry.log_bundle(run, folder), tags={"val_accuracy": "0.900000"})


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in the order of time."""
    with mlflow_client(uri) as client:
        found = sorted(client.get_metric_history(run_id, name), key=lambda m: (m.timestamp, m.step))
        return [(m.step, m.value) for m in found]


def finished(tracker: Tracker, tags: dict[str, str], experiment: str = "rayapp") -> str:
    """A run that has ended well."""
    run = tracker.open_run(experiment, "r", {}, tags)
    tracker.close_run(run, "FINISHED")
    return run
