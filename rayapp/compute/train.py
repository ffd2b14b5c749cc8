"""train: one model from settings to a registered version, on any number of workers."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from rayapp.cluster import ray_cluster
from rayapp.compute.checkpoints import take_over
from rayapp.compute.progress import Board, clock, shown
from rayapp.compute.resources import check_resources
from rayapp.compute.runs import Run, find_run, flat, git_sha, new_name, package_versions, run_tags
from rayapp.compute.worker import HISTORY, model_for, train_worker
from rayapp.config import Home
from rayapp.errors import ConfigError, RegistryError, TrainingError
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.tracking import MetricLog, Tracker
from rayapp.settings import TrainSettings
from rayapp.vision.bundle import Manifest, write_bundle
from rayapp.vision.datasets import Dataset, DatasetInfo, Split, load
from rayapp.vision.loop import CHECKPOINT, EpochReport
from rayapp.vision.models import Classifier
from rayapp.vision.plots import plot_curves

log = logging.getLogger(__name__)
DELIVERY_TIMEOUT_S = 30.0
T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """The result of a training: what the last line of stdout says."""

    run: Run
    epochs: tuple[EpochReport, ...]
    version: ModelVersion | None
    seconds: float
    training_seconds: float

    @property
    def best(self) -> EpochReport:
        """The epoch whose weights the bundle holds."""
        return [e for e in self.epochs if e.is_best][-1]

    def as_json(self) -> dict[str, Any]:
        """The fields that scripts rely on, and where to look."""
        return {
            "run_id": self.run.run_id,
            "run_name": self.run.name,
            "model_uri": self.version.uri if self.version else f"runs:/{self.run.run_id}/model",
            "model_version": self.version.version if self.version else None,
            "val_accuracy": self.best.val_accuracy,
            "best_epoch": self.best.epoch,
            "epochs": len(self.epochs),
            "images_per_s": float(np.median([e.images_per_s for e in self.epochs])),
            "training_seconds": round(self.training_seconds, 2),
            "seconds": round(self.seconds, 2),
        }


def train(settings: TrainSettings, home: Home, console: Console | None = None) -> Trained:
    """A trained, logged and (unless register is false) registered model.

    Everything that can be wrong is checked before training starts. Raises a RayAppError; on Ctrl-C the run is closed
    as KILLED, keeps its checkpoints and the KeyboardInterrupt goes on.
    """
    started = time.monotonic()
    console = console or Console(stderr=True)
    earlier = find_run(home, settings.resume) if settings.resume else None
    if earlier:
        settings = _resumed_settings(earlier, settings)
    settings = _absolute_paths(settings)
    with ray_cluster():
        device = check_resources(settings.compute)
        dataset = load(settings.data, home.data)
        model = model_for(settings, dataset.info)  # here too: pretrained weights that cannot be had are said now
        split = dataset.split(settings.data)
        run = earlier or _open_run(settings, home, dataset, split, device)
        if run.stage == "training":
            _describe(console, settings, dataset, split, device, run)
            epochs, training_seconds = _train_and_record(run, home, device, console)
            _write_bundle(run, model, dataset.info, split, epochs)
            run = run.at("trained")
        else:
            epochs, training_seconds = _read_epochs(run), 0.0
    version = _deliver(run, home, epochs, console)
    result = Trained(run.at("done"), tuple(epochs), version, time.monotonic() - started, training_seconds)
    _say_result(console, result)
    return result


def dry_run(settings: TrainSettings, home: Home) -> dict[str, Any]:
    """The resolved settings and what they ask for, without starting anything."""
    settings = _absolute_paths(settings)
    dataset = load(settings.data, home.data)
    split = dataset.split(settings.data)
    return {"settings": settings.model_dump(mode="json", by_alias=True)} | _plan(settings, dataset, split)


# --- on the driver ----------------------------------------------------------------------------------------------------


def _resumed_settings(earlier: Run, settings: TrainSettings) -> TrainSettings:
    if earlier.stage == "done":
        raise ConfigError(f"run '{earlier.name}' is finished: there is nothing to resume, leave --resume out")
    given = settings.model_fields_set - {"resume"}
    if given:
        raise ConfigError(
            f"--resume takes the settings of run '{earlier.name}', but {', '.join(sorted(given))} are given too;"
            " leave them out, or start a new run"
        )
    return earlier.settings


def _absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Workers run in folders of their own, where a relative path means something else."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    data = settings.data.model_copy(update={"path": absolute(settings.data.path)})
    compute = settings.compute.model_copy(update={"storage_path": absolute(settings.compute.storage_path)})
    return settings.model_copy(update={"data": data, "compute": compute})


def _plan(settings: TrainSettings, dataset: Dataset, split: Split) -> dict[str, Any]:
    optim, num_images = settings.optim, len(split.train_indices)
    num_workers = settings.compute.num_workers
    batch_size = optim.worker_batch(num_images, num_workers)
    world_batch = batch_size * num_workers * optim.accumulate_steps
    return {
        "dataset": dataset.info.name,
        "classes": dataset.info.num_classes,
        "train_images": num_images,
        "validation_images": len(split.validation_indices),
        "image_px": [dataset.info.height_px, dataset.info.width_px],
        "batch_size": batch_size,
        "world_batch": world_batch,
        "epochs": optim.num_epochs(num_images),
        "peak_lr": optim.peak_lr * world_batch / 256,
        "workers": num_workers,
    }


def _open_run(settings: TrainSettings, home: Home, dataset: Dataset, split: Split, device: str) -> Run:
    name = new_name(settings)
    params = flat(settings) | {f"plan.{k}": str(v) for k, v in _plan(settings, dataset, split).items()}
    tags = run_tags(settings, device, dataset.info.digest) | {"split_digest": split.digest}
    tracker = Tracker(home.tracking_uri, home.artifacts)
    run_id = tracker.open_run(settings.tracking.experiment, name, params, tags)
    run = Run(name, run_id, "training", home.runs / name, settings)
    run.save()
    run.save_split(split)
    return run


def _describe(console: Console, settings: TrainSettings, dataset: Dataset, split: Split, device: str, run: Run) -> None:
    plan = _plan(settings, dataset, split)
    console.print(f"run [bold]{run.name}[/]  (MLflow {run.run_id})", highlight=False, soft_wrap=True)
    console.print(
        f"{plan['dataset']}: {plan['train_images']:,} + {plan['validation_images']:,} images of {plan['classes']}"
        f" classes, {settings.model.name}, {plan['workers']} x {device}, world batch {plan['world_batch']},"
        f" {plan['epochs']} epochs, peak rate {plan['peak_lr']:g}",
        highlight=False,
        soft_wrap=True,
    )


def _train_and_record(run: Run, home: Home, device: str, console: Console) -> tuple[list[EpochReport], float]:
    """The epochs and the seconds from the first batch to the last; the MLflow run is closed whatever happens."""
    tracker = Tracker(home.tracking_uri, home.artifacts)
    tracker.resume_run(run.run_id)
    try:
        return _fit_on_workers(run, home, device, console)
    except KeyboardInterrupt:
        _close(tracker, run, "KILLED")
        console.print(f"stopped; go on with: rayapp train --resume {run.name}", highlight=False, soft_wrap=True)
        raise
    except TrainingError:
        _close(tracker, run, "FAILED")
        raise


def _close(tracker: Tracker, run: Run, status: Literal["KILLED", "FAILED"]) -> None:
    try:
        tracker.close_run(run.run_id, status)
    except RegistryError as error:
        log.warning("run %s could not be closed as %s: %s", run.run_id, status, error)


def _fit_on_workers(run: Run, home: Home, device: str, console: Console) -> tuple[list[EpochReport], float]:
    compute = run.settings.compute
    storage = compute.storage_path or str(home.runs)
    resumed = take_over(storage, run.name)
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's stub forgets that it may return a value
        train_loop_config={
            "settings": run.settings.model_dump(mode="json", by_alias=True),
            "data_folder": str(home.data),
            "tracking_uri": home.tracking_uri,
            "run_id": run.run_id,
            "spool": str(run.spool),
            "device": device,
            "board": board,
            "resume_from": resumed,
        },
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=compute.num_workers,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": compute.threads_per_worker},
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with shown(board, console, f"starting {compute.num_workers} workers ..."):
            result = _interruptible(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"training stopped: {_root_cause(error)}; the last good checkpoint is kept, go on with:"
            f" rayapp train --resume {run.name}"
        ) from error
    outcome: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # missing in Ray's stub of Result
    if "error" in outcome:
        raise TrainingError(outcome["error"])
    epochs = [EpochReport(**row) for row in outcome["epochs"]]
    last = result.checkpoint or resumed  # none is new where only the end of the run was lost
    assert last is not None
    _keep_last(run, last)
    if outcome["unsent"]:
        log.warning("%d metrics of run %s wait in %s for MLflow", outcome["unsent"], run.run_id, run.spool)
    return epochs, float(outcome["seconds"])


def _interruptible(function: Callable[[], T]) -> T:
    """What function returns or raises. In the main thread Ray would take Ctrl-C for itself and exit with code 0."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below, whatever it is
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True, name="ray-train")
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value


