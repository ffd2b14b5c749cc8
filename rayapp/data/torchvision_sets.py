"""Data sets that torchvision downloads: verified, by one process at a time, and one clear sentence offline."""

from __future__ import annotations

import http.client
import logging
import os
import pickle
import tarfile
import urllib.request
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from rayapp.config.train import DataConfig
from rayapp.data.chunks import SplitSource
from rayapp.data.sources import Source, digest_of
from rayapp.errors import DataError
from rayapp.storage import is_remote

logger = logging.getLogger(__name__)

NUM_TEST = 10_000  # official test images of CIFAR-10, CIFAR-100 and Fashion-MNIST alike
CONNECT_TIMEOUT_S = 20.0


def torchvision_set(class_name: str, config: DataConfig, data_folder: Path) -> Source:
    """A data set by the name of its class in torchvision. config.path: where its files lie or are downloaded to."""
    from torchvision import datasets  # takes a second, and most data sets do without it

    if config.path and is_remote(config.path):
        raise DataError(f"data.path '{config.path}' of '{config.dataset}' must be a local folder: downloads go there")
    root = Path(config.path).expanduser() if config.path else data_folder
    kind = getattr(datasets, class_name)
    train = _open(kind, root, config.dataset)
    checksums = [archive.md5 for archive in _archives(kind, root)]  # they stand for the bytes

    def test() -> SplitSource:
        held = kind(root, train=False)
        return SplitSource.of_arrays(np.asarray(held.data), held.targets)

    train_part = SplitSource.of_arrays(np.asarray(train.data), train.targets)
    return Source(tuple(train.classes), digest_of([config.dataset, checksums]), NUM_TEST, train_part, test)


class _Archive(NamedTuple):
    folder: Path
    name: str
    url: str
    md5: str


def _archives(kind: Any, root: Path) -> list[_Archive]:  # torchvision has no types
    if hasattr(kind, "mirrors"):
        folder = root / kind.__name__ / "raw"
        return [_Archive(folder, name, kind.mirrors[0] + name, md5) for name, md5 in kind.resources]
    return [_Archive(root, kind.filename, kind.url, kind.tgz_md5)]


def _missing(kind: Any, root: Path) -> list[_Archive]:
    """Those that are not there with the right checksum."""
    from torchvision.datasets.utils import check_integrity

    missing = [
        archive for archive in _archives(kind, root) if not check_integrity(archive.folder / archive.name, archive.md5)
    ]
    for archive in missing:
        if (archive.folder / archive.name).exists():
            logger.warning("%s has a wrong checksum, downloading it again", archive.folder / archive.name)
    return missing


def _open(kind: Any, root: Path, name: str) -> Any:
    """The training part, downloaded and unpacked where it is not there yet; others wait meanwhile."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        # where we may only read, nobody of us unpacks either
        lock: AbstractContextManager[object] = (
            FileLock(root / f".{name}.lock") if os.access(root, os.W_OK) else nullcontext()
        )
        with lock:
            try:
                return kind(root, train=True)
            except RuntimeError:  # torchvision: not there, or not whole
                _fetch(_missing(kind, root))
                return kind(root, train=True, download=True)
    except (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, pickle.UnpicklingError) as error:
        raise DataError(
            f"'{name}' cannot be unpacked or read in {root} ({error}); make room there or delete what is left of it,"
            " then run the same command again"
        ) from error


def _fetch(missing: list[_Archive]) -> None:
    """Download archives, with a progress bar each. Raises DataError."""
    from torchvision.datasets.utils import download_url

    names = ", ".join(archive.name for archive in missing)
    for folder, name, url, md5 in missing:
        otherwise = (
            f"put {names} into {folder} yourself, or use --data.dataset digits,"
            " or --data.dataset parquet --data.path FOLDER"
        )
        logger.info("downloading %s to %s", url, folder)
        try:
            # ask first: torchvision waits without end where packets are dropped
            head = urllib.request.Request(url, method="HEAD")  # noqa: S310 - a constant of torchvision
            urllib.request.urlopen(head, timeout=CONNECT_TIMEOUT_S).close()  # noqa: S310
            download_url(url, folder, name, md5)
        except RuntimeError as error:
            (folder / name).unlink(missing_ok=True)
            raise DataError(
                f"the download of {url} has a wrong checksum (expected: md5 {md5}) and was removed;"
                f" run the same command again, {otherwise}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(f"{url} cannot be downloaded ({reason}); {otherwise}") from error
