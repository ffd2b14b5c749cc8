"""The part of train that runs on each worker: data, fit(), checkpoints; rank 0 also reports to MLflow and the board."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.data.datasets import DatasetInfo, load
from rayapp.errors import RayAppError, TrainingError
from rayapp.registry.tracking import MetricLog
from rayapp.runtime.cost import count_nodes
from rayapp.runtime.progress import format_duration
from rayapp.train.checkpoints import Checkpointer, Checkpoints
from rayapp.train.setup import build_model_for, make_loaders, setup_device, wrap_ddp
from rayapp.vision.flops import flops_per_image, mfu, peak_flops
from rayapp.vision.loaders import Shard
from rayapp.vision.loop import EpochReport, StepReport, fit
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.state import TrainState

log = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's training seconds, or under "error" the sentence of what no restart would heal.

    Where all ranks stop together that is returned. Where one rank alone cannot go on, the others wait for it in a
    collective that only Ray can end: the sentence is left on the board, the rank fails, the restarted ranks return it.
    """
    board = config["board"]
    if reason := ray.get(board.reason.remote()):
        return {"error": reason}
    try:
        return _train_rank(config)
    except TrainingError as error:
        return {"error": str(error)}
    except (RayAppError, MemoryError, RuntimeError) as error:
        if sentence := fatal_message(error, ray.train.get_context().get_world_rank()):
            ray.get(board.give_up.remote(sentence))
        raise


def fatal_message(error: Exception, rank: int) -> str:
    """What to tell about an error that would come again after a restart; nothing about others."""
    if isinstance(error, RayAppError):
        return str(error)
    # torch's allocators: OutOfMemoryError of CUDA, a plain RuntimeError of the CPU
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return (
            f"rank {rank} is out of memory ({' '.join(str(error).split())[:200]}); lower --optim.batch_size, and raise"
            " --optim.accumulate_steps to keep the world batch"
        )
    return ""


def _train_rank(config: dict[str, Any]) -> dict[str, Any]:
    settings, board = validate(TrainSettings, config["settings"]), config["board"]
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    if shard.rank == 0:
        board.write.remote(f"workers have started, reading {settings.data.dataset} ...")
    kind = config["device"]
    device = setup_device(settings, ray.train.torch.get_device() if kind == "cuda" else torch.device(kind))
    dataset = load(settings.data, Path(config["data_folder"]))
    info, split = dataset.info, dataset.split(settings.data)
    plan: TrainPlan = config["plan"].shared_by(shard.world_size)
    train, validation = make_loaders(dataset, split, settings, plan, shard, device)
    model = build_model_for(settings.model, info, blank=True)
    if config["weights"] is not None:
        model.load_state_dict(ray.get(config["weights"]))
    model = model.to(device)
    state = TrainState.create(model, build_optimizer(model, plan), plan)
    checkpoints = Checkpoints(config["storage"], config["run"], keep=settings.checkpoint.keep)
    keeper = Checkpointer(
        checkpoints,
        state,
        shard,
        settings.checkpoint,
        nodes=_nodes(shard.world_size),
        watch_notices=config["watch_notices"],
        say=lambda text: board.say.remote(text),
    )
    keeper.resume()
    if shard.rank == 0 and settings.compute.workers.is_elastic:  # the learning rate follows
        board.say.remote(
            f"{shard.world_size} of {settings.compute.num_workers} workers: world batch {plan.world_batch},"
            f" peak rate {plan.peak_lr:g}"
        )
    watcher = _Watcher(config, state, _utilisation(state, info, shard.world_size, device)) if shard.rank == 0 else None
    reports = fit(
        state,
        train,
        validation,
        distribute=lambda net: wrap_ddp(net, settings, shard, device),
        frozen_epochs=settings.model.epochs_frozen,
        seed=settings.seed,
        report_every_steps=min(filter(None, (settings.tracking.log_every_steps, settings.checkpoint.every_steps))),
    )
    started = time.monotonic()
    for report in reports:
        if watcher:
            watcher.see(report)
        keeper.see(report)
    keeper.close()
    unsent = watcher.close() if watcher else 0
    return {"seconds": time.monotonic() - started, "unsent": unsent}


