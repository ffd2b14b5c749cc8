"""`make bench-training`: rayapp train against fit() without Ray, a plain PyTorch script and Lightning, on one recipe.

All get the same Parquet files, model, batch size, learning rates and number of epochs. A round takes every contestant
once, and the rounds follow each other (A B C, A B C, ...), so that a slow minute of the machine hits all. The first
epoch of a run is warm-up and not counted. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from mlflow import MlflowClient
from rich.console import Console

from benchmarks import commands, conditions, servers
from benchmarks import training_report as report
from benchmarks.paths import path
from benchmarks.training_report import Epoch, Measured
from rayapp.errors import RayAppError

RAYAPP, FIT, PLAIN, LIGHTNING = "rayapp", "fit", "plain", "lightning"
PEERS = Path(__file__).with_name("peers")
NUM_TEST = 100  # test images in the subset: nobody opens them, but a data set has some
RUN_S = 1800.0  # longest time of a run
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

ReadEpochs = Callable[[str], list[Epoch]]


@dataclass(frozen=True)
class Contestant:
    """How one is started, with which variables of the environment, and how its epochs are read from its stdout."""

    group: str
    name: str
    words: Sequence[str]
    variables: Mapping[str, str]
    epochs: ReadEpochs


@dataclass
class Bench:
    """What all runs share."""

    options: argparse.Namespace
    scratch: Path
    data: Path
    console: Console
    measured: list[Measured] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every target that was measured is met, 1 when one is not, or nothing could be measured."""
    return judged(_options().parse_args(argv), compare)


def judged(options: argparse.Namespace, compare: Callable[[argparse.Namespace, Path, Console], dict[str, Any]]) -> int:
    """What main() returns, once what compare() found stands on stdout, and in options.output."""
    servers.end_on_sigterm()
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as scratch:  # Ray's sockets need short paths
            result = compare(options, Path(scratch), console)
    except RayAppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0 if result["met"] else 1


