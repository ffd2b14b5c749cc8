"""`make bench-training`: rayapp train against fit() without Ray, a plain PyTorch script and Lightning, on one recipe.

All get the same Parquet files, model, batch size, learning rates and number of epochs. A round takes every contestant
once, and the rounds follow each other (A B C, A B C, ...), so that a slow minute of the machine hits all. The first
epoch of a run is warm-up and not counted. Exit code 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from mlflow import MlflowClient

from benchmarks import commands, conditions, data, frame, servers
from benchmarks.report import Column, Finding, Report, Row, Versus
from rayapp.errors import RayAppError

RAYAPP, FIT, PLAIN, LIGHTNING = "rayapp", "fit", "plain", "lightning"
PEERS = Path(__file__).with_name("peers")
RUN_S = 1800.0  # longest time of a run
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
QUICK = {"rounds": 1, "epochs": 2, "images": 500}
START_S, IMAGES_PER_S = 20, 400  # of a contestant, about, where it has one core
NOISE_SE = 3.0  # standard errors of a difference of means that are taken for noise

RAYAPP_1, RAYAPP_2 = "rayapp, 1 worker", "rayapp, 2 workers"
FIT_1, FIT_2 = "fit() without Ray, 1 process", "fit() without Ray, 2 processes"
PLAIN_1, PLAIN_2 = "plain, torchrun 1", "plain, torchrun 2"
PLAIN_2_CL = "plain, torchrun 2, channels last"
AS_USUAL = "plain, as people run it"
COLUMNS = {
    "images/s": Column(",.0f"), "s an epoch": Column(), "start-up s": Column(".1f"),
    "memory MiB": Column(",.0f", timed=False), "mean train loss": Column(".4f", timed=False),
    "last train loss": Column(".4f", timed=False), "val accuracy": Column(".4f", timed=False),
}  # fmt: skip
# How many times as fast (images/s) ours has to be as the fastest of theirs, by device.
TARGETS = {
    "cpu": (
        Versus("same processes and threads", "images/s", RAYAPP_2, (PLAIN_2, PLAIN_2_CL), 1.05),
        Versus("against the script as people run it", "images/s", RAYAPP_2, (AS_USUAL,), 3.0),
        # at most 2.5 % more time an epoch
        Versus("with Ray Train against without", "images/s", RAYAPP_2, (FIT_2,), 1 / 1.025),
        Versus("2 workers against 1", "images/s", RAYAPP_2, (RAYAPP_1,), 1.8),
    ),
    "cuda": (Versus("against the script as people run it", "images/s", RAYAPP_1, (AS_USUAL,), 8.0),),
}

Bench = frame.Bench[Row]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training and the validation images. ended_at: seconds since 1970."""

    num_images: float
    ended_at: float
    seconds: float
    train_loss: float
    val_accuracy: float


ReadEpochs = Callable[[str], list[Epoch]]


@dataclass(frozen=True)
class Contestant:
    """How one is started, with which variables of the environment, and how its epochs are read from its stdout."""

    group: str
    name: str
    words: Sequence[str]
    variables: Mapping[str, str]
    epochs: ReadEpochs


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no target is missed, 1 when one is, or nothing could be measured; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def measure(bench: Bench) -> None:
    """All rounds."""
    options = bench.options
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RayAppError("--device cuda: torch finds no GPU here; say --device cpu")
    peers = {"peers": _peers(options)} if LIGHTNING in options.only else {}
    num_images, images = data.write(options, bench.scratch / "data")
    contestants = contestants_of(options, bench.scratch)
    where = {
        "gpu": torch.cuda.get_device_name(0) if options.device == "cuda" else "not used",
        "versions": conditions.versions(), **peers,
        "recipe": f"{options.model}, {images}, {options.epochs} epochs, {options.batch_size} images at once a process,"
        " 1 thread a process unless named otherwise",
        "runs": f"{options.rounds} rounds; the first epoch is not counted",
    }  # fmt: skip
    num_rows, epochs_s = options.rounds * len(contestants), options.epochs * num_images / IMAGES_PER_S
    bench.begin(where, num_rows=num_rows, seconds=num_rows * (START_S + epochs_s))
    for number in range(options.rounds):
        for contestant in contestants:
            row = _measured(bench, contestant, number)
            bench.add(row, Report(COLUMNS, bench.rows).line(row))


