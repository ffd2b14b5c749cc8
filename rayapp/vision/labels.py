"""Labels: what the Parquet files of a data set say of its classes, each file put to the same questions, once."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.errors import DataError
from rayapp.vision.parts import Int64Array
from rayapp.vision.tree import Tree

logger = logging.getLogger(__name__)

BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


class LabelledFile(NamedTuple):
    """A Parquet file of images: its labels as they stand in it, and the names that it has for them, () without any."""

    path: str
    name: str  # in messages
    metadata: pq.FileMetaData
    column: pa.ChunkedArray
    labels_n: Int64Array
    names: tuple[str, ...]


def read_labels(tree: Tree, path: str) -> LabelledFile:
    """What is to know of the file at path but its images. Raises DataError where a column or a label is wrong."""
    name = f"{tree.uri}/{path}"
    with tree.open_file(path) as opened:
        parquet = pq.ParquetFile(opened)
        schema = parquet.schema_arrow
        require_columns(name, schema, label=True)
        column = parquet.read(columns=["label"])["label"]
    file = LabelledFile(path, name, parquet.metadata, column, _whole_numbers(column), _names(name, schema))
    in_range(file, len(file.names) or None)
    return file


class Classes(NamedTuple):
    """The classes of a data set. numbers_k: the label of each, sorted, where no file has names for them.

    origin: the file that says so, which the others are held against.
    """

    names: tuple[str, ...]
    numbers_k: Int64Array | None
    origin: str


def classes_of(train: Sequence[LabelledFile]) -> Classes:
    """The names in the first training file that has any; without, the labels that there are, as text."""
    for file in train:
        if file.names:
            return Classes(file.names, None, file.name)
    numbers_k = np.unique(np.concatenate([file.labels_n for file in train]))
    return Classes(tuple(map(str, numbers_k.tolist())), numbers_k, train[0].name)


def labels_in(classes: Classes, file: LabelledFile) -> Int64Array:
    """The labels of file as places in classes.names; where it has names of its own, it is these that count.

    Raises DataError where file has a class that classes lacks.
    """
    if file.names and file.names != classes.names:
        return _by_name(classes, file)
    if file.names or classes.numbers_k is None:
        return in_range(file, len(classes.names))
    strange = np.setdiff1d(file.labels_n, classes.numbers_k)
    if len(strange):
        raise DataError(
            f"{file.name}: label {strange[0]} is of a class that the training files lack"
            f" (there: {_listed(classes.names)}); add images of it there, or remove its rows"
        )
    return np.searchsorted(classes.numbers_k, file.labels_n).astype(np.int64)


def _by_name(classes: Classes, file: LabelledFile) -> Int64Array:
    if classes.numbers_k is not None:
        raise DataError(
            f"{file.name} has class names ({_listed(file.names)}) and {classes.origin} has none, so that nobody knows"
            " whether their labels mean the same; write both with the same metadata"
        )
    if unknown := [name for name in file.names if name not in classes.names]:
        raise DataError(
            f"{file.name} has the class '{unknown[0]}' among its class names, which {classes.origin} lacks"
            f" (there: {_listed(classes.names)}); write both with the same class names"
        )
    logger.info(
        "%s has other class names, or in another order, than %s: its labels are taken by name",
        file.name, classes.origin,
    )  # fmt: skip
    place_k = np.array([classes.names.index(name) for name in file.names], dtype=np.int64)
    return place_k[file.labels_n]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def in_range(file: LabelledFile, num_classes: int | None) -> Int64Array:
    """The labels of file. Raises DataError where one is missing, or is none of so many classes (None: of any)."""
    too_high: Any = False if num_classes is None else file.labels_n >= num_classes
    wrong = np.flatnonzero((file.labels_n < 0) | too_high)
    if len(wrong):
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(
            f"{file.name}, row {wrong[0]}: label {file.column[int(wrong[0])].as_py()} is out of range (allowed:"
            f" {allowed}; rows concerned: {len(wrong)}); correct the labels, or the class names in the metadata"
        )
    return file.labels_n


def require_columns(name: str, schema: pa.Schema, *, label: bool) -> None:
    """Raises DataError where the file called name lacks the images, or with label their labels, or has them twice."""
    columns = list(zip(schema.names, schema.types, strict=True))
    images = [kind for column, kind in columns if column == "image"]
    labels = [kind for column, kind in columns if column == "label"]
    labelled = len(labels) == 1 and pa.types.is_integer(labels[0])
    if len(images) != 1 or not _holds_bytes(images[0]) or (label and not labelled):
        found = ", ".join(f"{column}: {kind}" for column, kind in columns)
        needed = "columns image: struct<bytes, path> and label: int64" if label else "column image: struct<bytes, path>"
        raise DataError(f"{name} needs the {needed} (found: {found})")


def _holds_bytes(kind: pa.DataType) -> bool:
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and any(is_bytes(kind.field(at).type) for is_bytes in BYTES)


def _names(name: str, schema: pa.Schema) -> tuple[str, ...]:
    """The class names in Hugging Face's metadata. Raises DataError where they cannot be read, or one comes twice."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError):
        return ()  # not written by Hugging Face's library, or without names
    except ValueError as error:
        raise DataError(
            f"{name}: its metadata 'huggingface' is not JSON in UTF-8 ({error}), so that nobody knows its class names;"
            " write it again, or without metadata"
        ) from error
    if names is None:
        return ()
    if not isinstance(names, list):
        raise DataError(f"{name}: the class names in its metadata are no list ({names!r}); write it again")
    texts = tuple(map(str, names))
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise DataError(f"{name}: the class name '{twice[0]}' comes twice in its metadata; give each class its own")
    return texts


def _whole_numbers(column: pa.ChunkedArray) -> Int64Array:
    """The labels; -1 where there is none, negative where one is beyond the range of int64."""
    labels_n: Int64Array = column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
    return labels_n
