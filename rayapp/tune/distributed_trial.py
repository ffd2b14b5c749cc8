"""A trial of several workers: a TorchTrainer beside the trial, whose ranks stop where Ray Tune stops the trial.

Rank 0 leaves each report with a TrialServer, and all ranks wait there until Tune lets the trial go on. So they end by
themselves and in step. Had they to be killed, Ray would keep their places: for ever, without its dashboard (2.60).
That is why the server outlives the trial's own process, which Tune kills whenever it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import validate
from rayapp.errors import TrainingError
from rayapp.runtime.start import this_node
from rayapp.train.network import torch_config
from rayapp.train.setup import wrap_ddp
from rayapp.tune.trial import Snapshot, TrialReport, reports_of
from rayapp.vision.loaders import Shard

SILENCE_S = 60.0  # a trial that does not ask for so long is gone
POLL_S = 0.05


def distributed_reports(name: str, config: dict[str, Any]) -> Iterator[tuple[TrialReport, Callable[[], Snapshot]]]:
    """What reports_of() gives, of as many ranks as config["settings"] says. name: of the trial, the same at each start.

    config: as train_rank() takes it, without "server". Raises TrainingError where the loss is not finite.
    """
    with contextlib.suppress(ValueError):  # there are no workers of an earlier start of this trial, or no more
        ray.get_actor(name).stop.remote()
        while ray.get_actor(name):
            time.sleep(POLL_S)
    # outside of the trial's own place, for what Ray started in it ends with it; on its node, to be lost with it alone
    options = {"num_cpus": 0, "name": name, "lifetime": "detached", "scheduling_strategy": this_node()}
    server: Any = ray.remote(TrialServer).options(**options).remote()
    server.run.remote(config | {"server": server})
    try:
        while (found := ray.get(server.next.remote())) is not None:
            if isinstance(found, Exception):
                raise found
            report, snapshot = found
            yield report, partial(dict, snapshot)
    finally:
        server.stop.remote()


class TrialServer:
    """Runs the TorchTrainer of one trial, and hands its reports to the trial; an asynchronous Ray actor."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[Any] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()
        self._is_asked, self._stopped = False, asyncio.Event()

    async def run(self, config: dict[str, Any]) -> None:
        """Train, and end this actor when all ranks have ended, and the trial knows it."""
        self._reports.put_nowait(await asyncio.to_thread(_fit, config))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), SILENCE_S)
        ray.actor.exit_actor()

    async def report(self, report: TrialReport, snapshot: Snapshot) -> bool:
        """Leave what one more epoch gave; whether to go on after it, once the trial knows."""
        self._reports.put_nowait((report, snapshot))
        if report.is_last:
            return False
        self._is_asked = True
        try:
            return await asyncio.wait_for(self._answers.get(), SILENCE_S)
        except TimeoutError:
            self._stopped.set()
            return False

    async def next(self) -> tuple[TrialReport, Snapshot] | Exception | None:
        """What the next epoch gives, for which the ranks may go on; None where there is none any more."""
        if self._is_asked:
            self._is_asked = False
            self._answers.put_nowait(True)
        found: tuple[TrialReport, Snapshot] | Exception | None = await self._reports.get()
        return found

    async def stop(self) -> None:
        """Let the ranks end after their epoch, and this actor after them."""
        self._stopped.set()
        self._answers.put_nowait(False)


def _fit(config: dict[str, Any]) -> Exception | None:
    """Why it failed; None where it did not."""
    compute = validate(TrainSettings, config["settings"]).compute
    with tempfile.TemporaryDirectory() as storage:  # nothing is kept: the trial has what matters
        trainer = TorchTrainer(
            train_rank,  # type: ignore[arg-type]  # Ray's stub forgets that it may return a value
            train_loop_config=config,
            torch_config=torch_config(),
            scaling_config=ScalingConfig(
                num_workers=compute.workers.high,
                use_gpu=ray.get(config["context"]).device == "cuda",
                resources_per_worker={"CPU": compute.threads_per_worker},
            ),
            run_config=RunConfig(storage_path=storage),
        )
        try:
            broke_down = trainer.fit().return_value  # type: ignore[attr-defined]  # stub of Result
        except ray.train.TrainingFailedError as error:
            return RuntimeError(str(error))
    return TrainingError(broke_down) if broke_down else None


def train_rank(config: dict[str, Any]) -> str:
    """Why the training broke down; nothing where it did not. Runs on every rank.

    config: "settings" of the trial as a dict, references to its "context" and to "before", the snapshot or None, and
    the "server".
    """
    settings, context = validate(TrainSettings, config["settings"]), ray.get(config["context"])
    world, server = ray.train.get_context(), config["server"]
    shard = Shard(world.get_world_rank(), world.get_world_size())
    device = ray.train.torch.get_device() if context.device == "cuda" else torch.device(context.device)
    reports = reports_of(
        settings,
        context.sweep(),
        context,
        ray.get(config["before"]),
        device=device,
        shard=shard,
        distribute=lambda net: wrap_ddp(net, settings, shard, device),
    )
    try:
        for report, take_snapshot in reports:
            snapshot = take_snapshot()  # by all ranks together
            answers = [shard.rank == 0 and ray.get(server.report.remote(report, snapshot))]
            dist.broadcast_object_list(answers)
            if not answers[0]:
                break
    except TrainingError as error:  # on all ranks alike: they see the same loss
        return str(error)
    return ""
