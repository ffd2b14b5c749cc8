"""A trial of several workers: a TorchTrainer beside the trial, whose ranks stop where Ray Tune stops the trial.

Ranks leave each report with a Host and wait there until the trial has told Tune, and Tune has let it go on. So they end
by themselves and in step. Had they to be killed, Ray would keep their places: for ever, without its dashboard (2.60).
That is why the Host outlives the trial's own process, which Tune kills whenever it likes.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.config.tune import TuneSettings
from rayapp.errors import TrainingError
from rayapp.train.setup import distributed
from rayapp.tune.trial import Shared, reports_of
from rayapp.vision.loaders import Shard

POLL_S = 0.05
SILENCE_S = 60.0  # a trial that does not ask for so long is gone


def wide_reports(name: str, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What reports_of() gives, of as many ranks as config["settings"] says. name: of the trial, the same at each start.

    config: as train_rank() takes it, without "host". Raises TrainingError where the loss is not finite.
    """
    stop_workers(name, wait=True)  # of this trial's last start
    # outside of the trial's own place, for what Ray started in it ends with it
    anywhere = PlacementGroupSchedulingStrategy(None)  # type: ignore[arg-type]  # as Ray's manual has it
    options = {"num_cpus": 0, "name": name, "lifetime": "detached", "scheduling_strategy": anywhere}
    host: Any = ray.remote(Host).options(**options).remote(config)
    try:
        while True:
            report, outcome = ray.get(host.take.remote())
            if report is not None:
                yield report
                ray.get(host.allow.remote())
            elif outcome is not None:
                break
            else:
                time.sleep(POLL_S)
    finally:
        host.stop.remote()
    if outcome["broke_down"]:
        raise TrainingError(outcome["broke_down"])
    if outcome["failure"]:
        raise RuntimeError(outcome["failure"])


def stop_workers(name: str, *, wait: bool = False) -> None:
    """Let the workers of a trial end after their epoch, if there are any; wait: until they have."""
    with contextlib.suppress(ValueError, ray.exceptions.RayActorError):  # there is none, or no more
        ray.get_actor(name).stop.remote()
        while wait:
            ray.get_actor(name)
            time.sleep(POLL_S)


class Host:
    """Runs the TorchTrainer of one trial, and holds its reports until they are taken; a Ray actor that ends itself."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._handle: Any = ray.get_runtime_context().current_actor
        self._reports: list[dict[str, Any]] = []
        self._outcome: dict[str, str] | None = None
        self._num_allowed, self._stopped, self._asked_at = 0, False, time.monotonic()
        config = config | {"host": self._handle}
        threading.Thread(target=self._run, args=(config,), daemon=True, name="trainer").start()

    def report(self, report: dict[str, Any]) -> None:
        """Leave the report of one more epoch."""
        self._reports.append(report)

    def take(self) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
        """The oldest report that was not taken yet, and once there are no more how it ended."""
        self._asked_at = time.monotonic()
        outcome = self._outcome  # read first: nothing is reported after it
        return (self._reports.pop(0), None) if self._reports else (None, outcome)

    def allow(self) -> None:
        """Let the ranks go on to another epoch."""
        self._num_allowed += 1

    def stop(self) -> None:
        """Let the ranks end, and the host after them."""
        self._stopped = True

    def answer(self, num_reports: int) -> bool | None:
        """Whether to go on after so many reports; None: not known yet."""
        if self._is_left():
            return False
        return True if self._num_allowed >= num_reports else None

    def _is_left(self) -> bool:
        return self._stopped or time.monotonic() - self._asked_at > SILENCE_S

    def _run(self, config: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as storage:  # nothing is kept: the trial has what matters
            try:
                broke_down = _trainer(config, storage).fit().return_value  # type: ignore[attr-defined]  # stub of Result
                self._outcome = {"broke_down": broke_down or "", "failure": ""}
            except ray.train.TrainingFailedError as error:
                self._outcome = {"broke_down": "", "failure": str(error)}
        while not self._is_left():
            time.sleep(POLL_S)
        ray.kill(self._handle)


def _trainer(config: dict[str, Any], storage: str) -> TorchTrainer:
    compute = validate(TrainSettings, config["settings"]).compute
    return TorchTrainer(
        train_rank,  # type: ignore[arg-type]  # Ray's stub forgets that it may return a value
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=compute.workers.high,
            use_gpu=config["device"] == "cuda",
            resources_per_worker={"CPU": compute.threads_per_worker},
        ),
        run_config=RunConfig(storage_path=storage),
    )


def train_rank(config: dict[str, Any]) -> str:
    """Why the training broke down; nothing where it did not. Runs on every rank.

    config: "settings" and "sweep" as dicts, "device", references to "shared" and to "before", the snapshot or None, and
    the "host".
    """
    settings, sweep = validate(TrainSettings, config["settings"]), validate(TuneSettings, config["sweep"])
    shared: Shared = ray.get(config["shared"])
    context, host = ray.train.get_context(), config["host"]
    shard = Shard(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if shared.device == "cuda" else torch.device(shared.device)
    reports = reports_of(
        settings,
        sweep,
        shared,
        ray.get(config["before"]),
        device=device,
        shard=shard,
        distribute=lambda net: distributed(net, settings, shard, device),
    )
    try:
        for num_reports, report in enumerate(reports, 1):
            if shard.rank == 0:
                ray.get(host.report.remote(report))
            if not report["is_last"] and not _may_go_on(host, num_reports, shard):
                break
    except TrainingError as error:  # on all ranks alike: they see the same loss
        return str(error)
    return ""


def _may_go_on(host: Any, num_reports: int, shard: Shard) -> bool:
    """Rank 0 asks, all get the answer."""
    answers: list[bool | None] = [None]
    while shard.rank == 0 and answers[0] is None:
        answers[0] = ray.get(host.answer.remote(num_reports))
        time.sleep(POLL_S if answers[0] is None else 0)
    dist.broadcast_object_list(answers)
    return bool(answers[0])
