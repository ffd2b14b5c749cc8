"""`make bench-accuracy`: time to accuracy, the mean of several seeds, on a CPU or one GPU: digits, or --data FOLDER.

Needs rayapp's own dependencies and psutil, but neither Ray nor MLflow; on any GPU machine, in a clone:

    pip install -e . psutil
    python -m benchmarks.accuracy --data FOLDER --config jobs/configs/cifar10-resnet9.yaml --optim.lr 0.3

* The recipe is one of `rayapp train`: --config FILE.yaml, and its settings as --section.name VALUE over it. Without
  --data it is that of jobs/configs/digits-mobilenet_v3_small.yaml.
* A tenth of the training images of each class is for validation, the same ones always. Settings are chosen on them.
  --open-test measures the test images too, once a seed, with the last epoch's weights.
* The time is that of training alone: by CUDA events on a GPU, without validation, reading the data and the warm-up. The
  warm-up is an epoch of two batches, which the compiler and cuDNN need; its weights are thrown away.
* No test-time augmentation. Exit code 1 where the mean accuracy misses --target.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import frame
from benchmarks.processes import Strangers
from benchmarks.report import Column, Finding, Report, Row
from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load
from rayapp.data import datasets
from rayapp.data.preprocess import Images
from rayapp.errors import ConfigError
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import Batch, InMemoryLoader
from rayapp.vision.loop import EpochReport, evaluate, fit
from rayapp.vision.memory import keep_freed_memory
from rayapp.vision.models import Classifier, build_model
from rayapp.vision.optim import TrainPlan, build_optimizer
from rayapp.vision.predictor import resolve_device
from rayapp.vision.state import TrainState

VALIDATION_BATCH = 1000
WARM_UP_BATCHES = 2
DIGITS = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "digits-mobilenet_v3_small.yaml"
TARGETS = {"digits": 0.97, "parquet": 0.94}  # of digits, and of CIFAR-10
QUICK = {"seeds": 1}  # and two epochs
SECONDS, VALIDATION, TEST = "s of training", "val accuracy", "test accuracy"
COLUMNS = {SECONDS: Column(), VALIDATION: Column(".4f", timed=False), TEST: Column(".4f", timed=False)}

Bench = frame.Bench[Row]


# --- time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds between start() and stop(), added up: by CUDA events on a GPU, else by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._host_s, self._host_started = 0.0, 0.0

    def start(self) -> None:
        """Go on. What the device still has to do counts from here on."""
        if self._on_gpu:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        self._host_started = time.perf_counter()

    def stop(self) -> None:
        """Pause, once the device has done what it was given."""
        if self._on_gpu:
            self._events[-1][1].record()
        self._host_s += time.perf_counter() - self._host_started

    def seconds(self) -> float:
        """The sum so far; waits for the device."""
        if not self._on_gpu:
            return self._host_s
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._events)) / 1000


class UntimedBatches(InMemoryLoader):
    """Validation batches that stop the clock of training while they are taken."""

    clock: Clock

    def epoch(self, epoch: int, done: int = 0) -> Iterator[Batch]:
        """The batches; the clock runs again when the last one was used."""
        self.clock.stop()
        yield from super().epoch(epoch, done)
        self.clock.start()


# --- training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """What all seeds share: data, and one model, so that its compiled form serves every seed."""

    def __init__(self, settings: TrainSettings, dataset: datasets.Dataset, *, compiled: bool) -> None:
        assert isinstance(dataset.train, Images)  # nothing is streamed here
        self.settings, self.dataset, self.images = settings, dataset, dataset.train
        self.device = torch.device(resolve_device(settings.compute.device))
        split = dataset.split(settings.data)
        self.train_n, self.validation_n = split.train_indices, split.validation_indices
        self.plan = TrainPlan.of(settings.optim, len(self.train_n))
        self.model = self._new_model(seed=0).to(self.device)
        self._network: Any = torch.compile(self.model) if compiled else self.model

    def warm_up(self) -> float:
        """The seconds that compiling and cuDNN's search took."""
        started = time.perf_counter()
        for _ in self._fit(
            self.train_n[: WARM_UP_BATCHES * self.plan.batch_size], Clock(self.device), seed=0, epochs=1
        ):
            pass
        return time.perf_counter() - started

    def train(self, seed: int) -> tuple[float, list[float]]:
        """Seconds of a training from new weights, and its accuracies (0-1) of validation, one an epoch."""
        self.model.load_state_dict(self._new_model(seed).state_dict())
        clock, accuracies = Clock(self.device), []
        for report in self._fit(self.train_n, clock, seed=seed, epochs=self.plan.epochs):
            accuracies.append(report.val_accuracy)
            print(
                f"seed {seed}  epoch {report.epoch:>3}/{report.num_epochs}  loss {report.train_loss:.3f}"
                f"  val {report.val_accuracy:.4f}  {report.images_per_s:,.0f} images/s with validation",
                flush=True,
            )
        return clock.seconds(), accuracies

    def test(self) -> float:
        """Accuracy (0-1) of today's weights on the test images."""
        images = self.dataset.test
        rows_n = np.arange(len(images.labels_n))
        batches = InMemoryLoader(images, rows_n, batch_size=VALIDATION_BATCH, device=self.device)
        return evaluate(self._state(self.plan), batches).accuracy

    def _fit(self, rows_n: NDArray[np.int64], clock: Clock, *, seed: int, epochs: int) -> Iterator[EpochReport]:
        info = self.dataset.info
        augment = Augment.from_config(
            self.settings.augment, height_px=info.height_px, flip=info.flip, num_classes=info.num_classes
        )
        where: dict[str, Any] = {"device": self.device, "seed": seed}
        train = InMemoryLoader(self.images, rows_n, batch_size=self.plan.batch_size, augment=augment, **where)
        validation = UntimedBatches(self.images, self.validation_n, batch_size=VALIDATION_BATCH, **where)
        validation.clock = clock
        state = self._state(replace(self.plan, epochs=epochs))
        clock.start()
        for report in fit(state, train, validation, distribute=lambda _: self._network, seed=seed):
            if isinstance(report, EpochReport):
                yield report
        clock.stop()

    def _state(self, plan: TrainPlan) -> TrainState:
        return TrainState.create(self.model, build_optimizer(self.model, plan), plan)

    def _new_model(self, seed: int) -> Classifier:
        torch.manual_seed(seed)
        info = self.dataset.info
        size = {"num_classes": info.num_classes, "image_px": min(info.height_px, info.width_px)}
        return build_model(self.settings.model, **size, mean=info.mean, std=info.std)


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the mean accuracy reaches the target, 1 when not, or nothing could be measured; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def measure(bench: Bench) -> None:
    """All seeds."""
    options, settings = bench.options, settings_of(bench.options)
    _prepare(options)
    dataset = datasets.load(settings.data, bench.scratch / "data")
    trainer = Trainer(settings, dataset, compiled=options.compile)
    started, warm_up_s = time.perf_counter(), trainer.warm_up()
    batches = trainer.plan.epochs * len(trainer.train_n) / trainer.plan.batch_size
    seconds = options.seeds * batches * (time.perf_counter() - started) / (WARM_UP_BATCHES + 1)
    where = _conditions(trainer, options) | {"warm_up": f"{warm_up_s:.1f} s"}
    bench.begin(where, num_rows=options.seeds, seconds=seconds)
    for seed in range(options.seeds):
        row = _measured(trainer, seed, open_test=options.open_test)
        bench.add(row, Report(COLUMNS, bench.rows).line(row))


