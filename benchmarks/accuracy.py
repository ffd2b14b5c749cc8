"""`make bench-accuracy`: time to accuracy on CIFAR-10, the mean of several seeds, on a CPU or one GPU.

Needs torch, torchvision, pydantic and pyarrow alone: take benchmarks, rayapp and jobs to any GPU machine and run

    python -m benchmarks.accuracy --data FOLDER --config jobs/configs/cifar10-resnet9.yaml

* 5,000 of the 50,000 training images are for validation, the same ones always, 500 of each class. Settings are chosen
  on them. --open-test measures the 10,000 test images too, once, after all training, with the last epoch's weights.
* The time is that of training alone: by CUDA events on a GPU, without validation, reading the data and the warm-up. The
  warm-up is an epoch of two batches, which the compiler and cuDNN need; its weights are thrown away.
* No test-time augmentation. The last line is JSON. Exit code 1 where the mean accuracy misses --target.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cifar10 import IMAGE_PX, MEAN, NUM_CLASSES, STD, read_images, split
from benchmarks.paths import path
from benchmarks.recipes import Recipe
from rayapp.errors import ConfigError, RayAppError
from rayapp.vision.augment import Augment
from rayapp.vision.batches import Batch, ResidentBatches
from rayapp.vision.loop import EpochReport, evaluate, fit
from rayapp.vision.memory import keep_freed_memory
from rayapp.vision.models import Classifier, build_model
from rayapp.vision.preprocess import Images
from rayapp.vision.state import TrainState

VALIDATION_BATCH = 1000
WARM_UP_BATCHES = 2


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


class UntimedBatches(ResidentBatches):
    """Validation batches that stop the clock of training while they are taken."""

    clock: Clock

    def epoch(self, epoch: int, done: int = 0) -> Iterator[Batch]:
        """The batches; the clock runs again when the last one was used."""
        self.clock.stop()
        yield from super().epoch(epoch, done)
        self.clock.start()


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """What one seed gave. accuracies: of validation, one an epoch (0-1). weights: the last ones."""

    seed: int
    train_s: float
    accuracies: list[float]
    weights: dict[str, Tensor]
    test_accuracy: float | None = None


class Bench:
    """What all seeds share: data, and one model, so that its compiled form serves every seed."""

    def __init__(self, recipe: Recipe, images: Images, *, device: torch.device, compiled: bool) -> None:
        self.recipe, self.images, self.device = recipe, images, device
        self.train_n, self.validation_n = split(images.labels_n)
        self.batch_size = recipe.optim.worker_batch(len(self.train_n), num_workers=1)
        self.model = self._new_model(seed=0).to(device)
        self._network: Any = torch.compile(self.model) if compiled else self.model

    def warm_up(self) -> float:
        """The seconds that compiling and cuDNN's search took."""
        started = time.perf_counter()
        for _ in self._fit(self.train_n[: WARM_UP_BATCHES * self.batch_size], Clock(self.device), seed=0, epochs=1):
            pass
        return time.perf_counter() - started

    def train(self, seed: int) -> Trial:
        """A training from new weights."""
        self.model.load_state_dict(self._new_model(seed).state_dict())
        clock, accuracies = Clock(self.device), []
        for report in self._fit(self.train_n, clock, seed=seed, epochs=self.recipe.optim.num_epochs(len(self.train_n))):
            accuracies.append(report.val_accuracy)
            print(
                f"seed {seed}  epoch {report.epoch:>3}/{report.num_epochs}  loss {report.train_loss:.3f}"
                f"  val {report.val_accuracy:.4f}  {report.images_per_s:,.0f} images/s with validation",
                flush=True,
            )
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        print(f"seed {seed}  {clock.seconds():.2f} s of training, validation {accuracies[-1]:.4f}", flush=True)
        return Trial(seed, clock.seconds(), accuracies, weights)

    def test(self, trial: Trial, images: Images) -> float:
        """Accuracy (0-1) of a trial's weights on other images."""
        self.model.load_state_dict(trial.weights)
        rows_n = np.arange(len(images.labels_n))
        batches = ResidentBatches(images, rows_n, batch_size=VALIDATION_BATCH, device=self.device)
        return evaluate(TrainState.create(self.model, batches, self.recipe.optim), batches).accuracy

    def _fit(self, rows_n: NDArray[np.int64], clock: Clock, *, seed: int, epochs: int) -> Iterator[EpochReport]:
        optim = self.recipe.optim.model_copy(update={"epochs": epochs})
        augment = Augment.from_config(self.recipe.augment, height_px=IMAGE_PX, flip=True, num_classes=NUM_CLASSES)
        where: dict[str, Any] = {"device": self.device, "seed": seed}
        train = ResidentBatches(self.images, rows_n, batch_size=self.batch_size, augment=augment, **where)
        validation = UntimedBatches(self.images, self.validation_n, batch_size=VALIDATION_BATCH, **where)
        validation.clock = clock
        state = TrainState.create(self.model, train, optim)
        clock.start()
        for report in fit(state, train, validation, optim, distribute=lambda _: self._network, seed=seed):
            if isinstance(report, EpochReport):
                yield report
        clock.stop()

    def _new_model(self, seed: int) -> Classifier:
        torch.manual_seed(seed)
        return build_model(self.recipe.model, num_classes=NUM_CLASSES, image_px=IMAGE_PX, mean=MEAN, std=STD)


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the mean accuracy reaches the target, 1 when not, or nothing could be measured."""
    options = _options().parse_args(argv)
    try:
        result = measure(options, _recipe(options))
    except RayAppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if result["met"] else 1


def measure(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Time and accuracy of each seed, their means and conditions, as one JSON object."""
    device = _prepare(options)
    where = _conditions(device, recipe, options)
    for name, value in where.items():
        print(f"{name.replace('_', ' '):>14}  {value}")
    bench = Bench(recipe, read_images(options.data / "train.parquet"), device=device, compiled=options.compile)
    warm_up_s = bench.warm_up()
    print(f"       warm-up  {warm_up_s:.1f} s", flush=True)
    trials = [bench.train(seed) for seed in range(options.seeds)]
    if options.open_test:
        test = read_images(options.data / "test.parquet")
        for trial in trials:
            trial.test_accuracy = bench.test(trial, test)
    return {"conditions": where, "warm_up_s": round(warm_up_s, 2), **summary(trials, options.target)}


