"""What a training leaves behind: its bundle, and in MLflow metrics, curves, checkpoint, cost and a version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rayapp.config.env import Home
from rayapp.data.datasets import DatasetInfo, Split
from rayapp.errors import RegistryError, TrainingError
from rayapp.provenance import git_sha, package_versions
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.tracking import MetricLog, Tracker
from rayapp.runtime.cost import cost_usd
from rayapp.train.checkpoints import STATE, Checkpoints, epoch_reports, node_uses
from rayapp.train.record import TrainingRun
from rayapp.train.setup import build_model_for
from rayapp.vision.bundle import Manifest, write_bundle
from rayapp.vision.loop import EpochReport
from rayapp.vision.plots import plot_curves
from rayapp.vision.state import Snapshot, to_bytes

PUBLISH_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """version: None where register is false. cost_usd: None where a price is not known."""

    epochs: tuple[EpochReport, ...]
    version: ModelVersion | None
    cost_usd: float | None


def publish(
    run: TrainingRun,
    home: Home,
    info: DatasetInfo,
    split: Split,
    *,
    seconds: Mapping[str, float],
    prices: Mapping[str, float],
) -> Published:
    """What MLflow has now of a trained run; it is sent once, however often this is called.

    Raises RegistryError where MLflow does not answer: the bundle stays in the run's folder, to be sent by --resume.
    """
    found = Checkpoints(run.storage, run.name).newest()
    if found is None:
        raise TrainingError(f"run '{run.name}' has no checkpoint that can be read in {run.storage}; train it again")
    snapshot = found[1]
    epochs, uses = epoch_reports(snapshot), node_uses(snapshot)
    cost = cost_usd(uses, prices)
    if run.stage == "done":
        versions = Registry(home.tracking_uri).versions()
        return Published(tuple(epochs), next((v for v in versions if v.run_id == run.run_id), None), cost)
    _write_bundle(run, snapshot, info, split, epochs)
    spent = {"cost_usd": cost, **seconds}
    try:
        version = _send(
            run, home, snapshot, epochs, {name: value for name, value in spent.items() if value is not None}
        )
    except RegistryError as error:
        raise RegistryError(
            f"{error}; the model is trained and kept in {run.bundle_folder},"
            f" send it with: rayapp train --resume {run.name}"
        ) from error
    return Published(tuple(epochs), version, cost)


def _write_bundle(
    run: TrainingRun, snapshot: Snapshot, info: DatasetInfo, split: Split, epochs: list[EpochReport]
) -> None:
    model, best = build_model_for(run.settings.model, info, blank=True), best_epoch(epochs)
    model.load_state_dict(snapshot["best_weights"])
    manifest = Manifest(
        model=run.settings.model,
        preprocess=info.preprocess,
        class_names=info.class_names,
        # of the weights, which may have brought them from another data set
        mean=_of_0_to_1(model.mean_3),
        std=_of_0_to_1(model.std_3),
        data=run.settings.data,
        data_digest=info.digest,
        split_digest=split.digest,
        git_sha=git_sha(),
        versions=package_versions(),
        metrics={"val_accuracy": best.val_accuracy, "val_loss": best.val_loss, "best_epoch": float(best.epoch)},
    )
    write_bundle(run.bundle_folder, model, manifest)


def _send(
    run: TrainingRun, home: Home, snapshot: Snapshot, epochs: list[EpochReport], spent: Mapping[str, float]
) -> ModelVersion | None:
    best = best_epoch(epochs)
    metrics = MetricLog(home.tracking_uri, run.run_id, run.spool)
    metrics.log({"best_val_accuracy": best.val_accuracy, "best_val_loss": best.val_loss, **spent}, best.epoch)
    unsent = metrics.close(timeout_s=PUBLISH_TIMEOUT_S)
    if unsent:
        raise RegistryError(f"MLflow at {home.tracking_uri} does not answer ({unsent} metrics wait)")
    tracker, registry = Tracker(home.tracking_uri, home.artifacts), Registry(home.tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        curves, state = Path(folder) / "curves.png", Path(folder) / STATE
        plot_curves(epochs, curves)
        tracker.log_artifact(run.run_id, curves, "")
        state.write_bytes(to_bytes(snapshot))
        tracker.log_artifact(run.run_id, state, "checkpoint")
    tracker.log_artifact(run.run_id, run.folder / "split.npz", "data")
    source = registry.log_bundle(run.run_id, run.bundle_folder)
    tracker.close_run(run.run_id, "FINISHED")
    # last, so that a delivery that is repeated cannot register twice
    tags = {"val_accuracy": f"{best.val_accuracy:.6f}"}
    return registry.register(run.run_id, source, tags=tags) if run.settings.register_model else None


def _of_0_to_1(values_3: Tensor) -> tuple[float, float, float]:
    r, g, b = (values_3 / 255).tolist()
    return r, g, b


def best_epoch(epochs: Sequence[EpochReport]) -> EpochReport:
    """The epoch whose weights the bundle holds."""
    return [e for e in epochs if e.is_best][-1]
