"""What was measured, as tables for people and as JSON: medians, spreads, and how they stand to targets.

A run that failed has no figures. One that other programs disturbed has none that depend on time: it is not in a median,
nor in a ratio, and a target that has no other runs is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, median, variance
from typing import Any

from rich.console import Console
from rich.table import Table

CALM = 0.1  # part of the machine that strangers may use without a remark; the network's own work counts among them
VERDICTS = {None: "not judged", True: "met", False: "MISSED"}


@dataclass(frozen=True)
class Column:
    """How a figure is written. timed: it depends on how busy the machine is, so that a disturbed run has none."""

    form: str = ".2f"
    timed: bool = True


@dataclass(frozen=True)
class Row:
    """What one contestant did once; case is what was asked of it, where there are several things.

    figures: by the name of their column, which says the unit. others_cpu: the part (0-1) of the machine that strangers
    used meanwhile. failed: why the figures are none. details: what else the JSON holds.
    """

    name: str
    round: int
    figures: Mapping[str, float]
    others_cpu: float
    case: str = ""
    failed: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """Why this run is not to be trusted; nothing where it is."""
        if self.failed:
            return f"INVALID: {self.failed}"
        if self.others_cpu > CALM:
            return f"DISTURBED: other programs used {self.others_cpu:.0%} of the machine"
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

    def __format__(self, form: str) -> str:
        span = "" if self.low == self.high else f" ({self.low:{form}}-{self.high:{form}})"
        return f"{self.median:{form}}{span}"


@dataclass(frozen=True)
class Finding:
    """A figure of ours beside its target: at least limit, or at most. Without a limit it is told, and not judged.

    value is None where no run counts.
    """

    what: str
    ours: str
    value: float | None
    said: str
    limit: float | None = None
    at_most: bool = False
    against: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where it is not judged."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass(frozen=True)
class Versus:
    """Ours against the best of theirs, round by round. least: the lower figure is the better one.

    case, their_case: of which rows; both are the same where their_case is not given.
    """

    what: str
    figure: str
    ours: str
    theirs: Sequence[str]
    factor: float | None = None  # how many times better ours has to be
    least: bool = False
    case: str = ""
    their_case: str | None = None


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The rows of a benchmark with the columns of their tables."""

    columns: Mapping[str, Column]
    rows: Sequence[Row]

    def names(self, beginning: str = "", case: str | None = None) -> list[str]:
        """The contestants whose names begin so, in the order of their first rows."""
        rows = [row for row in self.rows if case is None or row.case == case]
        return list(dict.fromkeys(row.name for row in rows if row.name.startswith(beginning)))

    def values(self, name: str, figure: str, case: str = "") -> dict[int, float]:
        """A figure by round, of the runs that count."""
        return {
            row.round: row.figures[figure]
            for row in self.rows
            if (row.name, row.case) == (name, case) and figure in row.figures and self.counts(row, figure)
        }

    def counts(self, row: Row, figure: str) -> bool:
        """Whether a figure of a run may be shown and compared."""
        return not row.failed and (row.others_cpu <= CALM or not self.columns[figure].timed)

    def spread(self, name: str, figure: str, case: str = "") -> Spread | None:
        """Over the rounds; None where no run counts."""
        values = list(self.values(name, figure, case).values())
        return Spread.of(values) if values else None

    def best(self, names: Sequence[str], figure: str, case: str = "", *, least: bool = False) -> str | None:
        """The contestant with the best median; None where no run counts."""
        medians = {name: found.median for name in names if (found := self.spread(name, figure, case))}
        return (min if least else max)(medians, key=medians.__getitem__) if medians else None

    def ratio(self, versus: Versus) -> list[Finding]:
        """How many times better ours is; nothing where one of the two was not measured."""
        v, their_case = versus, versus.case if versus.their_case is None else versus.their_case
        measured = [name for name in v.theirs if name in self.names(case=their_case)]
        if v.ours not in self.names(case=v.case) or not measured:
            return []
        theirs = self.best(measured, v.figure, their_case, least=v.least) or measured[0]
        mine, peers = self.values(v.ours, v.figure, v.case), self.values(theirs, v.figure, their_case)
        times = [peers[n] / mine[n] if v.least else mine[n] / peers[n] for n in sorted(mine.keys() & peers.keys())]
        found = Spread.of(times) if times else None
        said = f"{found:.2f}" if found else "no undisturbed pair of runs"
        return [Finding(v.what, v.ours, found.median if found else None, said, v.factor, against=theirs)]

    def single(self, what: str, name: str, figure: str, limit: float | None, *, at_most: bool = False) -> list[Finding]:
        """A figure of one contestant; nothing where it was not measured."""
        if name not in self.names():
            return []
        found = self.spread(name, figure)
        said = f"{found.median:{self.columns[figure].form}}" if found else "no undisturbed run"
        return [Finding(what, name, found.median if found else None, said, limit, at_most)]

    def difference(
        self, what: str, figure: str, ours: str, theirs: str, *, paired: bool = True
    ) -> tuple[Finding, float | None] | None:
        """Ours less theirs, and the standard error of it (from two rounds on); None where one has no run that counts.

        paired: what differs from round to round, as its seed, moves both alike; else the rounds are independent.
        """
        mine, peers = self.values(ours, figure), self.values(theirs, figure)
        pairs = [mine[n] - peers[n] for n in sorted(mine.keys() & peers.keys())]
        samples = [pairs] if paired else [list(mine.values()), list(peers.values())]
        if not all(samples):
            return None
        mean = fmean(pairs) if paired else fmean(samples[0]) - fmean(samples[1])
        known = min(map(len, samples)) > 1
        error = math.sqrt(sum(variance(values) / len(values) for values in samples)) if known else None
        said = f"{mean:+.4f}" + ("" if error is None else f" ± {error:.4f}")
        return Finding(what, ours, mean, said, against=theirs), error

    # --- tables -------------------------------------------------------------------------------------------------------

    def line(self, row: Row) -> str:
        """One run in one line, as it happens."""
        said = "" if row.failed else "  ".join(f"{k} {row.figures[k]:{c.form}}" for k, c in self._of([row]).items())
        return (
            f"round {row.round + 1}  {row.name:<32} {row.case + '  ' if row.case else ''}{said}  {row.remark}".rstrip()
        )

    def show(self, console: Console, *, note: Callable[[Sequence[Row]], str] | None = None, heading: str = "") -> None:
        """Print a table a case, a row a contestant: median (range) over the rounds that count."""
        for case in dict.fromkeys(row.case for row in self.rows):
            of_case = [row for row in self.rows if row.case == case]
            columns = self._of(of_case)
            table = Table("", *columns, *([heading] if note else []), title=case or None)
            for name in dict.fromkeys(row.name for row in of_case):
                runs = [row for row in of_case if row.name == name]
                cells = [self._cell(runs, figure) for figure in columns]
                table.add_row(name, *cells, *([note(runs)] if note else []))
            console.print(table)

    def _of(self, rows: Sequence[Row]) -> dict[str, Column]:
        """The columns that some of the rows have."""
        return {name: column for name, column in self.columns.items() if any(name in row.figures for row in rows)}

    def _cell(self, runs: Sequence[Row], figure: str) -> str:
        """The spread of the runs that count, else why there is none."""
        found = self.spread(runs[0].name, figure, runs[0].case)
        if found:
            return f"{found:{self.columns[figure].form}}"
        return next((row.remark.partition(":")[0] for row in runs if row.remark and figure in row.figures), "")

    def conclude(
        self, console: Console, findings: Sequence[Finding], *, judge: bool, speed_fails: bool
    ) -> dict[str, Any]:
        """Print what was found beside its targets. The JSON: every run and target, and whether all is well.

        judge: whether targets count. speed_fails: whether one that is missed fails the benchmark.
        """
        found = [finding if judge else replace(finding, limit=None) for finding in findings]
        show_findings(console, found)
        valid, missed = not any(row.failed for row in self.rows), any(finding.met is False for finding in found)
        return {
            "passed": valid and not (missed and speed_fails),
            "valid": valid,
            "calm": all(row.others_cpu <= CALM for row in self.rows),
            "targets": [rounded(asdict(finding)) | {"met": finding.met} for finding in found],
            "runs": [_run(row) for row in self.rows],
        }


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print a row a finding."""
    table = Table("figure", "ours", "against", "found", "target", "")
    for f in findings:
        target = "" if f.limit is None else f"at {'most' if f.at_most else 'least'} {f.limit:.3g}"
        table.add_row(f.what, f.ours, f.against, f.said, target, VERDICTS[f.met])
    if findings:
        console.print(table)


def _run(row: Row) -> dict[str, Any]:
    figures = {} if row.failed else rounded(row.figures)
    one = {"name": row.name, "case": row.case, "round": row.round, "remark": row.remark, **figures}
    return one | {"others_cpu": round(row.others_cpu, 3), **row.details}


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with four decimals at most."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
