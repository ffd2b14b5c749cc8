"""Data sets in a bucket, answered by an S3 server on this machine."""

from __future__ import annotations

from pathlib import Path

import boto3
import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from rayapp.errors import DataError
from tests.support.images import png, write_folder, write_parquet

BUCKET = "pictures"


@pytest.fixture(autouse=True)
def bucket(s3: str) -> None:
    """An empty bucket, found through the environment alone, as boto3 does."""
    boto3.client("s3").create_bucket(Bucket=BUCKET)


def upload(folder: Path, prefix: str) -> str:
    client = boto3.client("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def test_a_folder_in_a_bucket_is_the_same_data_set(tmp_path: Path, home: Path):
    local = write_folder(tmp_path / "set", {"train/cat": 3, "train/dog": 4, "test/dog": 2})
    uri = upload(local, "animals")
    here = load(DataConfig(dataset="folder", path=str(local)), home)
    there = load(DataConfig(dataset="folder", path=f"{uri}/"), tmp_path / "elsewhere")

    assert there.info == here.info
    assert there.info.class_names == ("cat", "dog")
    assert np.array_equal(there.train.images_nhwc, here.train.images_nhwc)
    assert np.array_equal(there.test.images_nhwc, here.test.images_nhwc)


def test_parquet_in_a_bucket_is_the_same_data_set(tmp_path: Path, home: Path):
    local = tmp_path / "set"
    write_parquet(local / "data" / "train-0.parquet", [0, 1, 1, 0, 1], names=["cat", "dog"])
    write_parquet(local / "data" / "test-0.parquet", [1, 0])
    uri = upload(local, "rows")
    here = load(DataConfig(dataset="parquet", path=str(local)), home)
    there = load(DataConfig(dataset="parquet", path=uri), tmp_path / "elsewhere")

    assert there.info == here.info
    assert np.array_equal(there.train.images_nhwc, here.train.images_nhwc)
    assert there.test.labels_n.tolist() == [1, 0]


def test_a_corrupt_object_is_named(tmp_path: Path, home: Path):
    local = write_folder(tmp_path / "set", {"train/cat": 3, "test/cat": 1})
    (local / "train" / "cat" / "2.png").write_bytes(png(1)[:40])
    uri = upload(local, "broken")

    with pytest.raises(DataError, match=rf"1 of the 3 images .*{uri}/train/cat/2\.png"):
        load(DataConfig(dataset="folder", path=uri), home)


def test_a_missing_bucket_folder_or_key_is_said(home: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/nowhere does not exist; check --data.path"):
        load(DataConfig(dataset="folder", path=f"s3://{BUCKET}/nowhere"), home)
    with pytest.raises(DataError, match=r"s3://nobody/x cannot be read .*NO_SUCH_BUCKET.*AWS_ENDPOINT_URL"):
        load(DataConfig(dataset="parquet", path="s3://nobody/x"), home)
    with pytest.raises(DataError, match=r"gopher://x/y cannot be read"):
        load(DataConfig(dataset="parquet", path="gopher://x/y"), home)
