"""Sources: the classes of a data set, its digest, and its images not decoded yet.

    digits      scikit-learn's scans, 8x8 grey
    folder      train/CLASS/*.png, test/CLASS/*.png and validation/CLASS/*.png, local or s3://
    parquet     train*.parquet, test*.parquet and validation*.parquet in Hugging Face's layout, local or s3://

Covered: missing, empty and mislabelled parts, each a DataError that says what to do. Not covered: whether an image can
be decoded; decoded.py finds that out. What has to be downloaded is in downloads.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq

from rayapp.config.train import DataConfig
from rayapp.data.chunks import Chunk, Int64Array, Sample, SplitSource
from rayapp.data.files import Reader, Tree, say_passed_over
from rayapp.data.labels import (
    Classes,
    Columns,
    LabelledFile,
    classes_of,
    labels_in,
    read_labels,
    require_images_of_each,
)
from rayapp.data.preprocess import image_suffixes
from rayapp.errors import DataError, ImageError

logger = logging.getLogger(__name__)

# The part of a data set that comes without test images which is kept as such. Constants: there is one test part.
TEST_FRACTION, TEST_SEED = 0.2, 0
PARQUET_ROWS = 64  # read at once: photographs of 5 MB make 320 MB of it
PARQUET_BYTES = 8 * 2**20  # read at once: a request to a bucket of this size is about as fast as it gets
VALIDATION = ("validation", "val", "valid", "dev")  # what validation images are called beside train and test
FOLDER_FILES = 16  # of a chunk: few, for the files of a folder are sorted by class, and chunks are what is shuffled


F = TypeVar("F")


@dataclass(frozen=True)
class Source:
    """A data set before its images are decoded. digest covers all parts; only test() opens test images.

    num_validation: the last so many images of train are the data set's own for validation; 0 where it has none.
    flip: a mirror image is of the same class. image_px None: images keep their size, where all have one.
    """

    class_names: tuple[str, ...]
    digest: str
    num_test: int
    train: SplitSource
    test: Callable[[], SplitSource]
    flip: bool = True
    image_px: int | None = None
    num_validation: int = 0


def digest_of(value: object) -> str:
    """ "sha256:..." of a value made of lists, dicts, strings and numbers."""
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stratified_split(
    labels_n: Int64Array, class_names: tuple[str, ...], *, fraction: float, seed: int
) -> tuple[Int64Array, Int64Array]:
    """Sorted indices of what stays and of what is set apart, each class in the same proportion in both.

    Raises DataError where a class has fewer than 2 images, or a part would have fewer images than there are classes.
    """
    from sklearn.model_selection import train_test_split  # 1.5 s and 120 MB, which processes that only decode can spare

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


def held_out(part: SplitSource, class_names: tuple[str, ...]) -> tuple[SplitSource, SplitSource]:
    """part as training and test images, cut in the same way on every machine."""
    train_n, test_n = stratified_split(part.labels_n, class_names, fraction=TEST_FRACTION, seed=TEST_SEED)
    return part.subset(train_n), part.subset(test_n)


def digits(config: DataConfig, data_folder: Path) -> Source:
    """1,797 scans of handwritten digits (UCI, optical recognition), enlarged to 32x32; 360 of them for the test."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images_nhw = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    class_names = tuple(str(name) for name in scans.target_names)
    train, test = held_out(SplitSource.of_arrays(images_nhw, scans.target), class_names)
    digest = digest_of([hashlib.sha256(images_nhw.tobytes()).hexdigest(), scans.target.tolist()])
    return Source(class_names, digest, len(test.labels_n), train, lambda: test, flip=False, image_px=32)


