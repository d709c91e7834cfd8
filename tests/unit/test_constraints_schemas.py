"""JSON schemas as automata: all that comes of one is valid by it, and the rest is refused."""

import json
import random
import re
from datetime import date, datetime, time
from typing import Any
from uuid import UUID

import pytest
import torch

import dlm
from dlm.constraints.apart import Seen, apart
from dlm.constraints.expressions import automaton_of, either, maybe, series, text
from dlm.constraints.language import ByteAutomaton
from dlm.constraints.schemas import expression_of

NODE = {
    "type": "object",
    "properties": {
        "v": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]},
    },
    "required": ["v", "next"],
}


def compiled(schema: Any) -> ByteAutomaton:
    return automaton_of(expression_of(schema))


def takes(automaton: ByteAutomaton, written: str) -> bool:
    state = automaton.start
    for byte in written.encode():
        state = int(automaton.following[state, byte])
    return bool(automaton.accepting[state])


def drawn(automaton: ByteAutomaton, count: int, most: int = 60) -> set[str]:
    """Some texts of a language, each of which ends soon once it is long."""
    left = torch.where(automaton.accepting, 0, 1 << 20)
    while True:
        nearer = torch.minimum(left, left[automaton.following].amin(1) + 1)
        if torch.equal(nearer, left):
            break
        left = nearer
    following, far = automaton.following.tolist(), left.tolist()
    found = set()
    for seed in range(count):
        draw, state, written = random.Random(seed), automaton.start, bytearray()
        while far[state] or not (len(written) > most or draw.random() < 0.3):
            some = [byte for byte, to in enumerate(following[state]) if far[to] < 1 << 20]
            if not some:
                break
            if len(written) > most:
                some = [min(some, key=lambda byte: far[following[state][byte]])]
            written.append(draw.choice(some))
            state = following[state][written[-1]]
        found.add(written.decode())
    return found


