"""The images of the benchmarks of training: a part of CIFAR-10 in a folder, or digits, which need no download."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import frame
from rayapp.errors import DataError

IMAGE_PX = 32
NUM_TEST = 100  # test images in the subset: nobody opens them, but a data set has some


def add_options(parser: argparse.ArgumentParser) -> None:
    """--data and --images."""
    parser.add_argument(
        "--data", type=frame.path, metavar="FOLDER",
        help="CIFAR-10 as train.parquet and test.parquet [scikit-learn's digits, enlarged to 32x32]",
    )  # fmt: skip
    parser.add_argument("--images", type=frame.count, default=4000, help="training and validation images [4000]")


def write(options: argparse.Namespace, target: Path) -> tuple[int, str]:
    """How many training images the new folder target holds, and of what. The same ones always."""
    train, test = _read(options.data) if options.data else _digits()
    target.mkdir()
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[: options.images])
    pq.write_table(train.take(rows), target / "train.parquet")
    pq.write_table(test.slice(0, NUM_TEST), target / "test.parquet")
    name = options.data or "scikit-learn's digits"
    return len(rows), f"{len(rows):,} training images of {name}, a tenth of them for validation"


def _read(folder: Path) -> tuple[pa.Table, pa.Table]:
    files = [folder / f"{part}.parquet" for part in ("train", "test")]
    if missing := [path for path in files if not path.exists()]:
        raise DataError(f"{missing[0]} is not there; give --data a folder of train.parquet and test.parquet")
    train, test = (pq.read_table(path) for path in files)
    return train, test


def _digits() -> tuple[pa.Table, pa.Table]:
    """1,797 scans in grey, most of them for training, with the columns and the size of CIFAR-10."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images_nhw = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images_nhw))
    rows = [{"image": {"bytes": _png(images_nhw[n]), "path": None}, "label": int(scans.target[n])} for n in order]
    return pa.Table.from_pylist(rows[NUM_TEST:]), pa.Table.from_pylist(rows[:NUM_TEST])


def _png(image_hw: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_hw).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BILINEAR).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
