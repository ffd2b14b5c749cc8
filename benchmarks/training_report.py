"""What a training benchmark measured: figures of a run, ratios against named targets, tables for people, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import CALM, Spread, short

RAYAPP_1, RAYAPP_2 = "rayapp, 1 worker", "rayapp, 2 workers"
FIT_1, FIT_2 = "fit() without Ray, 1 process", "fit() without Ray, 2 processes"
PLAIN_1, PLAIN_2 = "plain, torchrun 1", "plain, torchrun 2"
PLAIN_1_CL, PLAIN_2_CL = "plain, torchrun 1, channels last", "plain, torchrun 2, channels last"
PLAIN = "plain, as people run it"
NOISE_SE = 3.0  # standard errors of a difference of means that are taken for noise


@dataclass(frozen=True)
class Epoch:
    """One pass over the training and the validation images. ended_at: seconds since 1970."""

    num_images: float
    ended_at: float
    seconds: float
    train_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Measured:
    """One run of a contestant in one round.

    start_up_s: from the command to the first epoch. memory_mib: the most that all its processes had together, shared
    pages counted once. others_cpu: the part (0-1) of the machine that strangers used meanwhile.
    """

    name: str
    round: int
    epochs: tuple[Epoch, ...]
    start_up_s: float
    memory_mib: float
    others_cpu: float

    @property
    def epoch_s(self) -> float:
        """Seconds from the end of an epoch to the end of the next one, checkpoints and reports included: the median.

        The first epoch is warm-up and not among them.
        """
        pairs = zip(self.epochs, self.epochs[1:], strict=False)
        return median(after.ended_at - before.ended_at for before, after in pairs)

    @property
    def rate(self) -> float:
        """Training images a second, the time of validation included."""
        return self.epochs[-1].num_images / self.epoch_s

    @property
    def remark(self) -> str:
        """Why this run is not to be trusted; nothing where it is."""
        calm = self.others_cpu <= CALM
        return "" if calm else f"  DISTURBED: other programs used {self.others_cpu:.0%} of the machine"


@dataclass(frozen=True)
class Target:
    """How many times as fast (images/s) ours has to be as the fastest of theirs."""

    what: str
    ours: str
    theirs: tuple[str, ...]
    factor: float
    device: str = "cpu"


TARGETS = (
    Target("against the plain script, same processes and threads", RAYAPP_2, (PLAIN_2, PLAIN_2_CL), 1.05),
    Target("against the plain script as people run it", RAYAPP_2, (PLAIN,), 3.0),
    # at most 2.5 % more time an epoch
    Target("with Ray Train against without", RAYAPP_2, (FIT_2,), 1 / 1.025),
    Target("2 workers against 1", RAYAPP_2, (RAYAPP_1,), 1.8),
    Target("against the plain script as people run it", RAYAPP_1, (PLAIN,), 8.0, device="cuda"),
)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is, round by round."""

    target: Target
    theirs: str
    times: Spread

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        return self.times.median >= self.target.factor


@dataclass(frozen=True)
class LossDifference:
    """Training loss averaged over the epochs, ours minus theirs: mean over the rounds and its standard error."""

    ours: str
    theirs: str
    mean: float
    error: float

    @property
    def met(self) -> bool:
        """Whether the difference is noise."""
        return abs(self.mean) <= NOISE_SE * self.error


# --- figures ----------------------------------------------------------------------------------------------------------


def ratios(measured: Sequence[Measured], device: str) -> list[Ratio]:
    """Each target of the device whose two sides were measured; theirs is the one with the best median rate."""
    found = []
    for target in TARGETS:
        theirs = max((n for n in target.theirs if of(measured, n)), key=lambda n: _median_rate(measured, n), default="")
        mine = {m.round: m.rate for m in of(measured, target.ours)}
        peers = {m.round: m.rate for m in of(measured, theirs)}
        both = sorted(mine.keys() & peers.keys())
        if target.device == device and both:
            found.append(Ratio(target, theirs, Spread.of([mine[n] / peers[n] for n in both])))
    return found


def loss_difference(measured: Sequence[Measured]) -> LossDifference | None:
    """How rayapp's loss curve differs from the plain script's; None where one of them has fewer than two rounds."""
    for ours, theirs in ((RAYAPP_2, PLAIN_2), (RAYAPP_1, PLAIN_1)):
        losses = [[fmean(e.train_loss for e in m.epochs) for m in of(measured, name)] for name in (ours, theirs)]
        if min(map(len, losses)) >= 2:
            error = math.sqrt(sum(variance(values) / len(values) for values in losses))
            return LossDifference(ours, theirs, fmean(losses[0]) - fmean(losses[1]), error)
    return None


