"""The held-out split: a fixed function of the prompt, so that no list has to be stored."""

from __future__ import annotations

import zlib

HELD_OUT_ONE_IN = 20


def is_held_out(prompt: str) -> bool:
    """Tells whether a generated prompt belongs to the test split (one in twenty does)."""
    return zlib.crc32(prompt.encode("utf-8", "surrogatepass")) % HELD_OUT_ONE_IN == 0
