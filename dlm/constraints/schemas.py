"""Compile a JSON schema into an expression for the JSON texts it allows.

Every generated text is valid by the schema. Keywords that these automata cannot express are
refused. Object members come in the order of `properties`, and no other members are generated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from dlm.constraints.apart import Seen, refuse_common
from dlm.constraints.expressions import (
    NODES,
    Either,
    Expression,
    Picked,
    Repeated,
    maybe,
    nodes_of,
    series,
    signs,
    text,
)
from dlm.constraints.texts import (
    BEHIND_POINT,
    CHARACTER,
    DEEP,
    DIGIT,
    FORMATS,
    NOTHING,
    POWER,
    SPACE,
    STRING,
    WHOLE,
    any_object,
    any_value,
    listed,
    member,
    quoted,
)
from dlm.options import known

LISTED: Final = 1000  # most integers between two bounds
PARTS: Final = 10_000  # most parts of a schema

TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: TYPES["number"](value) and value % 1 == 0,  # 1.0 is an integer
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
"""For each type name, whether a value has that type."""
OF_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "string": ("minLength", "maxLength", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
SAYING: Final = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
SILENT: Final = (
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$defs", "definitions", "discriminator",
)  # fmt: skip
"""Annotations: keywords that constrain nothing."""
KEYWORDS: Final = frozenset((*SAYING, *SILENT, *(x for each in OF_TYPES.values() for x in each)))


def expression_of(schema: Any) -> Expression:
    """The expression for all texts that a schema allows.

    They may be fewer than the schema allows: object members are ordered and nesting is bounded.

    Raises:
        ValueError: the schema is invalid, or has an unsupported keyword; the message says which and
            where.
    """
    return Schemas(schema).read(schema, "the schema", {})


@dataclass(slots=True)
class Schemas:
    """A reader of one schema, whose parts may reference each other."""

    root: Any
    parts: int = 0  # parts read so far
    nodes: int = 0  # automaton nodes they come to, without separators and brackets
    seen: Seen = field(default_factory=Seen)  # facts for the checks of `oneOf`
    apart: set[int] = field(default_factory=set)  # lists of `oneOf` known to be disjoint, by `id`

    def read(self, schema: Any, where: str, inside: Mapping[str, int]) -> Expression:
        """The expression of one part of the schema.

        Args:
            schema: the part.
            where: its location, for messages.
            inside: references that the part is nested in, with their depth.
        """
        self.parts += 1
        if self.parts > PARTS:  # recursive references would never end
            raise ValueError(f"the schema must have at most {PARTS} parts, those named again, too")
        if schema is True:
            return any_value()
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise ValueError(f"{where} must be an object, got {schema!r}")
        for name in schema:
            known(f"keyword of {where}", name, KEYWORDS)
        self.refuse_id(schema, where)
        self.spend(sum(len(value) for value in schema.values() if isinstance(value, list)))
        ways = [name for name in SAYING[1:] if name in schema]
        if not ways:
            return self.typed(schema, where, inside)
        beside = [name for name in schema if name not in (ways[0], *SILENT)]
        if ways[0] in ("enum", "const"):
            beside = [name for name in beside if name != "type"]
        if beside:
            raise ValueError(f"{where} must have {ways[0]!r} alone, got {beside[0]!r} beside it")
        made: dict[str, Callable[..., Expression]] = {
            "enum": self.by_enum,
            "const": self.by_const,
            "anyOf": self.by_any,
            "oneOf": self.by_one,
            "allOf": self.by_all,
            "$ref": self.by_reference,
        }
        return made[ways[0]](schema, where, inside)

    def spend(self, nodes: int) -> None:
        """Count automaton nodes during reading; a part referenced many times counts each time.

        Raises:
            ValueError: the limit on nodes is exceeded.
        """
        self.nodes += nodes
        if self.nodes > NODES:
            raise ValueError(
                f"the schema must come to at most {NODES} nodes, two for each byte of a text that "
                "it has, and parts named again count again"
            )

    def counted(self, made: Expression) -> Expression:
        """Count the nodes of a finished leaf expression, and return it."""
        self.spend(nodes_of(made))
        return made

    def by_const(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """A single value."""
        return self.by_enum({**schema, "enum": [schema["const"]]}, where, inside)

    def by_enum(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """One of several values, as `json.dumps` writes them."""
        values = schema["enum"]
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise ValueError(f"enum of {where} must be a list, got {values!r}")
        fits = [TYPES[name] for name in types_of(schema, where)] if "type" in schema else [any_type]
        kept = [value for value in values if any(fit(value) for fit in fits)]
        return Either(tuple(self.counted(written(value)) for value in kept))

    def by_any(
        self, schema: Mapping[str, Any], where: str, inside: Any, name: str = "anyOf"
    ) -> Expression:
        """An alternation of schemas."""
        parts = schema[name]
        if not isinstance(parts, list):
            raise ValueError(f"{name} of {where} must be a list, got {parts!r}")
        each = (self.read(x, f"{name}[{n}] of {where}", inside) for n, x in enumerate(parts))
        return Either(tuple(each))

    def by_one(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """An alternation of schemas that must be provably disjoint."""
        made = self.by_any(schema, where, inside, "oneOf")
        if id(schema["oneOf"]) not in self.apart:  # a reference may reach it twice
            refuse_common(schema["oneOf"], where, self.named, self.seen)
            self.apart.add(id(schema["oneOf"]))
        return made

    def by_all(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """The single schema in the list."""
        parts = schema["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            raise ValueError(f"allOf of {where} must hold a single schema, got {parts!r}")
        return self.read(parts[0], f"allOf[0] of {where}", inside)

    def by_reference(
        self, schema: Mapping[str, Any], where: str, inside: Mapping[str, int]
    ) -> Expression:
        """The target of a reference; nested in itself `DEEP` times, it matches nothing."""
        name = schema["$ref"]
        times = inside.get(name, 0)
        if times == DEEP:
            return NOTHING
        return self.read(self.named(name, where), name, {**inside, name: times + 1})

    def named(self, name: Any, where: str) -> Any:
        """The part that a reference names: a JSON pointer as a URI fragment (RFC 6901, section 6).

        Raises:
            ValueError: there is no such part.
        """
        found = self.root
        if not isinstance(name, str) or (name != "#" and name[:2] != "#/"):
            raise ValueError(f"$ref of {where} must name a part of the schema, got {name!r}")
        for step in unquote(name[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or step not in found:
                raise ValueError(f"$ref of {where} must name a part of the schema, got {name!r}")
            found = found[step]
            if isinstance(found, Mapping) and isinstance(found.get("$id"), str):
                self.refuse_id(found, name)
        return found

    def refuse_id(self, schema: Mapping[str, Any], where: str) -> None:
        """Refuse a nested part with an `$id`, against which its references would resolve.

        Raises:
            ValueError: it has an `$id` and is not the whole schema.
        """
        if "$id" in schema and schema is not self.root:
            raise ValueError(
                f"{where} must be without $id, which only the schema as a whole may have, "
                f"got {schema['$id']!r}"
            )

    def typed(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """Values of one type or several; of any type if none is named."""
        names = types_of(schema, where)
        for name in schema:
            owners = [kind for kind in OF_TYPES if name in OF_TYPES[kind]]
            if owners and not set(owners) & set(names):
                raise ValueError(f"{name} of {where} must go with type {owners[0]!r}, got {names}")
        if not set(schema) - set(SILENT):
            return any_value()
        makers = {"string": string, "integer": integer, "number": number}
        inner = {"array": self.array, "object": self.object}
        found: list[Expression] = []
        for name in names:
            if name in inner:
                found.append(inner[name](schema, where, inside))
            elif name in makers:
                found.append(self.counted(makers[name](schema, where)))
            else:
                found += {"boolean": [text("true"), text("false")], "null": [text("null")]}[name]
        return Either(tuple(found))

    def array(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """Arrays."""
        items = schema.get("items", True)
        inner = any_value(DEEP - 1) if items is True else None
        part = inner or self.read(items, f"items of {where}", inside)
        return listed("[", part, *bounds(schema, "minItems", "maxItems", where), "]")

    def object(self, schema: Mapping[str, Any], where: str, inside: Any) -> Expression:
        """Objects: the named members in order; without `properties`, any members of one schema."""
        named, needed = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(named, Mapping):
            raise ValueError(f"properties of {where} must be an object, got {named!r}")
        texts = isinstance(needed, list) and all(isinstance(name, str) for name in needed)
        if not texts or not set(needed) <= set(named):
            raise ValueError(f"required of {where} must name properties, got {needed!r}")
        if not named and "properties" not in schema:
            rest = schema.get("additionalProperties", True)
            if rest is True:
                return any_object()
            value = self.read(rest, f"additionalProperties of {where}", inside)
            return listed("{", member(STRING, value), 0, None, "}")
        members = [
            (
                member(self.counted(written(name)), self.read(value, f"{name} of {where}", inside)),
                name in needed,
            )
            for name, value in named.items()
        ]
        return series(text("{"), in_order(members), SPACE, text("}"))


def written(value: Any) -> Expression:
    """A literal JSON value, in the one spelling of `json.dumps`."""
    return text(json.dumps(value, ensure_ascii=False, allow_nan=False))


def in_order(members: Sequence[tuple[Expression, bool]]) -> Expression:
    """Members in order, separated by commas; those marked False may be left out."""
    some = series(SPACE, Picked(tuple(members), series(SPACE, text(","), SPACE)))
    return some if any(needed for _, needed in members) else maybe(some)


def types_of(schema: Mapping[str, Any], where: str) -> list[str]:
    """The type names that a schema allows; all if it names none."""
    given = schema.get("type", [*TYPES])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list):
        raise ValueError(f"type of {where} must be a name or a list of names, got {names!r}")
    return [known(f"type of {where}", name, TYPES) for name in names]


def any_type(value: Any) -> bool:
    """Accept any JSON value."""
    return True


def bounds(schema: Mapping[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    """The lower and upper bound of a count; None for no upper bound."""
    for name in (low, high):
        value = schema.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} of {where} must be an int >= 0, got {value!r}")
    return schema.get(low, 0), schema.get(high)


def string(schema: Mapping[str, Any], where: str) -> Expression:
    """Strings, by length or by format."""
    least, most = bounds(schema, "minLength", "maxLength", where)
    if "format" not in schema:
        if most is not None and most < least:
            return NOTHING
        return quoted(Repeated(CHARACTER, least, most))
    if least or most is not None:
        raise ValueError(f"format of {where} must stand without minLength and maxLength")
    return quoted(FORMATS[known(f"format of {where}", schema["format"], FORMATS)])


def integer(schema: Mapping[str, Any], where: str) -> Expression:
    """Integers: all, those from 0 or 1 up, or all between two bounds."""
    low, high = limits(schema, where)
    if high is None and low in (None, 0, 1):
        positive = series(signs("123456789"), Repeated(DIGIT))
        return positive if low == 1 else WHOLE if low == 0 else series(maybe(text("-")), WHOLE)
    if low is None or high is None or high - low >= LISTED:
        raise ValueError(
            f"minimum of {where} must be 0 or 1, or have at most {LISTED} values up to a maximum, "
            f"got {low} and {high}"
        )
    return Either(tuple(text(str(value)) for value in range(low, high + 1)))


def number(schema: Mapping[str, Any], where: str) -> Expression:
    """Numbers: all, or those from 0 up."""
    whole = series(WHOLE, BEHIND_POINT, POWER)
    beyond = {"exclusiveMinimum", "maximum", "exclusiveMaximum"} & set(schema)
    least = schema.get("minimum", 0)
    if beyond or least != 0 or isinstance(least, bool):
        raise ValueError(
            f"bounds of {where} must be a minimum of 0 for numbers that need not be whole, "
            f"got {', '.join(sorted(beyond)) or least}"
        )
    return whole if "minimum" in schema else series(maybe(text("-")), whole)


def limits(schema: Mapping[str, Any], where: str) -> tuple[int | None, int | None]:
    """Inclusive bounds of an integer; None for no bound."""
    found: list[int | None] = []
    for name, other, step in (
        ("minimum", "exclusiveMinimum", 1),
        ("maximum", "exclusiveMaximum", -1),
    ):
        given = [(schema[key], add) for key, add in ((name, 0), (other, step)) if key in schema]
        for value, _ in given:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} of {where} must be an int, got {value!r}")
        both = [value + add for value, add in given]
        found.append((max(both) if step > 0 else min(both)) if both else None)
    return found[0], found[1]
