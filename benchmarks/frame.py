"""The frame of every benchmark: its options, a folder that goes when it ends, what was measured so far, and the end.

A benchmark is a function that measures, row after row, and one that concludes from the rows there are. Ctrl-C, SIGTERM
or a contestant that fails costs the rest alone: what was measured is shown, and lies in --output from its first row on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from benchmarks import conditions
from rayapp.errors import RayAppError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
WIDTH = 160  # of tables, where stdout is no terminal

R = TypeVar("R")
T = TypeVar("T")


# --- options ----------------------------------------------------------------------------------------------------------


def path(text: str) -> Path:
    """An absolute path: what is measured starts in other folders than the one in which the option was typed."""
    return Path(text).expanduser().absolute()


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of things; give 1 or more")
    return int(text)


class Parser(argparse.ArgumentParser):
    """The options of `make bench-NAME`: those that all have, and --quick where quick says what it changes."""

    def __init__(self, name: str, doc: str | None, *, quick: Mapping[str, Any] | None = None) -> None:
        super().__init__(prog=f"make bench-{name}", description=(doc or "").split("\n\n")[0], allow_abbrev=False)
        self.name, self.changes = name, dict(quick or {})
        self.add_argument(
            "--logs", type=path, default="bench-logs", help="folder of what the measured programs say [bench-logs]"
        )
        self.add_argument("--output", type=path, metavar="FILE.json", help=f"file of the result [LOGS/{name}.json]")
        if quick:
            short = ", ".join(f"{key} {value}" for key, value in self.changes.items())
            self.add_argument("--quick", action="store_true", help=f"a look, too short to compare: {short}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options; other words are an error."""
        options, others = self.parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options, and the other words. What is given stands over what --quick changes."""
        options, others = super().parse_known_args(args, namespace)
        if getattr(options, "quick", False):
            self.set_defaults(**self.changes)
            options, others = super().parse_known_args(args, namespace)
        options.quick = getattr(options, "quick", False)
        options.output = options.output or options.logs / f"{self.name}.json"
        return options, others


# --- what was measured so far -----------------------------------------------------------------------------------------


@dataclass
class Bench(Generic[R]):
    """What a benchmark works with. rows: what was measured so far. more: what else the result is to hold."""

    options: argparse.Namespace
    scratch: Path
    console: Console
    rows: list[R] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    num_rows: int = 0  # once all are there
    began_s: float = 0.0

    def begin(self, where: Mapping[str, Any], *, num_rows: int, seconds: float) -> None:
        """Print the conditions, and how long it takes on two calm cores."""
        self.conditions = {"machine": conditions.machine(), **where}
        takes = f"about {max(1, round(seconds / 60))} min; Ctrl-C ends it early, and shows what was measured until then"
        quick = {"quick": "too short to compare, so no target is judged"} if self.options.quick else {}
        conditions.show(self.console, {**self.conditions, **quick, "takes": takes})
        self.num_rows, self.began_s = num_rows, time.monotonic()

    def add(self, row: R, text: str) -> None:
        """Keep a row: on the screen, and in the file of the result."""
        self.rows.append(row)
        done = len(self.rows)
        left_s = (time.monotonic() - self.began_s) / done * max(0, self.num_rows - done)
        left = f"  {left_s / 60:.0f} min left" if left_s > 60 else ""
        self.console.print(f"{done:>3}/{self.num_rows}  {text}{left}", highlight=False, markup=False, soft_wrap=True)
        rows = [asdict(one) for one in self.rows]  # type: ignore[call-overload]  # a dataclass each
        self.save({"conditions": self.conditions, "complete": False, "rows": rows})

    def save(self, result: Mapping[str, Any]) -> None:
        """Write the file of the result, whole or not at all."""
        target: Path = self.options.output
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
        beside.replace(target)


# --- the command ------------------------------------------------------------------------------------------------------


def bench_main(
    parser: Parser,
    measure: Callable[[Bench[R]], None],
    conclude: Callable[[Bench[R]], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """The exit code of a benchmark: 0 where conclude says that it passed, else 1; 130 where it was interrupted.

    conclude prints tables of the rows there are, and returns the result, which is the last line of stdout.
    """
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    # Ray's sockets need short paths; what was killed may still write there
    temporary = tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp", ignore_cleanup_errors=True)
    with _interruptible(), temporary as scratch:
        bench: Bench[R] = Bench(options, Path(scratch), console)
        code, why = _ended(measure, bench)
        if bench.rows:
            result = {"conditions": bench.conditions, "quick": options.quick, "complete": code == 0}
            result |= conclude(bench) | bench.more
            bench.save(result)
            print(json.dumps(result, default=str), flush=True)
            code = code or (0 if result["passed"] else 1)
    if why:
        kept = f"; what was measured is above and in {options.output}" if bench.rows else "; nothing was measured yet"
        print(f"{why}{kept}", file=sys.stderr)
    return code


def _ended(measure: Callable[[Bench[R]], None], bench: Bench[R]) -> tuple[int, str]:
    """The exit code, and why it is not 0."""
    try:
        measure(bench)
    except KeyboardInterrupt:
        return INTERRUPTED, f"interrupted after {len(bench.rows)} of {bench.num_rows or 'all'} measurements"
    except RayAppError as error:
        return 1, f"error: {str(error).rstrip('.')}"
    return 0, ""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends what is measured as Ctrl-C does. A second one changes nothing: what was started is being stopped."""

    def interrupt(*_: object) -> None:
        _ignore()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """What work returns. A signal cancels it, instead of being raised in whichever task runs just then."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        found = asyncio.run(cancellable())
    except asyncio.CancelledError:
        _ignore()
        raise KeyboardInterrupt from None
    for number, handler in handlers.items():  # asyncio leaves the system's own ones
        signal.signal(number, handler)
    return found