def conclude(bench: Bench) -> dict[str, Any]:
    """The tables, and what stands beside the targets."""
    report, options = Report(COLUMNS, bench.rows), bench.options
    report.show(bench.console)
    return report.conclude(bench.console, findings(report, options.device), judge=not options.quick, speed_fails=True)


def findings(report: Report, device: str) -> list[Finding]:
    """The speeds, and whether rayapp's loss curve is that of the plain script."""
    found = [finding for target in TARGETS[device] for finding in report.ratio(target)]
    for ours, theirs in ((RAYAPP_2, PLAIN_2), (RAYAPP_1, PLAIN_1)):
        what = "training loss over all epochs, difference"
        if pair := report.difference(what, "mean train loss", ours, theirs, paired=False):
            finding, error = pair
            told = replace(finding, value=abs(finding.value or 0.0), at_most=True)
            return [*found, replace(told, limit=None if error is None else NOISE_SE * error)]
    return found


def _peers(options: argparse.Namespace) -> dict[str, str]:
    """Versions of the peers' environment. Raises RayAppError where Lightning is wanted and not there."""
    python: Path = options.peers_python
    found = conditions.peer_versions(python) if python.exists() else {}
    if "lightning" not in found:
        raise RayAppError(
            f"{python} has no Lightning; make it with: rm -f .venv-bench/.installed;"
            " make .venv-bench/.installed, or leave it out with --only rayapp fit plain"
        )
    return found


# --- contestants ------------------------------------------------------------------------------------------------------


def contestants_of(options: argparse.Namespace, scratch: Path) -> list[Contestant]:
    """Those of --only that fit --processes, in the order in which a round takes them. scratch holds their data."""
    found = []
    num_processes = options.processes or _usual_processes(options.device)
    for n in num_processes:
        found += [_rayapp(options, scratch, n), _fit(options, scratch, n)]
        for layout in ([], ["--channels-last"]):
            name = f"plain, torchrun {n}{', channels last' if layout else ''}"
            words = [*_torchrun(n), str(PEERS / "plain.py"), *_plain_flags(options, scratch, loader_workers=0), *layout]
            found.append(Contestant(PLAIN, name, words, ONE_THREAD, json_epochs))
    # PyTorch's tutorial on CIFAR-10 has two processes that load images; the number of threads is torch's own choice
    usual = [sys.executable, str(PEERS / "plain.py"), *_plain_flags(options, scratch, loader_workers=2)]
    found.append(Contestant(PLAIN, AS_USUAL, usual, {}, json_epochs))
    n = max(num_processes)
    words = [str(options.peers_python), "-m", "benchmarks.peers.lightning_script", "--processes", str(n)]
    words += [*_plain_flags(options, scratch, loader_workers=0), "--channels-last"]
    found.append(Contestant(LIGHTNING, f"Lightning, {n} processes, channels last", words, ONE_THREAD, json_epochs))
    return [contestant for contestant in found if contestant.group in options.only]


def _rayapp(options: argparse.Namespace, scratch: Path, workers: int) -> Contestant:
    home = scratch / "home"
    words = [sys.executable, "-m", "rayapp.cli", "train", *_train_flags(options, scratch)]
    words += ["--register", "false", "--compute.num_workers", str(workers)]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    variables = {"RAYAPP_HOME": str(home), "MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": str(scratch)}
    name = RAYAPP_1 if workers == 1 else f"rayapp, {workers} workers"
    return Contestant(RAYAPP, name, words, variables | ONE_THREAD, lambda stdout: mlflow_epochs(uri, stdout))


