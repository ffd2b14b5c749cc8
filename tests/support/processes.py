"""Looks at processes that others start and end: one that ends between two looks is gone, and that is no error."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil


def command(process: psutil.Process) -> str:
    """Its command line; '' for one that is gone, and for one of another user where that is not shown."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def running(part: str, *, patience_s: float = 30) -> list[str]:
    """The command lines of all processes that have this in them. What is about to end has this long for it."""
    deadline = time.monotonic() + patience_s
    while found := [line for line in map(command, psutil.process_iter()) if part in line]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return found


def children(process: psutil.Process, part: str = "") -> list[psutil.Process]:
    """What it has started, at any depth, and has this in its command line."""
    try:
        started = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in started if part in command(child)]


def kill(process: psutil.Process, signum: signal.Signals = signal.SIGKILL) -> bool:
    """Send it the signal. Whether it was still there."""
    try:
        process.send_signal(signum)
    except psutil.NoSuchProcess:
        return False
    return True


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or only waits for its parent to look."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE) or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def listened_on(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports on which it listens."""
    try:
        there = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {(one.laddr.ip, one.laddr.port) for one in there if one.status == psutil.CONN_LISTEN}


def listeners(port: int) -> set[str]:
    """The names of the processes that listen on a port of this machine."""
    found = set()
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(one.pid).name())
    return found


def of_session(leader: int) -> list[Path]:
    """The folders in /proc of a process that leads a session, and of all that are in it."""
    return [path for path in Path("/proc").glob("[0-9]*") if _session(path) == leader]


def _session(process: Path) -> int | None:
    words = contents(process / "stat").rpartition(b")")[2].split()
    return int(words[3]) if words else None


def contents(file: Path) -> bytes:
    """A file of /proc; nothing once its process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def written_by(process: Path) -> set[Path]:
    """What a process, a folder in /proc, has open to write. Files are opened and closed while we look."""
    found = set()
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                flags = (process / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0]
                if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                    found.add(link.readlink())
    return found
