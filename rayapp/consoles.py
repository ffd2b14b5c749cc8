"""Where tables for people go."""

from __future__ import annotations

from rich.console import Console

NO_LIMIT = 10_000  # characters


def table_console() -> Console:
    """stdout. Where it is no terminal (a pipe, a file) a row is one line and nothing is cut, so that grep finds it."""
    console = Console()
    return console if console.is_terminal else Console(width=NO_LIMIT)