def valid(schema: Any, value: Any, root: Any) -> bool:
    """Whether a value is valid by the few keywords that the cases have."""
    if schema is True or schema == {}:
        return True
    if "$ref" in schema:
        return valid(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return any(valid(each, value, root) for each in schema["anyOf"])
    if "oneOf" in schema:
        return sum(valid(each, value, root) for each in schema["oneOf"]) == 1
    if "allOf" in schema:
        return all(valid(each, value, root) for each in schema["allOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(of_type(kind, schema, value, root) for kind in kinds)


def of_type(kind: str, schema: Any, value: Any, root: Any) -> bool:
    if kind == "string":
        return isinstance(value, str) and (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 20)
        )
    if kind in ("integer", "number"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole or (kind == "number" and isinstance(value, float))
        least, most = schema.get("minimum", -1e400), schema.get("maximum", 1e400)
        above, below = schema.get("exclusiveMinimum", -1e401), schema.get("exclusiveMaximum", 1e401)
        infinite = isinstance(value, float) and abs(value) == float("inf")  # a text beyond floats
        return fits and (
            infinite
            or (
                least <= value <= most
                and ("exclusiveMinimum" not in schema or above < value)
                and ("exclusiveMaximum" not in schema or value < below)
            )
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 20)
            and all(valid(schema.get("items", True), each, root) for each in value)
        )
    if kind == "object":
        named = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        return (
            isinstance(value, dict)
            and set(schema.get("required", [])) <= set(value)
            and all(
                valid(named[k], v, root) if k in named else bool(rest) and valid(rest, v, root)
                for k, v in value.items()
            )
        )
    return value is None if kind == "null" else isinstance(value, bool)


def pet(kind: str, value: Any) -> Any:
    told = {"value": value, "kind": {"const": kind}}
    return {"type": "object", "properties": told, "required": ["kind"]}


SCHEMAS: list[Any] = [
    {},
    True,
    {"type": "object"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "exclusiveMinimum": 0},
    {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
    {"type": "number", "minimum": 0},
    {"type": ["number", "null", "boolean"]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 0},
    {"type": "array"},
    {"enum": ['a"b', "\\", "é\n", 1.5, [1, {"a": None}]]},
    {"const": {"a": 1}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": False, "title": "none"},
    {"type": "object", "properties": {}, "additionalProperties": True},
    {
        "type": "object",
        "properties": {'a"b': {"type": "null"}, "c\n": {"type": "boolean"}, "é": True, "d": {}},
        "required": ["é"],
    },
    {"anyOf": [{"type": "null"}, {"allOf": [{"const": "x"}]}]},
    {"$ref": "#/$defs/n", "$defs": {"n": NODE}},
    {"$ref": "#/$defs/n", "$id": "https://example.com/node", "$defs": {"n": NODE}},
    {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "null"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"cat": pet("cat", {"enum": [3, 9]}), "dog": pet("dog", {"type": "boolean"})},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda x: json.dumps(x)[:60])
def test_what_comes_of_a_schema_is_valid_by_it(schema: Any) -> None:
    automaton = compiled(schema)
    for written in drawn(automaton, 40):
        value = json.loads(written)
        assert valid(schema, value, schema), written
        other = json.dumps(value, ensure_ascii=False)
        if not re.search(r"e|E|\\|[.]|\x7f", written):  # written in one way alone
            assert takes(automaton, other), other


NUMBER, TEXT, LONG = {"type": "number"}, {"type": "string"}, {"type": "string", "minLength": 2}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NUMBER, TEXT, True),
        (NUMBER, {"type": "integer"}, False),
        (TEXT, LONG, False),  # it may be, but not plainly
        (TEXT, True, False),
        (TEXT, False, True),
        (TEXT, {"enum": [1, None]}, True),
        (TEXT, {"enum": [1, "a"]}, False),
        ({"enum": [1, 2]}, {"enum": [2.0]}, False),
        ({"const": 1}, {"const": True}, True),
        ({"const": [1, {"a": 0}]}, {"const": [1, {"a": False}]}, True),
        ({"const": [1, {"a": 0}]}, {"const": [1.0, {"a": 0}]}, False),
        ({"anyOf": [NUMBER, TEXT]}, {"type": ["null", "boolean"]}, True),
        ({"anyOf": [NUMBER, TEXT]}, {"type": ["null", "string"]}, False),
        ({"allOf": [NUMBER]}, {"allOf": [TEXT]}, True),
        (pet("cat", TEXT), pet("dog", TEXT), True),
        (pet("cat", TEXT), pet("cat", NUMBER), False),  # of which "value" may be missing
        (pet("cat", TEXT), {"type": ["object", "null"]}, False),
        (pet("cat", TEXT), {**pet("dog", TEXT), "required": ["value"]}, False),
        ({"$ref": "#"}, {"$ref": "#"}, False),
    ],
)
def test_what_is_plainly_apart(one: Any, other: Any, expected: bool) -> None:
    def named(name: str, where: str) -> Any:
        return {"$ref": "#"}

    found = [apart(*pair, named, Seen()) for pair in ((one, other), (other, one))]
    assert found == [expected, expected]


def test_what_names_itself_is_nested_three_times() -> None:
    automaton, written = compiled({"$ref": "#/$defs/n", "$defs": {"n": NODE}}), "null"
    for depth in range(1, 5):
        written = f'{{"v":1,"next":{written}}}'
        assert takes(automaton, written) == (depth <= 3)


def test_a_number_without_a_fraction_is_an_integer() -> None:
    automaton = compiled({"type": "integer", "enum": [1.0, 2.5, 3, True, "4", 1e300]})
    for written in ("1.0", "2.5", "3", "true", '"4"', "1e+300"):
        assert takes(automaton, written) == (written in ("1.0", "3", "1e+300")), written


def test_names_of_parts_are_pointers_in_an_address() -> None:
    """As of classes whose names have brackets and spaces."""
    named = {"a b": {"const": 1}, "c/d~%": {"const": 2}, "$id": {"const": 3}}
    for name, written in (("a%20b", "1"), ("a b", "1"), ("c~1d~0%25", "2"), ("$id", "3")):
        automaton = compiled({"$ref": f"#/$defs/{name}", "$defs": named})
        assert [takes(automaton, n) for n in "123"] == [n == written for n in "123"], name


def test_members_come_in_order_and_some_may_be_missing() -> None:
    names = {name: {"type": "null"} for name in "abcd"}
    automaton = compiled({"type": "object", "properties": names, "required": ["b", "d"]})
    for some in ("abcd", "bd", "abd", "bcd", "acd", "ab", "", "dcba", "bbd", "bde"):
        written = "{" + ",".join(f'"{name}":null' for name in some) + "}"
        assert takes(automaton, written) == (some in ("abcd", "bd", "abd", "bcd")), some
        assert takes(automaton, written.replace(",", " , ").replace(":", ": ")) == takes(
            automaton, written
        )
    free = compiled({"type": "object", "properties": names})
    for some in ("", "a", "d", "ad", "bc", "da"):
        written = "{" + ",".join(f'"{name}":null' for name in some) + "}"
        assert takes(free, written) == (some == "".join(sorted(some))), some


@pytest.mark.parametrize(
    ("format_", "read", "some"),
    [
        ("date", date.fromisoformat, ["2024-02-29", "1999-12-31"]),
        ("time", time.fromisoformat, ["23:59:59Z", "00:00:00.5+01:30"]),
        ("date-time", datetime.fromisoformat, ["2024-02-29T12:00:00Z"]),
        ("uuid", UUID, ["12345678-1234-5678-1234-567812345678"]),
    ],
)
def test_strings_of_a_format(format_: str, read: Any, some: list[str]) -> None:
    automaton = compiled({"type": "string", "format": format_})
    for each in some:
        read(each)
        assert takes(automaton, json.dumps(each))
    wrong = ("2024-13-01", "2024-00-10", "24:00:00Z", "2024-02-29 12:00:00Z", "1234")
    assert not any(takes(automaton, json.dumps(each)) for each in wrong)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (3, "the schema must be an object, got 3"),
        ({"type": "int"}, "unknown type of the schema 'int'"),
        ({"type": 3}, "type of the schema must be a name or a list of names"),
        ({"type": "string", "pattern": "a"}, "unknown keyword of the schema 'pattern'"),
        ({"type": "string", "format": "email"}, "unknown format of the schema 'email'"),
        ({"type": "string", "format": "date", "maxLength": 3}, "must stand without minLength"),
        ({"type": "string", "minLength": -1}, "minLength of the schema must be an int >= 0"),
        ({"type": "string", "minimum": 1}, "minimum of the schema must go with type 'integer'"),
        (
            {"type": "integer", "minimum": 5},
            "minimum of the schema must be 0 or 1, or have at most",
        ),
        ({"type": "integer", "minimum": 0, "maximum": 5000}, "at most 1000 values up to a maximum"),
        ({"type": "integer", "minimum": 0.5}, "minimum of the schema must be an int, got 0.5"),
        ({"type": "number", "minimum": 1}, "must be a minimum of 0 for numbers that need not"),
        ({"type": "number", "minimum": False}, "that need not be whole, got False"),
        ({"type": ["integer", "number"], "minimum": 0, "maximum": 5}, "not be whole, got maximum"),
        ({"exclusiveMaximum": 5, "minimum": 0}, "not be whole, got exclusiveMaximum"),
        ({"enum": [float("nan")]}, "Out of range float values are not JSON compliant"),
        ({"const": "\ud800"}, "surrogates not allowed"),
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {
                    str(n): {"anyOf": [{"$ref": f"#/$defs/{m}"} for m in range(9)]}
                    for n in range(9)
                },
            },
            "the schema must have at most 10000 parts",
        ),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "must have 'anyOf' alone, got 'type'"),
        ({"oneOf": [{}, {}]}, "a member that both require, got oneOf[0] and oneOf[1]"),
        ({"oneOf": {}}, "oneOf of the schema must be a list"),
        ({"oneOf": [{"const": n} for n in "abcb"]}, "got oneOf[1] and oneOf[3]: anyOf takes"),
        ({"oneOf": [{}, {"enum": ["a"]}]}, "got oneOf[0] and oneOf[1]: anyOf takes"),
        ({"allOf": [{}, {}]}, "allOf of the schema must hold a single schema"),
        ({"anyOf": {}}, "anyOf of the schema must be a list"),
        ({"enum": "ab"}, "enum of the schema must be a list"),
        ({"$ref": "other.json"}, "$ref of the schema must name a part of the schema"),
        ({"$ref": "#/$defs/a"}, "$ref of the schema must name a part of the schema"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#a"}]}, "must name a part of the schema, got '#a'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$id": "b", "type": "null"}}}, "without $id, which"),
        (
            {
                "$ref": "#/$defs/a/properties/b",
                "$defs": {"a": {"$id": "c", "properties": {"b": {"type": "null"}}}},
            },
            "#/$defs/a/properties/b must be without $id, which only the schema as a whole may",
        ),
        ({"type": "object", "properties": []}, "properties of the schema must be an object"),
        ({"type": "object", "required": ["a"]}, "required of the schema must name properties"),
        ({"type": "object", "required": [["a"]]}, "required of the schema must name properties"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": 3}}},
            "items of a of the schema must be an object, got 3",
        ),
    ],
)
def test_what_is_not_followed_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expression_of(schema)
    with pytest.raises(ValueError, match="json_schema must be one that can be followed, got"):
        dlm.Constraint.json_schema(dlm.load(), schema)


