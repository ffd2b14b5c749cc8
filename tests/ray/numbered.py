"""Data sets of images that carry their number, and what streams of them deliver."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from rayapp.config.train import DataConfig
from rayapp.data.chunks import SplitSource
from rayapp.data.datasets import load
from rayapp.data.preprocess import PreprocessSpec
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import Batch, Shard

CPU = torch.device("cpu")
SPEC = PreprocessSpec(height_px=8, width_px=8)
STILL = Augment(crop_padding_px=0, flip=False, cutout_px=0)


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


def part_of(kind: str, path: str, home: Path) -> SplitSource:
    part = load(DataConfig(dataset=kind, path=path, stream=True, on_error="skip"), home).train  # type: ignore[arg-type]
    assert isinstance(part, SplitSource)
    return part


def streamed(part: SplitSource, *, rank: int = 0, world: int = 1, **options: Any):  # type: ignore[no-untyped-def]
    from rayapp.train.streaming import StreamingLoader

    defaults: dict[str, Any] = {"batch_size": 10, "preprocess": SPEC, "memory_bytes": 64 * 2**20, "on_error": "fail"}
    return StreamingLoader(part, device=CPU, shard=Shard(rank, world), **(defaults | options))


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
    """Whether both have equally many batches, with the same bits."""
    pairs = list(itertools.zip_longest(ones, others, fillvalue=()))
    fields = [pair for one, other in pairs for pair in itertools.zip_longest(one, other)]
    return all(a is b or torch.equal(a, b) for a, b in fields)