def _root_cause(error: ray.train.TrainingFailedError) -> str:
    """The innermost reason that is not merely another rank's broken connection."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    texts = [str(e).strip().splitlines()[-1] for e in failures.values()]  # the end of a remote traceback
    own = [t for t in texts if "gloo" not in t.lower() and "connection" not in t.lower()]
    return (own or texts)[0]


def _keep_last(run: Run, checkpoint: Checkpoint) -> None:
    """Copy the last checkpoint, wherever Ray stored it, beside the run's other files."""
    with checkpoint.as_directory() as folder:
        shutil.copytree(folder, run.checkpoint_folder, dirs_exist_ok=True)


def _write_bundle(run: Run, model: Classifier, info: DatasetInfo, split: Split, epochs: list[EpochReport]) -> None:
    best = [e for e in epochs if e.is_best][-1]
    saved = torch.load(run.checkpoint_folder / CHECKPOINT, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["best_weights"])
    manifest = Manifest(
        model=run.settings.model,
        preprocess=info.preprocess,
        class_names=info.class_names,
        mean=info.mean,
        std=info.std,
        data=run.settings.data,
        data_digest=info.digest,
        split_digest=split.digest,
        git_sha=git_sha(),
        versions=package_versions(),
        metrics={"val_accuracy": best.val_accuracy, "val_loss": best.val_loss, "best_epoch": float(best.epoch)},
    )
    write_bundle(run.bundle_folder, model, manifest)