def folder(config: DataConfig, data_folder: Path) -> Source:
    """Images in train/CLASS/, test/CLASS/ and validation/CLASS/; the classes are the sorted folder names of train."""
    tree = Tree.open(str(config.path))
    train, test = _class_folders(tree, "train"), _class_folders(tree, "test")
    if not train:
        raise DataError(f"{tree.uri} has no images in train/CLASS/ (found: {tree.top}); put them there by class")
    class_names = tuple(sorted(train))
    name, validation = _validation(tree, _class_folders)
    for part, images in ((name, validation or {}), ("test", test)):
        if unknown := sorted(set(images) - set(train)):
            raise DataError(
                f"{tree.uri}/{part}/{unknown[0]} is a class that train lacks (there: {', '.join(class_names[:10])});"
                " add it there or remove it"
            )

    used = [path for images in (train, validation or {}, test) for paths in images.values() for path in paths]
    suffixes = " ".join(image_suffixes())
    say_passed_over(tree, used, f"images ({suffixes}) in train/CLASS/, validation/CLASS/ and test/CLASS/")
    digest = digest_of(tree.digests(used, data_folder / "digests"))
    parts = [_folder_split(tree, class_names, images) if images else None for images in (validation, test)]
    return _source(config, class_names, digest, _folder_split(tree, class_names, train), *parts)


def _validation(tree: Tree, find: Callable[[Tree, str], F]) -> tuple[str, F | None]:
    """What the images for validation are called, and what find finds of them; None where there are none.

    Raises DataError where there are some under two names.
    """
    found = {name: images for name in VALIDATION if (images := find(tree, name))}
    if len(found) > 1:
        raise DataError(f"{tree.uri} has validation images under several names ({', '.join(found)}); keep one of them")
    return next(iter(found.items()), (VALIDATION[0], None))


def _folder_split(tree: Tree, class_names: tuple[str, ...], images: dict[str, list[str]]) -> SplitSource:
    """The images by class, a chunk FOLDER_FILES of one class."""
    chunks = [
        chunk for label, name in enumerate(class_names) for chunk in file_chunks(tree, images.get(name, []), label)
    ]
    return SplitSource(tuple(chunks))


def file_chunks(tree: Tree, paths: list[str], label: int) -> Iterator[Chunk]:
    """Image files that all have this label."""
    for at in range(0, len(paths), FOLDER_FILES):
        run = paths[at : at + FOLDER_FILES]
        labels_n = np.full(len(run), label, dtype=np.int64)
        yield Chunk.whole(partial(_file_items, tree.reader, run), labels_n, scattered=tree.is_remote)


def _file_items(reader: Reader, paths: list[str]) -> Iterator[Sample]:
    return (Sample(f"{reader.uri}/{path}", partial(reader.read, path)) for path in paths)


def _class_folders(tree: Tree, name: str) -> dict[str, list[str]]:
    """Class -> its images in the folder called name. Raises DataError where a class has none."""
    images: dict[str, list[str]] = {path.split("/")[1]: [] for path in tree.folders if path.startswith(f"{name}/")}
    for path in tree.files:
        if path.startswith(f"{name}/") and path.count("/") > 1 and path.lower().endswith(image_suffixes()):
            images.setdefault(path.split("/")[1], []).append(path)
    for class_name, paths in sorted(images.items()):
        if not paths:
            raise DataError(
                f"the class folder {tree.uri}/{name}/{class_name} holds no images ({' '.join(image_suffixes())};"
                f" found: {tree.first_below(f'{name}/{class_name}/')}); put some there or remove it"
            )
    return images


def _source(
    config: DataConfig,
    class_names: tuple[str, ...],
    digest: str,
    train: SplitSource,
    validation: SplitSource | None,
    test: SplitSource | None,
) -> Source:
    """The source; where test is None, training images are kept as such."""
    if test is None:
        train, test = held_out(train, class_names)
        logger.info(
            "%s has no test part: kept %d of its images as one (fixed seed %d, by class), %d stay for training",
            config.path, len(test.labels_n), TEST_SEED, len(train.labels_n),
        )  # fmt: skip
    found, own = test, 0 if validation is None else len(validation.labels_n)
    if validation is not None:
        train = SplitSource((*train.chunks, *validation.chunks))
        logger.info("%s has %d images for validation: none is taken from training", config.path, own)
    num_test, px = len(found.labels_n), config.image_px
    return Source(class_names, digest, num_test, train, lambda: found, image_px=px, num_validation=own)


