"""Files and buckets: opened by address, written whole or not at all, used by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem

from rayapp.errors import ConfigError


def is_remote(path: str) -> bool:
    """Whether path is an address, as s3://bucket/folder, and no folder of this machine."""
    return "://" in path


def absolute_uri(path: str) -> str:
    """The address without a slash at its end; of a folder of this machine its absolute path, ~ expanded."""
    return path.rstrip("/") if is_remote(path) else str(Path(path).expanduser().absolute())


def below(path: str, name: str) -> str:
    """The address of what is called name in the folder path."""
    return f"{path.rstrip('/')}/{name}"


def open_fs(path: str) -> tuple[FileSystem, str]:
    """The file system that holds path, a local folder or an address, and the path in it.

    Raises OSError or pyarrow's ArrowException.
    """
    if not is_remote(path):
        return LocalFileSystem(), absolute_uri(path)
    # from_uri heeds AWS_ENDPOINT_URL, which S3FileSystem() does not (pyarrow 25)
    files, root = FileSystem.from_uri(path.rstrip("/"))
    return files, str(root)


def what_to_check(path: str) -> str:
    """What to look at where path cannot be written to."""
    if is_remote(path):
        return "the bucket, the AWS credentials and AWS_ENDPOINT_URL"
    return "the path and who may write there"


class Folder:
    """A folder of this machine or of a bucket, in which a file appears whole or not at all.

    files: the file system whose root it is. All methods raise OSError or pyarrow's ArrowException.
    """

    def __init__(self, path: str, *, query: str = "") -> None:
        """query: options of pyarrow's for an address, as allow_delayed_open=true."""
        self.uri = absolute_uri(path)
        self.is_remote = is_remote(path)
        address = f"{self.uri}{'&' if '?' in self.uri else '?'}{query}" if query and self.is_remote else self.uri
        base, root = open_fs(address)
        self.files = SubTreeFileSystem(root, base)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError too."""
        with self.files.open_input_file(name) as file:
            return bytes(file.read())

    def write(self, name: str, content: Any, *, partial: str | None = None) -> None:
        """The file name with these bytes. partial: where it grows, if not beside it; a bucket needs no such place."""
        if self.is_remote:
            grows = name
        else:
            grows = partial or f"{name}.partial"
            self.files.create_dir(str(Path(name).parent))
        with self.files.open_output_stream(grows) as file:
            file.write(content)
        if grows != name:
            self.files.move(grows, name)


def atomic_write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; several processes may do so at once. Raises OSError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def exclusive_lock(folder: Path, what_is_done: str) -> Iterator[None]:
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
