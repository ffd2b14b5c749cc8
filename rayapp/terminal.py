"""What people see and type: where tables go, and commands that work in the folder where they are printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from rayapp.config.env import Home

NO_LIMIT = 10_000  # characters


def table_console() -> Console:
    """stdout. Where it is no terminal (a pipe, a file) a row is one line and nothing is cut, so that grep finds it."""
    console = Console()
    return console if console.is_terminal else Console(width=NO_LIMIT)


def program() -> str:
    """rayapp, or where no shell finds that (the environment is not activated) what this process was started as."""
    if shutil.which("rayapp"):
        return "rayapp"
    started = Path(sys.argv[0])
    return shlex.quote(_from_here(started)) if started.name == "rayapp" else f"{sys.executable} -m rayapp.cli"


def in_home(other: Home, own: Home) -> str:
    """The program with what makes other its home: own is the one that the environment names."""
    away = "" if own.tracking_uri == f"sqlite:///{own.folder / 'mlflow.db'}" else "MLFLOW_TRACKING_URI= "
    return f"{away}RAYAPP_HOME={shlex.quote(_from_here(other.folder))} {program()}"


def _from_here(path: Path) -> str:
    """Short where path lies below the working folder."""
    absolute, here = path.absolute(), Path(os.getcwd())
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