def _prepare(options: argparse.Namespace) -> torch.device:
    """The device, with torch set up as rayapp train does it."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; say --device cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    return torch.device(options.device)


def summary(trials: Sequence[Trial], target: float) -> dict[str, Any]:
    """Means and standard deviations over the seeds; the target is for the test where it was opened."""
    validation, tests = (
        [t.accuracies[-1] for t in trials],
        [t.test_accuracy for t in trials if t.test_accuracy is not None],
    )
    found = {"train_s": _mean(t.train_s for t in trials), "val_accuracy": _mean(validation)}
    if tests:
        found["test_accuracy"] = _mean(tests)
    for name, values in found.items():
        print(f"{name.replace('_', ' '):>14}  {values['mean']:.4f} ± {values['std']:.4f}, {len(trials)} seeds")
    decisive = "test_accuracy" if tests else "val_accuracy"
    met = found[decisive]["mean"] >= target
    print(f"        target  {decisive.replace('_', ' ')} {target}: {'met' if met else 'MISSED'}")
    return {**found, "target": target, "measured_on": decisive.split("_")[0], "met": met}


def _mean(values: Iterable[float]) -> dict[str, Any]:
    listed = [round(value, 5) for value in values]
    return {"mean": fmean(listed), "std": stdev(listed) if len(listed) > 1 else 0.0, "values": listed}


def _conditions(device: torch.device, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, cuda {torch.version.cuda}",
        "model": recipe.model.name,
        "optim": recipe.optim.model_dump(exclude_none=True, exclude_defaults=True),
        "augment": recipe.augment.model_dump(exclude_none=True, exclude_defaults=True),
        "compile": options.compile,
        "time": "training alone, without validation, warm-up and reading",
    }


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of --config, with what other options say over it. Raises ConfigError."""
    given = {
        "model": {"name": options.model},
        "optim": {
            "epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr,
            "weight_decay": options.weight_decay, "label_smoothing": options.label_smoothing,
            "precision": options.precision,
        },
        "augment": {"cutout_px": options.cutout},
    }  # fmt: skip
    return Recipe.load(options.config, given)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-accuracy", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=path, required=True, help="folder of CIFAR-10 as train.parquet and test.parquet")
    add("--config", type=Path, metavar="FILE.yaml", help="recipe to start from: one of jobs/configs")
    add("--model", help="architecture")
    add("--epochs", type=int, help="passes over the training images")
    add("--batch-size", type=int, help="images at once")
    add("--lr", type=float, help="peak learning rate for 256 images at once; scaled with the batch size")
    add("--weight-decay", type=float, help="weight decay, never on norms and biases")
    add("--label-smoothing", type=float, help="share of the target spread over all classes (0-1)")
    add("--cutout", type=int, help="side (pixels) of a square painted grey; 0 is none")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="arithmetic [auto: bf16 on a GPU that has it]")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--seeds", type=int, default=5, help="trainings, with seeds from 0 [5]")
    add("--target", type=float, default=0.94, help="accuracy (0-1) that the mean has to reach [0.94]")
    add("--open-test", action="store_true", help="measure the test images too, once, after all training")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=found, help="where to train [cuda where there is a GPU]")
    add("--threads", type=int, help="CPU threads [torch's own choice]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
