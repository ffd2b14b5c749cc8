"""stdout: a grey PNG of 32x32 pixels, to ask for a prediction with. Needs nothing but Python."""

from __future__ import annotations

import struct
import sys
import zlib

SIDE = 32


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png() -> bytes:
    """The file: 8 bits a channel, RGB."""
    rows = b"".join(b"\0" + bytes(128 for _ in range(3 * SIDE)) for _ in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


if __name__ == "__main__":
    sys.stdout.buffer.write(png())
