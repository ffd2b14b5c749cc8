"""Data sets by name: class names, decoded images, fixed splits and digests.

    DataConfig ─> Source (sources.py, downloads.py) ─> Decoded, once a machine (decoded.py) ─> Dataset
                                                   └─> Part, where images are streamed ──────┘

The test images are opened by Dataset.test alone, so that training never sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from rayapp.config.base import DatasetName
from rayapp.config.train import DataConfig
from rayapp.data.cache import Channels, open_decoded
from rayapp.data.chunks import Int64Array, SplitSource
from rayapp.data.preprocess import Images, PreprocessSpec
from rayapp.data.sources import Source, digest_of, digits, folder, parquet, stratified_split
from rayapp.data.torchvision_sets import torchvision_set
from rayapp.errors import ConfigError, DataError

SOURCES: dict[DatasetName, Callable[[DataConfig, Path], Source]] = {
    "digits": digits,
    "cifar10": partial(torchvision_set, "CIFAR10"),
    "cifar100": partial(torchvision_set, "CIFAR100"),
    "fashion_mnist": partial(torchvision_set, "FashionMNIST"),
    "folder": folder,
    "parquet": parquet,
}

# Of a streamed set: its mean is known to 0.25 / sqrt(2048) = 0.6 % of the range. Constants: a sample must not change.
SAMPLE, SAMPLE_SEED, SAMPLE_OF_A_CHUNK = 2048, 0, 32

DEFAULT_FRACTION = 0.1  # of the training images, for validation
SPLIT_SETTINGS = {"data.validation_fraction", "data.split_seed"}


class DatasetInfo(BaseModel):
    """What is to know of a data set without its images.

    channels: of the source; images always have 3, equal ones where it is grey. mean, std: of the training images, in
    units of 0-1. flip: a mirror image is of the same class. digest: of the files of all parts. num_test: corrupt ones
    included, for nobody has looked yet. num_skipped: corrupt images left out of the training part.

    Where images are streamed, nobody has looked at the training images either: num_train counts corrupt ones,
    num_skipped is 0, and channels, mean, std and (without --data.image_px) the size are those of a fixed sample.
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
    """A data set. train: its decoded training images; where they are streamed, the part that holds them undecoded.

    num_validation: the last so many of them are the data set's own for validation; 0 where it has none.
    """

    def __init__(
        self,
        info: DatasetInfo,
        train: Images | SplitSource,
        *,
        test: Callable[[], SplitSource],
        decode: Callable[[str, Callable[[], SplitSource]], Images],
        num_validation: int = 0,
    ) -> None:
        self.info = info
        self.num_validation = num_validation
        self.train = train
        self._test_part = test
        self._decode = decode

    @cached_property
    def test(self) -> Images:
        """The official test part, or the one kept as such. Raises DataError."""
        return self._decode("test", self._test_part)

    def split(self, config: DataConfig) -> Split:
        """Training and validation images: the data set's own, else by class, the same settings giving the same split.

        Raises DataError, and ConfigError where settings of a split have no effect.
        """
        names = self.info.class_names
        if len(names) < 2:
            raise DataError(
                f"'{names[0]}' is the only class of the data set; a classifier needs 2 or more, add another"
            )
        if self.num_validation:
            return self._own_split(config)
        kept_n, apart_n = stratified_split(
            self.train.labels_n,
            names,
            fraction=DEFAULT_FRACTION if config.validation_fraction is None else config.validation_fraction,
            seed=config.split_seed or 0,
        )
        return Split(kept_n, apart_n)

    def _own_split(self, config: DataConfig) -> Split:
        self.require_effect(f"data.{name}" for name, value in config.model_dump().items() if value is not None)
        total = len(self.train.labels_n)
        first = total - self.num_validation
        counts_k = np.bincount(self.train.labels_n[:first], minlength=self.info.num_classes)
        if not counts_k.all():
            name = self.info.class_names[int(counts_k.argmin())]
            raise DataError(
                f"class '{name}' has no training image that can be decoded; add some, or take the class out"
            )
        return Split(np.arange(first), np.arange(first, total))

    def require_effect(self, given: Iterable[str]) -> None:
        """Raises ConfigError where one of the settings given is of a split that this data set needs none of."""
        if self.num_validation and (unused := sorted(SPLIT_SETTINGS & set(given))):
            raise ConfigError(
                f"{' and '.join(unused)} has no effect: the data set has {self.num_validation} images for validation;"
                " leave it out, or take those images away"
            )

    def validation(self, config: DataConfig) -> Images:
        """The validation images of split(config); streamed ones are decoded and kept on disk. Raises DataError."""
        split, train = self.split(config), self.train
        rows_n = split.validation_indices
        if isinstance(train, Images):
            return Images(train.images_nhwc[rows_n], train.labels_n[rows_n])
        return self._decode(f"validation-{split.digest[-8:]}", lambda: train.subset(rows_n))


def load(config: DataConfig, data_folder: Path) -> Dataset:
    """The data set that config names; downloads and decoded images are kept in data_folder. Raises DataError."""
    source = SOURCES[config.dataset](config, data_folder)
    open_part = partial(open_decoded, cache=data_folder / "decoded", digest=source.digest, on_error=config.on_error)
    name, part = ("sample", sample(source.train)) if config.stream else ("train", source.train)
    seen = open_part(f"{config.dataset}-{name}", lambda: part, image_px=source.image_px)
    train = source.train if config.stream else Images(seen.images_nhwc, seen.labels_n)
    info = DatasetInfo(
        name=config.dataset,
        class_names=source.class_names,
        flip=source.flip,
        digest=source.digest,
        num_train=len(train.labels_n),
        num_test=source.num_test,
        num_skipped=0 if config.stream else seen.about.num_corrupt,
        **seen.about.model_dump(include={"height_px", "width_px", "channels", "mean", "std"}),
    )

    def decode(name: str, part: Callable[[], SplitSource]) -> Images:
        found = open_part(f"{config.dataset}-{name}", part, image_px=info.preprocess)
        return Images(found.images_nhwc, found.labels_n)

    num_validation = source.num_validation
    if num_validation and not config.stream:  # corrupt ones are not there
        first = len(source.train.labels_n) - num_validation
        num_validation -= sum(row >= first for row in seen.about.corrupt_rows)
        if not num_validation:
            raise DataError(f"none of the {source.num_validation} images for validation can be decoded; replace them")
    return Dataset(info, train, test=source.test, decode=decode, num_validation=num_validation)


def sample(part: SplitSource) -> SplitSource:
    """SAMPLE images of part, or all if there are fewer; the same ones each time, some of each of many chunks."""
    rng = np.random.default_rng(SAMPLE_SEED)
    of_a_chunk = max(SAMPLE_OF_A_CHUNK, -(-SAMPLE // len(part.chunks)))
    rows: list[Int64Array] = []
    for at in rng.permutation(len(part.chunks)):
        size = len(part.chunks[at])
        rows.append(part.starts_m[at] + rng.permutation(size)[:of_a_chunk])
        if sum(map(len, rows)) >= SAMPLE:
            break
    return part.subset(np.sort(np.concatenate(rows)))
