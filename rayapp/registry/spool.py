"""Spool: metrics on disk between the training loop and MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rayapp.errors import RegistryError
from rayapp.storage import atomic_write

log = logging.getLogger(__name__)


class Row(NamedTuple):
    name: str
    value: float
    time_ms: int
    step: int


class Spool:
    """A file of rows, one JSON line each, and beside it the offset (bytes) up to which they were sent.

    One thread appends, one reads. Raises RegistryError where the file cannot be opened; append never raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_lost = 0  # rows that the disk did not take
        self._sent_path = path.with_name(path.name + ".sent")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            content = path.read_bytes()
            self._torn = content[-1:] not in (b"", b"\n")  # a writer was killed within a line
            self._sent = min(int(self._sent_path.read_text()) if self._sent_path.exists() else 0, len(content))
        except (OSError, ValueError) as error:
            raise RegistryError(f"metrics cannot be kept in {path} ({error}); make room or mend it") from error

    def append(self, metrics: Mapping[str, float], step: int, *, time_ms: int | None = None) -> None:
        """Keep metrics at a step. time_ms: since 1970, when they were measured, if not now."""
        time_ms = time_ms or time.time_ns() // 1_000_000
        rows = [Row(name, float(value), time_ms, step) for name, value in metrics.items()]
        text = ("\n" if self._torn else "") + "".join(json.dumps(row) + "\n" for row in rows)
        data, written, reason = text.encode(), 0, "disk full"
        try:
            written = self._file.write(data) or 0
        except OSError as error:
            reason = str(error)
        lost = data[written:].count(b"\n")
        self._torn = lost > 0
        if lost:
            log.warning(
                "%d metrics of step %d are lost, they cannot be written to %s: %s", lost, step, self.path, reason
            )
            self.num_lost += lost

    def close(self) -> None:
        """Ends appending; what is there can still be read."""
        self._file.close()

    def next_batch(self, limit: int) -> tuple[list[Row], int]:
        """At most limit rows that were not sent, and the offset behind them."""
        rows, end = [], self._sent
        for row, row_end in self._waiting():
            rows.append(row)
            end = row_end
            if len(rows) == limit:
                break
        return rows, end

    def mark_sent(self, end: int) -> None:
        atomic_write(self._sent_path, str(end))
        self._sent = end

    def num_waiting(self) -> int:
        return sum(1 for _ in self._waiting())

    def _waiting(self) -> Iterator[tuple[Row, int]]:
        with self.path.open("rb") as file:
            end = file.seek(self._sent)
            for line in file:
                end += len(line)
                try:
                    row = Row(*json.loads(line))
                except (ValueError, TypeError):  # torn, or still being written
                    continue
                yield row, end
