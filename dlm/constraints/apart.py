"""Whether JSON schemas have no value in common, where that is plain to see."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

KINDS: Final = {"integer": "number"}  # whole numbers are numbers
EVERY: Final = frozenset(("string", "number", "boolean", "null", "array", "object"))
DEEP: Final = 8  # members in each other that are looked at
PAIRS: Final = 100_000  # of schemas that are held against each other, and of values that they list
Named = Callable[[Any, str], Any]


def refuse_common(parts: Sequence[Any], where: str, named: Named, pairs: Iterator[int]) -> None:
    """Refuse schemas of which two may have a value in common: `oneOf` would not take it.

    Args:
        parts: the schemas, which are known to be some.
        where: they stand, for messages.
        named: what a reference names.
        pairs: counts what is held against each other.

    Raises:
        ValueError: two of them may, or they are too many.
    """
    for (one, left), (other, right) in combinations(enumerate(parts), 2):
        if not apart(left, right, named, pairs):
            raise ValueError(
                f"oneOf of {where} must be of schemas that plainly have nothing in common, by "
                "their types, by their values or by a member that both require, got "
                f"oneOf[{one}] and oneOf[{other}]: anyOf takes what several allow"
            )


def apart(one: Any, other: Any, named: Named, pairs: Iterator[int], deep: int = DEEP) -> bool:
    """Whether no value is plainly allowed by both.

    Raises:
        ValueError: `pairs`, which counts what is held against each other, has come too far.
    """
    counted(pairs, 1)
    one, other = (resolved(each, named) for each in (one, other))
    if one is False or other is False:
        return True
    if not deep or not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return False
    for first, second in ((one, other), (other, one)):
        for ways in ("anyOf", "oneOf"):
            if ways in first:
                return all(apart(each, second, named, pairs, deep - 1) for each in first[ways])
    if not kinds(one) & kinds(other):
        return True
    left, right = values(one), values(other)
    if left is not None and right is not None:
        counted(pairs, len(left) + len(right) - 2)
        return set(map(known_by, left)).isdisjoint(map(known_by, right))
    if kinds(one) | kinds(other) != {"object"}:
        return False
    parts, more = one.get("properties", {}), other.get("properties", {})
    both = set(one.get("required", ())) & set(other.get("required", ()))
    return any(apart(parts[name], more[name], named, pairs, deep - 1) for name in both)


def counted(pairs: Iterator[int], more: int) -> None:
    """Count what is looked at.

    Raises:
        ValueError: it has come too far.
    """
    if any(next(pairs) > PAIRS for _ in range(more)):
        raise ValueError(f"oneOf must be of at most {PAIRS} pairs of schemas, in each other, too")


def resolved(schema: Any, named: Named) -> Any:
    """What stands behind references and lone parts, as far as it is no circle."""
    for _ in range(DEEP):
        if not isinstance(schema, Mapping):
            break
        if "$ref" in schema:
            schema = named(schema["$ref"], "oneOf")
        elif len(schema.get("allOf", ())) == 1:
            schema = schema["allOf"][0]
        else:
            break
    return schema


def kinds(schema: Mapping[str, Any]) -> frozenset[str]:
    """Types of the values that a schema allows, or more."""
    listed = values(schema)
    if listed is not None:
        return frozenset(map(kind_of, listed))
    given = schema.get("type", EVERY)
    names = [given] if isinstance(given, str) else given
    return frozenset(KINDS.get(name, name) for name in names)


def values(schema: Mapping[str, Any]) -> list[Any] | None:
    """Those that a schema lists; None where it does not."""
    listed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return None if listed is None else list(listed)


def kind_of(value: Any) -> str:
    """The type of a value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, Mapping):
        return "object"
    return "number" if isinstance(value, int | float) else "array"


def known_by(value: Any) -> Any:
    """What tells a value from others of JSON, where 1 is 1.0 and not true."""
    if isinstance(value, Mapping):
        return "object", frozenset((name, known_by(part)) for name, part in value.items())
    if kind_of(value) == "array":
        return "array", tuple(map(known_by, value))
    return kind_of(value), value
