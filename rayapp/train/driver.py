"""train: one model from settings to a registered version, on any number of workers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from rich.text import Text

from rayapp.config.commands import TrainSettings
from rayapp.config.env import Home, ray_address
from rayapp.data.datasets import Dataset, Split, load
from rayapp.errors import ConfigError, RegistryError, TrainingError
from rayapp.provenance import flatten, run_tags
from rayapp.registry.models import ModelVersion
from rayapp.registry.tracking import Tracker
from rayapp.runtime.cost import usd_per_hour
from rayapp.runtime.progress import ProgressActor, format_duration, live_progress, print_line
from rayapp.runtime.resources import check_resources, requested_resources, starting_line
from rayapp.runtime.start import interruptible, ray_cluster, this_node
from rayapp.train.estimate import expected_cost
from rayapp.train.network import torch_config
from rayapp.train.publish import best_epoch, publish
from rayapp.train.record import TrainingRun, find_run, new_run_name, refuse_existing
from rayapp.train.setup import Weights, absolute_paths, initial_weights
from rayapp.train.worker import train_worker
from rayapp.vision.loop import EpochReport
from rayapp.vision.optim import TrainPlan
from rayapp.vision.predictor import resolve_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training: what the last line of stdout says. cost_usd: None where a price is not known."""

    run: TrainingRun
    epochs: tuple[EpochReport, ...]
    version: ModelVersion | None
    cost_usd: float | None
    seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def best(self) -> EpochReport:
        """The epoch whose weights the bundle holds."""
        return best_epoch(self.epochs)

    def to_dict(self) -> dict[str, Any]:
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
            "cost_usd": self.cost_usd,
        }


def train(settings: TrainSettings, home: Home, console: Console | None = None) -> TrainResult:
    """A trained, logged and (unless register is false) registered model.

    Everything that can be wrong is checked before training starts. Raises a RayAppError; on Ctrl-C the run is closed
    as KILLED, keeps its checkpoints and the KeyboardInterrupt goes on.
    """
    started, training_seconds = time.monotonic(), 0.0
    console = console or Console(stderr=True)
    earlier = _earlier(home, settings)
    settings = earlier.settings if earlier else absolute_paths(settings)
    prices = _prices(settings)
    with ray_cluster():
        device = check_resources(settings)
        dataset = load(settings.data, home.data)
        weights = initial_weights(settings, dataset.info, home)
        split = dataset.split(settings.data)
        plan = TrainPlan.of(settings.optim, len(split.train_indices), settings.compute.workers.high)
        summary = _summary(plan, settings, dataset, split)
        run = earlier or _open_run(settings, home, summary, _tags(settings, device, dataset, split))
        with run.locked():
            if run.stage == "training":
                run.save_split(split)
                _describe(console, run, summary, device)
                training_seconds = _train_and_record(run, plan, home, device, weights, console)
                run = run.at("trained")
            # of a run that was cut off this is the last part alone, of which nothing could be foretold
            seconds = {} if earlier else {"training_seconds": training_seconds, "seconds": time.monotonic() - started}
            delivered = publish(run, home, dataset.info, split, seconds=seconds, prices=prices)
            run = run.at("done")
    result = TrainResult(
        run, delivered.epochs, delivered.version, delivered.cost_usd, time.monotonic() - started, training_seconds
    )
    _say_result(console, result)
    return result


def run(settings: TrainSettings, home: Home) -> TrainResult | dict[str, Any]:
    """The trained model, or with dry_run what would be trained."""
    return dry_run(settings, home) if settings.dry_run else train(settings, home)


