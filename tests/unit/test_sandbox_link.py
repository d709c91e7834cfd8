"""Calls between the two processes of a sandbox: answers, errors, and those who lie."""

import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from dlm.eval.sandbox.link import FRAME, Broken, Function, Link, Opaque, revived
from dlm.eval.sandbox.wire import encode

# Calls.


class Pair:
    """Two links that speak to each other; the second answers in a thread."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        there, to = os.pipe()
        back, here = os.pipe()
        self.near, self.far = Link(back, to), Link(there, here)
        self.files = [there, to, back, here]
        for each in functions:
            self.far.export(each)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with suppress(Broken):
            self.far.serve()

    def function(self, number: int = 0) -> Function:
        return Function(self.near, number, "f")

    def close(self) -> None:
        os.close(self.near.writer)
        self.thread.join(10)
        for each in self.files:
            if each != self.near.writer:
                os.close(each)


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*functions: Callable[..., Any]) -> Pair:
        made.append(Pair(*functions))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Pair]


def test_a_call_crosses(pair: Make) -> None:
    f = pair(lambda *args, **more: [args, more]).function()
    assert f(1, [2], key={3: 4}) == [(1, [2]), {"key": {3: 4}}]


def test_changes_of_arguments_cross(pair: Make) -> None:
    f = pair(lambda items, held: (items.sort(), held.clear(), 7)[-1]).function()
    items, held = [3, 1, 2], {"a": 1}
    assert f(items, held=held) == 7
    assert items == [1, 2, 3]
    assert held == {}


def test_functions_are_called_back(pair: Make) -> None:
    f = pair(lambda g, items: [g(each, by=2) for each in items]).function()
    assert f(lambda x, by: x * by, [1, 2]) == [2, 4]
    assert pair(lambda g: g(lambda x: x + 1)).function()(lambda h: h(1)) == 2


def test_what_stays_is_the_same_when_it_comes_home(pair: Make) -> None:
    held = object()
    both = pair(lambda: held, lambda x: x is held, lambda: [held, len])
    found = both.function(0)()
    assert type(found) is Opaque
    assert both.function(1)(found) is True
    assert both.function(1)(object()) is False
    again, function = both.function(2)()
    assert type(function) is Function
    assert function("abc") == 3
    assert function.__name__ == "len"
    assert both.function(1)(again)


def test_what_stays_equals_nothing(pair: Make) -> None:
    found = pair(lambda: object()).function()()
    other: Any = found
    assert not operator.eq(found, other)
    assert operator.ne(found, other)
    assert found != 2
    assert repr(found) == "<object of the solution>"
    for attempt in (lambda: found + 1, lambda: abs(found), lambda: found < 1, lambda: list(found)):
        with pytest.raises(TypeError):
            attempt()


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class OwnError(LookupError):
    pass


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (ValueError("no"), ValueError, "no"),
        (KeyError("k"), KeyError, "'k'"),
        (ZeroDivisionError(), ZeroDivisionError, ""),
        (OwnError("x"), LookupError, "x"),
        (Exception("plain"), RuntimeError, "Exception: plain"),
        (SystemExit(0), RuntimeError, "SystemExit: 0"),
        (KeyboardInterrupt(), RuntimeError, "KeyboardInterrupt"),
        (StopIteration(1), RuntimeError, "StopIteration: 1"),
        (AssertionError("a"), AssertionError, "a"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), UnicodeDecodeError, "bad"),
        (ValueError(object()), ValueError, "object"),
        (RecursionError("deep"), RecursionError, "deep"),
    ],
)
def test_errors_cross_as_the_builtin_of_that_name(
    pair: Make, error: BaseException, expected: type[Exception], text: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        pair(raiser(error)).function()()
    assert type(caught.value) is expected
    assert text in str(caught.value)


def test_names_that_are_no_errors_raise_a_runtime_error() -> None:
    for names in ((), (1,), ("len",), ("BaseException",), ("GeneratorExit",), ("object",)):
        assert type(revived(names, ("x",))) is RuntimeError


def spoken(text: bytes) -> Link:
    """A link on whose other side somebody has written this and closed."""
    back, here = os.pipe()
    nothing, to = os.pipe()
    os.write(here, text)
    os.close(here)
    threading.Thread(target=lambda: os.read(nothing, 2**16) and None).start()
    return Link(back, to)


def frame(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else encode(value)
    return b"%08x" % len(text) + text


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0000",
        b"zzzzzzzz",
        b"-0000001",
        b"ffffffff",
        b"%08x" % (FRAME + 1),
        frame(b"garbage"),
        frame(1),
        frame(()),
        frame(("return",)),
        frame(("return", 1)),
        frame(("return", 1, 2)),
        frame(("return", 1, b"garbage")),
        frame(("return", 1, encode(((), {"x": 1})))),
        frame(("return", 1, encode(((1, 2), {})))),
        frame(("return", 1, encode(1))),
        frame(("raise", "ValueError", ())),
        frame(("call", 1, (), {})),
        frame(("call", "print", (), {})),
        frame(b"u4:s4:callh2:99u0:m0:"),
        frame(b"u4:s4:callh1:0u0:m0:"),
        frame(b"u4:s4:callo1:xu0:m0:"),
        frame(("else", 1, 2)),
    ],
)
def test_a_side_that_does_not_keep_to_the_protocol_breaks_the_link(text: bytes) -> None:
    link = spoken(text)
    with pytest.raises(Broken):
        Function(link, 0, "f")(1)
    assert link.broken
    os.close(link.reader)
    os.close(link.writer)


def test_only_what_was_shown_can_be_called() -> None:
    link = spoken(frame(b"u4:s4:callh1:0u1:i1:5m0:") + frame(("return", 2, None)))
    seen: list[int] = []
    assert Function(link, 0, "f")(seen.append) == 2
    assert seen == [5]
    os.close(link.reader)
    os.close(link.writer)


def test_an_answer_that_is_too_long_is_an_error(
    pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.eval.sandbox.link.FRAME", 10_000)
    with pytest.raises(OverflowError, match="bytes"):
        pair(lambda: "x" * 20_000).function()()
