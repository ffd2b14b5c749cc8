"""Tree: the files below one folder, on this machine or in a bucket, read in the same way."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from filelock import FileLock
from pyarrow import fs

from rayapp.errors import DataError
from rayapp.storage import absolute_uri, atomic_write, is_remote, open_fs

logger = logging.getLogger(__name__)

NUM_READERS = 16  # files read at once; more than cores, for a bucket answers in tens of milliseconds
SETTLED_S = 2.0  # a file changed later than this before it was read may change again within one tick of its clock
LOG_EVERY_S = 5.0
NUM_NAMED = 5  # files, and kinds of files, in a message
LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini")  # what operating systems leave beside hidden files
CANNOT_BE_READ = "cannot be read"  # what is said of a file that is there, but whose file system or bucket fails


@dataclass(frozen=True)
class Reader:
    """Reads files below uri, named by their path relative to it; it is small and can be pickled."""

    uri: str
    _fs: Any = field(repr=False)  # pyarrow has no types

    @property
    def is_remote(self) -> bool:
        """Whether a file takes a request over the network."""
        return is_remote(self.uri)

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises DataError."""
        with self.open_file(path) as file:
            return bytes(file.read())

    @contextmanager
    def open_file(self, path: str) -> Iterator[Any]:
        """A file to read from and seek in; what goes wrong while it is open is a DataError that names it."""
        with read_errors(f"{self.uri}/{path}"), self._fs.open_input_file(path) as file:
            yield file


@dataclass(frozen=True)
class Tree(Reader):
    """A Reader that knows which files there are."""

    files: tuple[str, ...]  # sorted
    folders: tuple[str, ...]
    _stats: dict[str, tuple[int, int]] = field(repr=False)  # size, mtime_ns

    @classmethod
    def open(cls, path: str) -> Tree:
        """What lies below path (a folder, or s3://...); hidden files and litter are left out. Raises DataError."""
        if path.startswith("hf://"):
            raise DataError(
                f"{path} lies at Hugging Face, which is not read from; download its Parquet files into a folder and"
                " give that with --data.path (a folder, or s3://BUCKET/FOLDER)"
            )
        uri = absolute_uri(path)
        with read_errors(uri):
            base, root = open_fs(uri)
            tree = fs.SubTreeFileSystem(root, base)
            infos = [
                info
                for info in tree.get_file_info(fs.FileSelector("", recursive=True))
                if not _is_hidden(_path_of(info, uri))
            ]
        files = {info.path: (info.size, info.mtime_ns) for info in infos if info.type == fs.FileType.File}
        folders = sorted(info.path for info in infos if info.type == fs.FileType.Directory)
        return cls(uri, tree, tuple(sorted(files)), tuple(folders), files)

    @property
    def reader(self) -> Reader:
        """What reads its files, without the list of them."""
        return Reader(self.uri, self._fs)

    @property
    def top(self) -> str:
        """The first names in the folder, for messages."""
        names = sorted({path.split("/")[0] for path in (*self.folders, *self.files)})
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"

    def first_below(self, prefix: str) -> str:
        """The first names of files below a folder, for messages."""
        names = [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)]
        return ", ".join(names[:NUM_NAMED]) + ", ..." * (len(names) > NUM_NAMED) or "nothing"

    def listing_digest(self, paths: Iterable[str]) -> str:
        """A sha256 of names, sizes and times of change, for which no file has to be read."""
        listed = json.dumps([(path, *self._stats[path]) for path in paths])
        return "sha256:" + hashlib.sha256(listed.encode()).hexdigest()

    def digests(self, paths: Iterable[str], memo_folder: Path) -> dict[str, str]:
        """path -> sha256 of its bytes.

        Those of settled files are remembered in memo_folder with size and time of change, so that a large data set is
        read once, not at each start of each process.
        """
        memo = memo_folder / f"{hashlib.sha256(self.uri.encode()).hexdigest()[:16]}.json"
        with write_errors(memo_folder), FileLock(memo.with_suffix(".lock")):
            known = _read_memo(memo)
            wanted = {path: [*self._stats[path]] for path in paths}
            found = {path: known[path][2] for path, stat in wanted.items() if known.get(path, [])[:2] == stat}
            settled_ns = (time.time() - SETTLED_S) * 1e9
            fresh = self._digest_all([path for path in wanted if path not in found])
            kept = {path: [*wanted[path], digest] for path, digest in fresh.items() if wanted[path][1] < settled_ns}
            if kept:
                kept |= {path: known[path] for path in found}
                atomic_write(memo, json.dumps(kept))
        return found | fresh

    def _digest_all(self, paths: list[str]) -> dict[str, str]:
        progress = Progress("checked", "files", len(paths))
        digests = {}
        with ThreadPoolExecutor(NUM_READERS) as pool:
            for path, digest in zip(paths, pool.map(self._digest, paths), strict=True):
                digests[path] = digest
                progress.advance(1)
        return digests

    def _digest(self, path: str) -> str:
        with self.open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") or name.lower() in LITTER for name in path.split("/"))