def dry_run(settings: TrainSettings, home: Home) -> dict[str, Any]:
    """The resolved settings, what they ask for, and what that took in past runs; nothing is started."""
    settings = absolute_paths(settings)
    _prices(settings)
    refuse_existing(home, settings)
    dataset = load(settings.data, home.data)
    split = dataset.split(settings.data)
    device = resolve_device(settings.compute.device)
    tags = run_tags(settings, device, dataset.info.digest)
    plan = TrainPlan.of(settings.optim, len(split.train_indices), settings.compute.workers.high)
    return {
        "settings": settings.model_dump(mode="json", by_alias=True),
        **_summary(plan, settings, dataset, split),
        "resources": requested_resources(settings.compute, device),
        **expected_cost(Tracker(home.tracking_uri, home.artifacts), tags),
    }


def _prices(settings: TrainSettings) -> dict[str, float]:
    return usd_per_hour(settings.cost, local=ray_address() is None)


def _earlier(home: Home, settings: TrainSettings) -> TrainingRun | None:
    """The run to go on with; None for a new one. Raises ConfigError where settings and run do not go together."""
    absolute = absolute_paths(settings)
    if settings.resume is None:
        refuse_existing(home, absolute)
        return None
    earlier = find_run(home, absolute)
    if earlier is None or settings.resume == "auto":
        return earlier
    if earlier.stage == "done":
        raise ConfigError(f"run '{earlier.name}' is finished: there is nothing to resume, leave --resume out")
    given = settings.model_fields_set - {"resume"}
    if given - {"compute"} or settings.compute.model_fields_set - {"storage_path"}:
        raise ConfigError(
            f"--resume takes the settings of run '{earlier.name}', but {', '.join(sorted(given))} are given too;"
            " leave them out, or start a new run"
        )
    return earlier


def _summary(plan: TrainPlan, settings: TrainSettings, dataset: Dataset, split: Split) -> dict[str, Any]:
    """The plan for people and MLflow, with the images and workers that it is for."""
    return {
        "dataset": dataset.info.name,
        "classes": dataset.info.num_classes,
        "train_images": len(split.train_indices),
        "validation_images": len(split.validation_indices),
        "image_px": [dataset.info.height_px, dataset.info.width_px],
        "workers": settings.compute.num_workers,
        "batch_size": plan.batch_size,
        "world_batch": plan.world_batch,
        "epochs": plan.epochs,
        "peak_lr": plan.peak_lr,
        "momentum": plan.momentum,
        "weight_decay": plan.weight_decay,
        "warmup": plan.warmup,
    }


def _tags(settings: TrainSettings, device: str, dataset: Dataset, split: Split) -> dict[str, str]:
    return run_tags(settings, device, dataset.info.digest) | {"split_digest": split.digest}


def _open_run(settings: TrainSettings, home: Home, summary: dict[str, Any], tags: dict[str, str]) -> TrainingRun:
    name = new_run_name(settings)
    params = flatten(settings) | {f"plan.{k}": str(v) for k, v in summary.items()}
    tracker = Tracker(home.tracking_uri, home.artifacts)
    run_id = tracker.open_run(settings.tracking.experiment, name, params, tags)
    run = TrainingRun(name, run_id, "training", home.runs / name, settings)
    run.save()
    return run


def _describe(console: Console, run: TrainingRun, summary: dict[str, Any], device: str) -> None:
    print_line(console, Text.assemble("run ", (run.name, "bold"), f"  (MLflow {run.run_id})"))
    print_line(
        console,
        f"{summary['dataset']}: {summary['train_images']:,} + {summary['validation_images']:,} images of"
        f" {summary['classes']} classes, {run.settings.model.name}, {summary['workers']} x {device}, world batch"
        f" {summary['world_batch']}, {summary['epochs']} epochs, peak rate {summary['peak_lr']:g}",
    )


def _train_and_record(
    run: TrainingRun, plan: TrainPlan, home: Home, device: str, weights: Weights | None, console: Console
) -> float:
    """The seconds from the first batch to the last; the MLflow run is closed whatever happens."""
    tracker = Tracker(home.tracking_uri, home.artifacts)
    tracker.resume_run(run.run_id)
    try:
        return _fit_on_workers(run, plan, home, device, weights, console)
    except KeyboardInterrupt:
        _close(tracker, run, "KILLED")
        print_line(console, f"stopped; go on with: rayapp train --resume {run.name}")
        raise
    except TrainingError:
        _close(tracker, run, "FAILED")
        raise


