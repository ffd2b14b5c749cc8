"""The one decoder: whatever clients send becomes RGB uint8, or a sentence (F48)."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from rayapp.data.preprocess import FORMATS, PreprocessSpec, open_image, to_rgb
from rayapp.errors import ImageError

SPEC = PreprocessSpec(height_px=32, width_px=32)
# Smooth, so that JPEG and WebP keep it nearly as it is.
ROWS, COLUMNS = np.mgrid[0:48, 0:40]
PICTURE = np.stack([ROWS * 5, COLUMNS * 6, 255 - ROWS - COLUMNS], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(PICTURE)


def resized(image: Image.Image, width_px: int = 32, height_px: int = 32) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((width_px, height_px), Image.Resampling.BILINEAR))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has width x height pixels and holds one row of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_every_8_bit_mode_becomes_rgb(mode):
    image = picture().convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (40, 48), (90, 10, 20))

    array = SPEC.from_image(image)

    assert (array.shape, array.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(array, resized(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_kind_of_png_is_decoded_as_pillow_does(mode):
    image = picture().convert(mode)

    np.testing.assert_array_equal(SPEC.decode(encoded(image)), resized(image))


def test_grey_image_gets_three_equal_channels():
    array = SPEC.decode(encoded(picture().convert("L")))

    assert array.std() > 10
    np.testing.assert_array_equal(array[..., 0], array[..., 1])
    np.testing.assert_array_equal(array[..., 0], array[..., 2])


def test_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])

    array = SPEC.decode(encoded(image, transparency=0))

    assert (array == (200, 100, 50)).all()


def test_alpha_is_dropped_not_blended():
    array = SPEC.decode(encoded(Image.new("RGBA", (32, 32), (10, 20, 30, 0))))

    assert (array == (10, 20, 30)).all()


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "PNG"])
def test_every_allowed_format_shows_the_same_picture(image_format):
    array = SPEC.decode(encoded(picture(), image_format))

    # GIF has 256 colours: compare the mean colour
    np.testing.assert_allclose(array.mean(axis=(0, 1)), PICTURE.mean(axis=(0, 1)), atol=8)


def test_cmyk_jpeg_is_decoded():
    image = picture().convert("CMYK")

    array = SPEC.decode(encoded(image, "JPEG", quality=95))

    np.testing.assert_allclose(array.astype(int), resized(image).astype(int), atol=40)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_taken(image_format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]

    array = SPEC.decode(encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True))

    np.testing.assert_allclose(array.mean(axis=(0, 1)), (250, 0, 0), atol=4)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    plain, turned = encoded(picture(), "JPEG"), encoded(picture(), "JPEG", exif=exif)

    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(SPEC.decode(turned), SPEC.decode(plain))


@pytest.mark.parametrize(("height_px", "width_px"), [(32, 32), (8, 8), (224, 224), (20, 60), (1, 1), (48, 40)])
def test_resize_is_pillows_bilinear_and_keeps_no_aspect_ratio(height_px, width_px):
    spec = PreprocessSpec(height_px=height_px, width_px=width_px)

    array = spec.decode(encoded(picture()))

    assert array.shape == (height_px, width_px, 3)
    np.testing.assert_array_equal(array, resized(picture(), width_px, height_px))


def test_image_of_the_right_size_is_not_touched():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    np.testing.assert_array_equal(SPEC.decode(encoded(Image.fromarray(noise))), noise)


def test_one_pixel_is_an_image():
    assert (SPEC.decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))) == (1, 2, 3)).all()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_samples_of_more_than_8_bits_are_refused(mode):
    data = encoded(Image.new(mode, (32, 32)), "TIFF")

    with pytest.raises(ImageError, match="more than 8 bits") as caught:
        SPEC.decode(data)
    assert caught.value.status == 400


def test_16_bit_png_is_refused_instead_of_coming_out_white():
    data = encoded(Image.fromarray(np.full((32, 32), 30_000, np.uint16)))

    with pytest.raises(ImageError, match="convert it to 8 bits first"):
        SPEC.decode(data)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File):UserWarning")  # Pillow on half a TIFF
def test_image_that_is_cut_short_is_refused(image_format, part):
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)  # no format can make it small
    data = encoded(Image.fromarray(noise), image_format)

    with pytest.raises(ImageError, match="cannot be decoded; send a whole PNG") as caught:
        SPEC.decode(data[: int(len(data) * part)])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"BM",
        b"hello, I am text",
        b"\0" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + b"\0" * 60,
    ],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError, match="cannot be decoded; send a whole PNG") as caught:
        SPEC.decode(data)
    assert caught.value.status == 400


def test_no_bytes_are_refused():
    with pytest.raises(ImageError, match="empty \\(0 bytes\\)") as caught:
        SPEC.decode(b"")
    assert caught.value.status == 400


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (30_000, 30_000), (2_000_000_000, 1)])
def test_bomb_is_refused_before_it_is_decoded(width, height):
    with pytest.raises(ImageError, match="more than the limit of 100000000") as caught:
        SPEC.decode(png_header(width, height))
    assert caught.value.status == 413


def test_limit_counts_pixels_and_may_be_lower():
    data = encoded(Image.new("L", (40, 50)))

    assert open_image(data, max_pixels=2000).size == (40, 50)
    with pytest.raises(ImageError, match="40x50 pixels, more than the limit of 1999") as caught:
        open_image(data, max_pixels=1999)
    assert caught.value.status == 413


def test_large_image_within_the_limit_makes_no_warning(recwarn):
    assert to_rgb(open_image(encoded(Image.new("L", (9_600, 9_400))))).size == (9_600, 9_400)
    assert not recwarn.list


def test_formats_that_run_programs_are_not_opened():
    assert not {"PDF", "EPS", "PS", "WMF", "FITS", "HDF5", "BUFR", "GRIB"} & set(FORMATS)


@pytest.mark.parametrize("wrong", [{"height_px": 0}, {"width_px": 5000}, {"resample": "nearest"}, {"mean": 0.5}])
def test_spec_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ValidationError):
        PreprocessSpec(**{"height_px": 32, "width_px": 32, **wrong})


# --- what a PNG says beside its pixels --------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunks(data: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """A PNG with more chunks, behind its header or before its end."""
    at = len(data) - 12 if last else 8 + 25
    return data[:at] + b"".join(chunks) + data[at:]


LARGE = zlib.compress(b"x" * 1_500_000)
BOMB = zlib.compress(bytes(64 * 2**20), 9)
TEXTS = {
    "zTXt": chunk(b"zTXt", b"comment\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"comment\0\1\0\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"comment\0" + b"x" * 65 * 2**20),
    "bomb": chunk(b"zTXt", b"comment\0\0" + BOMB),
    "damaged": chunk(b"zTXt", b"comment\0\0" + LARGE[:50]),
}


@pytest.mark.parametrize("last", [False, True], ids=["before-pixels", "behind-pixels"])
@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_texts_of_any_size_are_not_read_and_harm_no_picture(kind: str, last: bool):
    """A sound picture was refused for a comment that inflates to 1.5 MB."""
    data = encoded(picture())

    np.testing.assert_array_equal(SPEC.decode(with_chunks(data, TEXTS[kind], last=last)), SPEC.decode(data))


def test_texts_are_never_inflated():
    """What a comment would become is never in memory, however large it is."""
    data = with_chunks(encoded(picture()), *[TEXTS["bomb"]] * 20)
    tracemalloc.start()
    SPEC.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * len(data)


def test_what_pixels_need_stays_in_a_png_with_texts():
    transparent = picture().convert("P")
    data = encoded(transparent, transparency=3, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    kept = open_image(with_chunks(data, TEXTS["zTXt"], chunk(b"gAMA", struct.pack(">I", 45455))))

    assert (kept.mode, kept.info["transparency"], kept.info["gamma"]) == ("P", 3, 0.45455)
    assert "comment" not in kept.info


def test_bombs_of_pixels_stay_refused_beside_texts():
    with pytest.raises(ImageError, match="more than the limit of 100000000"):
        SPEC.decode(with_chunks(png_header(30_000, 30_000), TEXTS["zTXt"]))


@pytest.mark.parametrize("kept", [40, 60, -60], ids=["at-the-text", "in-the-text", "in-the-pixels"])
def test_a_png_with_texts_that_is_cut_short_is_refused(kept: int):
    with pytest.raises(ImageError, match="cannot be decoded"):
        SPEC.decode(with_chunks(encoded(picture()), TEXTS["zTXt"])[:kept])
