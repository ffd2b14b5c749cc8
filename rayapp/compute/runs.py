"""The folder of a training run: its settings, where it stands, its split, its bundle; beside Ray's checkpoints."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rayapp.config import Home
from rayapp.errors import ConfigError, did_you_mean
from rayapp.settings import TrainSettings, validate
from rayapp.vision.datasets import Split

Stage = Literal["training", "trained", "done"]
RECORDED_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """One training. stage: training (may be resumed), trained (only MLflow still lacks something), done."""

    name: str
    run_id: str
    stage: Stage
    folder: Path
    settings: TrainSettings

    @property
    def bundle_folder(self) -> Path:
        """Where the bundle is written before MLflow gets it."""
        return self.folder / "bundle"

    @property
    def checkpoint_folder(self) -> Path:
        """The last checkpoint of a run that is trained."""
        return self.folder / "last_checkpoint"

    @property
    def spool(self) -> Path:
        """Metrics on their way to MLflow."""
        return self.folder / "metrics.jsonl"

    def save(self) -> None:
        """Write run.json: whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "run_id": self.run_id,
            "stage": self.stage,
            "settings": self.settings.model_dump(mode="json", by_alias=True),
        }
        partial = self.folder / "run.json.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / "run.json")

    def at(self, stage: Stage) -> Run:
        """The same run at another stage, saved."""
        run = Run(self.name, self.run_id, stage, self.folder, self.settings)
        run.save()
        return run

    def save_split(self, split: Split) -> None:
        """Write split.npz: which images were for training and which for validation."""
        np.savez_compressed(
            self.folder / "split.npz",
            train=split.train_indices,
            validation=split.validation_indices,
            digest=np.array(split.digest),
        )


def new_name(settings: TrainSettings) -> str:
    """A name that no other run has: Ray would take a second run of a name for the first one's continuation."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{settings.data.dataset}-{settings.model.name}-{now}-{secrets.token_hex(2)}"


def find_run(home: Home, wanted: str) -> Run:
    """The run of this name or MLflow id. Raises ConfigError naming the nearest one."""
    known: dict[str, Path] = {}
    for path in sorted(home.runs.glob("*/run.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        known[content["name"]] = path
        if wanted in (content["name"], content["run_id"]):
            settings = validate(TrainSettings, content["settings"])
            return Run(content["name"], content["run_id"], content["stage"], path.parent, settings)
    hint = did_you_mean(wanted, known) if known else f" There is no run in {home.runs} yet."
    raise ConfigError(f"no run '{wanted}' to resume.{hint}")


def run_tags(settings: TrainSettings, device: str, data_digest: str) -> dict[str, str]:
    """What a run stands on: code, versions, data, hardware."""
    gpu = torch.cuda.get_device_name(0) if device == "cuda" and torch.cuda.is_available() else ""
    return {
        "git_sha": git_sha(),
        "data_digest": data_digest,
        "hardware.device": device,
        "hardware.gpu": gpu,
        "hardware.cpu": _cpu_name(),
        "hardware.cores": str(os.cpu_count()),
        "hardware.platform": platform.platform(terse=True),
        "model_architecture": settings.model.name,
        "dataset": settings.data.dataset,
    } | {f"version.{name}": number for name, number in package_versions().items()}


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide about results, and of Python."""
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES}


def git_sha() -> str:
    """The commit of this code, with -dirty where files were changed; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        sha = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607 - git is found by PATH
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return sha.stdout.strip()


def flat(settings: TrainSettings) -> dict[str, str]:
    """The settings as MLflow parameters: "section.field" -> text."""
    out: dict[str, str] = {}
    for section, value in settings.model_dump(mode="json", by_alias=True).items():
        fields = value if isinstance(value, dict) else {"": value}
        out |= {f"{section}.{name}".rstrip("."): str(field) for name, field in fields.items()}
    return out


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
