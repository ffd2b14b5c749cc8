"""Small images, and data sets of them as files on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rayapp.config.train import DataConfig
from rayapp.data.preprocess import Images

if TYPE_CHECKING:  # what serves has no data sets, and torch comes with them
    from rayapp.data.datasets import Dataset


def picture(seed: int = 0, *, height: int = 32, width: int = 32, mode: str = "RGB") -> Image.Image:
    """A noisy image."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def coloured_squares(n: int, *, classes: int = 3, px: int = 8, seed: int = 0) -> Images:
    """n noisy images whose strongest channel is their class."""
    rng = np.random.default_rng(seed)
    labels_n = np.arange(n) % classes
    images_nhwc = rng.integers(0, 120, (n, px, px, 3))
    images_nhwc[np.arange(n), :, :, labels_n] += 100
    return Images(images_nhwc.astype(np.uint8), labels_n.astype(np.int64))


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
    from rayapp.data.datasets import load

    return load(DataConfig(dataset="folder", path=str(root), **settings), home)


def open_parquet(root: Path | str, home: Path, **settings: Any) -> Dataset:
    from rayapp.data.datasets import load

    return load(DataConfig(dataset="parquet", path=str(root), **settings), home)
