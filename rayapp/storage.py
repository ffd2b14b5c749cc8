"""Files and buckets: opened by address, written whole or not at all, used by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow.fs import FileSystem

from rayapp.errors import ConfigError


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def alone(folder: Path, what_is_done: str) -> Iterator[None]:
    """No other process of this machine is inside with the same folder. Raises ConfigError where one is."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)  # the system lets go of it when this process ends, however
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"{what_is_done} by another process; wait for it, or give another --name") from error
    try:
        yield
    finally:
        lock.release()


def open_storage(storage: str, run: str) -> tuple[FileSystem, str]:
    """The file system of a run's storage, a local folder or s3://, and the run's folder in it."""
    files, root = FileSystem.from_uri(f"{storage.rstrip('/')}/{run}")
    return files, str(root)
