"""Streamed batches for real: Ray Data, several ranks, files and buckets, and what a stream may take of memory."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from rayapp.config import AugmentConfig, DataConfig
from rayapp.errors import ConfigError, DataError
from rayapp.vision.augment import Augment
from rayapp.vision.batches import Batch, Shard
from rayapp.vision.datasets import load
from rayapp.vision.parts import Part
from rayapp.vision.preprocess import PreprocessSpec

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]
CPU = torch.device("cpu")
SPEC = PreprocessSpec(height_px=8, width_px=8)
NUM_IMAGES = 211  # a prime: nothing comes out even
STILL = Augment(crop_padding_px=0, flip=False, cutout_px=0)


@pytest.fixture(autouse=True)
def several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """These small sets would be decoded by one task."""
    from rayapp.compute import decoding

    monkeypatch.setattr(decoding, "TASK_IMAGES", 24)


def numbered(number: int, *, px: int = 8) -> bytes:
    """A picture that carries its number."""
    image = Image.new("RGB", (px, px), (number % 256, number // 256, 7))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def parquet_set(root: Path, images: list[bytes], *, group: int = 20) -> str:
    """A training file of these images, in row groups of so many, and one test image; labels are 0, 1, 2, 0, ..."""
    root.mkdir()
    for name, data in (("train", images), ("test", images[:1])):
        rows = [{"bytes": image, "path": ""} for image in data]
        table = pa.table({"image": rows, "label": pa.array(np.arange(len(data)) % 3)})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=group)
    return str(root)


def folder_set(root: Path, images: list[bytes]) -> str:
    """The same images as files; where they come in order, a class comes after the other."""
    for number, image in enumerate(images):
        folder = root / "train" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.png").write_bytes(image)
    (root / "test" / "0").mkdir(parents=True)
    (root / "test" / "0" / "0.png").write_bytes(images[0])
    return str(root)


KINDS = {"parquet": parquet_set, "folder": folder_set}


def part_of(kind: str, path: str, home: Path) -> Part:
    part = load(DataConfig(dataset=kind, path=path, stream=True, on_error="skip"), home).train  # type: ignore[arg-type]
    assert isinstance(part, Part)
    return part


@pytest.fixture(params=["parquet", "folder"])
def part(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Part:
    images = [numbered(number) for number in range(NUM_IMAGES)]
    return part_of(request.param, KINDS[request.param](tmp_path / "set", images), home)


def streamed(part: Part, *, rank: int = 0, world: int = 1, **options: Any):  # type: ignore[no-untyped-def]
    from rayapp.compute.streams import StreamedBatches

    defaults: dict[str, Any] = {"batch_size": 10, "preprocess": SPEC, "memory_bytes": 64 * 2**20, "on_error": "fail"}
    return StreamedBatches(part, device=CPU, shard=Shard(rank, world), **(defaults | options))


def numbers(batches: Iterable[Batch]) -> list[int]:
    """The numbers of the images, each with its label."""
    found = []
    for batch in batches:
        pixels_nc = batch.images_nhwc[:, 0, 0].int()
        of_batch = (pixels_nc[:, 0] + 256 * pixels_nc[:, 1]).tolist()
        assert [number % 3 for number in of_batch] == batch.labels_n.tolist()
        found += of_batch
    return found


def same(ones: Iterable[Batch], others: Iterable[Batch]) -> bool:
    pairs = itertools.zip_longest(ones, others)
    return all(
        one and other and torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) for one, other in pairs
    )


# --- which images, in which order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_take_each_image_once_and_equally_many_batches(part: Part, world: int) -> None:
    ranks = [streamed(part, rank=rank, world=world, batch_size=7, augment=STILL) for rank in range(world)]
    seen = [numbers(rank.epoch(0)) for rank in ranks]

    num_batches = NUM_IMAGES // world // 7
    assert [len(of_rank) for of_rank in seen] == [7 * num_batches] * world
    assert [rank.num_batches() for rank in ranks] == [num_batches] * world
    assert len(set().union(*seen)) == 7 * num_batches * world


def test_each_epoch_has_another_order_and_the_same_epoch_the_same(part: Part) -> None:
    batches, again = streamed(part, augment=STILL, seed=1), streamed(part, augment=STILL, seed=1)
    first = numbers(batches.epoch(0))

    assert first != sorted(first)
    assert first == numbers(again.epoch(0))
    assert first != numbers(batches.epoch(1))
    assert first != numbers(streamed(part, augment=STILL, seed=2).epoch(0))
    left_out = [set(range(NUM_IMAGES)) - set(numbers(batches.epoch(epoch))) for epoch in range(3)]
    assert len(set(map(frozenset, left_out))) > 1  # not the same images in each epoch


def test_classes_are_mixed_also_where_they_come_one_after_the_other(tmp_path: Path, home: Path) -> None:
    part = part_of("folder", folder_set(tmp_path / "set", [numbered(n) for n in range(NUM_IMAGES)]), home)
    labels = [batch.labels_n for batch in streamed(part, batch_size=16, augment=STILL).epoch(0)]

    assert part.labels_n.tolist() == sorted(part.labels_n)
    assert sum(len(set(of_batch.tolist())) > 1 for of_batch in labels) > len(labels) / 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_each_image_once_and_keeps_the_order(part: Part, world: int) -> None:
    ranks = [streamed(part, rank=rank, world=world, batch_size=16) for rank in range(world)]
    seen = [numbers(rank.epoch(0)) for rank in ranks]

    assert list(itertools.chain(*seen)) == numbers(streamed(part, batch_size=5).epoch(9))
    assert sorted(itertools.chain(*seen)) == list(range(NUM_IMAGES))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert [-(-len(of_rank) // 16) for of_rank in seen] == [rank.num_batches() for rank in ranks]


def test_the_order_is_not_that_in_which_tasks_are_done(tmp_path: Path, home: Path) -> None:
    images = [numbered(number, px=1500 if number < 24 else 8) for number in range(96)]
    part = part_of("parquet", parquet_set(tmp_path / "set", images, group=24), home)

    assert numbers(streamed(part).epoch(0)) == list(range(96))


def test_fewer_images_than_a_batch_are_one_smaller_batch(tmp_path: Path, home: Path) -> None:
    part = part_of("parquet", parquet_set(tmp_path / "set", [numbered(n) for n in range(5)]), home)
    batches = streamed(part, augment=STILL)

    assert (batches.num_images, batches.batch_size, batches.num_batches()) == (5, 5, 1)
    assert sorted(numbers(batches.epoch(0))) == list(range(5))


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_F43_an_epoch_goes_on_with_the_same_bits(part: Part, world: int) -> None:
    config = AugmentConfig(cutout_px=2, random_ops=1, mixup_alpha=0.4)
    augment = Augment.from_config(config, height_px=8, flip=True, num_classes=3)
    batches = streamed(part, rank=world - 1, world=world, augment=augment)
    whole = list(batches.epoch(2))

    for num_done in range(len(whole) + 1):
        done = num_done * 10 * world
        assert batches.num_batches(done) == len(whole) - num_done
        if num_done in (0, 1, 3, len(whole) - 1, len(whole)):
            assert same(streamed(part, rank=world - 1, world=world, augment=augment).epoch(2, done), whole[num_done:])
    assert whole[0].targets_nk is not None


def test_each_batch_has_random_numbers_of_its_own(part: Part) -> None:
    seeds: list[int] = []

    def noted(images_nhwc: Tensor, labels_n: Tensor, generator: Generator) -> tuple[Tensor, None]:
        seeds.append(generator.initial_seed())
        return images_nhwc, None

    for rank, epoch in itertools.product(range(2), range(2)):
        list(streamed(part, rank=rank, world=2, augment=noted).epoch(epoch))
    assert len(set(seeds)) == len(seeds) == 40


def test_what_is_done_is_not_read_again(tmp_path: Path, home: Path) -> None:
    root = folder_set(tmp_path / "set", [numbered(n) for n in range(NUM_IMAGES)])
    part = part_of("folder", root, home)
    whole = list(streamed(part, augment=STILL).epoch(0))
    for number in numbers(whole[:10]):
        (Path(root) / "train" / str(number % 3) / f"{number:04}.png").unlink()

    assert same(streamed(part, augment=STILL).epoch(0, 190), whole[19:])
    with pytest.raises(DataError, match=r"^/.*train/\d/\d+\.png does not exist; check --data.path[^\n]*$"):
        list(streamed(part, augment=STILL).epoch(0))


def test_a_file_that_cannot_be_read_for_a_moment_is_tried_again(tmp_path: Path, home: Path) -> None:
    root = folder_set(tmp_path / "set", [numbered(n) for n in range(30)])
    part = part_of("folder", root, home)
    numbers(streamed(part).epoch(0))  # Ray's processes are there now, so that the file is soon asked for
    place = Path(root) / "train" / "2" / "0014.png"
    place.rename(tmp_path / "kept.png")
    place.mkdir()  # so that reading fails, as root too

    def heal() -> None:
        place.rmdir()
        (tmp_path / "kept.png").rename(place)

    healer = threading.Timer(2.0, heal)
    healer.start()
    seen = numbers(streamed(part).epoch(0))
    healer.join()
    assert sorted(seen) == list(range(30))


def test_with_another_number_of_ranks_an_epoch_goes_on_with_about_the_rest(part: Part) -> None:
    ranks = [streamed(part, rank=rank, world=3, batch_size=7, augment=STILL) for rank in range(3)]
    seen = [numbers(rank.epoch(0, done=100)) for rank in ranks]

    assert [len(of_rank) for of_rank in seen] == [7 * ranks[0].num_batches(100)] * 3
    assert 211 - 100 - 21 <= len(set(itertools.chain(*seen))) <= 211 - 100 + 21


def test_an_epoch_that_is_left_early_ends(part: Part) -> None:
    batches = streamed(part, augment=STILL)
    epoch = batches.epoch(0)
    first = next(epoch)
    epoch.close()

    assert same([first], itertools.islice(batches.epoch(0), 1))
    assert len(numbers(batches.epoch(1))) == 210


# --- what images come out as ------------------------------------------------------------------------------------------


def test_images_of_all_kinds_are_those_of_the_set_in_memory(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for number, mode in enumerate(["RGB", "L", "RGBA", "P", "1", "RGB"] * 4):
        size = (20, 30) if number % 2 else (40, 17)
        folder = root / ("test" if number >= 20 else "train") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
    config = DataConfig(dataset="folder", path=str(root), image_px=24)
    resident = load(config, home).train
    streaming = load(config.model_copy(update={"stream": True}), home)
    batches = list(streamed(streaming.train, preprocess=streaming.info.preprocess, batch_size=3).epoch(0))

    assert np.array_equal(torch.cat([batch.images_nhwc for batch in batches]).numpy(), resident.images_nhwc)
    assert np.array_equal(torch.cat([batch.labels_n for batch in batches]).numpy(), resident.labels_n)
    assert (batches[0].images_nhwc.dtype, batches[0].labels_n.dtype) == (torch.uint8, torch.int64)
    assert batches[0].images_nhwc.is_contiguous()


# --- corrupt images ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["parquet", "folder"])
def broken(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Part:
    """Images 0, 50 and 51 of 100 are corrupt."""
    images = [b"no image" if number in (0, 50, 51) else numbered(number) for number in range(100)]
    return part_of(request.param, KINDS[request.param](tmp_path / "set", images), home)


def test_a_corrupt_image_ends_the_epoch_and_is_named(broken: Part) -> None:
    for options in ({"augment": STILL}, {}):
        with pytest.raises(
            DataError, match=r"set/.*(row \d+|png) \(the image cannot be decoded\); replace it, or .* skip"
        ):
            list(streamed(broken, **options).epoch(0))


def test_the_place_of_a_corrupt_image_is_taken_by_another_one(broken: Part, caplog: pytest.LogCaptureFixture) -> None:
    batches = streamed(broken, augment=STILL, on_error="skip")
    seen = numbers(batches.epoch(0))

    assert (len(seen), batches.num_batches()) == (100, 10)
    assert set(seen) == set(range(100)) - {0, 50, 51}
    assert seen == numbers(batches.epoch(0))
    said = [
        record.message for record in caplog.records if record.levelno == logging.WARNING and "rank 0" in record.message
    ]
    assert len(said) == 2  # once an epoch
    assert said[0].startswith("rank 0 left out 3 corrupt images: ")
    assert "cannot be decoded" in said[0]
    assert seen[70:] == numbers(streamed(broken, augment=STILL, on_error="skip").epoch(0, 70))


def test_evaluation_leaves_corrupt_images_out(broken: Part) -> None:
    seen = numbers(streamed(broken, on_error="skip").epoch(0))

    assert sorted(seen) == sorted(set(range(100)) - {0, 50, 51})


def test_corrupt_images_alone_are_an_error(tmp_path: Path, home: Path) -> None:
    images = [numbered(number) if number < 5 else b"no image" for number in range(100)]
    part = part_of("parquet", parquet_set(tmp_path / "set", images), home)

    with pytest.raises(DataError, match=r"none of \d+ images in a row can be decoded: .*row \d+ "):
        list(streamed(part.subset(np.arange(20, 100)), on_error="skip").epoch(0))


# --- resources --------------------------------------------------------------------------------------------------------


def test_ranks_that_hold_all_cpus_do_not_wait_for_each_other(part: Part) -> None:
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


def test_too_little_memory_for_a_batch_is_said(part: Part) -> None:
    large = PreprocessSpec(height_px=512, width_px=512)

    with pytest.raises(
        ConfigError, match=r"memory_mb 64 is too little for batches of 30 images of 512x512 px; say 90 or"
    ):
        streamed(part, batch_size=30, preprocess=large, augment=STILL)
    assert streamed(part, batch_size=30, preprocess=large).batch_size == 21  # of evaluation any will do


def in_process(code: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What a program with a cluster of its own prints in its last line."""
    start = """
import json, sys, tempfile
from pathlib import Path
import numpy as np, ray, torch
from rayapp.config import DataConfig
from rayapp.vision.datasets import load
from tests.ray.test_streams import STILL, numbers, streamed
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
         _temp_dir=tempfile.mkdtemp(prefix="ra", dir="/tmp"))
"""
    command = [sys.executable, "-c", start + code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | (environment or {}), timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_bucket_is_streamed(tmp_path: Path, home: Path) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        environment = keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], aws_access_key_id="key", aws_secret_access_key="secret"
        )
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
    finally:
        server.stop()
    for kind in KINDS:
        assert sorted(seen[kind]) == list(range(60))


def test_a_set_of_several_times_the_memory_stays_within_it(tmp_path: Path, home: Path) -> None:
    """Private memory of the rank and pinned images in Ray's store together; the set is 270 MB, memory_mb is 64."""
    path = parquet_set(tmp_path / "set", [numbered(number, px=224) for number in range(1880)], group=100)
    code = """
import threading
import psutil
from ray._private.internal_api import node_stats  # no public way to ask how much is pinned
from rayapp.vision.preprocess import PreprocessSpec

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
    assert found["peak_mb"] < 1.5 * 64
