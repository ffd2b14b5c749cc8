"""Sources: the classes of a data set, its digest, and its images not decoded yet.

    digits      scikit-learn's scans, 8x8 grey
    folder      train/CLASS/*.png and test/CLASS/*.png, local or s3://
    parquet     train*.parquet and test*.parquet in Hugging Face's layout, local or s3://

Covered: missing, empty and mislabelled parts, each a DataError that says what to do. Not covered: whether an image can
be decoded; datasets.py finds that out. What has to be downloaded is in downloads.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rayapp.config import DataConfig
from rayapp.errors import DataError
from rayapp.vision.preprocess import UInt8Array
from rayapp.vision.tree import Tree

logger = logging.getLogger(__name__)

Int64Array = NDArray[np.int64]

# The part of a data set that comes without test images which is kept as such. Constants: there is one test part.
TEST_FRACTION, TEST_SEED = 0.2, 0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".ico")
PARQUET_ROWS = 256  # read at once: photographs of 5 MB make 1.3 GB of it


class Item(NamedTuple):
    """An image before it is decoded: a name to find it by, and what reads its file, or its (H, W[, 3]) array."""

    name: str
    read: Callable[[], bytes | UInt8Array]


@dataclass(frozen=True)
class Part:
    """The training or the test images of a source in a fixed order; each call of items starts anew."""

    labels_n: Int64Array
    items: Callable[[], Iterable[Item]]

    @classmethod
    def of_arrays(cls, images: UInt8Array, labels: ArrayLike) -> Part:
        """Images that are in memory."""
        return cls(
            np.asarray(labels, dtype=np.int64),
            lambda: (Item(f"image {index}", partial(images.__getitem__, index)) for index in range(len(images))),
        )

    def subset(self, indices_n: Int64Array) -> Part:
        """The images at indices_n, which are sorted."""
        wanted_n = np.zeros(len(self.labels_n), dtype=bool)
        wanted_n[indices_n] = True
        return Part(self.labels_n[indices_n], lambda: compress(self.items(), wanted_n))


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded. digest covers training and test; only test() opens test images.

    flip: a mirror image is of the same class. image_px None: images keep their size, where all have one.
    """

    class_names: tuple[str, ...]
    digest: str
    num_test: int
    train: Part
    test: Callable[[], Part]
    flip: bool = True
    image_px: int | None = None


def digest_of(value: object) -> str:
    """ "sha256:..." of a value made of lists, dicts, strings and numbers."""
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stratified(
    labels_n: Int64Array, class_names: tuple[str, ...], *, fraction: float, seed: int
) -> tuple[Int64Array, Int64Array]:
    """Sorted indices of what stays and of what is set apart, each class in the same proportion in both.

    Raises DataError where a class has fewer than 2 images, or a part would have fewer images than there are classes.
    """
    counts_k = np.bincount(labels_n, minlength=len(class_names))
    if counts_k.min() < 2:
        label = int(counts_k.argmin())
        raise DataError(
            f"class '{class_names[label]}' has {counts_k[label]} training images, and a split needs at least 2 of"
            " each class; add some, or take the class out"
        )
    try:
        kept_n, apart_n = train_test_split(
            np.arange(len(labels_n)), test_size=fraction, random_state=seed, stratify=labels_n
        )
    except ValueError as error:
        raise DataError(
            f"a split of {len(labels_n)} images at {fraction:.0%} cannot hold one of each of the {len(class_names)}"
            " classes in both parts; add images, or raise --data.validation_fraction"
        ) from error
    return np.sort(kept_n).astype(np.int64), np.sort(apart_n).astype(np.int64)


def held_out(part: Part, class_names: tuple[str, ...]) -> tuple[Part, Part]:
    """part as training and test images, cut in the same way on every machine."""
    train_n, test_n = stratified(part.labels_n, class_names, fraction=TEST_FRACTION, seed=TEST_SEED)
    return part.subset(train_n), part.subset(test_n)


# --- digits -----------------------------------------------------------------------------------------------------------


def digits(config: DataConfig, data_folder: Path) -> Source:
    """1,797 scans of handwritten digits (UCI, optical recognition), enlarged to 32x32; 360 of them for the test."""
    scans = load_digits()
    images_nhw = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    class_names = tuple(str(name) for name in scans.target_names)
    train, test = held_out(Part.of_arrays(images_nhw, scans.target), class_names)
    digest = digest_of([hashlib.sha256(images_nhw.tobytes()).hexdigest(), scans.target.tolist()])
    return Source(class_names, digest, len(test.labels_n), train, lambda: test, flip=False, image_px=32)


# --- folder -----------------------------------------------------------------------------------------------------------


def folder(config: DataConfig, data_folder: Path) -> Source:
    """Images in train/CLASS/ and test/CLASS/; the classes are the sorted folder names of train."""
    tree = Tree.open(str(config.path))
    train, test = _class_folders(tree, "train"), _class_folders(tree, "test")
    if not train:
        raise DataError(f"{tree.uri} has no images in train/CLASS/ (found: {tree.top}); put them there by class")
    class_names = tuple(sorted(train))
    if unknown := sorted(set(test) - set(train)):
        raise DataError(
            f"{tree.uri}/test/{unknown[0]} is a class that train lacks (there: {', '.join(class_names[:10])});"
            " add it there or remove it"
        )

    def part(paths: dict[str, list[str]]) -> Part:
        pairs = [(label, path) for label, name in enumerate(class_names) for path in paths.get(name, ())]
        return Part(
            np.array([label for label, _ in pairs], dtype=np.int64),
            lambda: (Item(f"{tree.uri}/{path}", partial(tree.read, path)) for _, path in pairs),
        )

    used = [path for paths in (*train.values(), *test.values()) for path in paths]
    digest = digest_of(tree.digests(used, data_folder / "digests"))
    return _source(config, class_names, digest, part(train), part(test) if test else None)


