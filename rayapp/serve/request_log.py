"""The request log: a sample of what was asked and answered, as Parquet files that any reader of data sets can take.

    FOLDER/date=2026-11-24/REPLICA-20261124T101530123456Z.parquet   one row an image; date is that of its time, in UTC
    FOLDER/_common_metadata                                         the schema alone, written by check()

A request only leaves its record in memory; a thread hashes, converts and writes. Rows that cannot be written are kept
up to a bound and then dropped and counted: serving never waits for the log and never notices it. A process that is
killed loses the rows that wait, those of the last flush_s seconds.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.config.serve import RequestLogConfig
from rayapp.errors import ConfigError
from rayapp.storage import Folder, absolute_uri, what_to_check
from rayapp.vision.predictor import Float32Array

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),  # of the answer
        ("request_id", pa.string()),  # the images of one predict_batch share it
        ("endpoint", pa.string()),
        ("model_version", pa.string()),  # which model answered, as the headers of the answer say
        ("model_digest", pa.string()),
        ("image_sha256", pa.string()),  # of the file as it was sent, 64 hexadecimal digits
        ("image_bytes", pa.int64()),  # its size
        ("predicted_class", pa.string()),
        ("confidence", pa.float32()),  # 0-1
        ("probabilities", pa.list_(pa.float32())),  # 0-1, in class order
        ("seconds", pa.float32()),  # from the request to its answer
        ("image", pa.binary()),  # the file itself where images are kept, else null
    ]
)
REPEATED = ["endpoint", "model_version", "model_digest", "predicted_class"]  # few values: stored once a file

ROW_BYTES = 1024  # what a row without its image is counted as, about twice what it takes
FILE_BYTES = 16 * 2**20  # a file is written early when so much waits: 16,000 rows, or fewer with images
MAX_BYTES = 128 * 2**20  # of all that waits; above a request's largest body (ServeArgs.max_body_bytes)
TICK_S = 0.25  # how often the thread looks for records: it is not woken for each, which would cost the event loop more
CHUNK_ROWS = 64  # converted at once: about 0.5 ms in which no other thread runs
RETRY_S = 5.0  # after a file that could not be written
CLOSE_S = 15.0  # longest wait for the last file; an S3 that does not answer takes the client 6 s


@dataclass(frozen=True, slots=True)
class Record:
    """One image that was answered."""

    time: datetime  # with a time zone
    request_id: str
    endpoint: str
    model_version: str
    model_digest: str
    image: bytes
    predicted_class: str
    confidence: float
    probabilities: Float32Array  # (K,)
    seconds: float


def check(config: RequestLogConfig) -> None:
    """Raises ConfigError where the folder of the log cannot be written to. Leaves _common_metadata there."""
    schema = pa.BufferOutputStream()
    pq.write_metadata(SCHEMA, schema)
    partial = f".{secrets.token_hex(4)}.partial"  # several replicas start at once
    try:
        _open(config).write("_common_metadata", schema.getvalue(), partial=partial)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"request_log.folder {config.folder} cannot be written to ({_reason(error)});"
            f" check {what_to_check(_folder_of(config))}, or leave it out"
        ) from error


class RequestLog:
    """Writes records to files every flush_s seconds, or sooner when many wait. Raises ConfigError as check() does.

    replica is the first part of the files' names, so each process needs its own.
    """

    def __init__(self, config: RequestLogConfig, *, replica: str) -> None:
        check(config)
        self._fraction = config.fraction
        self._random = random.Random()  # noqa: S311 - a sample, no secret
        self._arrived: deque[Record] = deque()
        self._bytes_in = 0  # of the records taken; changed by add() alone
        self._num_dropped = 0
        self._enough, self._closing = threading.Event(), threading.Event()
        self._tick_s = min(TICK_S, config.flush_s / 4)
        self._writer = _Writer(config, replica, self._arrived, delay_s=config.flush_s - 2 * self._tick_s)
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def sampled(self) -> bool:
        """Whether this request is to be recorded: true for a fraction of them."""
        return self._random.random() < self._fraction

    def add(self, record: Record) -> None:
        """Keep a record for the next file; drop and count it where too many wait. To be called by one thread."""
        num_bytes = ROW_BYTES + len(record.image) + record.probabilities.nbytes
        num_waiting = self._bytes_in - self._writer.bytes_out
        if self._closing.is_set() or num_waiting + num_bytes > MAX_BYTES:
            self._num_dropped += 1
            return
        self._bytes_in += num_bytes
        # a copy, for the row is a part of its batch's array, which it would keep alive
        self._arrived.append(replace(record, probabilities=record.probabilities.copy()))
        if num_waiting > FILE_BYTES:
            self._enough.set()

    @property
    def num_dropped(self) -> int:
        """Records that are in no file and never will be."""
        return self._num_dropped + self._writer.num_lost

    def close(self) -> None:
        """Write what is left, where the folder takes it, and end the thread."""
        self._closing.set()
        self._enough.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._enough.wait(self._tick_s)
            self._enough.clear()
            self._writer.work()
        self._writer.finish()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of one date, converted."""

    date: str
    batch: Any  # pyarrow.RecordBatch
    num_bytes: int  # what their records were counted as, less what was let go


