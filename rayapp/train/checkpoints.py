"""Checkpoints of a run on its storage, a local folder or s3://.

    STORAGE/RUN/checkpoint_000000120/state.pt      a Snapshot of vision/state.py, with the epochs so far
                                     digest.json   its SHA-256, written last: without it, or with another one, state.pt
                                                   is half of a checkpoint and passed over

Ray Train's own checkpoints are not used (2.60): a report is taken up only when its controller next looks (2 s), so
that steps shorter than that wait for it, a worker that dies meanwhile loses the checkpoint, and a full disk leaves its
list of them empty. A run that is restarted, by Ray or by a person, looks here for the newest one that can be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import ray.train
import torch.distributed as dist
from pyarrow.fs import FileSelector, FileType

from rayapp.config.train import CheckpointConfig
from rayapp.runtime.cost import NodeUse
from rayapp.storage import Folder, below
from rayapp.vision.loaders import Shard
from rayapp.vision.loop import EpochReport, StepReport
from rayapp.vision.state import Snapshot, TrainState, from_bytes, to_bytes

log = logging.getLogger(__name__)
STATE, DIGEST = "state.pt", "digest.json"


class Checkpoints:
    """The checkpoints of one run; the writer is rank 0 alone."""

    def __init__(self, storage: str, run: str, *, keep: int = 2) -> None:
        self._folder = Folder(below(storage, run))
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write snapshot beside whatever else happens; only where the one before is not done yet, wait for that.

        Raises OSError where the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Return once all is written. Raises OSError where it could not be."""
        if self._writing:
            self._writing.result()
            self._writing = None

    def newest(self, passed_over: Callable[[str], object] = log.warning) -> tuple[str, Snapshot] | None:
        """The name and content of the newest checkpoint that can be read; None where there is none.

        passed_over is told of newer ones that cannot.
        """
        for name in reversed(self.names()):
            try:
                return name, self.read(name)
            except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                passed_over(f"checkpoint {name} cannot be read ({error}): the one before it is taken")
        return None

    def forget_newer(self, name: str) -> None:
        """Remove those that newest() passed over."""
        for newer in self.names():
            if newer > name:
                self._folder.files.delete_dir(newer)

    def read(self, name: str) -> Snapshot:
        """Raises OSError or ValueError where it is not whole."""
        expected = json.loads(self._folder.read(f"{name}/{DIGEST}"))["sha256"]
        content = self._folder.read(f"{name}/{STATE}")
        if hashlib.sha256(content).hexdigest() != expected:
            raise ValueError(f"{STATE} has another digest than {DIGEST} says")
        return from_bytes(content)

    def names(self) -> list[str]:
        """All checkpoints, the newest last, half-written ones included."""
        entries = self._folder.files.get_file_info(FileSelector("", allow_not_found=True))
        return sorted(
            e.base_name for e in entries if e.type == FileType.Directory and e.base_name.startswith("checkpoint_")
        )

    def _write(self, snapshot: Snapshot) -> None:
        name = f"checkpoint_{snapshot['position']['step']:09}"
        content = to_bytes(snapshot)
        about = {"sha256": hashlib.sha256(content).hexdigest()}
        self._folder.write(f"{name}/{STATE}", content)
        self._folder.write(f"{name}/{DIGEST}", json.dumps(about).encode())
        for old in self.names()[: -self._keep]:
            self._folder.files.delete_dir(old)


class Checkpointer:
    """Decides when the state is checkpointed, the same on every rank, and finds what a restarted run goes on from."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        shard: Shard,
        config: CheckpointConfig,
        *,
        nodes: Mapping[str, int],
        watch_notices: bool,
        say: Callable[[str], object] = log.warning,
    ) -> None:
        """nodes: kind -> number of those that the ranks are on, for the cost of the run. watch_notices: ask Ray whether
        a spot node is about to go away; a machine of one's own has none that do. say: is told what people should know.
        """
        self.epochs: list[EpochReport] = []
        self._nodes, self._started, self._uses_before = nodes, time.monotonic(), list[NodeUse]()
        self._checkpoints, self._state, self._shard, self._config = checkpoints, state, shard, config
        self._watch_notices, self._say = watch_notices, say
        self._saved_step, self._saved_time = state.step, time.monotonic()
        self._asked_step = state.step
        self._noticed = False

    def resume(self) -> None:
        """Restore the newest checkpoint that rank 0 can read, and say which; nothing in a new run."""
        found = self._checkpoints.newest(self._say) if self._shard.rank == 0 else None
        (name,) = _from_rank_0([found[0] if found else None])
        if name is None:
            return
        snapshot = found[1] if found else self._checkpoints.read(name)
        self._state.restore(snapshot, rank=self._shard.rank, world=self._shard.world_size)
        self.epochs = epoch_reports(snapshot)
        self._uses_before = node_uses(snapshot)
        self._saved_step = self._asked_step = self._state.step
        if self._shard.rank == 0:
            self._checkpoints.forget_newer(name)
            self._say(f"went on from step {self._state.step} (epoch {self._state.epoch + 1}), checkpoint {name}")

    def see(self, report: StepReport | EpochReport) -> None:
        """Checkpoint where it is time; every rank sees the same reports."""
        noticed = self._is_noticed()
        if isinstance(report, EpochReport):
            self.epochs.append(report)
        elif not (noticed or self._is_due()):
            return
        snapshot = self._state.snapshot()
        self._saved_step, self._saved_time = self._state.step, time.monotonic()
        if self._shard.rank == 0:
            history = {"epochs": [asdict(e) for e in self.epochs], "uses": [asdict(use) for use in self._uses()]}
            self._checkpoints.save(snapshot | history)
            if noticed:
                self._checkpoints.wait()
                self._say(f"a node was announced to go away: checkpoint of step {self._state.step} is written")

    def close(self) -> None:
        """Return once the last checkpoint is written."""
        self._checkpoints.wait()

    def _uses(self) -> list[NodeUse]:
        seconds = time.monotonic() - self._started
        return self._uses_before + [NodeUse(kind, count, seconds) for kind, count in self._nodes.items()]

    def _is_due(self) -> bool:
        if self._config.every_steps and self._state.step - self._saved_step >= self._config.every_steps:
            return True
        if self._config.every_minutes is None:
            return False
        return bool(_from_rank_0([time.monotonic() - self._saved_time >= 60 * self._config.every_minutes])[0])

    def _is_noticed(self) -> bool:
        """Whether a node of this run was just announced to go away; asked every so many steps, for it is a barrier."""
        if not self._watch_notices or self._state.step - self._asked_step < self._config.notice_every_steps:
            return False
        self._asked_step = self._state.step
        before, self._noticed = self._noticed, ray.train.get_preemption_info() is not None
        return self._noticed and not before


def epoch_reports(snapshot: Snapshot) -> list[EpochReport]:
    """The epochs that were done."""
    return [EpochReport(**row) for row in snapshot["epochs"]]


def node_uses(snapshot: Snapshot) -> list[NodeUse]:
    """The nodes that were used, and how long: of all workers since the run began, as far as checkpoints hold it."""
    return [NodeUse(**row) for row in snapshot["uses"]]


def _from_rank_0(values: list[Any]) -> list[Any]:
    """Rank 0's values, on every rank."""
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values
