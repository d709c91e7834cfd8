"""Dates as automata: those that a calendar has."""

import json
from calendar import monthrange
from datetime import date, timedelta
from typing import Any

import pytest

from dlm.constraints.expressions import automaton_of, nodes_of
from dlm.constraints.language import ByteAutomaton
from dlm.constraints.schemas import expression_of

YEARS = (1, 4, 99, 100, 400, 1000, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 9996, 9999)


def takes(automaton: ByteAutomaton, value: str) -> bool:
    state = automaton.start
    for byte in json.dumps(value).encode():
        state = int(automaton.following[state, byte])
    return bool(automaton.accepting[state])


@pytest.mark.parametrize(("format_", "behind"), [("date", ""), ("date-time", "T12:00:00Z")])
def test_days_are_those_of_the_calendar(format_: str, behind: str) -> None:
    automaton = automaton_of(expression_of({"type": "string", "format": format_}))
    for year in YEARS:
        for month in range(14):
            last = monthrange(year, month)[1] if 1 <= month <= 12 else 0
            for day in (0, 1, 9, 10, 28, 29, 30, 31, 32):
                written = f"{year:04}-{month:02}-{day:02}{behind}"
                assert takes(automaton, written) == (1 <= day <= last), written
    assert not takes(automaton, f"0000-01-01{behind}")
    assert not takes(automaton, f"0000-02-29{behind}")


def test_every_day_of_some_centuries_is_one() -> None:
    automaton = automaton_of(expression_of({"type": "string", "format": "date"}))
    for first in (date(1, 1, 1), date(1899, 12, 1), date(2399, 12, 1)):
        assert all(takes(automaton, str(first + timedelta(days=n))) for n in range(1000))
    leap = [year for year in range(10_000) if takes(automaton, f"{year:04}-02-29")]
    assert leap == [y for y in range(1, 10_000) if y % 4 == 0 and (y % 100 or y % 400 == 0)]


TEXT, MOMENT = {"type": "string"}, {"type": "string", "format": "date-time"}


def or_null(schema: Any) -> Any:
    return {"anyOf": [schema, {"type": "null"}]}


@pytest.mark.parametrize(
    ("members", "states"),
    [
        ([or_null(TEXT)] * 18 + [or_null(MOMENT)] * 6, 845),
        ([MOMENT] * 20, 1273),
        ([TEXT] * 14 + [MOMENT] * 10, 941),
        ([or_null(TEXT)] * 14 + [or_null(MOMENT)] * 10, 1013),
    ],
    ids=["6 of 24", "20", "10 of 24", "10 of 24 or null"],
)
def test_objects_may_have_many_moments(
    members: list[Any], states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that may be missing cost states of their own alone before any are one."""
    monkeypatch.setattr("dlm.constraints.expressions.RAW", 5 * states // 4 + 10)
    named = {f"f_{n}": member for n, member in enumerate(members)}
    made = automaton_of(expression_of({"type": "object", "properties": named}))
    assert len(made.accepting) == states


def test_dates_are_followed_in_hardly_more_states_than_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expression = expression_of(MOMENT)
    assert nodes_of(expression) < 220
    monkeypatch.setattr("dlm.constraints.expressions.RAW", 56)
    assert len(automaton_of(expression).accepting) == 54