def _close(tracker: Tracker, run: TrainingRun, status: Literal["KILLED", "FAILED"]) -> None:
    try:
        tracker.close_run(run.run_id, status)
    except RegistryError as error:
        log.warning("run %s could not be closed as %s: %s", run.run_id, status, error)


def _fit_on_workers(
    run: TrainingRun, plan: TrainPlan, home: Home, device: str, weights: Weights | None, console: Console
) -> float:
    # A display never ends a training: it is lost with the driver alone, and comes back where its process is killed.
    options = {"num_cpus": 0, "scheduling_strategy": this_node(), "max_restarts": -1, "max_task_retries": -1}
    board: Any = ray.remote(ProgressActor).options(**options).remote()
    trainer = _trainer(
        run,
        device,
        {
            "settings": run.settings.model_dump(mode="json", by_alias=True),
            "plan": plan,
            "data_folder": str(home.data),
            "storage": run.storage,
            "run": run.name,
            "tracking_uri": home.tracking_uri,
            "run_id": run.run_id,
            "spool": str(run.spool),
            "device": device,
            "board": board,
            # by the object store, so that no worker has to download what the driver has
            "weights": ray.put(weights) if weights else None,
            "watch_notices": ray_address() is not None,
        },
    )
    try:
        with live_progress(board, console, starting_line(run.settings.compute, device)):
            result = interruptible(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_stopped(run, ray.get(board.reason.remote()) or _root_cause(error))) from error
    outcome: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # missing in Ray's stub of Result
    if "error" in outcome:
        raise TrainingError(_stopped(run, outcome["error"]))
    if outcome["unsent"]:
        log.warning("%d metrics of run %s wait in %s for MLflow", outcome["unsent"], run.run_id, run.spool)
    return float(outcome["seconds"])


def _trainer(run: TrainingRun, device: str, worker_config: dict[str, Any]) -> TorchTrainer:
    compute = run.settings.compute
    workers = compute.workers
    # cuBLAS repeats its sums in the same order only with a workspace of fixed size (torch.use_deterministic_algorithms)
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if compute.deterministic and device == "cuda" else {}
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's stub forgets that it may return a value
        train_loop_config=worker_config,
        torch_config=torch_config(),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # mypy sees those of Ray Train's first version
            num_workers=tuple(workers) if workers.is_elastic else workers.high,  # type: ignore[arg-type]  # the same
            elastic_resize_monitor_interval_s=compute.resize_every_s or 60.0,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": compute.threads_per_worker},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the same
            name=run.name,
            storage_path=run.storage,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _stopped(run: TrainingRun, reason: str) -> str:
    return f"training stopped: {reason}; the last good checkpoint is kept, go on with: rayapp train --resume {run.name}"


def _root_cause(error: ray.train.TrainingFailedError) -> str:
    """The innermost reason that is not merely another rank's broken connection."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    texts = [str(e).strip().splitlines()[-1] for e in failures.values()]  # the end of a remote traceback
    own = [t for t in texts if "gloo" not in t.lower() and "connection" not in t.lower()]
    return (own or texts)[0]


def _say_result(console: Console, result: TrainResult) -> None:
    best, version = result.best, result.version
    where = f"{version.uri} @challenger" if version else f"runs:/{result.run.run_id}/model"
    print_line(
        console,
        Text.assemble(
            "validation accuracy ",
            (f"{best.val_accuracy:.4f}", "bold"),
            f" in epoch {best.epoch} of {len(result.epochs)}, trained in {format_duration(result.training_seconds)},"
            f" {format_duration(result.seconds)} in all -> ",
            (where, "bold"),
        ),
    )
