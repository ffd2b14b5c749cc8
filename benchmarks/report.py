"""What was measured, as tables for people and as JSON: medians, spreads, and ratios against the peers' best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.bare import ALL, Work
from benchmarks.wrk import Load, Run

CALM = 0.1  # part of the machine that strangers may use without a remark; the network's own work counts among them
RAYAPP, BENTO, LIT = "rayapp", "bentoml", "litserve"
ONE, EIGHT, MANY, BATCHES = Load(1), Load(8), Load(32), Load(4, batch=8)
Figure = Literal["rate", "p50_ms", "p99_ms"]


@dataclass(frozen=True)
class Measured:
    """One run of a load on one configuration of a server, in one round.

    cpu_s is what its processes used, by role; others_cpu the part (0-1) of the machine that strangers used meanwhile.
    """

    group: str
    name: str
    round: int
    load: Load
    run: Run
    cpu_s: Mapping[str, float]
    others_cpu: float

    @property
    def remark(self) -> str:
        """Why this run is not to be trusted; nothing where it is."""
        if self.run.errors:
            return f"  INVALID: {self.run.errors} failed"
        if self.others_cpu > CALM:
            return f"  DISTURBED: other programs used {self.others_cpu:.0%} of the machine"
        return ""


@dataclass(frozen=True)
class Spread:
    """The median of several runs and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)})"


@dataclass(frozen=True)
class Target:
    """How many times better than a peer's best configuration rayapp has to be."""

    load: Load
    figure: Figure
    peer: str
    factor: float

    def __str__(self) -> str:
        words = {"rate": "images/s" if self.load.batch else "requests/s", "p50_ms": "p50", "p99_ms": "p99"}
        return f"{words[self.figure]}, {self.load}"


TARGETS = (
    Target(MANY, "rate", BENTO, 10),
    Target(MANY, "p99_ms", BENTO, 10),
    Target(ONE, "p50_ms", BENTO, 2),
    Target(BATCHES, "rate", BENTO, 8),
    Target(MANY, "rate", LIT, 2.5),
)


@dataclass(frozen=True)
class Ratio:
    """How many times better our configuration is than the peer's best, round by round."""

    target: Target
    ours: str
    theirs: str
    times: Spread

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        return self.times.median >= self.target.factor


# --- figures ----------------------------------------------------------------------------------------------------------


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """Each target whose two sides were measured.

    Ours is one configuration for all targets, the one with the most requests/s at 32 clients. The peer may have
    another best one for each.
    """
    found = []
    ours = best([m for m in measured if m.group == RAYAPP and m.load == MANY], "rate")
    for target in TARGETS:
        of_load = [m for m in measured if m.load == target.load]
        theirs = best([m for m in of_load if m.group == target.peer], target.figure)
        if ours is None or theirs is None:
            continue
        mine = {m.round: _figure(m, target.figure) for m in of_load if m.name == ours}
        peers = {m.round: _figure(m, target.figure) for m in of_load if m.name == theirs}
        both = sorted(mine.keys() & peers.keys())
        times = [mine[n] / peers[n] if target.figure == "rate" else peers[n] / mine[n] for n in both]
        if times:
            found.append(Ratio(target, ours, theirs, Spread.of(times)))
    return found


def best(measured: Sequence[Measured], figure: Figure) -> str | None:
    """The configuration with the best median of a figure: the highest rate, the lowest latency."""
    medians = {
        name: median([_figure(m, figure) for m in measured if m.name == name])
        for name in dict.fromkeys(m.name for m in measured)
    }
    if not medians:
        return None
    return (max if figure == "rate" else min)(medians, key=medians.__getitem__)


def server_cpu_ms(runs: Sequence[Measured]) -> dict[str, float]:
    """CPU milliseconds a request by role, over all runs, the largest first."""
    total = sum(m.run.requests for m in runs)
    roles = {role for m in runs for role in m.cpu_s}
    spent = {role: 1000 * sum(m.cpu_s.get(role, 0.0) for m in runs) / total for role in roles}
    return {role: ms for role, ms in sorted(spent.items(), key=lambda item: -item[1]) if ms >= 0.005}


def _figure(measured: Measured, figure: Figure) -> float:
    return measured.run.rate if figure == "rate" else float(getattr(measured.run, figure))


# --- tables -----------------------------------------------------------------------------------------------------------


def line(measured: Measured) -> str:
    """One run in one line, as it happens."""
    run = measured.run
    return (
        f"round {measured.round + 1}  {measured.name:<27} {measured.load!s:<24} {run.rate:6.0f} req/s"
        f"  p50 {run.p50_ms:7.2f}  p99 {run.p99_ms:7.2f} ms{measured.remark}"
    )


