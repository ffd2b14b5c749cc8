"""The folder of a training run: its settings, where it stands, its split, its bundle; beside Ray's checkpoints."""

from __future__ import annotations

import json
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayapp.config.commands import TrainSettings
from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.data.datasets import Split
from rayapp.errors import ConfigError, did_you_mean
from rayapp.provenance import flatten
from rayapp.storage import Folder, atomic_write, below, exclusive_lock

Stage = Literal["training", "trained", "done"]
RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainingRun:
    """One training. stage: training (may be resumed), trained (only MLflow still lacks something), done."""

    name: str
    run_id: str
    stage: Stage
    folder: Path
    settings: TrainSettings

    @property
    def storage(self) -> str:
        """The folder or s3:// address below which Checkpoints has a folder for this run."""
        return self.settings.compute.storage_path or str(self.folder.parent)

    @property
    def bundle_folder(self) -> Path:
        """Where the bundle is written before MLflow gets it."""
        return self.folder / "bundle"

    @property
    def spool(self) -> Path:
        """Metrics on their way to MLflow."""
        return self.folder / "metrics.jsonl"

    def save(self) -> None:
        """Write run.json, whole or not at all: here and on the storage, where a job on another machine finds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "run_id": self.run_id,
            "stage": self.stage,
            "settings": self.settings.model_dump(mode="json", by_alias=True),
        }
        text = json.dumps(content, indent=2) + "\n"
        atomic_write(self.folder / RUN_FILE, text)
        if self.settings.compute.storage_path:
            Folder(below(self.storage, self.name)).write(RUN_FILE, text.encode())

    def at(self, stage: Stage) -> TrainingRun:
        """The same run at another stage, saved."""
        run = replace(self, stage=stage)
        run.save()
        return run

    def locked(self) -> AbstractContextManager[None]:
        """Nobody else on this machine trains this run inside. Raises ConfigError where somebody does."""
        return exclusive_lock(self.folder, f"run '{self.name}' is being trained")

    def save_split(self, split: Split) -> None:
        """Write split.npz: which images were for training and which for validation."""
        np.savez_compressed(
            self.folder / "split.npz",
            train=split.train_indices,
            validation=split.validation_indices,
            digest=np.array(split.digest),
        )


def new_run_name(settings: TrainSettings) -> str:
    """A name that no other run has; by default data set, model and time."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return settings.name or f"{settings.data.dataset}-{settings.model.name}-{now}-{secrets.token_hex(2)}"


def refuse_existing(home: Home, settings: TrainSettings) -> None:
    """Raises ConfigError where settings name a run that exists, here or on the storage."""
    if settings.name and (found := _look_up(home, settings.name, settings.compute.storage_path)):
        raise ConfigError(
            f"run '{settings.name}' exists already (stage: {found.stage}); give another --name, or go on with it:"
            f" --resume {settings.name}"
        )


def find_run(home: Home, settings: TrainSettings) -> TrainingRun | None:
    """The run that settings.resume means: a name, an MLflow id, or auto for the one of settings.name; None for auto
    where there is none yet. Raises ConfigError naming the nearest one, or where auto's settings have changed.
    """
    wanted = settings.name if settings.resume == "auto" else settings.resume
    assert wanted is not None
    found = _look_up(home, wanted, settings.compute.storage_path)
    if settings.resume == "auto":
        if found:
            _refuse_changes(found, settings)
        return found
    if found is None:
        known = [path.parent.name for path in home.runs.glob(f"*/{RUN_FILE}")]
        hint = did_you_mean(wanted, known) if known else f" There is no run in {home.runs} yet."
        raise ConfigError(f"no run '{wanted}' to resume.{hint}")
    return found


def _look_up(home: Home, wanted: str, storage: str | None) -> TrainingRun | None:
    """The run of this name or MLflow id on this machine, or of this name on the storage."""
    for path in home.runs.glob(f"*/{RUN_FILE}"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if wanted in (content["name"], content["run_id"]):
            return _from_content(home, content)
    if storage is None:
        return None
    try:
        return _from_content(home, json.loads(Folder(below(storage, wanted)).read(RUN_FILE)))
    except FileNotFoundError:
        return None


def _from_content(home: Home, content: dict[str, Any]) -> TrainingRun:
    settings = validate(TrainSettings, content["settings"])
    return TrainingRun(content["name"], content["run_id"], content["stage"], home.runs / content["name"], settings)


def _refuse_changes(found: TrainingRun, settings: TrainSettings) -> None:
    before, now = flatten(found.settings), flatten(settings)
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in ("resume", "dry_run"))
    if changed:
        what = ", ".join(f"{key} (was {before.get(key)}, is {now[key]})" for key in changed)
        raise ConfigError(f"run '{found.name}' was started with other settings: {what}; give another --name")