def _nodes(world: int) -> dict[str, int]:
    """Kind -> number of the nodes that the ranks are on."""
    own = ray.get_runtime_context().get_node_id()
    ids: list[Any] = [own] * world
    if dist.is_initialized():
        dist.all_gather_object(ids, own)
    return count_nodes(ids, ray.nodes())


def _utilisation(
    state: TrainState, info: DatasetInfo, world: int, device: torch.device
) -> Callable[[float], float] | None:
    """The MFU (0-1) at so many images a second of all ranks; None where the device's peak is not known (CPUs)."""
    peak = peak_flops(torch.cuda.get_device_name(device), state.precision) if device.type == "cuda" else None
    if peak is None:
        return None
    flops = flops_per_image(state.model, min(info.height_px, info.width_px))
    return partial(mfu, flops, num_gpus=world, peak=peak)


class _Watcher:
    """Sends rank 0's reports to MLflow and to the progress line; neither can hold up the loop."""

    def __init__(self, config: dict[str, Any], state: TrainState, utilisation: Callable[[float], float] | None) -> None:
        self._metrics = MetricLog(config["tracking_uri"], config["run_id"], Path(config["spool"]))
        self._board = config["board"]
        self._narrator = ProgressFormatter(state.step)
        self._num_steps = 0
        self._utilisation = utilisation

    def see(self, report: StepReport | EpochReport) -> None:
        """Log one report: step metrics by optimiser step, epoch metrics by epoch; one axis per name.

        (docs/faults.md, 17)
        """
        if isinstance(report, StepReport):
            self._num_steps = report.num_steps
            names = ("loss", "accuracy", "lr", "images_per_s")
            self._metrics.log({f"train/{n}": getattr(report, n) for n in names}, report.step)
        else:
            self._metrics.log({"val/loss": report.val_loss, "val/accuracy": report.val_accuracy}, report.epoch)
            whole = ("train_loss", "train_accuracy", "seconds", "images_per_s", "data_seconds", "memory_peak_mb")
            self._metrics.log({f"epoch/{n}": getattr(report, n) for n in whole}, report.epoch)
            if self._utilisation:
                self._metrics.log({"epoch/mfu": self._utilisation(report.images_per_s)}, report.epoch)
        self._board.write.remote(self._narrator.line(report, self._num_steps or report.step))

    def close(self) -> int:
        """The number of metrics that could not leave in a moment; the spool keeps them for the driver to send."""
        return self._metrics.close(timeout_s=5.0)


class ProgressFormatter:
    """Makes the progress line from reports; lives on rank 0."""

    def __init__(self, steps_done: int = 0) -> None:
        self._started = time.monotonic()
        self._steps_before = steps_done
        self._val_accuracy: float | None = None

    def line(self, report: StepReport | EpochReport, num_steps: int) -> str:
        """' 43 %  epoch 7/16  1,432 images/s  loss 1.204  accuracy 0.623  val 0.654  3:12 left'."""
        if isinstance(report, EpochReport):
            self._val_accuracy = report.val_accuracy
            loss, accuracy = report.train_loss, report.train_accuracy
        else:
            loss, accuracy = report.loss, report.accuracy
        val = "" if self._val_accuracy is None else f"  val {self._val_accuracy:.4f}"
        return (
            f"{report.step / num_steps:4.0%}  epoch {report.epoch}/{report.num_epochs}"
            f"  {report.images_per_s:,.0f} images/s  loss {loss:.3f}  accuracy {accuracy:.3f}{val}"
            f"  {self._left(report.step, num_steps)} left"
        )

    def _left(self, step: int, num_steps: int) -> str:
        elapsed = time.monotonic() - self._started
        return format_duration(elapsed / max(1, step - self._steps_before) * (num_steps - step))