def parquet(config: DataConfig, data_folder: Path) -> Source:
    """Rows with image{bytes, path} and label; class names from Hugging Face's metadata, else the labels as text."""
    tree = Tree.open(str(config.path))
    train, test = _parquet_files(tree, "train"), _parquet_files(tree, "test")
    if not train:
        raise DataError(
            f"{tree.uri} has no train.parquet or train-*.parquet, nor has its folder data/ (found: {tree.top});"
            " put it there, or check --data.path"
        )
    validation = _validation(tree, _parquet_files)[1] or []
    used = [*train, *validation, *test]
    say_passed_over(tree, used, "train.parquet, train-*.parquet, validation and test likewise, here or in data/,")
    columns = Columns(config.image_column, config.label_column)
    files = [[read_labels(tree, path, columns) for path in paths] for paths in (train, validation, test)]
    classes = classes_of(files[0])
    part = _parquet_split(tree, files[0], classes, columns)
    require_images_of_each(classes, part.labels_n)
    others = [_parquet_split(tree, found, classes, columns) if found else None for found in files[1:]]
    digests = tree.digests(used, data_folder / "digests")
    usual = columns == Columns(label="label")
    digest = digest_of(digests if usual else {"files": digests, "columns": columns})
    return _source(config, classes.names, digest, part, *others)


def _parquet_files(tree: Tree, name: str) -> list[str]:
    patterns = [f"{under}{name}{end}" for under in ("", "data/") for end in (".parquet", "-*.parquet")]
    return [path for path in tree.files if any(fnmatch(path, pattern) for pattern in patterns)]


def _parquet_split(tree: Tree, files: list[LabelledFile], classes: Classes, columns: Columns) -> SplitSource:
    """All rows, a chunk a row group. Raises DataError where a label is wrong, or there are no rows."""
    chunks: list[Chunk] = []
    for file in files:
        chunks += row_chunks(tree, file.path, file.metadata, labels_in(classes, file), columns)
    part = SplitSource(tuple(chunks))
    if not part.chunks:
        paths = ", ".join(file.path for file in files)
        raise DataError(f"{tree.uri}: {paths} have no rows; put images there, or check --data.path")
    return part


def row_chunks(
    tree: Tree, path: str, metadata: pq.FileMetaData, labels_n: Int64Array, columns: Columns
) -> Iterator[Chunk]:
    """The rows of a Parquet file, a chunk a row group that has any."""
    start = 0
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        if end > start:
            yield Chunk.whole(partial(_row_items, tree.reader, path, columns.image, group, start), labels_n[start:end])
        start = end


def _row_items(reader: Reader, path: str, column: str, group: int, first: int) -> Iterator[Sample]:
    """The images of a row group, whose first row is number first of its file; they are never all in memory."""
    row = first
    with reader.open_file(path) as file:
        parquet = pq.ParquetFile(file, buffer_size=PARQUET_BYTES)
        for batch in parquet.iter_batches(
            PARQUET_ROWS, row_groups=[group], columns=[f"{column}.bytes", f"{column}.path"]
        ):
            for image in batch.column(0).to_pylist():
                image = image or {}
                yield Sample(f"{reader.uri}/{path}", partial(_row_bytes, image.get("bytes"), image.get("path")), row)
                row += 1


def _row_bytes(data: bytes | None, path: str | None) -> bytes:
    """The image file in a row. Raises ImageError where the row has its path alone."""
    if data is None and path is not None:
        raise ImageError(f"the row has the path of its image ({path}) and not its bytes; write them into it")
    return data or b""
