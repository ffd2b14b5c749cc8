"""Data sets by name: class names, decoded images, fixed splits and digests.

    DataConfig ─> Source (sources.py, downloads.py) ─> Decoded, once a machine (decoded.py) ─> Dataset

The test images are opened by Dataset.test alone, so that training never sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from rayapp.config import DataConfig, DatasetName
from rayapp.vision.decoded import Channels, Decoded, open_decoded
from rayapp.vision.downloads import torchvision_set
from rayapp.vision.preprocess import PreprocessSpec, UInt8Array
from rayapp.vision.sources import Int64Array, Source, digest_of, digits, folder, parquet, stratified

SOURCES: dict[DatasetName, Callable[[DataConfig, Path], Source]] = {
    "digits": digits,
    "cifar10": partial(torchvision_set, "CIFAR10"),
    "cifar100": partial(torchvision_set, "CIFAR100"),
    "fashion_mnist": partial(torchvision_set, "FashionMNIST"),
    "folder": folder,
    "parquet": parquet,
}


class DatasetInfo(BaseModel):
    """What is to know of a data set without its images.

    channels: of the source; images always have 3, equal ones where it is grey. mean, std: of the training images, in
    units of 0-1. flip: a mirror image is of the same class. digest: of the files of all parts. num_test: corrupt ones
    included, for nobody has looked yet. num_skipped: corrupt images left out of the training part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DatasetName
    class_names: tuple[str, ...]
    height_px: int
    width_px: int
    channels: Literal[1, 3]
    mean: Channels
    std: Channels
    flip: bool
    digest: str
    num_train: int
    num_test: int
    num_skipped: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def preprocess(self) -> PreprocessSpec:
        """How other images are brought to the size of these."""
        return PreprocessSpec(height_px=self.height_px, width_px=self.width_px)


class Images(NamedTuple):
    """images_nhwc: (N, H, W, 3) uint8 RGB, mapped read-only from a file. labels_n: (N,) int64."""

    images_nhwc: UInt8Array
    labels_n: Int64Array


@dataclass(frozen=True)
class Split:
    """Sorted int64 indices into Dataset.train; no image is in both."""

    train_indices: Int64Array
    validation_indices: Int64Array

    @property
    def digest(self) -> str:
        """ "sha256:..." of both, equal where they are."""
        parts = [indices.astype("<i8").tobytes() for indices in (self.train_indices, self.validation_indices)]
        return digest_of([hashlib.sha256(part).hexdigest() for part in parts])


class Dataset:
    """A data set whose training images are decoded; the test images are when test is first asked for."""

    def __init__(self, info: DatasetInfo, train: Images, open_test: Callable[[], Images]) -> None:
        self.info = info
        self.train = train
        self._open_test = open_test

    @cached_property
    def test(self) -> Images:
        """The official test part, or the one kept as such. Raises DataError."""
        return self._open_test()

    def split(self, config: DataConfig) -> Split:
        """Training and validation images, by class; the same settings give the same split. Raises DataError."""
        kept_n, apart_n = stratified(
            self.train.labels_n,
            self.info.class_names,
            fraction=config.validation_fraction,
            seed=config.split_seed,
        )
        return Split(kept_n, apart_n)


def load(config: DataConfig, data_folder: Path) -> Dataset:
    """The data set that config names; downloads and decoded images are kept in data_folder. Raises DataError."""
    source = SOURCES[config.dataset](config, data_folder)
    decode = partial(open_decoded, cache=data_folder / "decoded", digest=source.digest, on_error=config.on_error)
    train = decode(f"{config.dataset}-train", lambda: source.train, image_px=source.image_px)
    info = DatasetInfo(
        name=config.dataset,
        class_names=source.class_names,
        flip=source.flip,
        digest=source.digest,
        num_train=len(train.labels_n),
        num_test=source.num_test,
        num_skipped=train.about.num_corrupt,
        **train.about.model_dump(include={"height_px", "width_px", "channels", "mean", "std"}),
    )

    def test() -> Images:
        return _images(decode(f"{config.dataset}-test", source.test, image_px=info.preprocess))

    return Dataset(info, _images(train), test)


def _images(decoded: Decoded) -> Images:
    return Images(decoded.images_nhwc, decoded.labels_n)
