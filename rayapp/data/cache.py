"""Decoded images: on disk, made once by one process and mapped into memory by all; or a few at a time, kept nowhere.

    CACHE/NAME-KEY/images.npy   (N, H, W, 3) uint8, RGB
                   labels.npy   (N,) int64
                   about.json   size, mean and std, corrupt images

The key is of the source's digest and the size asked for, so a changed source is decoded anew. Old entries are not
removed; any may be deleted at any time that no process uses it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy
from PIL import Image
from pydantic import BaseModel, ValidationError

from rayapp.data.chunks import Chunk, Int64Array, Sample, SplitSource
from rayapp.data.files import NUM_READERS, Progress, write_errors
from rayapp.data.preprocess import PreprocessSpec, UInt8Array, open_image
from rayapp.data.sources import digest_of
from rayapp.errors import DataError, ImageError

logger = logging.getLogger(__name__)

VERSION = 3  # raise it when images or labels come out otherwise than before, or others are kept for the test
OWN_SIZE_PX = (8, 512)  # images that all have one size within it keep it: what --data.image_px allows
MIXED_SIZE_PX = 224  # what others are brought to
CHUNK = 256  # images in memory at once
GREY_MODES = ("1", "L", "LA", "La")
NUM_NAMED = 5  # corrupt images named in messages
MIN_STD = 1 / 255  # of a channel with one value, so that the model can divide by it

Channels = tuple[float, float, float]
OnError = Literal["skip", "fail"]


class DatasetStats(BaseModel):
    """What decoding found out. mean, std: units of 0-1. corrupt: the first of num_corrupt images, with the reason."""

    height_px: int
    width_px: int
    channels: Literal[1, 3]
    mean: Channels
    std: Channels
    num_images: int  # corrupt ones included
    num_corrupt: int
    corrupt: tuple[str, ...]
    corrupt_rows: tuple[int, ...]  # of all of them, where they would be in the part


class Decoded(NamedTuple):
    """The images of a part that could be decoded."""

    images_nhwc: UInt8Array
    labels_n: Int64Array
    about: DatasetStats


def open_decoded(
    name: str,
    part: Callable[[], SplitSource],
    *,
    image_px: int | PreprocessSpec | None,
    cache: Path,
    digest: str,
    on_error: OnError,
) -> Decoded:
    """The images of part, whose source has this digest. image_px None: their own size where all have one, else 224.

    Raises DataError where an image is corrupt and on_error is "fail".
    """
    spec = PreprocessSpec(height_px=image_px, width_px=image_px) if isinstance(image_px, int) else image_px
    key = digest_of([VERSION, digest, spec and spec.model_dump()]).removeprefix("sha256:")
    place = cache / f"{name}-{key[:16]}"
    if not place.exists():
        with write_errors(cache), FileLock(f"{place}.lock"):
            if not place.exists():
                _fill(place, part(), spec)
    try:
        about = DatasetStats.model_validate_json((place / "about.json").read_bytes())
        decoded = Decoded(np.load(place / "images.npy", mmap_mode="r"), np.load(place / "labels.npy"), about)
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(f"{place} is damaged ({error}); delete it, and it is made anew") from error
    _judge(about, name, on_error)
    return decoded


def _judge(about: DatasetStats, name: str, on_error: OnError) -> None:
    """Name the corrupt images: raise DataError, or say that they were left out."""
    if not about.num_corrupt:
        return
    names = "; ".join(about.corrupt) + ("; ..." if about.num_corrupt > len(about.corrupt) else "")
    message = f"{about.num_corrupt} of the {about.num_images} images of {name} cannot be decoded"
    if on_error == "fail":
        raise DataError(f"{message}: {names}; replace them, or leave them out with --data.on_error skip")
    logger.warning("%s and were left out: %s", message, names)


def _fill(place: Path, part: SplitSource, spec: PreprocessSpec | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=place.parent) as scratch:
        target = Path(scratch) / "decoded"
        target.mkdir()
        about = _decode(part, target, spec)
        (target / "about.json").write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(target, place)  # at once: a folder that is there is whole


class DecodedBatch(NamedTuple):
    """Images that follow one another. problems: name and reason where one is corrupt and black, "" where it is not."""

    images_nhwc: UInt8Array
    labels_n: Int64Array
    problems: list[str]

    def cut(self, num_images: int) -> tuple[DecodedBatch, DecodedBatch | None]:
        """The first num_images, and the others if there are any."""
        if len(self.labels_n) <= num_images:
            return self, None
        return self._slice(slice(num_images)), self._slice(slice(num_images, None))

    def _slice(self, rows: slice) -> DecodedBatch:
        return DecodedBatch(self.images_nhwc[rows], self.labels_n[rows], self.problems[rows])


def decode_chunks(chunks: Sequence[Chunk], spec: PreprocessSpec, *, at_once: int) -> Iterator[DecodedBatch]:
    """The images of chunks in order, at_once in a run, the last run shorter. Raises DataError where a file is gone."""
    items = read_ahead(chunks)
    labels_n = np.concatenate([chunk.labels_n for chunk in chunks])
    black_hwc = np.zeros((spec.height_px, spec.width_px, 3), dtype=np.uint8)
    for at in range(0, len(labels_n), at_once):
        pictures = [decode_one(spec, item) for item in islice(items, at_once)]
        images = [black_hwc if picture.pixels_hwc is None else picture.pixels_hwc for picture in pictures]
        problems = [picture.problem and f"{picture.name} ({picture.problem})" for picture in pictures]
        yield DecodedBatch(np.stack(images), labels_n[at : at + at_once], problems)


def read_ahead(chunks: Sequence[Chunk]) -> Generator[Sample]:
    """The images of chunks in order; of scattered ones the next NUM_READERS are already being read."""
    items = chain.from_iterable(chunk.items() for chunk in chunks)
    if not chunks[0].scattered:
        yield from items
        return
    pool = ThreadPoolExecutor(NUM_READERS)
    try:
        reads = (item._replace(read=pool.submit(item.read).result) for item in items)
        ahead = deque(islice(reads, NUM_READERS))
        while ahead:
            yield ahead.popleft()
            ahead.extend(islice(reads, 1))
    finally:
        # without waiting: one that nobody closes is ended by the garbage collector, in whatever thread that runs, and
        # one that is just being started holds the lock that waiting for a thread takes
        pool.shutdown(wait=False)


class DecodedImage(NamedTuple):
    """An image, or the reason why it is none. size: (width, height) before it was brought to the wanted one."""

    name: str
    pixels_hwc: UInt8Array | None = None
    size: tuple[int, int] | None = None
    grey: bool = True
    problem: str = ""


class _OtherSizeError(Exception):
    """An image has another size than the first one."""


def _decode(part: SplitSource, target: Path, spec: PreprocessSpec | None) -> DatasetStats:
    """Decode part into target; without a spec in their own size, where all images have one."""
    own = spec or _own_size(part)
    if own:
        try:
            return _write(part, target, own, any_size=spec is not None)
        except _OtherSizeError:
            pass
    logger.info("images differ in size or are not of %d to %d px: bringing all to %d px", *OWN_SIZE_PX, MIXED_SIZE_PX)
    return _write(part, target, PreprocessSpec(height_px=MIXED_SIZE_PX, width_px=MIXED_SIZE_PX), any_size=True)


def _own_size(part: SplitSource) -> PreprocessSpec | None:
    """The size of the first image that can be decoded, where that is one to keep."""
    for item in part.items():
        if size := decode_one(None, item).size:
            low, high = OWN_SIZE_PX
            fits = low <= min(size) and max(size) <= high
            return PreprocessSpec(width_px=size[0], height_px=size[1]) if fits else None
    return None


def decode_one(spec: PreprocessSpec | None, item: Sample) -> DecodedImage:
    """The image of item, brought to the size of spec. Raises DataError where it cannot be read."""
    name = item.name
    try:
        data = item.read()
        # what PreprocessSpec.decode() does, in two steps for the size and mode between them
        image = open_image(data) if isinstance(data, bytes) else Image.fromarray(data)
        pixels_hwc = spec.from_image(image) if spec else None
    except ImageError as error:
        return DecodedImage(name, problem=str(error).split(";")[0])
    return DecodedImage(name, pixels_hwc, image.size, image.mode in GREY_MODES)


def _write(part: SplitSource, target: Path, spec: PreprocessSpec, *, any_size: bool) -> DatasetStats:
    """Write images.npy and labels.npy. Raises _OtherSizeError where sizes differ and any_size is False."""
    tally = _RunningStats()
    progress = Progress("decoded", "images", len(part.labels_n))
    items = iter(part.items())
    with (target / "images.npy").open("wb") as file, ThreadPoolExecutor(NUM_READERS) as pool:
        _write_header(file, 0, spec)
        while chunk := list(islice(items, CHUNK)):
            pictures = list(pool.map(partial(decode_one, spec), chunk))
            if not any_size and {picture.size for picture in pictures} - {None, (spec.width_px, spec.height_px)}:
                raise _OtherSizeError
            images = [picture.pixels_hwc for picture in pictures if picture.pixels_hwc is not None]
            images_nhwc = np.array(images, dtype=np.uint8).reshape(-1, spec.height_px, spec.width_px, 3)
            file.write(images_nhwc.data)
            tally.add(pictures, images_nhwc)
            progress.advance(len(pictures))
        _write_header(file, tally.num_good, spec)
    np.save(target / "labels.npy", part.labels_n[tally.good])
    return tally.about(spec)


def _write_header(file: BinaryIO, num_images: int, spec: PreprocessSpec) -> None:
    """Put the header of an .npy file at the start. numpy pads it, so its length does not depend on num_images."""
    file.seek(0)
    shape = (num_images, spec.height_px, spec.width_px, 3)
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


class _RunningStats:
    """What is counted while images go by. Histograms give mean and std exactly, in one pass."""

    def __init__(self) -> None:
        self.good: list[bool] = []  # of each image in order: it could be decoded
        self.corrupt: list[str] = []
        self.grey = True
        self.counts_cv = np.zeros((3, 256), dtype=np.int64)  # how often channel c has value v

    @property
    def num_good(self) -> int:
        return len(self.good) - len(self.corrupt)

    def add(self, pictures: list[DecodedImage], images_nhwc: UInt8Array) -> None:
        self.good += [not picture.problem for picture in pictures]
        self.corrupt += [f"{picture.name} ({picture.problem})" for picture in pictures if picture.problem]
        self.grey = self.grey and all(picture.grey for picture in pictures)
        self.counts_cv += [np.bincount(images_nhwc[..., c].ravel(), minlength=256) for c in range(3)]

    def about(self, spec: PreprocessSpec) -> DatasetStats:
        if not self.num_good:
            raise DataError(
                f"none of the {len(self.good)} images can be decoded: {'; '.join(self.corrupt[:NUM_NAMED])}"
            )
        values_v = np.arange(256) / 255
        share_cv = self.counts_cv / self.counts_cv.sum(axis=1, keepdims=True)
        mean_c = (share_cv * values_v).sum(axis=1)  # not @: equal channels get equal sums
        std_c = np.sqrt((share_cv * (values_v - mean_c[:, None]) ** 2).sum(axis=1))
        return DatasetStats(
            height_px=spec.height_px,
            width_px=spec.width_px,
            channels=1 if self.grey else 3,
            mean=tuple(mean_c.tolist()),
            std=tuple(np.maximum(std_c, MIN_STD).tolist()),
            num_images=len(self.good),
            num_corrupt=len(self.corrupt),
            corrupt=tuple(self.corrupt[:NUM_NAMED]),
            corrupt_rows=tuple(np.flatnonzero(~np.array(self.good)).tolist()),
        )
