"""`make bench-kills`: SIGKILL of a worker or of the driver at random steps; are the final weights those of a whole run?

Each run is a `rayapp train` of its own in deterministic mode. A killed worker is replaced by Ray; a killed driver is
started again by the same command, as a job that is tried again. Then all weights, the best weights, the position and
the figures of every epoch are compared with those of a run that nobody touched, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import conditions
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


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every run ended with the same bits, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="runs, a worker and the driver in turn [10]")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which is killed [0]")
    options = parser.parse_args(argv)
    console, steps = Console(stderr=True), random.Random(options.seed)  # noqa: S311 - no secret
    conditions.show(console, {**conditions.machine(), "versions": conditions.versions(), "recipe": RECIPE})
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        _ended(_started(home, "whole"))
        whole, kills = _final(home, "whole"), []
        for number in range(options.kills):
            victim = ("worker", "driver")[number % 2]
            kill = _killed(home, f"{victim}-{number}", victim, steps.randrange(2, NUM_STEPS - 4), whole)
            kills.append(kill)
            console.print(f"{number + 1}/{options.kills}  {kill}", highlight=False, soft_wrap=True)
    _show(console, kills)
    print(json.dumps({"kills": [asdict(kill) for kill in kills]}))
    return 0 if all(kill.same_bits for kill in kills) else 1


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two snapshots hold the same weights, best weights, position and figures of the epochs."""
    weights = all(
        torch.equal(tensor, other[part][name])
        for part in ("model", "best_weights")
        for name, tensor in one[part].items()
    )
    figures = [[[epoch[name] for name in FIGURES] for epoch in state["epochs"]] for state in (one, other)]
    return weights and one["position"] == other["position"] and figures[0] == figures[1]


def _killed(home: Path, run: str, victim: str, step: int, whole: dict[str, Any]) -> Kill:
    started = time.monotonic()
    driver = _started(home, run)
    while (reached := _newest_step(home, run)) < step:
        if driver.poll() is not None or time.monotonic() - started > TIMEOUT_S:
            raise SystemExit(f"run {run} did not reach step {step}: {driver.communicate()[1]}")
        time.sleep(POLL_S)
    if victim == "driver":
        driver.kill()
        driver.wait()
        driver = _started(home, run)
    else:
        _a_worker(driver.pid).kill()
    _ended(driver)
    return Kill(victim, reached, round(time.monotonic() - started, 1), same_bits(whole, _final(home, run)))


def _started(home: Path, run: str) -> subprocess.Popen[str]:
    config = home / "recipe.yaml"
    config.write_text(json.dumps(RECIPE))
    words = ("train", "--config", str(config), "--name", run, "--resume", "auto")
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "rayapp.cli", *words],
        env=os.environ | {"RAYAPP_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(driver: subprocess.Popen[str]) -> None:
    _, errors = driver.communicate(timeout=TIMEOUT_S)
    if driver.returncode:
        raise SystemExit(f"rayapp train failed: {errors}")


def _a_worker(driver: int) -> psutil.Process:
    children = psutil.Process(driver).children(recursive=True)
    return next(p for p in children if "RayTrainWorker" in p.name() or "RayTrainWorker" in " ".join(p.cmdline()))


def _newest_step(home: Path, run: str) -> int:
    found = [int(path.parent.name.split("_")[1]) for path in (home / "runs" / run).glob(f"checkpoint_*/{DIGEST}")]
    return max(found, default=0)


def _final(home: Path, run: str) -> dict[str, Any]:
    found = Checkpoints(str(home / "runs"), run).newest()
    if found is None:
        raise SystemExit(f"run {run} left no checkpoint")
    return found[1]


def _show(console: Console, kills: Sequence[Kill]) -> None:
    table = Table("victim", "after step", "seconds", "bits", title=f"SIGKILL in runs of {NUM_STEPS} steps")
    for kill in kills:
        table.add_row(kill.victim, str(kill.step), f"{kill.seconds:.0f}", "the same" if kill.same_bits else "DIFFERENT")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
