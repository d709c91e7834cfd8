"""Completions whose blanks grow and shrink: what is served is what `dlm.infill` gives."""

import runpy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.binding import bind
from dlm.execution import Execution
from dlm.growth import Growth
from dlm.models.model import Model
from dlm.runtime import Step
from dlm.serving.engine import Engine
from dlm.serving.group import Group, Laid, Line
from dlm.serving.work import Ended, Event, Failed, Grown, Request
from dlm.settings import Settings
from dlm.tree import equal

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "engine_cases.py")))
Schedule = Callable[[Model, str], dict[str, Any]]
EXPAND, MOST = 50, 9
USUAL: dict[str, Any] = {
    "decoder": "left_to_right",
    "block_length": 5,
    "temperature": 1.0,
    "stop_at_eos": False,
}


@pytest.fixture
def grower(golden: Model) -> Model:
    """A random network that asks for blanks by a token, and gives them up, now and then."""
    return replace(golden, spec=replace(golden.spec, expand_id=EXPAND))


@pytest.fixture
def engine(grower: Model) -> Iterator[Engine]:
    made = Engine(grower, batch_size=3, queue_size=32)
    yield made
    made.close()


class Listener:
    """What is told of the rows of one request."""

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.ends: dict[int, Ended] = {}
        self.failed: list[Failed] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Grown):
            self.texts.setdefault(event.row, []).extend(event.tokens)
        elif isinstance(event, Ended):
            self.ends[event.row] = event
        elif isinstance(event, Failed):
            self.failed.append(event)
        self.over.set()


def asked(model: Model, follow: bool = True, **options: Any) -> tuple[Request, dict[str, Any]]:
    """Rows with blanks in one place, an end of text given behind, and options of `dlm.infill`."""
    mask, end = model.spec.mask_id, model.spec.eos_id
    rows = [[11 + n, *[mask] * (1 + n % 3), *range(20, 22 + n), end] for n in range(5)]
    spans = [(1, 1 + row.count(mask)) for row in rows]
    bias = {EXPAND: 5.0, end: 4.0}
    given = {**USUAL, "logit_bias": bias, "row_keys": list(range(30, 35)), **options}
    growth = Growth.of(MOST, None)
    return Request(rows, spans, Settings(**given), follow, growth=growth), given


def check(model: Model, listener: Listener, request: Request, given: dict[str, Any]) -> None:
    """That rows are what `dlm.infill` gives, and that nothing told is taken back."""
    expected = dlm.infill(model, request.rows, max_gen_length=MOST, **given)
    assert not listener.failed
    for row, end in listener.ends.items():
        begin, stop = request.spans[row]
        behind = len(request.rows[row]) - stop
        whole = expected.tokens[row]
        assert end.tokens == whole[begin : len(whole) - behind]
        assert end.forwards == expected.forwards[row]
        assert end.decoded == expected.decoded[row] == len(end.tokens)
        assert end.closed == (len(end.tokens) < MOST)
        told = listener.texts.get(row, [])
        assert told == end.tokens[: len(told)]


def wait_for(listener: Listener, rows: int) -> None:
    while len(listener.ends) < rows and not listener.failed:
        assert listener.over.wait(CASES.PATIENCE)
        listener.over.clear()


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("groups", [16, 1])
def test_rows_are_what_infill_gives(
    grower: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch, groups: int, cache: str
) -> None:
    """Also where lines that may grow and those that may not cannot have a group each."""
    monkeypatch.setattr("dlm.serving.engine.GROUPS", groups)
    request, given = asked(grower, cache=cache)
    listener, other = Listener(), Listener()
    engine.submit(request, listener)
    engine.submit(asked(grower, follow=False, cache=cache, seed=3)[0], other)
    wait_for(listener, 5)
    wait_for(other, 5)
    check(grower, listener, request, given)
    check(grower, other, request, {**given, "seed": 3})
    assert listener.texts
    assert len({len(end.tokens) for end in listener.ends.values()}) > 2


def test_steps_of_one_shape_give_the_same(grower: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    request, given = asked(grower, decoder="entropy")
    expected = dlm.infill(grower, request.rows, max_gen_length=MOST, **given)
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=True))
    engine, listener = Engine(grower, batch_size=5), Listener()
    engine.submit(request, listener)
    wait_for(listener, 5)
    engine.close()
    assert [listener.ends[row].forwards for row in range(5)] == expected.forwards


