"""Images of all kinds, and what is left of them after bits, bytes, chunks and fields were changed."""

from __future__ import annotations

import functools
import struct
import zlib
from random import Random

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.support.images import encoded, picture

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 32, 127, 128, 255, 256, 4096, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31,
    2**32 - 1,
)  # fmt: skip


# The modes in which Pillow writes a format, and what its TIFF files are packed with.
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I"),
    "GIF": ("1", "L", "P"),
    "PPM": ("1", "L", "RGB", "F"),
    "WEBP": ("RGB", "RGBA"),
}
PACKED = {"RGB": ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"), "1": ("group3", "group4")}


@functools.cache
def corpus() -> dict[str, bytes]:
    """Good images of all kinds, by name."""
    image = picture(3, height=30, width=41)
    found = {
        f"{kind.lower()}-{mode}": encoded(image.convert(mode), kind) for kind, modes in MODES.items() for mode in modes
    }
    found |= {
        f"tiff-{packed}": encoded(image.convert(mode), "TIFF", compression=packed)
        for mode, ways in PACKED.items()
        for packed in ways
    }
    return found | _with_more_than_pixels() | _unusual()


def _with_more_than_pixels() -> dict[str, bytes]:
    """Images with text, profiles, EXIF, several frames or pages."""
    image, second, third = (picture(n, height=30, width=41) for n in (3, 4, 5))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "plain")
    text.add_text("Comment", "packed " * 50, zip=True)
    text.add_itxt("Comment", "ünï", zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = [second, third]
    return {
        "png-text": encoded(image, pnginfo=text, icc_profile=profile, exif=exif),
        "png-animated": encoded(image, save_all=True, append_images=more, duration=50),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True, exif=exif, icc_profile=profile, comment="hello"),
        "mpo": encoded(image, "MPO", save_all=True, append_images=more),
        "webp-lossless": encoded(image, "WEBP", lossless=True, exif=exif),
        "webp-animated": encoded(image, "WEBP", save_all=True, append_images=more, duration=50),
        "gif-animated": encoded(image, "GIF", save_all=True, append_images=more, duration=50, transparency=3),
        "tiff-pages": encoded(picture(6), "TIFF", save_all=True, append_images=[picture(7)]),
        "tiff-big": encoded(picture(6), "TIFF", big_tiff=True, exif=exif),
    }


def _unusual() -> dict[str, bytes]:
    """Icons, deep samples, other colours, text instead of bytes."""
    image = picture(3, height=30, width=41)
    srgb, lab = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("sRGB", "LAB"))
    to_lab = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    return {
        "png-16": encoded(deep),
        "tiff-16": encoded(deep, "TIFF"),
        "tiff-LAB": encoded(to_lab.apply(image), "TIFF"),
        "ico": encoded(image, "ICO", sizes=[(16, 16), (32, 24)]),
        "ico-bmp": encoded(image, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "ppm-plain": b"P3\n# a comment\n3 2\n255\n" + b" ".join(b"%d" % n for n in range(18)) + b"\n",
        "ppm-16": b"P5 4 2 65535 " + bytes(16),
        "pam": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(12),
    }


@functools.cache
def bombs() -> dict[str, bytes]:
    """Small files that become large, or claim to."""
    dot, page = corpus()["png-RGB"], encoded(Image.new("RGB", (8, 8)), "TIFF")
    zeros = zlib.compress(bytes(64 * 2**20), 9)
    dots = [Image.new("1", (1, 1), at % 2) for at in range(300)]
    tall = encoded(Image.new("1", (11_000, 11_000)))  # just above the limit
    return {
        "icc": _with_chunk(dot, b"iCCP", b"x\0\0" + zeros),
        "text": _with_chunk(dot, b"zTXt", b"x\0\0" + zeros),
        "texts": _with_chunk(dot, b"zTXt", *[b"x\0\0" + zlib.compress(bytes(2**20 - 1))] * 90),
        "unicode": _with_chunk(dot, b"iTXt", b"x\0\1\0\0\0" + zeros),
        "pixels": tall,
        "more-pixels": encoded(Image.new("1", (20_000, 20_000))),  # Pillow itself refuses this
        "many-pixels": encoded(Image.new("1", (5_000, 4_000))),  # still allowed
        "idat": _with_idat(dot, zeros),
        "ico": struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(tall), 22) + tall,
        "ppm": b"P6 99999 99999 255 " + bytes(99),
        "ppm-digits": b"P6 " + b"9" * 10_000 + b" 1 255 ",
        "pfm": b"Pf\n9 9\n" + b"9" * 400 + b"\n" + bytes(400),
        "gif": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\x01;",
        "tiff-loop": _packed(page, 10 + 12 * page[8], "<I", 8),  # its next page is its first
        "tiff-pages": encoded(Image.new("1", (1, 1)), "TIFF", save_all=True, append_images=dots),
        "jpeg": corpus()["jpeg-RGB"].replace(struct.pack(">HH", 30, 41), b"\xff\xff\xff\xff"),
        "frames": encoded(Image.new("1", (1, 1)), "GIF", save_all=True, append_images=dots),
    }


