"""One progress line, live in a terminal and as plain lines in a log.

Without torch: the actor's process, and every one that gets its handle, imports this file.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

POLL_S = 0.5
News: TypeAlias = "tuple[str, list[str], int]"  # what ProgressActor.read() gives
LOG_EVERY_S = 5.0


class ProgressActor:
    """Where those who work leave what the driver wants to know; as a Ray actor, so that both may be anywhere."""

    def __init__(self) -> None:
        self._line = ""
        self._said: list[str] = []
        self._reason = ""

    def write(self, line: str) -> None:
        """Replace the progress line."""
        self._line = line

    def say(self, text: str) -> None:
        """Add a line that stays."""
        self._said.append(text)

    def read(self, num_said: int) -> News:
        """The progress line, the lines that stay after the first num_said, and how many there are of these in all.

        An actor that was started anew has fewer than num_said, and then all of them are new.
        """
        first = num_said if num_said <= len(self._said) else 0
        return self._line, self._said[first:], len(self._said)

    def give_up(self, reason: str) -> None:
        """Leave word that a restart would be of no use."""
        self._reason = self._reason or reason

    def reason(self) -> str:
        """Why a restart would be of no use; nothing where it is."""
        return self._reason


ProgressHandle: TypeAlias = "ProgressActor | ray.actor.ActorHandle[ProgressActor]"


def format_duration(seconds: float) -> str:
    """Seconds as 3:07 or 1:02:07."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def print_line(console: Console, text: str | Text) -> None:
    """Print a line as it is: not folded, numbers not coloured, and nothing in it read as rich's markup or emoji."""
    console.print(Text(text) if isinstance(text, str) else text, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def live_progress(board: ProgressHandle, console: Console, before_first: str) -> Iterator[None]:
    """The board's line is shown on console while the with block runs; before_first stands there until it has one."""
    stop = threading.Event()
    show = _show_live if console.is_terminal else _log_lines
    thread = threading.Thread(target=show, args=(board, console, before_first, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _show_live(board: ProgressHandle, console: Console, before_first: str, stop: threading.Event) -> None:
    with Live(Text(before_first), console=console, transient=True, refresh_per_second=4) as live:
        for line, _ in _lines(board, console, stop):
            live.update(Text(line or before_first))


def _log_lines(board: ProgressHandle, console: Console, before_first: str, stop: threading.Event) -> None:
    """A line when it is new, not more often than every LOG_EVERY_S, and the last one in any case."""
    print_line(console, before_first)
    last, last_time = "", -LOG_EVERY_S
    for line, ended in _lines(board, console, stop):
        if line and line != last and (ended or time.monotonic() - last_time >= LOG_EVERY_S):
            print_line(console, line)
            last, last_time = line, time.monotonic()


def _lines(board: ProgressHandle, console: Console, stop: threading.Event) -> Iterator[tuple[str, bool]]:
    """The progress line every POLL_S, and whether it is the last; the lines that stay are printed as they come."""
    num_said, ended = 0, False
    while not ended:
        ended = stop.wait(POLL_S)
        line, said, num_said = _read(board, num_said)
        for text in said:
            print_line(console, text)
        yield line, ended


def _read(board: ProgressHandle, num_said: int) -> News:
    if isinstance(board, ProgressActor):
        return board.read(num_said)
    try:
        news: News = ray.get(board.read.remote(num_said), timeout=5)  # type: ignore[assignment]  # stub
    except (ray.exceptions.RayError, TimeoutError):
        return "", [], num_said  # the cluster is going down: training itself says why
    return news
