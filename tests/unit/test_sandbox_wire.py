"""Values and calls between the two processes of a sandbox: what crosses, and what does not."""

import datetime as dates
import math
import os
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.eval.sandbox import wire
from dlm.eval.sandbox.wire import KEEP, WireError, absorb, decode, encode

East = dates.timezone(dates.timedelta(hours=5, minutes=30))
Point = namedtuple("Point", "x y")


class Colour(IntEnum):
    RED = 3


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Text(str):
    pass


PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    10**5000,
    -(10**5000),
    0.1,
    -0.0,
    math.inf,
    -math.inf,
    5e-324,
    complex(1, -0.0),
    "",
    "a:b\n\0",
    "\ud83d\ude00",  # two lone surrogates are not the character that they would make
    "\U0001f600",
    b"\x00\xff",
    bytearray(b"ab"),
    [],
    [[], [1, [2.5, "x"]]],
    (),
    (1,),
    {1, "a"},
    frozenset({(1, 2)}),
    {},
    {1: {"a": [None]}, (1, 2): 3, None: 4, 2.5: 5},
    range(1, 10, 3),
    deque([1, 2], maxlen=3),
    deque([[1]]),
    Counter("abca"),
    OrderedDict([("b", 1), ("a", 2)]),
    defaultdict(list, {1: [2]}),
    defaultdict(None, {1: 2}),
    Decimal("1.50"),
    Decimal("-Infinity"),
    Fraction(-3, 7),
    dates.date(2024, 2, 29),
    dates.datetime(2024, 2, 29, 1, 2, 3, 4),
    dates.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=East, fold=1),
    dates.time(1, 2, 3, 4, tzinfo=dates.UTC),
    dates.timedelta(-3, 4, 5),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}")
def test_plain_values_come_back(value: Any) -> None:
    found = decode(encode(value))
    assert found == value
    assert type(found) is type(value)
    assert repr(found)[:4000] == repr(value)[:4000] if abs_small(value) else True


def abs_small(value: Any) -> bool:
    """Whether Python agrees to print it."""
    return not isinstance(value, int) or abs(value) < 10**4000


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


def test_details_that_equality_does_not_see() -> None:
    assert math.copysign(1, decode(encode(-0.0))) == -1
    assert decode(encode(deque([1], maxlen=3))).maxlen == 3
    assert decode(encode(defaultdict(list))).default_factory is list
    assert decode(encode(defaultdict(lambda: 3))).default_factory is None
    assert decode(encode(dates.datetime(2024, 1, 1, fold=1))).fold == 1
    assert list(decode(encode({3: 1, 1: 2}))) == [3, 1]
    assert str(decode(encode(Decimal("1.50")))) == "1.50"


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.complex_numbers(allow_nan=False)
)
keys = st.integers() | st.text(st.characters()) | st.booleans() | st.none()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.frozensets(keys)
        | st.lists(inner).map(deque)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(values)
def test_any_plain_value_comes_back(value: Any) -> None:
    found = decode(encode(value))
    assert found == value
    assert type(found) is type(value)


@settings(deadline=None)
@given(st.binary() | st.text("nlume0123:isdEt", max_size=40).map(str.encode))
def test_any_bytes_are_a_value_or_refused(text: bytes) -> None:
    try:
        value = decode(text)
    except WireError:
        return
    assert decode(encode(value)) == value or value != value or "nan" in repr(value)


@settings(deadline=None)
@given(values, st.data())
def test_a_damaged_message_is_a_value_or_refused(value: Any, data: st.DataObject) -> None:
    text = bytearray(encode(value))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        decode(bytes(text))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, 3),
        (Text("a"), "a"),
        (Point(1, 2), (1, 2)),
        (Liar(3), 3),
    ],
)
def test_subclasses_become_their_plain_type(value: Any, expected: Any) -> None:
    found = decode(encode(value))
    assert found == expected
    assert type(found) is type(expected)


def test_a_subclass_cannot_lie_about_equality() -> None:
    assert Liar(3) == 2
    assert decode(encode([Liar(3)])) != [2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter([1, 2]),
        lambda: (each for each in (1, 2)),
        lambda: map(int, "12"),
        lambda: filter(None, [0, 1, 2]),
        lambda: zip("ab", "cd", strict=True),
        lambda: enumerate("ab"),
        lambda: reversed([1, 2]),
    ],
)
def test_iterators_come_back_as_iterators(make: Callable[[], Iterator[Any]]) -> None:
    found = decode(encode(make()))
    assert iter(found) is found
    assert list(found) == list(make())


def test_views_come_back_as_views() -> None:
    held = {"a": 1, "b": 2}
    assert decode(encode(held.keys())) == held.keys()
    assert decode(encode(held.items())) == held.items()
    assert list(decode(encode(held.values()))) == [1, 2]
    assert type(decode(encode(held.values()))) is type(held.values())


def test_what_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(WireError, match="deep"):
        encode(cycle)
    monkeypatch.setattr(wire, "ITEMS", 100)
    with pytest.raises(WireError, match="more than 100"):
        encode(iter(int, 1))
    monkeypatch.setattr(wire, "NODES", 100)
    with pytest.raises(WireError, match="too many"):
        encode([0] * 101)
    with pytest.raises(WireError, match="too many"):
        decode(b"l101:" + b"n0:" * 101)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"n",
        b"i1:",
        b"i2:1",
        b"l9:",
        b"l-1:",
        b"i1:g",
        b"s1:\xff",
        b"n0:n0:",
        b"m1:l0:n0:",
        b"e1:l0:",
        b"E2:osu0:",
        b"E6:systemu1:s2:ls",
        b"E4:dateu3:i1:1i1:di1:1",
        b"E5:rangel1:i1:1",
        b"o5:0 1 x",
        b"h1:0",
        b"q1:0",
        b"l99999999999999:",
        b"l1:" * 5000,
        b"d3:xyz",
    ],
)
def test_bytes_that_are_no_value_are_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        decode(text)


def test_what_is_no_plain_data_is_refused_without_names_for_it() -> None:
    for value in (object(), len, type, os):
        with pytest.raises(WireError, match="plain"):
            encode(value)


# Changes of arguments.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([3, 1], [1, 3]),
        ([1], [1, 2, 3]),
        ([1, 2], []),
        ({"a": 1}, {"b": 2}),
        ({1, 2}, {3}),
        (deque([1, 2]), deque([2])),
        (bytearray(b"ab"), bytearray(b"c")),
        (defaultdict(int, {1: 1}), defaultdict(int, {1: 2, 2: 3})),
        ([[1], {"a": [2]}], [[1, 1], {"a": [3], "b": 0}]),
    ],
)
def test_a_changed_argument_changes_in_place(old: Any, new: Any) -> None:
    inner = old[0] if isinstance(old, list) and old else None
    assert absorb(old, decode(encode(new, snapshot=True))) is old
    assert old == new
    assert type(old) is type(new)
    if isinstance(inner, list):
        assert old[0] is inner


def test_lists_in_tuples_change_in_place() -> None:
    inner = [1]
    held = (inner, 5)
    assert absorb(held, ([2], 5)) is held
    assert inner == [2]


def test_iterators_do_not_change() -> None:
    held = iter([1, 2])
    new = decode(encode((held, 3), snapshot=True))
    assert new[0] is KEEP
    assert absorb([held], [new[0]])[0] is held
    assert list(held) == [1, 2]
