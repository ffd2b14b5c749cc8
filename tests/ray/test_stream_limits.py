"""What streams may take: CPUs that ranks hold, a limit on memory; and a set in a bucket, read by other processes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayapp.data.chunks import SplitSource
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import ConfigError
from tests.ray.numbered import KINDS, STILL, numbered, numbers, parquet_set, part_of, streamed
from tests.ray.program import last_line
from tests.support.servers import s3_server

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def part(tmp_path: Path, home: Path) -> SplitSource:
    return part_of("parquet", parquet_set(tmp_path / "set", [numbered(number) for number in range(211)]), home)


def test_ranks_that_hold_all_cpus_do_not_wait_for_each_other(part: SplitSource) -> None:
    import ray

    def take(rank: int) -> list[int]:
        batches = streamed(part, rank=rank, world=2, augment=STILL)
        return numbers(itertools.chain(batches.epoch(0), batches.epoch(1)))

    @ray.remote(num_cpus=1)
    class Rank:
        def take(self, function: Callable[[int], list[int]], rank: int) -> list[int]:
            return function(rank)

    ranks = [Rank.remote() for _ in range(2)]  # type: ignore[attr-defined]
    seen = ray.get([actor.take.remote(take, rank) for rank, actor in enumerate(ranks)], timeout=200)
    for actor in ranks:
        ray.kill(actor)

    assert [len(of_rank) for of_rank in seen] == [200, 200]
    assert not set(seen[0][:100]) & set(seen[1][:100])


def test_too_little_memory_for_a_batch_is_said(part: SplitSource) -> None:
    large = PreprocessSpec(height_px=512, width_px=512)

    with pytest.raises(
        ConfigError, match=r"memory_mb 64 is too little for batches of 30 images of 512x512 px; say 90 or"
    ):
        streamed(part, batch_size=30, preprocess=large, augment=STILL)
    assert streamed(part, batch_size=30, preprocess=large).batch_size == 21  # of evaluation any will do


def in_process(code: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What a program with a cluster of its own prints in its last line."""
    start = """
import json, sys
from pathlib import Path
import numpy as np, torch
from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from tests.ray.numbered import STILL, numbers, streamed
"""
    found: dict[str, Any] = json.loads(last_line(start + code, *arguments, environment=environment))
    return found


def test_a_bucket_is_streamed(tmp_path: Path, home: Path) -> None:
    import boto3

    with s3_server() as url:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        environment = keys | {"AWS_ENDPOINT_URL": url}
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret")
        client.create_bucket(Bucket="pictures")
        images = [numbered(number) for number in range(60)]
        for kind, write in KINDS.items():
            local = Path(write(tmp_path / kind, images))
            for path in local.rglob("*.*"):
                client.upload_file(str(path), "pictures", f"{kind}/{path.relative_to(local)}")
        code = """
seen = {}
for kind in ("parquet", "folder"):
    data = load(DataConfig(dataset=kind, path=f"s3://pictures/{kind}", stream=True), Path(sys.argv[1]))
    seen[kind] = numbers(streamed(data.train, augment=STILL).epoch(0))
print(json.dumps(seen))
"""
        seen = in_process(code, str(home), environment=environment)
    for kind in KINDS:
        assert sorted(seen[kind]) == list(range(60))


def test_a_set_of_several_times_the_memory_stays_within_it(tmp_path: Path, home: Path) -> None:
    """Private memory of the rank and pinned images in Ray's store together; the set is 270 MB, memory_mb is 64."""
    path = parquet_set(tmp_path / "set", [numbered(number, px=224) for number in range(1880)], group=100)
    code = """
import threading
import psutil
from ray._private.internal_api import node_stats  # no public way to ask how much is pinned
from rayapp.data.preprocess import PreprocessSpec

spec = PreprocessSpec(height_px=224, width_px=224)
part = load(DataConfig(dataset="parquet", path=sys.argv[1], image_px=224, stream=True), Path(sys.argv[2])).train
batches = streamed(part, preprocess=spec, batch_size=16, augment=STILL)
node = ray.nodes()[0]
address, process, stop = (node["NodeManagerAddress"], node["NodeManagerPort"]), psutil.Process(), threading.Event()
next(epoch := batches.epoch(0))  # threads and libraries are there
epoch.close()
before = process.memory_full_info().uss
peaks = []

def watch():
    while not stop.wait(0.05):
        stats = node_stats(*address, False).store_stats
        assert not stats.spilled_bytes_total
        peaks.append(process.memory_full_info().uss - before + stats.object_store_bytes_primary_copy)

watcher = threading.Thread(target=watch)
watcher.start()
seen = [number for epoch in (0, 1) for number in numbers(batches.epoch(epoch))]
stop.set()
watcher.join()
print(json.dumps({"peak_mb": max(peaks) / 2**20, "samples": len(peaks), "images": len(set(seen))}))
"""
    found = in_process(code, path, str(home))

    assert found["images"] == 1880
    assert found["samples"] > 20
    assert found["peak_mb"] < 64
