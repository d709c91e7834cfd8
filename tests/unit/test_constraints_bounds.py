"""Bounds on what a constraint may cost before it is refused, whatever it is made of."""

import json
from typing import Any

import pytest

from dlm.constraints import apart, expressions, schemas
from dlm.constraints.expressions import (
    Net,
    Repeated,
    automaton_of,
    either,
    nodes_of,
    series,
    text,
)
from dlm.constraints.schemas import expression_of
from dlm.serving import tools

INTEGERS = {"type": "integer", "minimum": 0, "maximum": 999}


def doubled(part: Any, times: int) -> Any:
    """A part that is named 2^times times."""
    named, name = {"z": part}, "z"
    for time in range(times):
        named[str(time)] = {"anyOf": [{"$ref": f"#/$defs/{name}"}] * 2}
        name = str(time)
    return {"$ref": f"#/$defs/{name}", "$defs": named}


@pytest.mark.parametrize(
    "part",
    [
        {"const": "x" * 20_000},
        {"type": "object", "properties": {"x" * 20_000: {}}},
        INTEGERS,
        {"type": "null", "enum": [1] * 30_000},  # none of which fits
        {"type": "string", "maxLength": 10**12},
    ],
    ids=lambda part: json.dumps(part)[:50],
)
def test_parts_that_are_named_again_are_counted_as_they_are_read(
    part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once all of them are put together: here 2048 times."""
    texts: list[str] = []

    def noted(letters: str) -> Any:
        texts.append(letters)
        return text(letters)

    monkeypatch.setattr(schemas, "text", noted)
    with pytest.raises(ValueError, match="the schema must come to at most 262144 nodes"):
        expression_of(doubled(part, 11))
    assert sum(map(len, texts)) < 1 << 19


@pytest.mark.parametrize(
    "schema",
    [
        INTEGERS,
        {"enum": ["a", 1, None, "\u00e9"]},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "minLength": 2},
        {"type": "array", "items": {"type": "number"}},
        {"type": "array", "items": {"type": "number"}, "minItems": 3},
        {"type": ["object", "string"], "format": "date-time"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": INTEGERS, "b": {"const": 1}, "c": {}}},
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]},
    ],
)
def test_nodes_are_counted_as_they_are_made(schema: Any) -> None:
    expression, net = expression_of(schema), Net()
    net.add(expression, net.node())
    assert len(net.free) == 1 + nodes_of(expression)


def test_what_is_refused_for_its_states_is_told_the_bound_that_it_met() -> None:
    """A set of nodes for each way to have met 14 letters, all of which are states."""
    letter = either(text("a"), text("b"))
    far = series(Repeated(letter), text("a"), Repeated(letter, 14, 14))
    with pytest.raises(ValueError, match="it has more than 16384 states before alike ones are"):
        automaton_of(far)
    near = series(Repeated(letter), text("a"), Repeated(letter, 13, 13))
    with pytest.raises(ValueError, match="it has 16385 states, and at most 8192 are followed"):
        automaton_of(near)


def test_a_long_text_is_still_one_of_a_schema() -> None:
    """And its bytes share what they stand for."""
    expression = expression_of(doubled({"const": "x" * 700}, 3))
    assert len(automaton_of(expression).accepting) == 704
    assert len({id(part) for part in text("abab" * 9).parts}) == 2  # type: ignore[union-attr]


def tagged(tag: Any, **others: Any) -> Any:
    """An object that its last member tells from others."""
    members = {**others, "tag": {"const": tag}}
    return {"type": "object", "properties": members, "required": [*members]}


def test_alternatives_are_held_apart_once_and_counted_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apart, "PAIRS", 400)
    tags = [tagged(n) for n in range(15)]
    expression_of(doubled({"oneOf": tags}, 6))  # 105 pairs, of tags too
    several = {str(n): {"oneOf": [*tags]} for n in range(2)}
    values = [{"enum": [*range(n, n + 90)]} for n in range(0, 270, 90)]
    for schema in ({"type": "object", "properties": several}, {"oneOf": values}):
        with pytest.raises(ValueError, match="oneOf must be of at most 400 pairs of schemas"):
            expression_of(schema)


def test_values_of_alternatives_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each pair of them."""
    monkeypatch.setattr(apart, "PAIRS", 4 * 330)
    members = {name: {"oneOf": [{"const": f"{name}{n}"} for n in range(330)]} for name in "ab"}
    expression_of({"type": "object", "properties": members})


def test_alternatives_are_told_by_the_member_that_lists_fewest_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the order of a set of names is in this process."""
    monkeypatch.setattr(apart, "PAIRS", 3 * 435 + 30)
    enum = {"enum": [f"C{n:03}" for n in range(30)]}
    others = {f"{name}{n}": enum for n in range(4) for name in ("a", "currency", "z")}
    expression_of({"oneOf": [tagged(n, **others) for n in range(30)]})
    named = {f"m{n}": {"anyOf": [{"type": "string"}, {"type": "null"}]} for n in range(9)}
    expression_of({"oneOf": [tagged(n, **named) for n in range(30)]})


def test_functions_share_the_bound_of_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def noted(schema: Any) -> Any:
        read.append(schema)
        return expression_of(schema)

    monkeypatch.setattr(tools, "expression_of", noted)
    parameters = {"properties": {"a": {"type": "string", "maxLength": 1500}}}
    functions = [(n, f"f{n}", parameters) for n in range(50)]
    with pytest.raises(ValueError, match="tools must be of fewer parts: they come to more than"):
        tools.calls_of(json.dumps([False, functions]))
    assert len(read) < 6


def test_sets_of_parts_that_are_all_unlike_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each object is out as soon as its own member is another: 2^16 sets of them."""
    count, names = 40, [f"{n:x}" for n in range(16)]
    ways = [
        {name: {"const": 0} if n % 16 == k else {"enum": [0, 1]} for n, name in enumerate(names)}
        for k in range(count)
    ]
    letters = "".join(chr(0x80 + 65 * n) for n in range(28)) + "abcdefghijklmnopqrstuvwxyz"
    objects = [{"type": "object", "properties": named} for named in ways]
    monkeypatch.setattr(expressions, "WORK", 1 << 16)  # or it takes seconds
    with pytest.raises(ValueError, match="it takes more than 65536 steps to follow"):
        automaton_of(expression_of({"anyOf": [*objects, {"const": letters}]}))