def _class_folders(tree: Tree, name: str) -> dict[str, list[str]]:
    """Class -> its images in the folder called name. Raises DataError where a class has none."""
    images: dict[str, list[str]] = {path.split("/")[1]: [] for path in tree.folders if path.startswith(f"{name}/")}
    for path in tree.files:
        if path.startswith(f"{name}/") and path.count("/") > 1 and path.lower().endswith(IMAGE_SUFFIXES):
            images.setdefault(path.split("/")[1], []).append(path)
    for class_name, paths in sorted(images.items()):
        if not paths:
            raise DataError(
                f"the class folder {tree.uri}/{name}/{class_name} holds no images ({' '.join(IMAGE_SUFFIXES)});"
                " put some there or remove it"
            )
    return images


def _source(config: DataConfig, class_names: tuple[str, ...], digest: str, train: Part, test: Part | None) -> Source:
    """The source; where test is None, training images are kept as such."""
    if test is None:
        train, test = held_out(train, class_names)
        logger.info(
            "%s has no test part: kept %d of its images as one (fixed seed %d, by class), %d stay for training",
            config.path, len(test.labels_n), TEST_SEED, len(train.labels_n),
        )  # fmt: skip
    found = test
    return Source(class_names, digest, len(found.labels_n), train, lambda: found, image_px=config.image_px)


# --- parquet ----------------------------------------------------------------------------------------------------------


def parquet(config: DataConfig, data_folder: Path) -> Source:
    """Rows with image{bytes, path} and label; class names from Hugging Face's metadata, else "0", "1", and so on."""
    tree = Tree.open(str(config.path))
    train, test = _parquet_files(tree, "train"), _parquet_files(tree, "test")
    if not train:
        raise DataError(
            f"{tree.uri} has no train.parquet or train-*.parquet, nor has its folder data/ (found: {tree.top});"
            " put it there, or check --data.path"
        )
    named = _class_names(tree, train[0])
    labels_n = _labels(tree, train, named)
    class_names = named or tuple(str(label) for label in range(int(labels_n.max()) + 1))
    part = Part(labels_n, partial(_rows, tree, train))
    test_part = Part(_labels(tree, test, class_names), partial(_rows, tree, test)) if test else None
    digest = digest_of(tree.digests([*train, *test], data_folder / "digests"))
    return _source(config, class_names, digest, part, test_part)


def _parquet_files(tree: Tree, name: str) -> list[str]:
    patterns = [f"{under}{name}{end}" for under in ("", "data/") for end in (".parquet", "-*.parquet")]
    return [path for path in tree.files if any(fnmatch(path, pattern) for pattern in patterns)]


def _class_names(tree: Tree, path: str) -> tuple[str, ...]:
    """The names in Hugging Face's metadata, () without any. Raises DataError where a column is missing."""
    with tree.open_file(path) as file:
        schema = pq.read_schema(file)
    columns = dict(zip(schema.names, schema.types, strict=True))
    image = columns.get("image")
    has_bytes = image is not None and pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not has_bytes or not pa.types.is_integer(columns.get("label", pa.null())):
        found = ", ".join(f"{name}: {kind}" for name, kind in columns.items())
        raise DataError(
            f"{tree.uri}/{path} needs the columns image: struct<bytes, path> and label: int64 (found: {found})"
        )
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (ValueError, KeyError, TypeError):
        return ()  # not written by Hugging Face's library, or without names


def _labels(tree: Tree, paths: list[str], class_names: tuple[str, ...]) -> Int64Array:
    """The labels of all rows. Raises DataError where one is missing or out of range, or there are no rows."""
    columns = []
    for path in paths:
        with tree.open_file(path) as file:
            column = pq.read_table(file, columns=["label"])["label"]
        labels = column.fill_null(-1).to_numpy().astype(np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= (len(class_names) or np.inf)))
        if len(wrong):
            allowed = f"0 to {len(class_names) - 1}" if class_names else "0 or more"
            raise DataError(
                f"{tree.uri}/{path}, row {wrong[0]}: label {column[int(wrong[0])].as_py()} is out of range (allowed:"
                f" {allowed}; rows concerned: {len(wrong)}); correct the labels, or the class names in the metadata"
            )
        columns.append(labels)
    labels_n = np.concatenate(columns)
    if not len(labels_n):
        raise DataError(f"{tree.uri}: {', '.join(paths)} have no rows; put images there, or check --data.path")
    return labels_n


def _rows(tree: Tree, paths: list[str]) -> Iterator[Item]:
    """The images of all rows, in order."""
    for path in paths:
        row = 0
        with tree.open_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(PARQUET_ROWS, columns=["image.bytes"]):
                for data in batch.column(0).field("bytes").to_pylist():
                    yield Item(f"{tree.uri}/{path}, row {row}", partial(bytes, data or b""))
                    row += 1