def compare(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; tables go to the console."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RayAppError("--device cuda: torch finds no GPU here; say --device cpu")
    data = scratch / "data"
    num_train = write_subset(options.data, data, options.images)
    where = {
        "machine": conditions.machine(),
        "gpu": torch.cuda.get_device_name(0) if options.device == "cuda" else "not used",
        "versions": {**conditions.versions(), **_lightning_version(options)},
        "recipe": f"{options.model}, {num_train:,} training images, a tenth of them for validation, {options.epochs}"
        f" epochs, {options.batch_size} images at once a process, 1 thread a process unless named otherwise",
        "runs": f"{options.rounds} rounds; the first epoch is not counted",
    }
    conditions.show(console, where)
    bench = Bench(options, scratch, data, console)
    contestants = _contestants(bench)
    started = time.monotonic()
    for number in range(options.rounds):
        for contestant in contestants:
            done, total = len(bench.measured), options.rounds * len(contestants)
            bench.measured.append(_measure(bench, contestant, number))
            left = (time.monotonic() - started) / (done + 1) * (total - done - 1) / 60
            text = f"{done + 1:>3}/{total}  {contestant.name:<31} {report.line(bench.measured[-1])}"
            console.print(f"{text}  {left:.0f} min left", highlight=False, soft_wrap=True)
    found = report.ratios(bench.measured, options.device)
    loss = report.loss_difference(bench.measured)
    report.show(console, bench.measured)
    report.show_targets(console, found, loss)
    return {"conditions": where, **report.as_json(bench.measured, found, loss)}


def _lightning_version(options: argparse.Namespace) -> dict[str, str]:
    """Of the peers' environment. Raises RayAppError where it is wanted and not there."""
    if LIGHTNING not in options.only:
        return {}
    code = "import importlib.metadata as m; print(m.version('lightning'))"
    try:
        said = subprocess.run([options.peers_python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise RayAppError(
            f"{options.peers_python} has no Lightning; make it with: rm -f .venv-bench/.installed;"
            " make .venv-bench/.installed, or leave it out with --only rayapp fit plain"
        ) from error
    return {"lightning": said.stdout.strip()}


def write_subset(source: Path, target: Path, num_images: int) -> int:
    """The number of training images in a new folder of Parquet files: num_images of the source's, by a fixed seed."""
    files = [source / f"{part}.parquet" for part in ("train", "test")]
    if missing := [path for path in files if not path.exists()]:
        raise RayAppError(f"{missing[0]} is not there; give --data a folder of train.parquet and test.parquet")
    target.mkdir()
    train, test = (pq.read_table(path) for path in files)
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:num_images])
    pq.write_table(train.take(rows), target / "train.parquet")
    pq.write_table(test.slice(0, NUM_TEST), target / "test.parquet")
    return len(rows)


# --- contestants ------------------------------------------------------------------------------------------------------


def _contestants(bench: Bench) -> list[Contestant]:
    """Those of --only that fit --processes, in the order in which a round takes them."""
    options, found = bench.options, []
    num_processes = options.processes or _usual_processes(options.device)
    for n in num_processes:
        found += [_rayapp(bench, n), _fit(bench, n)]
        for layout in ([], ["--channels-last"]):
            name = f"plain, torchrun {n}{', channels last' if layout else ''}"
            words = [*_torchrun(n), str(PEERS / "plain.py"), *_plain_flags(bench, loader_workers=0), *layout]
            found.append(Contestant(PLAIN, name, words, ONE_THREAD, json_epochs))
    # PyTorch's tutorial on CIFAR-10 has two processes that load images; the number of threads is torch's own choice
    usual = [sys.executable, str(PEERS / "plain.py"), *_plain_flags(bench, loader_workers=2)]
    found.append(Contestant(PLAIN, report.PLAIN, usual, {}, json_epochs))
    n = max(num_processes)
    words = [str(options.peers_python), "-m", "benchmarks.peers.lightning_script", "--processes", str(n)]
    words += [*_plain_flags(bench, loader_workers=0), "--channels-last"]
    found.append(Contestant(LIGHTNING, f"Lightning, {n} processes, channels last", words, ONE_THREAD, json_epochs))
    return [contestant for contestant in found if contestant.group in options.only]


def _rayapp(bench: Bench, workers: int) -> Contestant:
    home = bench.scratch / "home"
    words = [sys.executable, "-m", "rayapp.cli", "train", *_train_flags(bench)]
    words += ["--register", "false", "--compute.num_workers", str(workers)]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    variables = {"RAYAPP_HOME": str(home), "MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": str(bench.scratch)}
    name = report.RAYAPP_1 if workers == 1 else f"rayapp, {workers} workers"
    return Contestant(RAYAPP, name, words, variables | ONE_THREAD, lambda stdout: mlflow_epochs(uri, stdout))


def _fit(bench: Bench, workers: int) -> Contestant:
    name = report.FIT_1 if workers == 1 else f"fit() without Ray, {workers} processes"
    words = [*_torchrun(workers), "-m", "benchmarks.bare_fit", *_train_flags(bench)]
    return Contestant(FIT, name, words, {"RAYAPP_HOME": str(bench.scratch / "home")} | ONE_THREAD, json_epochs)


def _usual_processes(device: str) -> list[int]:
    return [n for n in (1, 2) if device == "cpu" or n <= max(1, torch.cuda.device_count())]


def _torchrun(num_processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]


def _train_flags(bench: Bench) -> list[str]:
    options = bench.options
    return [
        "--data.dataset", "parquet", "--data.path", str(bench.data), "--model.name", options.model,
        "--optim.epochs", str(options.epochs), "--optim.batch_size", str(options.batch_size),
        "--compute.device", options.device,
    ]  # fmt: skip


def _plain_flags(bench: Bench, *, loader_workers: int) -> list[str]:
    options = bench.options
    on_gpu = options.device == "cuda"  # where one core cannot feed the device, people give it more
    return [
        "--data", str(bench.data), "--model", options.model, "--epochs", str(options.epochs),
        "--batch-size", str(options.batch_size), "--device", options.device,
        "--loader-workers", str(options.loader_workers if on_gpu else loader_workers),
    ]  # fmt: skip


def json_epochs(stdout: str) -> list[Epoch]:
    """The epochs of a contestant that prints a JSON line for each."""
    rows = [json.loads(line) for line in stdout.splitlines() if line.startswith('{"epoch"')]
    return [
        Epoch(r["images_per_s"] * r["seconds"], r["ended_at"], r["seconds"], r["train_loss"], r["val_accuracy"])
        for r in rows
    ]


def mlflow_epochs(tracking_uri: str, stdout: str) -> list[Epoch]:
    """The epochs of `rayapp train`, whose last line names the run, as MLflow has them."""
    run_id, client = json.loads(stdout.splitlines()[-1])["run_id"], MlflowClient(tracking_uri)
    names = ("epoch/images_per_s", "epoch/seconds", "epoch/train_loss", "val/accuracy")
    columns = [sorted(client.get_metric_history(run_id, name), key=lambda m: m.step) for name in names]
    return [
        Epoch(rate.value * seconds.value, seconds.timestamp / 1000, seconds.value, loss.value, accuracy.value)
        for rate, seconds, loss, accuracy in zip(*columns, strict=True)
    ]


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(bench: Bench, contestant: Contestant, number: int) -> Measured:
    log: Path = bench.options.logs / f"{re.sub('[^A-Za-z0-9]+', '-', contestant.name)}.log"
    words = [*contestant.words, "--seed", str(number)]
    done = commands.run(words, contestant.variables, log, timeout_s=RUN_S)
    epochs = tuple(contestant.epochs(done.stdout))
    if len(epochs) != bench.options.epochs:
        raise RayAppError(f"{contestant.name} told of {len(epochs)} epochs, not {bench.options.epochs}; see {log}")
    start_up_s = epochs[0].ended_at - epochs[0].seconds - done.launched_at
    return Measured(contestant.name, number, epochs, start_up_s, done.memory_mib, done.others_cpu)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=path, required=True, help="folder of CIFAR-10 as train.parquet and test.parquet")
    groups = (RAYAPP, FIT, PLAIN, LIGHTNING)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="what to measure [all]")
    parser.add_argument("--processes", type=int, nargs="+", help="training processes [1 2; as many as there are GPUs]")
    parser.add_argument("--images", type=int, default=4000, help="training and validation images [4000]")
    parser.add_argument("--epochs", type=int, default=4, help="epochs a run, the first one not counted [4]")
    parser.add_argument("--rounds", type=int, default=3, help="times each contestant is run [3]")
    parser.add_argument("--batch-size", type=int, default=128, help="images a process takes at once [128]")
    models = ("mobilenet_v3_small", "resnet18", "resnet9")
    parser.add_argument("--model", choices=models, default=models[0], help=f"architecture [{models[0]}]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train [cpu]")
    parser.add_argument(
        "--loader-workers", type=int, default=8, help="on a GPU: processes that load images for each of the peers' [8]"
    )
    parser.add_argument(
        "--peers-python", type=path, default=servers.ROOT / ".venv-bench" / "bin" / "python",
        help="Python with Lightning [.venv-bench's]",
    )  # fmt: skip
    parser.add_argument("--logs", type=path, default="bench-logs", help="folder of the contestants' messages")
    parser.add_argument("--output", type=path, metavar="FILE.json", help="write the result to a file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
