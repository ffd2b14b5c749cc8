"""Small data sets for the tests of this folder, as files on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rayapp.config.train import DataConfig
from rayapp.data.datasets import Dataset, load


def png(value: int, *, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> bytes:
    """A picture with one value in its upper half and none below."""
    image = Image.new(mode, size)
    image.paste(value if mode == "L" else (value, value // 2, 255 - value), (0, 0, size[0], size[1] // 2))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, counts: dict[str, int], **how: Any) -> Path:
    """PNG files root/NAME/0.png and so on, all different."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(png((40 * place + 3 * index) % 256, **how))
    return root


def write_parquet(path: Path, labels: list[Any], *, names: list[str] | None = None, images: Any = None) -> Path:
    """A file in Hugging Face's layout, three rows a row group."""
    images = images or [png(7 * index) for index in range(len(labels))]
    rows = [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(images)]
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def open_folder(root: Path | str, home: Path, **settings: Any) -> Dataset:
    return load(DataConfig(dataset="folder", path=str(root), **settings), home)


def open_parquet(root: Path | str, home: Path, **settings: Any) -> Dataset:
    return load(DataConfig(dataset="parquet", path=str(root), **settings), home)
