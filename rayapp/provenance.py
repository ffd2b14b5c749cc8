"""What a run stands on: code, versions, hardware, recipe; its settings as MLflow's parameters."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from rayapp.config.commands import Recipe
from rayapp.config.env import built_git_sha

# Settings of compute that decide about time; what device came to is a tag of the run's hardware.
TIMED_COMPUTE = {"num_workers", "threads_per_worker", "compile", "deterministic"}
RECORDED_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "onnxruntime", "numpy", "pillow")


def recipe_digest(settings: Recipe) -> str:
    """16 hex digits that are equal where the settings that decide about time are: tag "recipe" of a run."""
    content = settings.model_dump(mode="json", include={"data", "model", "optim", "augment"})
    content["compute"] = settings.compute.model_dump(mode="json", include=TIMED_COMPUTE)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def run_tags(settings: Recipe, device: str, data_digest: str) -> dict[str, str]:
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
        "recipe": recipe_digest(settings),
        "model_architecture": settings.model.name,
        "dataset": settings.data.dataset,
    } | {f"version.{name}": number for name, number in package_versions().items()}


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide about results, and of Python."""
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED_PACKAGES}


def git_sha() -> str:
    """The commit of this code, with -dirty where files were changed; "unknown" outside a checkout and an image."""
    if built := built_git_sha():
        return built
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


def flatten(settings: Recipe) -> dict[str, str]:
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
