"""Constraints of requests: compiled once, kept, given up, and waited for by few."""

import runpy
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.constraints.constraint import Constraint
from dlm.models.model import Model
from dlm.serving import constraints
from dlm.serving.constraints import Constraints, entries
from dlm.serving.rules import Rule
from dlm.serving.work import Busy

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Expressions that were compiled since."""
    made: list[str] = []

    def regex(model: Model, pattern: str) -> Constraint:
        made.append(pattern)
        return Constraint.regex(model, pattern)

    monkeypatch.setattr(constraints, "MADE", {**constraints.MADE, "regex": regex})
    return made


def test_a_server_compiles_once(serve: Callable[..., Any], compiled: list[str]) -> None:
    server = serve(CASES.letters(["12"]))
    for field in ({"guided_regex": "[xy]{2}"}, {"structured_outputs": {"regex": "[xy]{2}"}}) * 2:
        answer = server.ask(**field)
        assert answer.status_code == 200, answer.text
    assert compiled == ["[xy]{2}"]


def test_requests_at_a_time_compile_twice_at_most(model: Model, compiled: list[str]) -> None:
    kept, barrier = Constraints(), Barrier(8)

    def ask(number: int) -> Constraint:
        barrier.wait(10)
        return kept.of(model, Rule("regex", "ab", "guided_regex"))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert 1 <= len(compiled) <= 2


def test_those_used_longest_ago_are_given_up(
    model: Model, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Constraints()
    monkeypatch.setattr(constraints, "MOST", 2)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        made = kept.of(model, Rule("regex", pattern, "guided_regex"))
    assert compiled == ["a", "b", "c", "b"]
    monkeypatch.setattr(constraints, "ENTRIES", entries(made))
    kept.of(model, Rule("regex", "d", "guided_regex"))
    assert [text for _, text in kept.kept] == ["d"]


def test_what_fails_is_kept_too(model: Model, compiled: list[str]) -> None:
    """It may take as long; each request hears of its own field, and nobody waits for it."""
    kept = Constraints()
    for field in ("guided_regex", "structured_outputs.regex") * 9:
        with pytest.raises(ValueError, match=f"^{field} must be a regular expression"):
            kept.of(model, Rule("regex", "(", field))
    assert compiled == ["("]


def test_what_fails_is_not_kept_with_all_that_was_made_of_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error holds its frames, and those the numbers of a compilation that was given up."""

    class Numbers(list[int]):
        pass

    made: list[weakref.ref[Numbers]] = []

    def large(model: Model, text: str) -> Constraint:
        numbers = Numbers(range(9))
        made.append(weakref.ref(numbers))
        raise ValueError(f"regex must be smaller, got {len(numbers)} parts")

    monkeypatch.setattr(constraints, "MADE", {"regex": large})
    kept = Constraints()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^guided_regex must be smaller, got 9 parts"):
            kept.of(model, Rule("regex", "a", "guided_regex"))
    assert len(made) == 1
    assert made[0]() is None


def test_no_more_wait_than_leave_room_for_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, begun, goes_on = Constraints(), Event(), Event()
    ready = Constraint.regex(model, "a")

    def slow(model: Model, text: str) -> Constraint:
        begun.set()
        assert goes_on.wait(10)
        return ready

    monkeypatch.setattr(constraints, "MADE", {"regex": slow, "choice": lambda model, text: ready})
    kept.of(model, Rule("choice", "[]", "guided_choice"))
    with ThreadPoolExecutor(constraints.WAITING) as pool:
        rules = [Rule("regex", str(n), "guided_regex") for n in range(constraints.WAITING)]
        found = [pool.submit(kept.of, model, rule) for rule in rules]
        while kept.waiting.acquire(blocking=False):
            kept.waiting.release()
        with pytest.raises(Busy, match="too many requests wait"):
            kept.of(model, Rule("regex", "more", "guided_regex"))
        assert kept.of(model, Rule("choice", "[]", "guided_choice")) is ready
        goes_on.set()
        assert all(each.result(10) is ready for each in found)
    assert begun.is_set()
