"""CIFAR-10 from Parquet files, without rayapp's data sets: numpy, Pillow and pyarrow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.data.preprocess import Images, PreprocessSpec
from rayapp.errors import DataError

IMAGE_PX, NUM_CLASSES = 32, 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, in units of 0-1
VALIDATION_FRACTION, SPLIT_SEED = 0.1, 0


def read_images(path: Path) -> Images:
    """The images of a file with the columns image{bytes, path} and label. Raises DataError without the file."""
    if not path.exists():
        raise DataError(f"{path} is not there; give --data a folder of train.parquet and test.parquet")
    table, spec = pq.read_table(path), PreprocessSpec(height_px=IMAGE_PX, width_px=IMAGE_PX)
    images_nhwc = np.empty((len(table), IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    for at, data in enumerate(table["image"].combine_chunks().field("bytes")):
        images_nhwc[at] = spec.decode(data.as_py())
    return Images(images_nhwc, table["label"].to_numpy().astype(np.int64))


def split(labels_n: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices for training and for validation: the same tenth of each class always."""
    rng = np.random.default_rng(SPLIT_SEED)
    apart = []
    for label in range(NUM_CLASSES):
        of_class = rng.permutation(np.flatnonzero(labels_n == label))
        apart.append(of_class[: round(VALIDATION_FRACTION * len(of_class))])
    validation_n = np.sort(np.concatenate(apart))
    return np.setdiff1d(np.arange(len(labels_n)), validation_n), validation_n
