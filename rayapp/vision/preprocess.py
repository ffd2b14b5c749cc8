"""PreprocessSpec: how image bytes become the uint8 array that a model takes.

The one decoder of the project: data sets, evaluation, batch inference and serving all call decode(), so a model sees
in production what it saw in training. Normalisation is not here: it is the model's first layer.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from rayapp.errors import ImageError

UInt8Array = NDArray[np.uint8]

MAX_PIXELS = 100_000_000  # 12000x8000 (96 MP) is served, a decompression bomb is not

# What Pillow may open. PDF, PS and the like run other programs or hold no picture, so the list is closed.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "ICO", "MPO")


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
        the aspect ratio is not kept: what the replaced service did for RGB images (contract, sections 1.3 and 2.3).
        Raises ImageError where data is no image, is cut short, or holds more than max_pixels.
        """
        return self.from_image(open_image(data, max_pixels=max_pixels))

    def from_image(self, image: Image.Image) -> UInt8Array:
        """A decoded image as (height_px, width_px, 3) uint8, RGB."""
        size = (self.width_px, self.height_px)
        rgb = to_rgb(image)
        if rgb.size != size:
            rgb = rgb.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(rgb, dtype=np.uint8)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of the image in data, fully decoded. Raises ImageError (see PreprocessSpec.decode)."""
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of a PNG, JPEG, BMP, WebP, TIFF or GIF file")
    try:
        with warnings.catch_warnings():
            # our own limit below is stricter than the one Pillow warns about
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"the image has {width}x{height} pixels, more than the limit of {max_pixels}; send a smaller one",
                    status=413,
                )
            image.load()
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"the image has more than the limit of {max_pixels} pixels; send a smaller one", 413
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error) as error:
        # Pillow's plugins raise all of these on damaged files
        raise ImageError("the image cannot be decoded; send a whole PNG, JPEG, BMP, WebP, TIFF or GIF file") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, equal to Pillow's convert("RGB"). Raises ImageError on 16-bit and float images.

    Pillow clips those to 0-255 instead of scaling them, so that nearly every picture comes out white: a wrong answer
    that nobody would notice. Which range they use is not in the file, so we cannot scale them either.
    """
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"the image has samples of more than 8 bits (mode {image.mode}); convert it to 8 bits first")
    return image if image.mode == "RGB" else image.convert("RGB")