def damaged(rng: Random, data: bytes) -> tuple[str, bytes]:
    """The image after one to three changes, and their names."""
    names = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = rng.choice(
            (flip, set_number, cut, remove, double, swap, insert, splice, set_field, set_field, set_field)
        )
        data = change(rng, data)
        names.append(change.__name__)
    return "+".join(names), data


def _at(rng: Random, data: bytes) -> int:
    """A place in data, often in its head."""
    return rng.randrange(min(len(data), rng.choice((64, 512, 2**30))) or 1)


def _slice(rng: Random, data: bytes) -> slice:
    at = _at(rng, data)
    return slice(at, at + rng.choice((1, 2, 4, 13, 100, 1000)))


def _noise(rng: Random, size: int) -> bytes:
    return bytes(rng.randrange(256) for _ in range(size))


def flip(rng: Random, data: bytes) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        out[_at(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_number(rng: Random, data: bytes) -> bytes:
    """A number that means something to somebody, at any place."""
    layout = rng.choice(("B", "<H", ">H", "<I", ">I"))
    return _packed(data, _at(rng, data), layout, rng.choice(NUMBERS))


def _packed(data: bytes, at: int, layout: str, number: int) -> bytes:
    size = struct.calcsize(layout)
    return data[:at] + struct.pack(layout, number % 256**size) + data[at + size :]


def cut(rng: Random, data: bytes) -> bytes:
    return data[: _at(rng, data)]


def remove(rng: Random, data: bytes) -> bytes:
    gone = _slice(rng, data)
    return data[: gone.start] + data[gone.stop :]


def double(rng: Random, data: bytes) -> bytes:
    twice = _slice(rng, data)
    return data[: twice.stop] + data[twice] * rng.choice((1, 1, 9)) + data[twice.stop :]


def swap(rng: Random, data: bytes) -> bytes:
    a, b = sorted((_at(rng, data), _at(rng, data)))
    size = min(rng.choice((1, 4, 50)), b - a)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def insert(rng: Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + _noise(rng, rng.choice((1, 2, 4, 16))) + data[at:]


def splice(rng: Random, data: bytes) -> bytes:
    """The head of one image on the body of another."""
    at = _at(rng, data)
    return data[:at] + corpus()[rng.choice(sorted(corpus()))][at:]


# Where formats keep sizes, counts and depths: (offset, layout).
FIELDS = {
    b"BM": [(10, "<I"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"), (28, "<H"), (30, "<I"), (34, "<I"), (46, "<I")],
    b"GIF8": [(6, "<H"), (8, "<H"), (10, "B"), (11, "B")],
    b"RIFF": [(4, "<I"), (16, "<I"), (20, "B"), (23, "<H"), (24, "<I"), (26, "<H"), (27, "<I"), (28, "<H")],
    b"\0\0\1\0": [(4, "<H"), (6, "B"), (7, "B"), (8, "B"), (12, "<H"), (14, "<I"), (18, "<I"), (26, "<I"), (36, "<H")],
}


def set_field(rng: Random, data: bytes) -> bytes:
    """The image with another size, depth, type, count or the like; checksums are right again."""
    if data.startswith(b"\x89PNG"):
        return _png_field(rng, data)
    if data[:2] in (b"II", b"MM"):
        return _tiff_field(rng, data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_field(rng, data)
    if data[:1] == b"P":
        words = data[:40].split(b" ")
        words[rng.randrange(len(words))] = rng.choice(
            (b"0", b"-1", b"#", b"", b"1e9", b"65536", b"\xff", b"9" * 30, b"P7")
        )
        return b" ".join(words) + data[40:]
    for start, places in FIELDS.items():
        if data.startswith(start):
            return _packed(data, *rng.choice(places), rng.choice(NUMBERS))
    return set_number(rng, data)


def _png_field(rng: Random, data: bytes) -> bytes:
    chunks = _chunks(data)
    if not chunks:
        return set_number(rng, data)
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    change = rng.choice(("head", "head", "content", "drop", "double", "swap", "rename", "idat", "chunk"))
    if change == "head":
        place = rng.choice(((0, ">I"), (4, ">I"), (8, "B"), (9, "B"), (10, "B"), (11, "B"), (12, "B")))
        chunks[0] = (chunks[0][0], _packed(chunks[0][1], *place, rng.choice(NUMBERS)))
    elif change == "content":
        chunks[at] = (kind, rng.choice((flip, set_number, cut, double))(rng, content))
    elif change == "drop":
        del chunks[at]
    elif change == "double":
        chunks.insert(at, chunks[at])
    elif change == "swap":
        other = rng.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif change == "rename":
        chunks[at] = (rng.choice((b"IDAT", b"IEND", b"PLTE", b"tRNS", b"fdAT", b"aaaa", b"AAAA", b"\0\0\0\0")), content)
    elif change == "idat":
        raw = _noise(rng, rng.choice((0, 1, 50)))
        chunks[at] = (b"IDAT", rng.choice((raw, zlib.compress(raw), zlib.compress(bytes(10_000)))))
    else:
        kinds = (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"pHYs")
        kind = rng.choice((*kinds, b"acTL", b"fcTL", b"fdAT"))
        chunks.insert(at, (kind, _noise(rng, rng.choice((0, 1, 2, 4, 8, 26, 32)))))
    return _png(chunks)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    whole = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def _with_chunk(data: bytes, kind: bytes, *contents: bytes) -> bytes:
    head, *rest = _chunks(data)
    return _png([head, *((kind, content) for content in contents), *rest])


def _with_idat(data: bytes, content: bytes) -> bytes:
    return _png([(kind, content if kind == b"IDAT" else old) for kind, old in _chunks(data)])


# Tags of TIFF, then ways to pack and to mean colours.
TIFF_NUMBERS = (
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530, 700,
    34377, 34665, 34675, 32773, 32946, 32844, 32845, 34676, 34677, 34712, 34925, 50000, 50001,
)  # fmt: skip


def _tiff_field(rng: Random, data: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
    except struct.error:
        return set_number(rng, data)
    entry = first + 2 + 12 * rng.randrange(max(1, min(count, 40)))
    offset, layout = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H")))
    number = rng.choice((rng.choice(NUMBERS), rng.choice(TIFF_NUMBERS), rng.randrange(10)))
    return _packed(data, entry + offset, order + layout, number)


def _jpeg_field(rng: Random, data: bytes) -> bytes:
    starts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        starts.append(at)
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if not starts:
        return set_number(rng, data)
    start = rng.choice(starts)
    place = rng.choice(((1, "B"), (2, ">H"), (4, "B"), (5, ">H"), (7, ">H"), (9, "B"), (11, "B"), (12, "B")))
    return _packed(data, start + place[0], place[1], rng.choice(NUMBERS))