@pytest.mark.parametrize(
    "schema", [False, {"enum": []}, {"type": "string", "minLength": 2, "maxLength": 1}]
)
def test_a_schema_without_a_value_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="a constraint must allow a text"):
        dlm.Constraint.json_schema(dlm.load(), schema)


def test_large_schemas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "string", "maxLength": 60}
    for name, most in (("RAW", 50), ("STATES", 50), ("NODES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(f"dlm.constraints.expressions.{name}", most)
            with pytest.raises(ValueError, match="json_schema must be of fewer parts: it has"):
                dlm.Constraint.json_schema(dlm.load(), schema)


def test_what_is_nested_too_deep_is_refused() -> None:
    deep = text("a")
    for _ in range(2000):
        deep = maybe(deep)
    with pytest.raises(ValueError, match="it is nested too deep"):
        automaton_of(deep)
    schema: Any = {"type": "null"}
    for _ in range(2000):
        schema = {"anyOf": [schema]}
    with pytest.raises(ValueError, match="json_schema must be one that can be followed"):
        dlm.Constraint.json_schema(dlm.load(), schema)


@pytest.mark.parametrize("given", ["{", {"enum": [object]}, '{"a": NaN'])
def test_what_is_no_json_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="json_schema must be one that can be followed"):
        dlm.Constraint.json_schema(dlm.load(), given)


def test_expressions_are_put_together() -> None:
    some = automaton_of(series(either(text("ab"), text("a"), text("é")), maybe(text("b"))))
    for written in ("ab", "abb", "a", "é", "éb"):
        assert takes(some, written)
    for written in ("", "b", "abbb", "éé"):
        assert not takes(some, written)