class _Writer:
    """Turns records into rows, and rows into files delay_s later. The log's thread works here; others read counts."""

    def __init__(self, config: RequestLogConfig, replica: str, arrived: deque[Record], *, delay_s: float) -> None:
        self._path = config.folder
        self._folder = _open(config)
        self._images = config.images
        self._replica = re.sub(r"[^A-Za-z0-9._-]+", "-", replica).lstrip(".")
        self._arrived = arrived
        self._rows: list[_Rows] = []
        self._delay_s = delay_s
        self._due_s = 0.0  # when the oldest of the rows has to be in a file, on the monotonic clock
        self._failing = False
        self.bytes_out = 0  # of the records that are written, or of which only a row is left
        self.num_lost = 0
        _as_batch([], images=False)  # pyarrow loads pandas the first time, which takes a second

    def work(self) -> None:
        """Take what has arrived; write it when it is time."""
        self._take()
        if self._rows and (time.monotonic() >= self._due_s or (self._num_bytes >= FILE_BYTES and not self._failing)):
            self._write()

    def finish(self) -> None:
        """Write all that is left; count as lost what cannot be written."""
        self._take()
        self._write()
        self.num_lost = sum(rows.batch.num_rows for rows in self._rows)
        if self.num_lost:
            logger.warning("request log ends without its last rows folder=%s rows=%d", self._path, self.num_lost)

    @property
    def _num_bytes(self) -> int:
        return sum(rows.num_bytes for rows in self._rows)

    def _take(self) -> None:
        """Convert the records that have arrived: hashing lets go of their images at once, where they are not kept."""
        if self._arrived and not self._rows:
            self._due_s = time.monotonic() + self._delay_s
        while self._arrived:
            records = [self._arrived.popleft() for _ in range(min(CHUNK_ROWS, len(self._arrived)))]
            for date, of_date in groupby(records, lambda record: record.time.astimezone(UTC).date().isoformat()):
                self._convert(date, list(of_date))

    def _convert(self, date: str, records: list[Record]) -> None:
        let_go = 0 if self._images else sum(len(record.image) for record in records)
        counted = sum(ROW_BYTES + len(record.image) + record.probabilities.nbytes for record in records)
        self._rows.append(_Rows(date, _as_batch(records, images=self._images), counted - let_go))
        self.bytes_out += let_go

    def _write(self) -> None:
        """Write a file a date. What fails stays, and is tried again; both turns are said once."""
        try:
            while self._rows:
                self._write_date(self._rows[0].date)
        except (OSError, pa.ArrowException) as error:
            self._due_s = time.monotonic() + min(RETRY_S, self._delay_s)
            if not self._failing:
                logger.warning("request log not written, rows wait folder=%s: %s", self._path, _reason(error))
            self._failing = True
        else:
            if self._failing:
                logger.info("request log written again folder=%s", self._path)
            self._failing = False

    def _write_date(self, date: str) -> None:
        these = [rows for rows in self._rows if rows.date == date]
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        data = pa.BufferOutputStream()
        table = pa.Table.from_batches([rows.batch for rows in these])
        pq.write_table(table, data, compression="zstd", use_dictionary=REPEATED)
        name = f"date={date}/{self._replica}-{stamp}.parquet"
        self._folder.write(name, data.getvalue(), partial=f".{self._replica}.partial")
        self._rows = [rows for rows in self._rows if rows.date != date]
        self.bytes_out += sum(rows.num_bytes for rows in these)


def _as_batch(records: Sequence[Record], *, images: bool) -> Any:
    """The records as a RecordBatch of SCHEMA."""
    names = [name for name in SCHEMA.names if name in Record.__slots__ and name not in ("image", "probabilities")]
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in names}
    columns["image_sha256"] = [hashlib.sha256(record.image).hexdigest() for record in records]
    columns["image_bytes"] = [len(record.image) for record in records]
    columns["image"] = [record.image if images else None for record in records]
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    rows = [record.probabilities for record in records]
    ends = np.cumsum([0, *(len(row_k) for row_k in rows)], dtype=np.int32)
    flat = np.concatenate(rows, dtype=np.float32) if rows else np.empty(0, np.float32)  # one by one would be slow
    arrays["probabilities"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))
    return pa.RecordBatch.from_arrays([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def _open(config: RequestLogConfig) -> Folder:
    """One request a file in a bucket; otherwise pyarrow makes three of it."""
    return Folder(_folder_of(config), query="allow_delayed_open=true")


def _folder_of(config: RequestLogConfig) -> str:
    assert config.folder, "there is no log without a folder"
    return absolute_uri(config.folder)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]