def test_lines_that_are_given_up_while_they_move_leave_nothing(
    grower: Model, engine: Engine
) -> None:
    for turns in range(4):
        request, _ = asked(grower, seed=turns)
        listener = Listener()
        ticket = engine.submit(request, listener)
        for _ in range(turns):
            listener.over.wait(CASES.PATIENCE)
            listener.over.clear()
        engine.cancel(ticket)
    request, given = asked(grower)
    listener = Listener()
    engine.submit(request, listener)
    wait_for(listener, 5)
    check(grower, listener, request, given)
    assert engine.running


def test_a_forward_that_fails_fails_rows_that_have_just_moved(
    grower: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(group: Group, step: Step) -> None:
        if group.moved:
            group.lines.clear()  # nothing but the rows that moved can tell of it
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Group, "follow", follow)
    listener = Listener()
    engine.submit(asked(grower)[0], listener)
    while not listener.failed:
        assert listener.over.wait(CASES.PATIENCE)
        listener.over.clear()
    assert engine.running


@pytest.mark.parametrize("scope", ["block", "generation"])
@pytest.mark.parametrize("block_length", [None, MOST])
def test_schedules_of_rows_that_grow_are_those_of_infill(
    grower: Model, engine: Engine, schedule: Schedule, scope: str, block_length: int | None
) -> None:
    """They are laid out for the blocks that a row may come to."""
    request, given = asked(grower, block_length=block_length, **schedule(grower, scope))
    listener = Listener()
    engine.submit(request, listener)
    wait_for(listener, 5)
    check(grower, listener, request, given)


def test_a_row_reaches_as_far_as_its_blanks_may_come(grower: Model) -> None:
    mask = grower.spec.mask_id
    for block_length, most, blocks in ((8, 8, (1, 8)), (4, 8, (2, 4)), (None, 8, (1, 8))):
        settings = Settings(decoder="schedule", block_length=block_length)
        row = [11, *[mask] * 5, 20]
        request = Request([row], [(1, 6)], settings, False, growth=Growth.of(most, None))
        laid = Laid.of(grower, Line.of(grower, 0, 1, 0, request, lambda event: None))
        assert laid.reach == most
        assert laid.agreement[-1][-3:] == (*blocks, True)
        plain = replace(request, growth=None)
        laid = Laid.of(grower, Line.of(grower, 0, 1, 0, plain, lambda event: None))
        assert laid.reach is None
        assert laid.agreement[-1][-1] is False


def test_a_full_row_is_bound_as_infill_binds_it(grower: Model) -> None:
    """To what a row draws that may grow: the background of `pc_sampler` tells the two apart."""
    settings = Settings(decoder="pc_sampler", block_length=None)
    rows = [[11, *[grower.spec.mask_id] * 3]]
    request = Request(rows, [(1, 4)], settings, False, growth=Growth.of(3, None))
    line = Line.of(grower, 0, 1, 0, request, lambda event: None)
    laid = Laid.of(grower, line)
    assert line.part is not None
    assert not line.part.grows
    growing, plain = (
        bind(settings.policy, replace(grower, spec=spec), laid.canvas, None, laid.reach)
        for spec in (grower.spec.growing, grower.spec)
    )
    assert not equal(growing, plain)
    made = Group(laid, lambda line, event: None).terms.decoder
    assert equal(made, growing)


def test_a_line_that_cannot_be_laid_out_anew_fails_alone(
    grower: Model, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out = Laid.of

    def refuse(model: Model, line: Line) -> Laid:
        if line.part is not None and line.part.times:
            raise RuntimeError("no room")
        return lay_out(model, line)

    monkeypatch.setattr(Laid, "of", refuse)
    request, given = asked(grower)
    listener = Listener()
    engine.submit(request, listener)
    while not listener.failed:
        assert listener.over.wait(CASES.PATIENCE)
        listener.over.clear()
    monkeypatch.setattr(Laid, "of", lay_out)
    listener = Listener()
    engine.submit(request, listener)
    wait_for(listener, 5)
    check(grower, listener, request, given)
