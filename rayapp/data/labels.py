"""Labels: what the Parquet files of a data set say of its classes, each file put to the same questions, once."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.data.chunks import Int64Array
from rayapp.data.files import Tree
from rayapp.errors import DataError

logger = logging.getLogger(__name__)

BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


class Columns(NamedTuple):
    """Where images and labels are in a Parquet file; label None: nobody asks for labels."""

    image: str = "image"
    label: str | None = None


class LabelledFile(NamedTuple):
    """A Parquet file of images: its labels as they stand in it, and the names that it has for them, () without any."""

    path: str
    name: str  # in messages
    metadata: pq.FileMetaData
    column: pa.ChunkedArray
    labels_n: Int64Array
    names: tuple[str, ...]


def read_labels(tree: Tree, path: str, columns: Columns) -> LabelledFile:
    """What is to know of the file at path but its images. Raises DataError where a column or a label is wrong."""
    name = f"{tree.uri}/{path}"
    with tree.open_file(path) as opened:
        parquet = pq.ParquetFile(opened)
        schema = parquet.schema_arrow
        require_columns(name, schema, columns)
        require_bytes(name, parquet.metadata, columns)
        column = parquet.read(columns=[columns.label])[columns.label]
    file = LabelledFile(path, name, parquet.metadata, column, _whole_numbers(column), _names(name, schema, columns))
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


def require_images_of_each(classes: Classes, labels_n: Int64Array) -> None:
    """Raises DataError where no training image is of one of the classes."""
    without = np.flatnonzero(np.bincount(labels_n, minlength=len(classes.names)) == 0)
    if len(without):
        raise DataError(
            f"{classes.origin} has {len(classes.names)} class names, but no training image is of"
            f" {_listed([repr(classes.names[at]) for at in without])}; add some, or take the names out of its metadata"
        )


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


def require_columns(name: str, schema: pa.Schema, columns: Columns) -> None:
    """Raises DataError where the file called name lacks the images or their labels, or has them twice."""
    there = list(zip(schema.names, schema.types, strict=True))
    wanted = [f"{columns.image}: struct<bytes, path>"]
    hints = _hint("image", "of bytes and path", [column for column, kind in there if _holds_bytes(kind)], columns.image)
    if columns.label is not None:
        wanted.append(f"{columns.label}: int64")
        numbers = [column for column, kind in there if pa.types.is_integer(kind)]
        hints += _hint("label", "of whole numbers", numbers, columns.label)
    twice = [column for column in columns if schema.names.count(column) > 1]
    if twice:
        hints = [f"give each column a name of its own ('{twice[0]}' is there twice)"]
    if hints:
        found = ", ".join(f"{column}: {kind}" for column, kind in there)
        needed = f"column{'s' * (len(wanted) > 1)} {' and '.join(wanted)}"
        raise DataError(f"{name} needs the {needed} (found: {found}); {' and '.join(hints)}")


def _hint(what: str, kind: str, fitting: list[str], wanted: str) -> list[str]:
    """What to do where the wanted column is none of the fitting ones."""
    if wanted in fitting:
        return []
    if fitting:
        return [f"say --data.{what}_column {' or '.join(fitting[:5])}"]
    return [f"write a column {kind} and name it with --data.{what}_column"]


def require_bytes(name: str, metadata: pq.FileMetaData, columns: Columns) -> None:
    """Raises DataError where the file called name says of itself that it has no bytes of any image."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    chunks = [group.column(at) for group in groups for at in range(group.num_columns)]
    of_bytes = [chunk for chunk in chunks if chunk.path_in_schema == f"{columns.image}.bytes"]
    if metadata.num_rows and all(chunk.is_stats_set and chunk.statistics.has_null_count for chunk in of_bytes):
        missing = sum(chunk.statistics.null_count for chunk in of_bytes)
        if missing == metadata.num_rows:
            raise DataError(
                f"{name} holds no bytes of its images, only paths at most; write the bytes into"
                f" '{columns.image}.bytes', or give the folder of the image files with --data.path"
            )


def _holds_bytes(kind: pa.DataType) -> bool:
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and any(is_bytes(kind.field(at).type) for is_bytes in BYTES)


def _names(name: str, schema: pa.Schema, columns: Columns) -> tuple[str, ...]:
    """The class names in Hugging Face's metadata. Raises DataError where they cannot be read, or one comes twice."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[columns.label]["names"]
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
    if strange := [text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]:
        raise DataError(f"{name}: the class name {strange[0]!a} in its metadata is not UTF-8; write it again")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise DataError(f"{name}: the class name '{twice[0]}' comes twice in its metadata; give each class its own")
    return texts


def _whole_numbers(column: pa.ChunkedArray) -> Int64Array:
    """The labels; -1 where there is none, negative where one is beyond the range of int64."""
    labels_n: Int64Array = column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
    return labels_n