def show(console: Console, measured: Sequence[Measured]) -> None:
    """Print a table a load: median (range) over the rounds."""
    for load in dict.fromkeys(m.load for m in measured):
        of_load = [m for m in measured if m.load == load]
        table = Table("server", "images/s", "p50 ms", "p99 ms", "CPU ms a request", title=str(load))
        for name in dict.fromkeys(m.name for m in of_load):
            runs = [m for m in of_load if m.name == name]
            client_ms = 1000 * sum(m.run.client_cpu_s for m in runs) / sum(m.run.requests for m in runs)
            spent = {**server_cpu_ms(runs), "client": client_ms}
            table.add_row(
                name + (" INVALID" if any(m.run.errors for m in runs) else ""),
                str(Spread.of([m.run.rate * load.images for m in runs])),
                str(Spread.of([m.run.p50_ms for m in runs])),
                str(Spread.of([m.run.p99_ms for m in runs])),
                ", ".join(f"{role} {ms:.2f}" for role, ms in spent.items()),
            )
        console.print(table)


def show_ratios(console: Console, found: Sequence[Ratio]) -> None:
    """Print how rayapp stands against each peer's best configuration."""
    table = Table("figure", "rayapp", "against", "times better", "target", "", title="against the peers' best")
    for ratio in found:
        row = (str(ratio.target), ratio.ours, ratio.theirs, str(ratio.times), f"{ratio.target.factor:g}")
        table.add_row(*row, "met" if ratio.met else "MISSED")
    if found:
        console.print(table)


def show_bare(console: Console, bare: Mapping[Work, Sequence[float]], measured: Sequence[Measured]) -> None:
    """Print the bare model's throughput, and the part of it that rayapp reaches over HTTP at 32 clients."""
    table = Table("without HTTP", "images/s", "µs an image and process", title="the bare model")
    for work, values in bare.items():
        spread = Spread.of(values)
        table.add_row(str(work), str(spread), short(1e6 * work.num_processes / spread.median))
    console.print(table)
    for name, parts in fractions(bare, measured).items():
        said = ", ".join(f"{part:.0%} of '{work}'" for work, part in parts.items())
        console.print(f"{name} reaches over HTTP, at {MANY}: {said}", highlight=False, soft_wrap=True)


def fractions(bare: Mapping[Work, Sequence[float]], measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Part (0-1) of the bare throughputs that each configuration of rayapp reaches at 32 clients, by name and work.

    The best batch size counts, in as many processes as do best.
    """
    runs = [m for m in measured if m.group == RAYAPP and m.load == MANY]
    medians = {work: median(values) for work, values in bare.items()}
    works = [max((w for w in medians if w.what == what), key=medians.__getitem__) for what in _whats(bare)]
    return {
        name: {str(w): median([m.run.rate for m in runs if m.name == name]) / medians[w] for w in works}
        for name in dict.fromkeys(m.name for m in runs)
    }


def _whats(bare: Mapping[Work, Sequence[float]]) -> list[str]:
    return [what for what in dict.fromkeys(work.what for work in bare) if what in ("model", ALL)]


def as_json(
    measured: Sequence[Measured], bare: Mapping[Work, Sequence[float]], found: Sequence[Ratio]
) -> dict[str, Any]:
    """Every run and ratio, whether all runs were valid, and whether the machine was calm."""
    return {
        "valid": not any(m.run.errors for m in measured),
        "calm": not any(m.others_cpu > CALM for m in measured),
        "ratios": [
            {
                "figure": str(ratio.target), "peer": ratio.target.peer, "rayapp": ratio.ours, "against": ratio.theirs,
                "times": round(ratio.times.median, 2), "low": round(ratio.times.low, 2),
                "high": round(ratio.times.high, 2), "target": ratio.target.factor, "met": ratio.met,
            }
            for ratio in found
        ],
        "bare_images_per_s": {str(work): [round(value) for value in values] for work, values in bare.items()},
        "fractions_of_bare": fractions(bare, measured),
        "runs": [
            {
                "server": m.name, "round": m.round, "clients": m.load.clients, "batch": m.load.batch,
                "requests_per_s": round(m.run.rate, 1), "p50_ms": m.run.p50_ms, "p99_ms": m.run.p99_ms,
                "errors": m.run.errors, "others_cpu": round(m.others_cpu, 3),
            }
            for m in measured
        ],
    }  # fmt: skip


def short(value: float) -> str:
    """A number with three figures or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
