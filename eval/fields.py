"""Type checks of values read from a file."""

import math
import reprlib
import sys
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict


def misfit(
    name: str, value: object, hint: Any, least: float = 0, most: float = math.inf
) -> str | None:
    """What is wrong with a value; None if nothing is.

    Args:
        name: what messages call the value.
        value: the value, from JSON.
        hint: the type: None, str, int, float, a list, dict or union of these, a typed dict of them,
            or Any, which accepts everything. A bool is not a number, and numbers must be finite.
        least: lower bound of the numbers in it.
        most: upper bound of them; numbers in a typed dict are bounded by 0 and have no upper bound.
    """
    if is_typeddict(hint):
        if isinstance(value, dict):
            return misfits(name, value, hint)
        return f"{name} must be an object, got {reprlib.repr(value)}"
    if fits(value, hint, least, most):
        return None
    told = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
    number = "int" in told or "float" in told
    bounds = f" >= {least}" if most == math.inf else f" in [{least}, {most}]"
    return f"{name} must be {told}{bounds if number else ''}, got {reprlib.repr(value)}"


def misfits(name: str, value: dict[str, Any], kind: Any) -> str | None:
    """What is wrong with an object that should be of a typed dict."""
    for key, hint in get_type_hints(kind).items():
        if key in value:
            told = misfit(f"{key!r} of {name}", value[key], hint)
        else:
            told = f"{name} must have {key!r}" if key in kind.__required_keys__ else None
        if told is not None:
            return told
    return None


def fits(value: object, hint: Any, least: float, most: float) -> bool:
    """Whether a value has a type, as in `misfit`; keys from JSON are always texts."""
    if hint is Any:
        return True
    kinds = get_args(hint)
    if isinstance(hint, UnionType):
        return any(fits(value, kind, least, most) for kind in kinds)
    if get_origin(hint) is list:
        return isinstance(value, list) and all_fit(value, kinds[0], least, most)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all_fit([*value.values()], kinds[1], least, most)
    if hint is int or hint is float:
        if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
            return False
        return abs(value) <= sys.float_info.max and least <= value <= most
    return isinstance(value, hint)


def all_fit(values: list[Any], hint: Any, least: float, most: float) -> bool:
    """Whether all values have a type; many ids are checked at once."""
    if hint is int and set(map(type, values)) == {int}:
        return bool(least <= min(values) and max(values) <= most)
    return all(fits(each, hint, least, most) for each in values)
