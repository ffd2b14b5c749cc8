"""PreprocessSpec: how image bytes become the uint8 array that a model takes.

The one decoder of the project: data sets, evaluation, batch inference and serving all call decode(), so a model sees
in production what it saw in training. Normalisation is not here: it is the model's first layer.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from rayapp.errors import ImageError

UInt8Array = NDArray[np.uint8]

MAX_PIXELS = 100_000_000  # 12000x8000 (96 MP) is served, a decompression bomb is not
# Pillow warns from here on and refuses twice as much; its own figure is a little lower (89 MP).
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# What Pillow may open. The list is closed: PDF, PS and the like run other programs or hold no picture, ICO is decoded
# before its size can be looked at.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "MPO")


@cache
def image_suffixes() -> tuple[str, ...]:
    """What the names of image files end in: all that Pillow knows for FORMATS, in small letters, as ".png"."""
    known = Image.registered_extensions()  # imports all of Pillow's plugins: 0.2 s
    return tuple(suffix for wanted in FORMATS for suffix, kind in known.items() if kind == wanted)


# What Pillow's plugins raise on damaged files
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
)  # fmt: skip


class Images(NamedTuple):
    """images_nhwc: (N, H, W, 3) uint8 RGB, mapped read-only from a file. labels_n: (N,) int64."""

    images_nhwc: UInt8Array
    labels_n: NDArray[np.int64]


class PreprocessSpec(BaseModel):
    """The size of the images that a model takes, and how others are brought to it. Stored in the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height_px: int = Field(ge=1, le=4096)
    width_px: int = Field(ge=1, le=4096)
    resample: Literal["bilinear"] = "bilinear"
    mode: Literal["RGB"] = "RGB"

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
        """The image in data as (height_px, width_px, 3) uint8, RGB.

        Any Pillow mode is converted to RGB, the first frame of an animation is taken, EXIF orientation is ignored and
        the aspect ratio is not kept: what the replaced service did for RGB images (docs/contract.md, 1.3 and 2.3).
        Raises ImageError where data is no image, is cut short, or holds more than max_pixels.
        """
        return self.from_image(peek_image(data, max_pixels=max_pixels))

    def from_image(self, image: Image.Image) -> UInt8Array:
        """An image of open_image() or peek_image() as (height_px, width_px, 3) uint8, RGB. Raises ImageError."""
        with _image_errors():
            image.load()
        size = (self.width_px, self.height_px)
        rgb = to_rgb(image)
        if rgb.size != size:
            rgb = rgb.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(rgb, dtype=np.uint8)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of the image in data, fully decoded. Raises ImageError (see PreprocessSpec.decode)."""
    image = peek_image(data, max_pixels=max_pixels)
    with _image_errors():
        image.load()
    return image


def peek_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in data with its size and mode, its pixels not yet decoded: that is left to its load().

    Raises ImageError where data is no image, or says that it holds more than max_pixels.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of a PNG, JPEG, BMP, WebP, TIFF or GIF file")
    with _image_errors(max_pixels):
        image = Image.open(io.BytesIO(without_texts(data)), formats=FORMATS)
    if image.format == "PPM" and image.tile[0][0] == "ppm_plain":  # Pillow reads its numbers in Python: 5 MB a second
        raise ImageError("plain PPM (P1, P2, P3: numbers as text) is not read; send it as PNG, or as P4, P5 or P6")
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"the image has {width}x{height} pixels, more than the limit of {max_pixels}; send a smaller one",
            status=413,
        )
    return image


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that say something about the picture and nothing of its pixels, as we take them
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def without_texts(data: bytes) -> bytes:
    """data without the texts and the colour profile in it, where it is a PNG that has any.

    Nobody needs them, and Pillow refuses the whole picture where one inflates to more than 1 MB, or all to 64 MB.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start, at = bytearray(), 0, len(PNG_SIGNATURE)
    view = memoryview(data)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length  # with its length, kind and checksum
        if kind in _PNG_TEXTS:
            kept += view[start:at]
            start = end
        at = end
    return bytes(kept + view[start:]) if start else data


@contextmanager
def _image_errors(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Inside the with block Pillow's errors are an ImageError."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the image has more than the limit of {max_pixels} pixels; send a smaller one", 413
        ) from error
    except _DAMAGED as error:
        raise ImageError("the image cannot be decoded; send a whole PNG, JPEG, BMP, WebP, TIFF or GIF file") from error


# Alpha that is already multiplied in: Pillow converts these to RGB by this way only.
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, equal to Pillow's convert("RGB"). Raises ImageError on 16-bit and float images.

    Pillow clips those to 0-255 instead of scaling them, so that nearly every picture comes out white: a wrong answer
    that nobody would notice. Which range they use is not in the file, so we cannot scale them either.
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"the image has samples of more than 8 bits (mode {image.mode}); convert it to 8 bits first")
    if image.mode == "RGB":
        return image
    with _image_errors():
        return image.convert(_PREMULTIPLIED.get(image.mode, image.mode)).convert("RGB")
