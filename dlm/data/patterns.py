"""Text templates that can be inverted: recover the slots from a filled-in text."""

from __future__ import annotations

import re
from string import Formatter

_NUMBER = "[0-9]{1,4}"
_WORD = "[A-Za-z_][A-Za-z_0-9]*"


def template_pattern(template: str, numbers: frozenset[str]) -> re.Pattern[str]:
    """Compiles a `str.format` template into a pattern that recovers its slots.

    Args:
        template: text with named slots; a slot that occurs twice must have the same value.
        numbers: the slots that hold a natural number; every other slot holds a word.

    Returns:
        A pattern with one named group per slot, meant for `fullmatch`.
    """
    parts: list[str] = []
    seen: set[str] = set()
    for literal, slot, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if slot is None:
            continue
        group = _NUMBER if slot in numbers else _WORD
        parts.append(f"(?P={slot})" if slot in seen else f"(?P<{slot}>{group})")
        seen.add(slot)
    return re.compile("".join(parts))
