"""The access log: what a line says, and what clients cannot make it say."""

from __future__ import annotations

import errno
import io
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from rayapp.serve.logs import MAX_CHARS, AccessLog, Fields, access_line, request_id

NOON = datetime(2026, 3, 1, 12, 0, 0, 123_999, tzinfo=UTC)


def fields(**changes: Any) -> Fields:
    least: Fields = {
        "request_id": "abc",
        "method": "POST",
        "path": "/predict_image",
        "status": 200,
        "seconds": 0.0041239,
        "bytes_in": 512,
    }
    return {**least, **changes}  # type: ignore[typeddict-item]


def test_a_line_says_what_happened_and_which_model_answered():
    line = access_line(
        NOON,
        **fields(client="10.0.3.7", images=2, model_version="7", model_digest="9b0e", role="canary"),
    )

    assert json.loads(line) == {
        "time": "2026-03-01T12:00:00.123Z",
        "request_id": "abc",
        "method": "POST",
        "path": "/predict_image",
        "status": 200,
        "seconds": 0.004124,
        "bytes_in": 512,
        "client": "10.0.3.7",
        "images": 2,
        "model_version": "7",
        "model_digest": "9b0e",
        "role": "canary",
    }
    assert list(json.loads(line))[:2] == ["time", "request_id"]


def test_what_is_not_known_is_not_in_the_line():
    refused = json.loads(access_line(NOON, **fields(status=400, error="no image", model_version=None, images=None)))

    assert refused["error"] == "no image"
    assert {"model_version", "images", "role", "client"}.isdisjoint(refused)
    assert json.loads(access_line(NOON, **fields(images=0)))["images"] == 0


def test_time_is_utc_whatever_the_zone():
    there = datetime(2026, 3, 1, 23, 30, tzinfo=timezone(timedelta(hours=-5)))

    assert json.loads(access_line(there, **fields()))["time"] == "2026-03-02T04:30:00.000Z"


@pytest.mark.parametrize("text", ['/a\n{"status":200}', "/\r\n\x1b[2J", "/\x00", '/"', "/ünï", "/\u2028", "/\ud800x"])
def test_a_client_cannot_write_lines_of_its_own(text: str):
    line = access_line(NOON, **fields(path=text, error=text))

    assert len(line.splitlines()) == 1 or "\u2028" in text
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["path"] == text.replace("\ud800", "?")


def test_a_long_path_is_cut():
    line = json.loads(access_line(NOON, **fields(path="/" + "a" * 70_000)))

    assert line["path"] == "/" + "a" * (MAX_CHARS - 1)


def test_lines_reach_the_stream_one_by_one():
    class Stream(io.StringIO):
        """Counts what a file behind it would get."""

        num_flushes = 0

        def flush(self) -> None:
            self.num_flushes += 1

    stream = Stream()
    log = AccessLog(stream)
    before = datetime.now(UTC)

    for status in (200, 413):
        log.write(**fields(status=status))

    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["status"] for line in lines] == [200, 413]
    assert stream.num_flushes == 2
    said = datetime.fromisoformat(json.loads(lines[0])["time"])
    assert before - timedelta(milliseconds=1) <= said <= datetime.now(UTC)


def test_a_stream_that_fails_fails_no_request():
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = AccessLog(Full())

    log.write(**fields())
    log.write(**fields())

    assert log.num_lost == 2


@pytest.mark.parametrize("given", ["a", "4f1c-9.B_x", "x" * 64])
def test_plain_request_ids_are_taken(given: str):
    assert request_id(given) == given


@pytest.mark.parametrize(
    "given", [None, "", "x" * 65, "a b", "a\n", "\na", "a;b", "ünï", "a/b", "${jndi:ldap://x}", '"', "<script>"]
)
def test_other_request_ids_are_replaced(given: str | None):
    ids = {request_id(given) for _ in range(20)}

    assert len(ids) == 20
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) for one in ids)
