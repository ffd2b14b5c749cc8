"""The work that `make bench-hosts` disturbs: a command of rayapp, how far it is, and what it did twice or not at all.

Each is counted in units of its own: optimiser steps, epochs of trials, predicted images.
"""

from __future__ import annotations

import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
from mlflow import MlflowClient

from rayapp.batch.output import PART_IMAGES

NAME = "work"  # of the run and of the sweep
TRAIN_EPOCHS, NUM_TRIALS, TRIAL_EPOCHS, NUM_IMAGES = 30, 16, 4, 250_000
WENT_ON = re.compile(r"went on from step (\d+)")


@dataclass
class Work(ABC):
    """A command. home: RAYAPP_HOME of all hosts. data: Parquet files of images. said: what the command prints."""

    home: Path
    data: Path
    said: Path
    samples: list[tuple[float, int]] = field(default_factory=list)  # time.monotonic(), units that were done
    unit: ClassVar[str]
    window_s: ClassVar[float]  # over which its speed is taken

    def command(self, *, again: bool = False) -> list[str]:
        """The command; again: the one that goes on where the first died with its host."""
        return [sys.executable, "-m", "rayapp", *(self._again() if again else self._words())]

    def look(self, now_s: float) -> None:
        """Keep a sample."""
        self.samples.append((now_s, self._done()))

    @property
    def done(self) -> int:
        """How many units were done at most, when it was looked at."""
        return max((done for _, done in self.samples), default=0)

    def before_event(self) -> None:  # noqa: B027 - most have nothing that is done for good
        """Remember what is done for good."""

    @abstractmethod
    def lost(self) -> int:
        """Units that should be there at the end and are not."""

    @abstractmethod
    def repeated(self) -> int:
        """Units that were done twice."""

    @abstractmethod
    def _words(self) -> Sequence[str]: ...

    def _again(self) -> Sequence[str]:
        return self._words()

    @abstractmethod
    def _done(self) -> int: ...


@dataclass
class Training(Work):
    """`rayapp train`. A step that no checkpoint holds is done again."""

    workers: str = "2"
    unit = "steps"
    window_s = 4.0
    _repeated: list[int] = field(default_factory=list)  # steps, each time that it went on

    def look(self, now_s: float) -> None:
        """Also: the steps between the furthest that was known and the one from which it went on since the last look."""
        went_on = WENT_ON.findall(self.said.read_text())
        self._repeated += [max(0, self.done - int(step)) for step in went_on[len(self._repeated) :]]
        super().look(now_s)

    def lost(self) -> int:
        ended = json.loads(self.said.read_text().splitlines()[-1])
        return TRAIN_EPOCHS - int(ended["epochs"])

    def repeated(self) -> int:
        return sum(self._repeated)

    def _words(self) -> Sequence[str]:
        elastic = ("--compute.resize_every_s", "2") if ".." in self.workers else ()
        return (
            "train", "--name", NAME, "--register", "false", "--resume", "auto", "--data.dataset", "digits",
            "--optim.epochs", str(TRAIN_EPOCHS), "--optim.batch_size", "32", "--checkpoint.every_steps", "10",
            "--tracking.log_every_steps", "1", "--compute.num_workers", self.workers, *elastic,
        )  # fmt: skip

    def _done(self) -> int:
        if not (self.home / "mlflow.db").exists():
            return 0
        client = MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")
        runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
        steps = [metric.step for run in runs for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        return max(steps, default=0)


@dataclass
class Sweep(Work):
    """`rayapp tune`. A trial that has ended is never touched again."""

    unit = "epochs"
    window_s = 20.0
    ended_before: dict[str, object] = field(default_factory=dict)

    def before_event(self) -> None:
        """The trials that have ended."""
        self.ended_before = self._ended()

    def lost(self) -> int:
        """Epochs of trials without a result."""
        return TRIAL_EPOCHS * (NUM_TRIALS - len(self._ended()))

    def repeated(self) -> int:
        """Epochs of trials that had ended."""
        after = self._ended()
        return TRIAL_EPOCHS * sum(after.get(trial) != told for trial, told in self.ended_before.items())

    def _words(self) -> Sequence[str]:
        config = self.home / "sweep.yaml"
        space = {"optim.lr": {"log_uniform": [0.01, 0.5]}}
        budget, scheduler = {"trials": NUM_TRIALS}, {"name": "none"}
        recipe = {"data": {"dataset": "digits"}, "optim": {"epochs": TRIAL_EPOCHS}, "space": space}
        config.write_text(json.dumps(recipe | {"budget": budget, "scheduler": scheduler}))  # JSON is YAML
        return "tune", "--name", NAME, "--config", str(config)

    def _again(self) -> Sequence[str]:
        return "tune", "--resume", NAME

    def _done(self) -> int:
        return sum(int(row["epoch"]) for row in self._rows())

    def _ended(self) -> dict[str, object]:
        return {r["trial_id"]: (r["seconds"], r["run_id"]) for r in self._rows() if r["state"] == "finished"}

    def _rows(self) -> list[dict[str, Any]]:
        file = self.home / "sweeps" / NAME / "trials.json"
        rows: list[dict[str, Any]] = json.loads(file.read_text())["trials"] if file.exists() else []
        return rows


@dataclass
class BatchPrediction(Work):
    """`rayapp batch-predict`. A part that is written stays."""

    unit = "images"
    window_s = 20.0  # they come in parts

    def lost(self) -> int:
        return NUM_IMAGES - len(self._rows())

    def repeated(self) -> int:
        parts = self._parts()
        return sum(int(pq.read_metadata(part).num_rows) for part in parts) - len(self._rows())

    def _words(self) -> Sequence[str]:
        return "batch-predict", "--data.path", str(self.data), "--output", str(self._output)

    @property
    def _output(self) -> Path:
        return self.home / "predictions"

    def _parts(self) -> list[Path]:
        return sorted(self._output.rglob("part-*.parquet"))

    def _rows(self) -> set[tuple[str, int]]:
        return {
            (row["path"], row["row"])
            for part in self._parts()
            for row in pq.read_table(part, columns=["path", "row"]).to_pylist()
        }

    def _done(self) -> int:
        done: int = min(NUM_IMAGES, PART_IMAGES * len(self._parts()))
        return done