def _fit(options: argparse.Namespace, scratch: Path, workers: int) -> Contestant:
    name = FIT_1 if workers == 1 else f"fit() without Ray, {workers} processes"
    words = [*_torchrun(workers), "-m", "benchmarks.bare_fit", *_train_flags(options, scratch)]
    return Contestant(FIT, name, words, {"RAYAPP_HOME": str(scratch / "home")} | ONE_THREAD, json_epochs)


def _usual_processes(device: str) -> list[int]:
    return [n for n in (1, 2) if device == "cpu" or n <= max(1, torch.cuda.device_count())]


def _torchrun(num_processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]


def _train_flags(options: argparse.Namespace, scratch: Path) -> list[str]:
    return [
        "--data.dataset", "parquet", "--data.path", str(scratch / "data"), "--model.name", options.model,
        "--optim.epochs", str(options.epochs), "--optim.batch_size", str(options.batch_size),
        "--compute.device", options.device,
    ]  # fmt: skip


def _plain_flags(options: argparse.Namespace, scratch: Path, *, loader_workers: int) -> list[str]:
    on_gpu = options.device == "cuda"  # where one core cannot feed the device, people give it more
    return [
        "--data", str(scratch / "data"), "--model", options.model, "--epochs", str(options.epochs),
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


def _measured(bench: Bench, contestant: Contestant, number: int) -> Row:
    log: Path = bench.options.logs / f"{re.sub('[^A-Za-z0-9]+', '-', contestant.name)}.log"
    words = [*contestant.words, "--seed", str(number)]
    done = commands.run(words, contestant.variables, log, timeout_s=RUN_S)
    epochs = contestant.epochs(done.stdout)
    if len(epochs) != bench.options.epochs:
        raise RayAppError(f"{contestant.name} told of {len(epochs)} epochs, not {bench.options.epochs}; see {log}")
    return row_of(contestant.name, number, epochs, done)


def row_of(name: str, number: int, epochs: Sequence[Epoch], done: commands.Done) -> Row:
    """A run as a row. An epoch lasts until the next one ends, checkpoints, reports and validation included."""
    epoch_s = median(after.ended_at - before.ended_at for before, after in itertools.pairwise(epochs))
    losses = [epoch.train_loss for epoch in epochs]
    figures = {
        "images/s": epochs[-1].num_images / epoch_s, "s an epoch": epoch_s,
        "start-up s": epochs[0].ended_at - epochs[0].seconds - done.launched_at, "memory MiB": done.memory_mib,
        "mean train loss": fmean(losses), "last train loss": losses[-1], "val accuracy": epochs[-1].val_accuracy,
    }  # fmt: skip
    details = {"train_loss": losses, "val_accuracy": [epoch.val_accuracy for epoch in epochs]}
    return Row(name, number, figures, done.others_cpu, details=details)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("training", __doc__, quick=QUICK)
    data.add_options(parser)
    groups = (RAYAPP, FIT, PLAIN, LIGHTNING)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups, help="what to measure [all]")
    parser.add_argument(
        "--processes", type=frame.count, nargs="+", help="training processes [1 2; as many as there are GPUs]"
    )
    parser.add_argument("--epochs", type=_epochs, default=4, help="epochs a run, the first one not counted [4]")
    parser.add_argument("--rounds", type=frame.count, default=3, help="times each contestant is run [3]")
    parser.add_argument("--batch-size", type=frame.count, default=128, help="images a process takes at once [128]")
    models = ("mobilenet_v3_small", "resnet18", "resnet9")
    parser.add_argument("--model", choices=models, default=models[0], help=f"architecture [{models[0]}]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train [cpu]")
    loaders = "on a GPU: processes that load images for each of the peers' [8]"
    parser.add_argument("--loader-workers", type=frame.count, default=8, help=loaders)
    parser.add_argument(
        "--peers-python", type=frame.path, default=servers.ROOT / ".venv-bench" / "bin" / "python",
        help="Python with Lightning [.venv-bench's]",
    )  # fmt: skip
    return parser


def _epochs(text: str) -> int:
    if frame.count(text) < 2:
        raise argparse.ArgumentTypeError("the first epoch is not counted; give 2 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
