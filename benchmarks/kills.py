"""`make bench-kills`: SIGKILL of a worker or of the driver at random steps; are the final weights those of a whole run?

Each run is a `rayapp train` of its own in deterministic mode. A killed worker is replaced by Ray; a killed driver is
started again by the same command, as a job that is tried again. Then all weights, the best weights, the position and
the figures of every epoch are compared with those of a run that nobody touched, bit by bit.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table

from benchmarks import commands, conditions, frame, servers
from rayapp.errors import RayAppError
from rayapp.train.checkpoints import DIGEST, Checkpoints

RECIPE: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"name": "mobilenet_v3_small"},
    "optim": {"epochs": 3},
    "compute": {"num_workers": 2, "deterministic": True},
    "checkpoint": {"every_steps": 2},
    "tracking": {"log_every_steps": 2},
    "register": False,
}
NUM_STEPS = 60  # 20 of a world batch of 64 images an epoch
FIGURES = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "is_best")
POLL_S, TIMEOUT_S = 0.02, 600.0


@dataclass(frozen=True)
class Kill:
    """What became of one run. step: the newest checkpoint when its victim was killed."""

    victim: str
    step: int
    seconds: float
    same_bits: bool


Bench = frame.Bench[Kill]


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every run ended with the same bits, else 1; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("kills", __doc__)
    parser.add_argument("--kills", type=frame.count, default=10, help="runs, a worker and the driver in turn [10]")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which is killed [0]")
    return parser


def measure(bench: Bench) -> None:
    """A run that nobody touches, and then those with a kill."""
    options, steps = bench.options, random.Random(bench.options.seed)  # noqa: S311 - no secret
    where = {"versions": conditions.versions(), "recipe": RECIPE}
    bench.begin(where, num_rows=options.kills, seconds=80 * (options.kills + 1))
    commands.run(_words(bench, "whole"), _variables(bench), options.logs / "kills-whole.log", timeout_s=TIMEOUT_S)
    whole = _final(bench.scratch, "whole")
    for number in range(options.kills):
        victim = ("worker", "driver")[number % 2]
        kill = _killed(bench, f"{victim}-{number}", victim, steps.randrange(2, NUM_STEPS - 4), whole)
        bits = "the same bits" if kill.same_bits else "OTHER BITS"
        bench.add(kill, f"{victim:<6} killed after step {kill.step:>2}: {bits} after {kill.seconds:.0f} s")


def conclude(bench: Bench) -> dict[str, Any]:
    """A row a kill."""
    table = Table("victim", "after step", "seconds", "bits", title=f"SIGKILL in runs of {NUM_STEPS} steps")
    for kill in bench.rows:
        table.add_row(kill.victim, str(kill.step), f"{kill.seconds:.0f}", "the same" if kill.same_bits else "DIFFERENT")
    bench.console.print(table)
    return {"kills": [asdict(kill) for kill in bench.rows], "passed": all(kill.same_bits for kill in bench.rows)}


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two snapshots hold the same weights, best weights, position and figures of the epochs."""
    weights = all(
        torch.equal(tensor, other[part][name])
        for part in ("model", "best_weights")
        for name, tensor in one[part].items()
    )
    figures = [[[epoch[name] for name in FIGURES] for epoch in state["epochs"]] for state in (one, other)]
    return weights and one["position"] == other["position"] and figures[0] == figures[1]


def _killed(bench: Bench, run: str, victim: str, step: int, whole: dict[str, Any]) -> Kill:
    started, log = time.monotonic(), bench.options.logs / f"kills-{run}.log"
    log.unlink(missing_ok=True)
    with _driver(bench, run, log) as driver:
        while (reached := _newest_step(bench.scratch, run)) < step:
            if driver.poll() is not None or time.monotonic() - started > TIMEOUT_S:
                raise RayAppError(f"run {run} did not reach step {step}; {log}: {servers.tail(log)}")
            time.sleep(POLL_S)
        if victim == "driver":
            driver.kill()
            driver.wait()
        else:
            _a_worker(driver.pid).kill()
            _await(driver, log)
    if victim == "driver":
        with _driver(bench, run, log) as driver:
            _await(driver, log)
    return Kill(victim, reached, round(time.monotonic() - started, 1), same_bits(whole, _final(bench.scratch, run)))


def _words(bench: Bench, run: str) -> list[str]:
    config = bench.scratch / "recipe.yaml"
    config.write_text(json.dumps(RECIPE))
    return [sys.executable, "-m", "rayapp.cli", "train", "--config", str(config), "--name", run, "--resume", "auto"]


def _variables(bench: Bench) -> dict[str, str]:
    uri = f"sqlite:///{bench.scratch / 'mlflow.db'}"
    home = {"RAYAPP_HOME": str(bench.scratch), "MLFLOW_TRACKING_URI": uri, "RAY_TMPDIR": str(bench.scratch)}
    return home | {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def _driver(bench: Bench, run: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with servers.started(_words(bench, run), _variables(bench), log) as (_, process):
        yield process


def _await(driver: subprocess.Popen[bytes], log: Path) -> None:
    try:
        code = driver.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RayAppError(f"rayapp train did not end in {TIMEOUT_S:g} s; {log}: {servers.tail(log)}") from error
    if code:
        raise RayAppError(f"rayapp train ended with code {code}; {log}: {servers.tail(log)}")


def _a_worker(driver: int) -> psutil.Process:
    children = psutil.Process(driver).children(recursive=True)
    return next(p for p in children if "RayTrainWorker" in p.name() or "RayTrainWorker" in " ".join(p.cmdline()))


def _newest_step(home: Path, run: str) -> int:
    found = [int(path.parent.name.split("_")[1]) for path in (home / "runs" / run).glob(f"checkpoint_*/{DIGEST}")]
    return max(found, default=0)


def _final(home: Path, run: str) -> dict[str, Any]:
    found = Checkpoints(str(home / "runs"), run).newest()
    if found is None:
        raise RayAppError(f"run {run} left no checkpoint")
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