def _measured(trainer: Trainer, seed: int, *, open_test: bool) -> Row:
    strangers = Strangers()
    train_s, accuracies = trainer.train(seed)
    others_cpu = strangers.part()
    figures = {SECONDS: train_s, VALIDATION: accuracies[-1]}
    if open_test:
        figures[TEST] = trainer.test()
    return Row(trainer.settings.model.name, seed, figures, others_cpu, details={"accuracies": accuracies})


def conclude(bench: Bench) -> dict[str, Any]:
    """The tables, and what stands beside the target."""
    report = Report(COLUMNS, bench.rows)
    report.show(bench.console)
    target = bench.options.target or TARGETS["parquet" if bench.options.data else "digits"]
    return report.conclude(bench.console, findings(report, target), judge=not bench.options.quick, speed_fails=True)


def findings(report: Report, target: float) -> list[Finding]:
    """Means and standard deviations over the seeds; the target is for the test where it was opened."""
    (name,), found = report.names(), []
    decisive = TEST if report.values(name, TEST) else VALIDATION
    for figure in COLUMNS:
        if values := list(report.values(name, figure).values()):
            said = f"{fmean(values):.4f} ± {stdev(values) if len(values) > 1 else 0.0:.4f}, {len(values)} seeds"
            limit = target if figure == decisive else None
            found.append(Finding(f"{figure}, mean ± standard deviation", name, fmean(values), said, limit))
    return found


def _prepare(options: argparse.Namespace) -> None:
    """torch, as rayapp train sets it up."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()


def _conditions(trainer: Trainer, options: argparse.Namespace) -> dict[str, Any]:
    device, settings = trainer.device, trainer.settings
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, cuda {torch.version.cuda}",
        "data": f"{options.data or 'digits'}, {len(trainer.train_n):,} images for training",
        "model": settings.model.name,
        "optim": settings.optim.model_dump(exclude_none=True, exclude_defaults=True),
        "augment": settings.augment.model_dump(exclude_none=True, exclude_defaults=True),
        "compile": options.compile,
        "time": "training alone, without validation, warm-up and reading",
    }


def settings_of(options: argparse.Namespace) -> TrainSettings:
    """The recipe, on the data of --data. Raises ConfigError."""
    words, data = list(options.recipe), ["--data.dataset", "digits"]
    if options.quick:
        words = ["--optim.epochs", "2", *words]
    if options.data:
        data = ["--data.dataset", "parquet", "--data.path", str(options.data)]
    elif not any(word.partition("=")[0] == "--config" for word in words):
        words += ["--config", str(DIGITS)]
    if given := [word for word in words if word.startswith("--data.")]:
        raise ConfigError(f"{given[0]} has no effect here; give --data FOLDER, or leave it out for digits")
    return load(TrainSettings, [*words, *data], prog="make bench-accuracy")


class _Parser(frame.Parser):
    """Keeps the words that are settings of `rayapp train`."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options; recipe holds the other words."""
        options, options.recipe = self.parse_known_args(args, namespace)
        return options


def parser() -> frame.Parser:
    """The command line."""
    parser = _Parser("accuracy", __doc__, quick=QUICK)
    add = parser.add_argument
    add("--data", type=frame.path, metavar="FOLDER", help="CIFAR-10 as train.parquet and test.parquet [digits]")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--seeds", type=frame.count, default=5, help="trainings, with seeds from 0 [5]")
    add("--target", type=float, help="accuracy (0-1) that the mean has to reach [digits 0.97, CIFAR-10 0.94]")
    add("--open-test", action="store_true", help="measure the test images too, once a seed")
    add("--threads", type=frame.count, help="CPU threads [torch's own choice]")
    parser.epilog = "Other options are settings of rayapp train: --config FILE.yaml --optim.lr 0.3 --compute.device cpu"
    return parser


if __name__ == "__main__":
    sys.exit(main())
