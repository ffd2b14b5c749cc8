"""The request log: what is in its files, what it never does to serving, and a bucket."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayapp.config.serve import RequestLogConfig
from rayapp.errors import ConfigError
from rayapp.serve import request_log
from rayapp.serve.request_log import SCHEMA, Record, RequestLog, check
from rayapp.serve.request_log import logger as its_logger
from tests.support.records import MORNING, log_to, record
from tests.support.wait import until


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def is_taken(log: RequestLog, new: Record) -> bool:
    """Whether there was room for a record."""
    before = log.num_dropped
    log.add(new)
    return log.num_dropped == before


# --- what is in the files ---------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_a_row(tmp_path: Path):
    log = log_to(tmp_path)
    log.add(record(7, image=b"\x89PNG..."))
    log.close()

    (row,) = rows_in(tmp_path)

    assert row == {
        "time": MORNING,
        "request_id": "request-7",
        "endpoint": "/predict_image",
        "model_version": "3",
        "model_digest": "d" * 64,
        "image_sha256": hashlib.sha256(b"\x89PNG...").hexdigest(),
        "image_bytes": 7,
        "predicted_class": "bee",
        "confidence": 0.75,
        "probabilities": [0.25, 0.75],
        "seconds": 0.5,
        "image": None,
        "date": "2026-03-01",
    }


def test_files_have_the_schema_and_are_compressed(tmp_path: Path):
    log = log_to(tmp_path)
    log.add(record())
    log.close()

    (path,) = tmp_path.glob("date=2026-03-01/app-VisionClassifier-x1-*.parquet")

    assert pq.read_schema(path).equals(SCHEMA)
    assert pq.read_schema(tmp_path / "_common_metadata").equals(SCHEMA)
    group = pq.read_metadata(path).row_group(0)
    assert {group.column(at).compression for at in range(group.num_columns)} == {"ZSTD"}


def test_rows_lie_in_the_partition_of_their_date_in_utc(tmp_path: Path):
    log = log_to(tmp_path)
    late_in_new_york = datetime(2026, 3, 1, 23, 0, tzinfo=timezone(timedelta(hours=-5)))
    for at, when in enumerate([MORNING, late_in_new_york, MORNING]):
        log.add(record(at, when=when))
    log.close()

    found = {row["request_id"]: (row["date"], row["time"]) for row in rows_in(tmp_path)}

    assert found == {
        "request-0": ("2026-03-01", MORNING),
        "request-1": ("2026-03-02", datetime(2026, 3, 2, 4, 0, tzinfo=UTC)),
        "request-2": ("2026-03-01", MORNING),
    }


def test_images_are_kept_only_if_asked(tmp_path: Path):
    secret = os.urandom(1000)
    for images in (False, True):
        folder = tmp_path / str(images)
        log = log_to(folder, images=images)
        log.add(record(image=secret))
        log.close()

        (path,) = folder.rglob("*.parquet")
        (row,) = rows_in(folder)
        assert (secret in path.read_bytes()) is images
        assert row["image"] == (secret if images else None)
        assert row["image_sha256"] == hashlib.sha256(secret).hexdigest()


def test_many_records_come_back_in_order(tmp_path: Path):
    log = log_to(tmp_path)
    for at in range(1000):
        log.add(record(at, image=bytes([at % 256])))
    log.close()

    rows = rows_in(tmp_path)

    assert [row["request_id"] for row in rows] == [f"request-{at}" for at in range(1000)]
    assert [row["image_bytes"] for row in rows] == [1] * 1000
    assert len({row["image_sha256"] for row in rows}) == 256
    assert log.num_dropped == 0


def test_a_row_does_not_keep_the_array_of_its_batch(tmp_path: Path):
    """Nor does what happens to that array later change it."""
    batch_nk = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    log = log_to(tmp_path)
    log.add(Record(MORNING, "a", "/predict_batch", "3", "d", b"x", "bee", 0.75, batch_nk[0], 0.5))
    batch_nk[:] = 0
    log.close()

    assert rows_in(tmp_path)[0]["probabilities"] == [0.25, 0.75]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_fraction_is_kept(tmp_path: Path, fraction: float):
    log = log_to(tmp_path, fraction=fraction)
    drawn = [log.sampled() for _ in range(20_000)]
    log.close()

    deviation = (fraction * (1 - fraction) / len(drawn)) ** 0.5
    assert abs(np.mean(drawn) - fraction) <= 6 * deviation


# --- when files are written -------------------------------------------------------------------------------------------


def test_a_file_appears_after_flush_s_while_the_log_goes_on(tmp_path: Path):
    log = log_to(tmp_path, flush_s=0.1)
    log.add(record(1))
    until(lambda: len(list(tmp_path.rglob("*.parquet"))) == 1)
    log.add(record(2))
    until(lambda: len(list(tmp_path.rglob("*.parquet"))) == 2)
    log.close()

    assert sorted(row["request_id"] for row in rows_in(tmp_path)) == ["request-1", "request-2"]


def test_a_file_is_written_early_when_much_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "FILE_BYTES", 10_000)
    log = log_to(tmp_path)
    for at in range(20):
        log.add(record(at))
    until(lambda: list(tmp_path.rglob("*.parquet")))
    log.close()

    assert len(rows_in(tmp_path)) == 20


def test_no_part_of_a_file_stays_behind(tmp_path: Path):
    log = log_to(tmp_path)
    log.add(record())
    log.close()

    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_nothing_is_written_where_nothing_was_asked(tmp_path: Path):
    log = log_to(tmp_path)
    log.close()
    log.close()

    assert [path.name for path in tmp_path.iterdir()] == ["_common_metadata"]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "MAX_BYTES", 1_000_000)
    folder = tmp_path / "log"
    log = log_to(folder, images=True)
    for at in range(12):
        log.add(record(at, image=b"x" * 100_000))
    assert log.num_dropped == 3
    log.close()

    assert [row["request_id"] for row in rows_in(folder)] == [f"request-{at}" for at in range(9)]
    log.add(record())
    assert log.num_dropped == 4  # closed


def test_there_is_room_again_after_a_file_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "MAX_BYTES", 1_000_000)
    log = log_to(tmp_path, images=True, flush_s=0.1)
    for at in range(5):
        new = record(at, image=b"x" * 900_000)
        until(partial(is_taken, log, new))
    log.close()

    assert len(rows_in(tmp_path)) == 5


def test_image_that_is_not_kept_makes_room_when_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(request_log, "MAX_BYTES", 1_000_000)
    log = log_to(tmp_path)
    for _ in range(5):
        until(lambda: is_taken(log, record(image=b"x" * 900_000)))
    log.close()

    assert len(rows_in(tmp_path)) == 5


def test_folder_that_fails_is_said_once_and_once_when_it_works_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder, away = tmp_path / "log", tmp_path / "away"
    log = log_to(folder, flush_s=0.1)
    folder.rename(away)
    folder.write_text("a file stands where the folder was")
    with caplog.at_level(logging.INFO, its_logger.name):
        for at in range(3):
            log.add(record(at))
        until(lambda: "not written" in caplog.text)
        time.sleep(0.3)  # some more tries
        folder.unlink()
        until(lambda: "written again" in caplog.text)
        log.close()

    assert [row["request_id"] for row in rows_in(folder)] == ["request-0", "request-1", "request-2"]
    assert [entry.levelname for entry in caplog.records] == ["WARNING", "INFO"]
    assert str(folder) in caplog.text
    assert log.num_dropped == 0


def test_rows_that_cannot_be_written_at_the_end_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "log"
    log = log_to(folder)
    log.add(record(1))
    log.add(record(2))
    (folder / "_common_metadata").unlink()
    folder.rmdir()
    folder.write_text("a file stands where the folder was")
    log.close()

    assert log.num_dropped == 2
    assert "rows=2" in caplog.text


@pytest.mark.parametrize("folder", ["file/log", "ftp://somewhere/log", "s3:///log"])
def test_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path, folder: str):
    (tmp_path / "file").write_text("no folder")
    path = folder if "://" in folder else str(tmp_path / folder)

    with pytest.raises(ConfigError, match=r"request_log\.folder .* cannot be written to \(.*\); check .*leave it out"):
        check(RequestLogConfig(folder=path))
    with pytest.raises(ConfigError):
        RequestLog(RequestLogConfig(folder=path), replica="x")


# --- a bucket ---------------------------------------------------------------------------------------------------------
