"""Whether what a file holds is of the types that are written down for it."""

import math
import reprlib
import sys
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict


def misfit(
    name: str, value: object, hint: Any, least: float = 0, most: float = math.inf
) -> str | None:
    """What is wrong with a value; None where nothing is.

    Args:
        name: what messages call the value.
        value: out of JSON.
        hint: None, str, int, float, lists, dicts and unions of these, typed dicts of them, or Any,
            which is not looked at. No bool is a number, and numbers are finite.
        least: of the numbers in it.
        most: likewise; those of a typed dict have bounds of their own, 0 and none.
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
    """What is wrong with the object of a typed dict."""
    for key, hint in get_type_hints(kind).items():
        if key in value:
            told = misfit(f"{key!r} of {name}", value[key], hint)
        else:
            told = f"{name} must have {key!r}" if key in kind.__required_keys__ else None
        if told is not None:
            return told
    return None


def fits(value: object, hint: Any, least: float, most: float) -> bool:
    """Whether a value is of a type, see `misfit`; keys of what JSON held are texts."""
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
    """Whether all values are of a type; of ids, which are many, all types are told at once."""
    if hint is int and set(map(type, values)) == {int}:
        return bool(least <= min(values) and max(values) <= most)
    return all(fits(each, hint, least, most) for each in values)