def say_passed_over(tree: Tree, used: Iterable[str], wanted: str) -> None:
    """Count and name in the log the files of tree that are none of used: only what wanted says is read."""
    others = sorted(set(tree.files) - set(used))
    if not others:
        return
    kinds = Counter(PurePosixPath(path).suffix.lower() or "without suffix" for path in others)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(NUM_NAMED))
    named = sorted(others, key=lambda path: -kinds[PurePosixPath(path).suffix.lower() or "without suffix"])[:NUM_NAMED]
    logger.info(
        "%s: %d of %d files are passed over (%s): %s%s; only %s are read",
        tree.uri, len(others), len(tree.files), counted + ", ..." * (len(kinds) > NUM_NAMED),
        ", ".join(named), ", ..." * (len(others) > NUM_NAMED), wanted,
    )  # fmt: skip


def _path_of(info: Any, uri: str) -> str:
    """The path of a file below uri. Raises DataError where it is not UTF-8: pyarrow can neither say nor open it."""
    try:
        return str(info.path)
    except UnicodeDecodeError as error:
        path = error.object.decode("utf-8", "backslashreplace")
        if _is_hidden(path):
            return path
        raise DataError(f"{uri}/{path} has a name that is not UTF-8 (see the bytes after \\x); rename it") from error


def _read_memo(memo: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(memo.read_bytes()))
    except (FileNotFoundError, ValueError):  # the first time, or cut short by a crash
        return {}


class Progress:
    """A line in the log every few seconds: how far, how long still. Nothing where it is over sooner."""

    def __init__(self, done: str, what: str, total: int) -> None:
        self._words, self._total = (done, what), total
        self._count = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """count more are done."""
        self._count += count
        now = time.monotonic()
        if now - self._last >= LOG_EVERY_S:
            self._last = now
            left_s = (now - self._start) / self._count * (self._total - self._count)
            done, what = self._words
            percent = 100 * self._count / self._total
            logger.info("%s %d of %d %s (%.0f %%), %.0f s left", done, self._count, self._total, what, percent, left_s)


@contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Inside, whatever pyarrow and the file system raise is a DataError that names what is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what} does not exist; check --data.path (a folder, or s3://BUCKET/FOLDER)") from error
    except UnicodeEncodeError as error:  # of a path that the shell gave
        path = what.encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{path} is not UTF-8 (see the bytes after \\udc); rename it") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        hint = "the bucket, the AWS credentials and AWS_ENDPOINT_URL" if what.startswith("s3:") else "--data.path"
        raise DataError(f"{what} {CANNOT_BE_READ} ({reason}); check {hint}") from error


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """folder exists; inside, what the file system raises is a DataError that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written to ({error}); make room there, or set RAYAPP_HOME") from error
