"""Whether JSON schemas have no value in common, where that is plain to see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product
from typing import Any, Final

KINDS: Final = {"integer": "number"}  # whole numbers are numbers
EVERY: Final = frozenset(("string", "number", "boolean", "null", "array", "object"))
DEEP: Final = 8  # members in each other that are looked at
PAIRS: Final = 1 << 18
"""Of schemas that are held against each other, and of values that they list: half a second."""
Named = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a schema tells it from others."""

    schema: Any  # what stands behind references
    kinds: frozenset[str] = EVERY  # types of its values, or more
    known: frozenset[Any] | None = None  # values that it lists, if it does
    needed: Mapping[str, Any] = field(default_factory=dict)  # members, those that list fewest first


@dataclass(slots=True)
class Seen:
    """Facts of the parts of a schema, each found once, and how much was looked at."""

    facts: dict[int, Facts] = field(default_factory=dict)  # by ids of parts
    looked: int = 0

    def of(self, part: Any, named: Named) -> Facts:
        """Those of a part.

        Raises:
            ValueError: it lists more than may be looked at.
        """
        found = self.facts.get(id(part))
        if found is None:
            schema = resolved(part, named)
            found = self.facts.get(id(schema)) or self.found(schema, named)
            self.facts[id(part)] = self.facts[id(schema)] = found
        return found

    def found(self, schema: Any, named: Named) -> Facts:
        """Those of what stands behind references."""
        if not isinstance(schema, Mapping):
            return Facts(schema)
        listed = values(schema)
        if listed is not None:
            self.count(len(listed))
            return Facts(schema, frozenset(map(kind_of, listed)), frozenset(map(known_by, listed)))
        given = schema.get("type", EVERY)
        kinds = [given] if isinstance(given, str) else given
        parts, needed = schema.get("properties", {}), {*schema.get("required", ())}
        # In the order of the properties: that of a set is another in each process, and with it
        # how much is looked at. A member that names a kind lists one value.
        order = sorted(
            (listing(parts[name], named), n, name) for n, name in enumerate(parts) if name in needed
        )
        members = {name: parts[name] for *_, name in order}
        return Facts(schema, frozenset(KINDS.get(kind, kind) for kind in kinds), needed=members)

    def count(self, more: int) -> None:
        """Count what is looked at.

        Raises:
            ValueError: it is too much.
        """
        self.looked += more
        if self.looked > PAIRS:
            raise ValueError(
                f"oneOf must be of at most {PAIRS} pairs of schemas and values that they list, "
                "in each other, too, and in all of a schema"
            )


def refuse_common(parts: Sequence[Any], where: str, named: Named, seen: Seen) -> None:
    """Refuse schemas of which two may have a value in common: `oneOf` would not take it.

    Args:
        parts: the schemas, which are known to be some.
        where: they stand, for messages.
        named: what a reference names.
        seen: what was found of the schema so far.

    Raises:
        ValueError: two of them may, or they are too many.
    """
    first: dict[Any, int] = {}  # that lists a value
    rest: list[int] = []  # that list none
    for place, part in enumerate(parts):
        known = seen.of(part, named).known
        if known is None:
            rest.append(place)
            continue
        seen.count(len(known))
        others = {first.setdefault(value, place) for value in known} - {place}
        if others:
            raise in_common(where, min(others), place)
    lists = sorted({*range(len(parts))} - {*rest})
    for pair in chain(combinations(rest, 2), product(rest, lists)):
        one, other = sorted(pair)
        if not apart(parts[one], parts[other], named, seen):
            raise in_common(where, one, other)


def in_common(where: str, one: int, other: int) -> ValueError:
    """What is said of two schemas."""
    return ValueError(
        f"oneOf of {where} must be of schemas that plainly have nothing in common, by "
        "their types, by their values or by a member that both require, got "
        f"oneOf[{one}] and oneOf[{other}]: anyOf takes what several allow"
    )


def apart(one: Any, other: Any, named: Named, seen: Seen, deep: int = DEEP) -> bool:
    """Whether no value is plainly allowed by both.

    Raises:
        ValueError: too much was looked at.
    """
    seen.count(1)
    left, right = seen.of(one, named), seen.of(other, named)
    if left.schema is False or right.schema is False:
        return True
    if not deep or not (isinstance(left.schema, Mapping) and isinstance(right.schema, Mapping)):
        return False
    for first, second in ((left.schema, right.schema), (right.schema, left.schema)):
        for ways in ("anyOf", "oneOf"):
            if ways in first:
                return all(apart(each, second, named, seen, deep - 1) for each in first[ways])
    if not left.kinds & right.kinds:
        return True
    if left.known is not None and right.known is not None:
        seen.count(min(len(left.known), len(right.known)))
        return left.known.isdisjoint(right.known)
    if left.kinds | right.kinds != {"object"}:
        return False
    both = (name for name in left.needed if name in right.needed)
    return any(apart(left.needed[name], right.needed[name], named, seen, deep - 1) for name in both)


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


def values(schema: Mapping[str, Any]) -> Sequence[Any] | None:
    """Those that a schema lists; None where it does not."""
    if "enum" in schema:
        listed: Sequence[Any] = schema["enum"]
        return listed
    return [schema["const"]] if "const" in schema else None


def listing(part: Any, named: Named) -> float:
    """How many values a part lists."""
    schema = resolved(part, named)
    listed = values(schema) if isinstance(schema, Mapping) else None
    return float("inf") if listed is None else len(listed)


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