def _read_epochs(run: Run) -> list[EpochReport]:
    return [EpochReport(**row) for row in json.loads((run.checkpoint_folder / HISTORY).read_text(encoding="utf-8"))]


def _deliver(run: Run, home: Home, epochs: list[EpochReport], console: Console) -> ModelVersion | None:
    """The registered version (None with register false), once MLflow has metrics, curves, checkpoint and bundle.

    Raises RegistryError where MLflow does not answer: the bundle stays in the run's folder, to be sent by --resume.
    """
    best = [e for e in epochs if e.is_best][-1]
    metrics = MetricLog(home.tracking_uri, run.run_id, run.spool)
    metrics.log({"best_val_accuracy": best.val_accuracy, "best_val_loss": best.val_loss}, best.epoch)
    try:
        unsent = metrics.close(timeout_s=DELIVERY_TIMEOUT_S)
        if unsent:
            raise RegistryError(f"MLflow at {home.tracking_uri} does not answer ({unsent} metrics wait)")
        tracker, registry = Tracker(home.tracking_uri, home.artifacts), Registry(home.tracking_uri)
        with tempfile.TemporaryDirectory() as folder:
            curves = Path(folder) / "curves.png"
            plot_curves(epochs, curves)
            tracker.log_artifact(run.run_id, curves, "")
        tracker.log_artifact(run.run_id, run.folder / "split.npz", "data")
        tracker.log_artifact(run.run_id, run.checkpoint_folder / CHECKPOINT, "checkpoint")
        source = registry.log_bundle(run.run_id, run.bundle_folder)
        tags = {"val_accuracy": f"{best.val_accuracy:.6f}"}
        tracker.close_run(run.run_id, "FINISHED")
        # last, so that a delivery that is repeated cannot register twice
        version = registry.register(run.run_id, source, tags=tags) if run.settings.register_model else None
    except RegistryError as error:
        raise RegistryError(
            f"{error}; the model is trained and kept in {run.bundle_folder},"
            f" send it with: rayapp train --resume {run.name}"
        ) from error
    return version


def _say_result(console: Console, result: Trained) -> None:
    best, version = result.best, result.version
    where = f"{version.uri} @challenger" if version else f"runs:/{result.run.run_id}/model"
    console.print(
        f"validation accuracy [bold]{best.val_accuracy:.4f}[/] in epoch {best.epoch} of {len(result.epochs)},"
        f" trained in {clock(result.training_seconds)}, {clock(result.seconds)} in all -> [bold]{where}[/]",
        highlight=False,
        soft_wrap=True,
    )