def of(measured: Sequence[Measured], name: str) -> list[Measured]:
    """The runs of one contestant."""
    return [m for m in measured if m.name == name]


def _median_rate(measured: Sequence[Measured], name: str) -> float:
    return median(m.rate for m in of(measured, name))


# --- tables -----------------------------------------------------------------------------------------------------------


def line(measured: Measured) -> str:
    """One run in one line, as it happens."""
    last = measured.epochs[-1]
    return (
        f"{measured.rate:6.0f} images/s  {measured.epoch_s:6.2f} s an epoch  start-up {measured.start_up_s:5.1f} s"
        f"  {measured.memory_mib:6.0f} MiB  loss {last.train_loss:.3f}  val {last.val_accuracy:.3f}{measured.remark}"
    )


def show(console: Console, measured: Sequence[Measured]) -> None:
    """Print a row a contestant: median (range) over the rounds."""
    table = Table("", "images/s", "s an epoch", "start-up s", "memory MiB", "last train loss", "val accuracy")
    for name in dict.fromkeys(m.name for m in measured):
        runs = of(measured, name)
        table.add_row(
            name,
            str(Spread.of([m.rate for m in runs])),
            str(Spread.of([m.epoch_s for m in runs])),
            str(Spread.of([m.start_up_s for m in runs])),
            short(median(m.memory_mib for m in runs)),
            str(Spread.of([m.epochs[-1].train_loss for m in runs])),
            str(Spread.of([m.epochs[-1].val_accuracy for m in runs])),
        )
    console.print(table)


def show_targets(console: Console, found: Sequence[Ratio], loss: LossDifference | None) -> None:
    """Print how rayapp stands against each target."""
    table = Table("images/s", "rayapp", "against", "times", "target", "")
    for ratio in found:
        row = (ratio.target.what, ratio.target.ours, ratio.theirs, _times(ratio.times), f"{ratio.target.factor:.3g}")
        table.add_row(*row, "met" if ratio.met else "MISSED")
    if loss:
        difference, limit = f"{loss.mean:+.4f} ± {loss.error:.4f}", f"{NOISE_SE:g} standard errors"
        verdict = "met" if loss.met else "MISSED"
        table.add_row("training loss over all epochs, difference", loss.ours, loss.theirs, difference, limit, verdict)
    if found or loss:
        console.print(table)


def as_json(measured: Sequence[Measured], found: Sequence[Ratio], loss: LossDifference | None) -> dict[str, Any]:
    """Every run and ratio, whether all targets that were measured are met, and whether the machine was calm."""
    return {
        "met": all(ratio.met for ratio in found) and (loss is None or loss.met),
        "calm": all(m.others_cpu <= CALM for m in measured),
        "targets": [
            {
                "what": ratio.target.what, "rayapp": ratio.target.ours, "against": ratio.theirs,
                "times": round(ratio.times.median, 3), "low": round(ratio.times.low, 3),
                "high": round(ratio.times.high, 3), "target": round(ratio.target.factor, 3), "met": ratio.met,
            }
            for ratio in found
        ],
        "loss_difference": loss and {
            "rayapp": loss.ours, "against": loss.theirs, "mean": round(loss.mean, 4),
            "standard_error": round(loss.error, 4), "met": loss.met,
        },
        "runs": [_run_as_json(m) for m in measured],
    }  # fmt: skip


def _run_as_json(measured: Measured) -> Mapping[str, Any]:
    return {
        "name": measured.name, "round": measured.round, "images_per_s": round(measured.rate, 1),
        "epoch_s": round(measured.epoch_s, 3), "start_up_s": round(measured.start_up_s, 2),
        "memory_mib": round(measured.memory_mib), "others_cpu": round(measured.others_cpu, 3),
        "train_loss": [round(epoch.train_loss, 4) for epoch in measured.epochs],
        "val_accuracy": [round(epoch.val_accuracy, 4) for epoch in measured.epochs],
    }  # fmt: skip


def _times(times: Spread) -> str:
    return f"{times.median:.3f} ({times.low:.3f}-{times.high:.3f})"
