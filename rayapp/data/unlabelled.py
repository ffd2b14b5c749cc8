"""Images that are only to be predicted: every image below a folder, or every row of the Parquet files below it.

They are read as training reads its own (sources.py), but for labels and class folders, which nobody needs here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from rayapp.config.base import ImagesKind
from rayapp.config.batch import ImagesConfig
from rayapp.data.chunks import UNLABELLED, Chunk, SplitSource
from rayapp.data.files import NUM_READERS, Tree, say_passed_over
from rayapp.data.labels import Columns, require_bytes, require_columns
from rayapp.data.preprocess import image_suffixes
from rayapp.data.sources import file_chunks, row_chunks
from rayapp.errors import DataError


class Unlabelled(NamedTuple):
    """Images in a fixed order. digest: of names, sizes and times of change of the files; no image was read for it."""

    uri: str
    kind: ImagesKind
    part: SplitSource
    digest: str


def unlabelled(config: ImagesConfig) -> Unlabelled:
    """The images that config names. Raises DataError where there are none, or which are meant is not clear."""
    tree = Tree.open(config.path)
    kind, paths = _found(tree, config)
    columns = Columns(config.image_column)
    if kind == "folder" and columns != Columns():
        raise DataError(f"data.image_column has no effect on the image files in {tree.uri}; leave it out")
    chunks = tuple(file_chunks(tree, paths, UNLABELLED) if kind == "folder" else _rows(tree, paths, columns))
    say_passed_over(tree, paths, f"images ({_suffixes()})" if kind == "folder" else "Parquet files")
    if not chunks:
        raise DataError(f"{tree.uri}: {', '.join(paths[:5])} have no rows; check --data.path")
    return Unlabelled(tree.uri, kind, SplitSource(chunks), tree.listing_digest(paths))


def _suffixes() -> str:
    return " ".join(image_suffixes())


def _found(tree: Tree, config: ImagesConfig) -> tuple[ImagesKind, list[str]]:
    """Which files are meant. Raises DataError where there are none, or of both kinds."""
    paths: dict[ImagesKind, list[str]] = {
        "folder": [path for path in tree.files if path.lower().endswith(image_suffixes())],
        "parquet": [path for path in tree.files if path.lower().endswith(".parquet")],
    }
    kinds = [kind for kind in paths if paths[kind] and config.dataset in (None, kind)]
    if not kinds:
        wanted = {"folder": "image files", "parquet": "Parquet files"}.get(
            str(config.dataset), "image or Parquet files"
        )
        raise DataError(f"{tree.uri} holds no {wanted} (images: {_suffixes()}; found: {tree.top}); check --data.path")
    if len(kinds) > 1:
        raise DataError(
            f"{tree.uri} holds {len(paths['folder'])} images and {len(paths['parquet'])} Parquet files; say which are"
            " meant: --data.dataset folder, or parquet"
        )
    return kinds[0], paths[kinds[0]]


def _rows(tree: Tree, paths: list[str], columns: Columns) -> list[Chunk]:
    """All rows of the files. Raises DataError where one has no images."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        footers = list(pool.map(lambda path: _footer(tree, path, columns), paths))
    chunks: list[Chunk] = []
    for path, metadata in zip(paths, footers, strict=True):
        labels_n = np.full(metadata.num_rows, UNLABELLED, dtype=np.int64)
        chunks += row_chunks(tree, path, metadata, labels_n, columns)
    return chunks


def _footer(tree: Tree, path: str, columns: Columns) -> pq.FileMetaData:
    with tree.open_file(path) as file:
        metadata = pq.read_metadata(file)
    require_columns(f"{tree.uri}/{path}", metadata.schema.to_arrow_schema(), columns)
    require_bytes(f"{tree.uri}/{path}", metadata, columns)
    return metadata
