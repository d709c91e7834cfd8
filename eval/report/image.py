"""Small PNG images of shares within the page: one byte per cell, where SVG would need fifty."""

import base64
import struct
import zlib
from collections.abc import Sequence

STOPS = (
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (109, 205, 89),
    (180, 222, 44),
    (253, 231, 37),
)
"""Viridis (van der Walt and Smith 2015) at tenths: even steps, also for colour-blind readers."""

LEVELS = 64
EMPTY = LEVELS
"""The palette's transparent entry."""


def level(share: float) -> int:
    """The palette entry of a share from 0 to 1."""
    return min(int(share * LEVELS), LEVELS - 1)


def colour(share: float) -> tuple[int, ...]:
    """Red, green and blue of a share, interpolated between the stops."""
    place = share * (len(STOPS) - 1)
    before = min(int(place), len(STOPS) - 2)
    part = place - before
    return tuple(
        round(a + part * (b - a)) for a, b in zip(STOPS[before], STOPS[before + 1], strict=True)
    )


PALETTE = [colour(number / (LEVELS - 1)) for number in range(LEVELS)]
"""The colours of all levels."""


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG: length, kind, content and CRC-32 (RFC 2083, section 3.2)."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(rows: Sequence[Sequence[float | None]]) -> str:
    """An image with one pixel per share, as a data URI; None is transparent.

    Shorter rows are filled with transparent pixels.
    """
    width = max(map(len, rows))
    lines = [
        bytes([0, *(EMPTY if x is None else level(x) for x in row), *[EMPTY] * (width - len(row))])
        for row in rows
    ]
    told = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(part for entry in [*PALETTE, (0, 0, 0)] for part in entry)),
            chunk(b"tRNS", bytes([255] * LEVELS + [0])),
            chunk(b"IDAT", zlib.compress(b"".join(lines), 9)),
            chunk(b"IEND", b""),
        ]
    )
    return "data:image/png;base64," + base64.b64encode(told).decode()
