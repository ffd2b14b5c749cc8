"""The request log in a bucket."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rayapp.config.serve import RequestLogConfig
from rayapp.errors import ConfigError
from rayapp.serve.request_log import check
from tests.support.records import MORNING, log_to, record
from tests.support.wait import until


@pytest.fixture
def bucket(s3: str) -> str:
    """An empty bucket, found through the environment alone, as boto3 does."""
    boto3.client("s3").create_bucket(Bucket="logs")
    return "s3://logs"


def test_a_bucket_holds_the_same_files(bucket: str):
    log = log_to(f"{bucket}/serving/", images=True)
    log.add(record(1, image=b"one"))
    log.add(record(2, image=b"two", when=MORNING + timedelta(days=1)))
    log.close()

    keys = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="logs", Prefix="serving/")["Contents"]]

    assert len(keys) == 3
    assert keys[0] == "serving/_common_metadata"
    assert keys[1].startswith("serving/date=2026-03-01/app-VisionClassifier-x1-2")
    assert keys[2].startswith("serving/date=2026-03-02/app-VisionClassifier-x1-2")
    there, root = fs.FileSystem.from_uri(f"{bucket}/serving")
    rows = pq.read_table(root, filesystem=there).to_pylist()
    assert [(row["request_id"], row["image"], row["date"]) for row in rows] == [
        ("request-1", b"one", "2026-03-01"),
        ("request-2", b"two", "2026-03-02"),
    ]


def test_a_missing_bucket_is_said_at_once(bucket: str):
    with pytest.raises(ConfigError, match=r"s3://nobody/x cannot be written to .*NO_SUCH_BUCKET.*AWS_ENDPOINT_URL"):
        check(RequestLogConfig(folder="s3://nobody/x"))


def test_rows_wait_for_a_bucket_that_is_away(bucket: str, caplog: pytest.LogCaptureFixture):
    client = boto3.client("s3")
    log = log_to(f"{bucket}/away", flush_s=0.1)
    _empty_and_delete(client)
    log.add(record(5))
    until(lambda: "not written" in caplog.text)
    client.create_bucket(Bucket="logs")
    until(lambda: client.list_objects_v2(Bucket="logs", Prefix="away/date=").get("KeyCount"))
    log.close()

    assert "NO_SUCH_BUCKET" in caplog.text
    assert log.num_dropped == 0


def _empty_and_delete(client: Any) -> None:
    for entry in client.list_objects_v2(Bucket="logs").get("Contents", []):
        client.delete_object(Bucket="logs", Key=entry["Key"])
    client.delete_bucket(Bucket="logs")
