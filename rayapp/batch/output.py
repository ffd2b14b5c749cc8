"""The predictions of a run as Parquet, in a folder on this machine or in a bucket.

    OUTPUT/part-00000.parquet    PART_IMAGES rows each, in the order of the images
           _SUCCESS              the result as JSON, written last: without it the output is not whole
           _partial/             the parts of a run that goes on or was cut off; readers of Parquet pass it over
                    plan.json    what they are of: a run with the same plan goes on, another one starts afresh

Predictions that are there stay whole until the new ones are. One run at a time may write to an output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rayapp.errors import ConfigError
from rayapp.storage import Folder, absolute_uri, what_to_check

SUCCESS, PARTIAL, PLAN = "_SUCCESS", "_partial", "_partial/plan.json"
PART = re.compile(r"part-(\d{5,})\.parquet")
# Images of a part: of 1000 classes it is a file of about 30 MB. A constant: a run that goes on has to cut as before.
PART_IMAGES = 8192
NUM_MOVERS = 16  # files moved at once: a bucket copies each on request


class Count(NamedTuple):
    """Images, and those of them that could not be decoded."""

    images: int = 0
    failed: int = 0

    @classmethod
    def of(cls, errors: pa.ChunkedArray) -> Count:
        """Of the column called error."""
        return cls(len(errors), len(errors) - errors.null_count)

    def __add__(self, other: tuple[Any, ...]) -> Count:
        """Both together."""
        return Count(self.images + other[0], self.failed + other[1])


class Output:
    """A folder for predictions. What cannot be written there is a ConfigError, in all of its methods."""

    def __init__(self, path: str) -> None:
        self.uri = absolute_uri(path)
        with self._writing():
            self._folder = Folder(path)
            self._fs = self._folder.files

    def check(self, *, overwrite: bool) -> None:
        """Raises ConfigError where predictions are there that may not be replaced, or files of somebody else."""
        with self._writing():
            names = [name for name in self._names("") if not name.startswith(".")]
        if SUCCESS in names and not overwrite:
            raise ConfigError(
                f"output {self.uri} has predictions already; give another --output, or replace them: --overwrite"
            )
        ours = {SUCCESS, PARTIAL} & {*names}
        if strange := [name for name in names if name not in ours and not (ours and PART.fullmatch(name))]:
            raise ConfigError(
                f"output {self.uri} holds other files ({', '.join(strange[:5])}); give a new or empty folder"
            )

    def begin(self, plan: Mapping[str, Any]) -> dict[int, Count]:
        """The parts that a run with the same plan has left; those of another plan are removed."""
        content = json.dumps(plan, sort_keys=True).encode()
        with self._writing():
            names = self._names(PARTIAL)
            if "plan.json" in names and self._folder.read(PLAN) == content:
                left = [int(found[1]) for name in names if (found := PART.fullmatch(name))]
                with ThreadPoolExecutor(NUM_MOVERS) as pool:
                    return dict(zip(left, pool.map(self._count, left), strict=True))
            if names:
                self._fs.delete_dir(PARTIAL)
            self._folder.write(PLAN, content)
        return {}

    def write(self, number: int, table: pa.Table) -> Count:
        """Write a part."""
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd")
        with self._writing():
            self._folder.write(f"{PARTIAL}/{_name(number)}", file.getvalue())
        return Count.of(table["error"])

    def commit(self, result: Mapping[str, Any]) -> None:
        """Put the parts in their place, then say that they are whole."""
        with self._writing(), ThreadPoolExecutor(NUM_MOVERS) as pool:
            names = self._names("")
            # first that nobody takes old parts and new ones for a whole
            for name in [SUCCESS] if SUCCESS in names else []:
                self._fs.delete_file(name)
            list(pool.map(self._fs.delete_file, filter(PART.fullmatch, names)))
            parts = filter(PART.fullmatch, self._names(PARTIAL))
            list(pool.map(lambda name: self._fs.move(f"{PARTIAL}/{name}", name), parts))
            self._folder.write(SUCCESS, (json.dumps(result, indent=2) + "\n").encode())
            self._fs.delete_dir(PARTIAL)

    def _names(self, folder: str) -> list[str]:
        found = self._fs.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def _count(self, number: int) -> Count:
        with self._fs.open_input_file(f"{PARTIAL}/{_name(number)}") as file:
            return Count.of(pq.read_table(file, columns=["error"])["error"])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(
                f"output {self.uri} cannot be written to ({str(error).splitlines()[0]});"
                f" check {what_to_check(self.uri)}"
            ) from error


def _name(number: int) -> str:
    return f"part-{number:05}.parquet"
