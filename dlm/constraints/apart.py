"""Check that JSON schemas are disjoint, for `oneOf`; only where that is easy to prove."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product
from typing import Any, Final

KINDS: Final = {"integer": "number"}  # every integer is a number
EVERY: Final = frozenset(("string", "number", "boolean", "null", "array", "object"))
DEEP: Final = 8  # levels of nested members that are compared
PAIRS: Final = 1 << 18
"""Most comparisons of two schemas, plus enumerated values read, over a whole schema. That many
take about half a second."""
Named = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a schema that can prove it disjoint from another."""

    schema: Any  # the schema after references are resolved
    kinds: frozenset[str] = EVERY  # types its values may have; may be a superset
    known: frozenset[Any] | None = None  # keys of enumerated values, if any
    needed: Mapping[str, Any] = field(default_factory=dict)  # required; fewest values first


@dataclass(slots=True)
class Seen:
    """Facts about the parts of a schema, each computed once, and the work done so far."""

    facts: dict[int, Facts] = field(default_factory=dict)  # by the `id` of each part
    looked: int = 0

    def of(self, part: Any, named: Named) -> Facts:
        """The facts about a part.

        Raises:
            ValueError: the limit on comparisons and values is exceeded.
        """
        found = self.facts.get(id(part))
        if found is None:
            schema = resolved(part, named)
            found = self.facts.get(id(schema)) or self.found(schema, named)
            self.facts[id(part)] = self.facts[id(schema)] = found
        return found

    def found(self, schema: Any, named: Named) -> Facts:
        """The facts about a schema whose references are already resolved."""
        if not isinstance(schema, Mapping):
            return Facts(schema)
        listed = values(schema)
        if listed is not None:
            self.count(len(listed))
            return Facts(schema, frozenset(map(kind_of, listed)), frozenset(map(known_by, listed)))
        given = schema.get("type", EVERY)
        kinds = [given] if isinstance(given, str) else given
        parts, needed = schema.get("properties", {}), {*schema.get("required", ())}
        # Break ties by property order: the order of a set differs between processes, and the work
        # counted would differ with it. A discriminator lists one value, so it comes first.
        order = sorted(
            (listing(parts[name], named), n, name) for n, name in enumerate(parts) if name in needed
        )
        members = {name: parts[name] for *_, name in order}
        return Facts(schema, frozenset(KINDS.get(kind, kind) for kind in kinds), needed=members)

    def count(self, more: int) -> None:
        """Add to the work done.

        Raises:
            ValueError: the limit on comparisons and values is exceeded.
        """
        self.looked += more
        if self.looked > PAIRS:
            raise ValueError(
                f"oneOf must be of at most {PAIRS} pairs of schemas and values that they list, "
                "in each other, too, and in all of a schema"
            )


def refuse_common(parts: Sequence[Any], where: str, named: Named, seen: Seen) -> None:
    """Refuse the parts of a `oneOf` unless every two of them are provably disjoint.

    `oneOf` rejects a value that matches two of its parts, and the automaton of a union does not.

    Args:
        parts: the schemas, already validated.
        where: location of the `oneOf`, for messages.
        named: looks up the target of a reference.
        seen: facts about the schema so far.

    Raises:
        ValueError: two of them may have a value in common, or they take too much work to compare.
    """
    first: dict[Any, int] = {}  # the first part that lists a value
    rest: list[int] = []  # parts that list no values
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
    """The error for two schemas that may have a value in common."""
    return ValueError(
        f"oneOf of {where} must be of schemas that plainly have nothing in common, by "
        "their types, by their values or by a member that both require, got "
        f"oneOf[{one}] and oneOf[{other}]: anyOf takes what several allow"
    )


def apart(one: Any, other: Any, named: Named, seen: Seen, deep: int = DEEP) -> bool:
    """Whether two schemas provably have no value in common.

    Raises:
        ValueError: the limit on comparisons and values is exceeded.
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
    """Follow references and single-element `allOf`, at most `DEEP` times, so that cycles end."""
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
    """The values that a schema enumerates, or None if it enumerates none."""
    if "enum" in schema:
        listed: Sequence[Any] = schema["enum"]
        return listed
    return [schema["const"]] if "const" in schema else None


def listing(part: Any, named: Named) -> float:
    """How many values a part enumerates; infinity without an enumeration."""
    schema = resolved(part, named)
    listed = values(schema) if isinstance(schema, Mapping) else None
    return float("inf") if listed is None else len(listed)


def kind_of(value: Any) -> str:
    """The JSON type of a value; integers are "number"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, Mapping):
        return "object"
    return "number" if isinstance(value, int | float) else "array"


def known_by(value: Any) -> Any:
    """A hashable key for a JSON value, in which 1 equals 1.0 but not true."""
    if isinstance(value, Mapping):
        return "object", frozenset((name, known_by(part)) for name, part in value.items())
    if kind_of(value) == "array":
        return "array", tuple(map(known_by, value))
    return kind_of(value), value
