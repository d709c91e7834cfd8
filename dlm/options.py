"""Checks of options, one wording for all: the option, the rule, the value."""

import math
from collections.abc import Iterable
from difflib import get_close_matches


def integer(name: str, value: object, *, least: int) -> int:
    """`value` if it is an int >= `least`.

    Raises:
        ValueError: it is not; booleans and floats do not count as ints.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    return value


def number(name: str, value: object, *, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float if it is a finite number in [`least`, `most`].

    Raises:
        ValueError: it is not; booleans and strings do not count as numbers.
    """
    rule = f"{name} must be a finite number in [{least:g}, {most:g}], got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(rule)
    if not math.isfinite(value) or not least <= value <= most:
        raise ValueError(rule)
    return float(value)


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`.

    Raises:
        ValueError: it is not; the message has the close match and the list.
    """
    listed = sorted(names)
    if name in listed:
        return name
    close = get_close_matches(name, listed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(listed) or 'none'}")
