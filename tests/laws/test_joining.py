"""Rows that join a batch decode what they would alone, whenever they come and whoever goes."""

import weakref
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dlm.batch import Change, Rows, Terms, denoise
from dlm.cache import Cache
from dlm.canvas import Canvas
from dlm.decoders import DECODERS
from dlm.endings import End, ended
from dlm.execution import Execution
from dlm.job import Job, make_job
from dlm.models.model import Model
from dlm.runtime import Loop
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.tree import stacked
from dlm.types import Decision, StepView

Decoding = Callable[[str], dict[str, Any]]

PAIRS = [(name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches]
MASK = 511
CAUSAL, BEHIND = ({"block_size": 8, x: True} for x in ("causal", "anchored"))
WARMER = (1.0, 0.1, 3.0)
USUAL: dict[str, Any] = {"block_length": 4, "temperature": 0.8, "stop_at_eos": False}


@dataclass(frozen=True)
class Comer:
    """A row, when it comes, and when it is given up."""

    prompt: list[int]
    blanks: int
    after: int = 0  # forwards of the batch
    gone: int | None = None

    @property
    def row(self) -> list[int]:
        return [*self.prompt, *[MASK] * self.blanks]


COMERS = [
    Comer([1, 2, 3, 4, 0, 1, 2], 9),
    Comer([3], 9),
    Comer([4, 1, 0], 9, after=2),
    Comer([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], 13, after=2),
    Comer([30, 31], 5, after=5),
    Comer([7] * 5, 10, after=7),
]
"""Two that begin, two that come together and are longer, one of two blocks, and one that comes when
some are done."""
SHORT = Comer([8], 2, after=3)
"""Shorter than a block, prompt included."""


def jobs_of(model: Model, comers: Sequence[Comer], **options: Any) -> list[Job]:
    """A job for each row alone, with its number as its key and its name.

    Where tokens are drawn each row has a temperature, as it has a seed.
    """
    jobs = []
    for number, comer in enumerate(comers):
        usual = {**USUAL, **options, "row_keys": [number], "seed": number % 2}
        usual["temperature"] *= WARMER[number % len(WARMER)]
        settings = Settings(**usual)
        jobs.append(make_job(model, [comer.row], [(0, len(comer.row))], settings))
    return jobs


def together(
    model: Model,
    comers: Sequence[Comer],
    execution: Execution,
    sizes: list[int] | None = None,
    **options: Any,
) -> dict[int, End]:
    """All in one batch; those that come together are laid out together. Notes rows per forward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: execution)
        jobs = jobs_of(model, comers, **options)
    made = 0

    def rows(when: int) -> Rows | None:
        names = [n for n, comer in enumerate(comers) if comer.after == when]
        if not names:
            return None
        canvas = Canvas.stack([jobs[n].canvas for n in names], 0)
        return Rows(canvas, [len(comers[n].row) for n in names], names)

    def change() -> Change:
        nonlocal made
        made += 1
        leave = frozenset(n for n, comer in enumerate(comers) if comer.gone == made)
        return Change(leave, rows(made))

    first = rows(0)
    assert first is not None
    span = max(job.canvas.span for job in jobs)
    terms = Terms.of(model, jobs[0].settings, jobs[0].decoder, execution, span)
    ends: dict[int, End] = {}
    with torch.inference_mode():
        for step in denoise(terms, first, change):
            ends.update(ended(step))
            idle = torch.tensor([not live for live in step.live])
            assert not step.decision.commit[idle].any()
            if sizes is not None:
                sizes.append(len(step.live))
    return ends


def alone(model: Model, comers: Sequence[Comer], **options: Any) -> dict[int, End]:
    """Each in a batch of its own."""
    with torch.inference_mode():
        return {
            number: dict(end for step in job.steps() for end in ended(step))[0]
            for number, job in enumerate(jobs_of(model, comers, **options))
        }


def same(found: dict[int, End], expected: dict[int, End]) -> None:
    assert found.keys() == expected.keys()
    for number, end in expected.items():
        mine = found[number]
        assert mine.tokens[: len(end.tokens)] == end.tokens, number  # then comes padding
        for name in ("forwards", "decoded", "queries"):
            assert getattr(mine, name) == getattr(end, name), (number, name)
        assert mine.path == pytest.approx(end.path, abs=1e-3)


@pytest.fixture(params=["plain", "static", "recorded"])
def way(request: pytest.FixtureRequest, traced: Callable[..., Execution]) -> Execution:
    """How steps are run."""
    ways = {"plain": Execution, "static": lambda: Execution(static=True), "recorded": traced}
    return ways[request.param]()


@pytest.mark.one_in(12)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_rows_that_join_decode_what_they_would_alone(
    golden: Model, decoding: Decoding, decoder: str, cache: str
) -> None:
    options: dict[str, Any] = {**decoding(decoder), "cache": cache}
    same(together(golden, COMERS, Execution(), **options), alone(golden, COMERS, **options))


@pytest.mark.one_in(12)
@pytest.mark.parametrize("facts", [{}, {"block_size": 8}, {"shift": True}, CAUSAL, BEHIND], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), [
    ("low_confidence", "none"), ("klass", "prefix"), ("first_hitting", "dual"), ("saber", "none"),
])  # fmt: skip
def test_however_steps_are_run(
    golden: Model, way: Execution, trace: Any, decoder: str, cache: str, facts: dict[str, Any]
) -> None:
    model = Model(golden.network, None, replace(golden.spec, **facts))
    options: dict[str, Any] = {"decoder": decoder, "cache": cache}
    comers = [*COMERS, SHORT]
    expected = alone(model, comers, **options)
    before = trace.plays
    for _ in range(2 if way.lanes is not None else 1):  # plainly, then recorded and played
        same(together(model, comers, way, **options), expected)
    assert (trace.plays > before) == (way.lanes is not None)


def test_memory_may_be_short_while_rows_join(
    golden: Model,
    traced: Callable[..., Execution],
    trace: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the times that a cache of another size is filled, when half of it is.

    The recordings of all rows have made room then.
    """
    follow, short = Cache.follow, 0
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    make = trace.__init__

    def noted(self: Any, *given: Any) -> None:
        make(self, *given)
        made.add(self)

    def half(layers: list[Any]) -> Iterator[Any]:
        yield from layers[: len(layers) // 2]
        raise torch.OutOfMemoryError("CUDA out of memory")

    def scarce(self: Cache, other: Any, *where: Any) -> None:
        nonlocal short
        if self is not other:
            short += 1
            if short % 2:
                kept = SimpleNamespace(length=other.length, layers=half(other.layers))
                other, met[len(made) > 0] = kept, True
            else:
                assert not made
        follow(self, other, *where)

    met: dict[bool, bool] = {}  # whether there were recordings when memory was short
    expected = alone(golden, COMERS, cache="dual")
    monkeypatch.setattr(trace, "__init__", noted)
    monkeypatch.setattr(Cache, "follow", scarce)
    execution = traced()
    for _ in range(2):
        same(together(golden, COMERS, execution, cache="dual"), expected)
    assert short > 12
    assert met == {True: True, False: True}
    short = 0
    with pytest.raises(torch.OutOfMemoryError):  # nothing is kept that could be given up
        together(golden, COMERS, Execution(), cache="dual")


@pytest.mark.one_in(14)
@pytest.mark.parametrize(("cache", "more"), [
    ("prefix", {"cfg_scale": 0.7}), ("dual", {"refresh_every": 2}), ("prefix", {"steps": 6}),
    ("dual", {"refresh_around": 3}), ("prefix", {"refresh_around": 2, "refresh_every": 3}),
    ("dual", {"cfg_scale": 0.7, "refresh_every": 3}), ("prefix", {"stop_at_eos": True}),
    ("dual", {"stop_at_eos": True}), ("dual", {"block_length": None}),
    ("none", {"position_temperature": 0.5}),
    ("dual", {"refresh_prompt_every": 4}), ("dual", {"refresh_answer_every": 7}),
    ("prefix", {"refresh_every": 2, "refresh_prompt_every": 3}),
    ("dual", {"refresh_decoded_every": 3, "suffix_window": 2}),
], ids=str)  # fmt: skip
def test_whatever_is_asked_for(
    golden: Model, way: Execution, cache: str, more: dict[str, Any]
) -> None:
    model = golden
    if "stop_at_eos" in more:
        model = Model(golden.network, None, replace(golden.spec, stop_ids=tuple(range(0, 511, 9))))
    options = {"cache": cache, **more}
    expected = alone(model, COMERS, **options)
    for _ in range(2 if way.lanes is not None else 1):
        same(together(model, COMERS, way, **options), expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_that_are_given_up_leave_the_others_alone(
    golden: Model, way: Execution, cache: str
) -> None:
    comers = [
        replace(comer, gone=gone)
        for comer, gone in zip(COMERS, (3, None, 4, None, None, 8), strict=True)
    ]
    sizes: list[int] = []
    found = together(golden, comers, way, sizes, cache=cache)
    expected = alone(golden, COMERS, cache=cache)
    same(found, {number: expected[number] for number in (1, 3, 4)})
    if not way.static:  # a row that is given up is computed no more
        kept: list[int] = []
        together(golden, COMERS, way, kept, cache=cache)
        assert sum(sizes) < sum(kept)


def test_a_row_that_is_given_up_is_done_where_steps_go_on_in_one_shape(
    golden: Model, way: Execution
) -> None:
    """Twice, so that a recording is given what its last step did not leave."""
    comers = [Comer([number + 1, 2], 13) for number in range(5)]
    options: dict[str, Any] = {"decoder": "left_to_right", "cache": "none"}
    together(golden, comers, way, **options)
    comers[2] = replace(comers[2], gone=5)
    found = together(golden, comers, way, **options)
    assert sorted(found) == [0, 1, 3, 4]


@pytest.mark.parametrize("more", [{}, {"refresh_prompt_every": 100}], ids=str)
def test_nothing_is_computed_for_a_row_that_is_given_up(
    golden: Model, way: Execution, more: dict[str, Any]
) -> None:
    """The only one whose next block was to begin."""
    short = Comer([5, 6, MASK, MASK, 9, 9, MASK, MASK, MASK], 1, gone=2)
    comers = [Comer([1, 2, 3], 9), Comer([4] * 5, 9), short]
    expected = alone(golden, comers[:2], cache="dual", **more)
    for _ in range(2 if way.lanes is not None else 1):
        same(together(golden, comers, way, cache="dual", **more), expected)


def test_one_branch_is_like_itself(golden: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of rows that join while others begin a block: no step is recorded twice."""
    alike: dict[bool, int] = {}
    step = Loop.step
    monkeypatch.setattr(Loop, "step", lambda *of: alike.setdefault(of[3].alike, 0) or step(*of))
    comers = [Comer([n], 13, after=n) for n in (0, 0, 0, 4, 5, 8, 9, 13)]
    together(golden, comers, Execution(static=True), cache="prefix")
    assert {*alike} == {True}


def test_branches_that_are_alike_may_be_computed_of_all_rows_or_of_none(golden: Model) -> None:
    """A block begins in a row, and at the same time in one that joins, whose prompt is not due."""
    options: dict[str, Any] = {"decoder": "ssd", "cache": "dual", "refresh_prompt_every": 2}
    for after in range(1, 7):
        late = Comer([4, MASK, 9, 9, 9, MASK, MASK], 3, after=after)
        comers = [Comer([1, 2, 3], 9), late]
        same(together(golden, comers, Execution(), **options), alone(golden, comers, **options))


def test_others_join_when_all_are_done(golden: Model, way: Execution) -> None:
    comers = [Comer([1, 2], 3), Comer([3], 3), Comer([4, 5, 6], 9, after=3)]
    sizes: list[int] = []
    same(together(golden, comers, way, sizes), alone(golden, comers))
    assert sizes == [2] * 3 + [1] * 9


@pytest.mark.parametrize("blanks", [3, 5])
def test_a_first_forward_may_be_the_last(golden: Model, way: Execution, blanks: int) -> None:
    """Of rows that join while others go on, and of some that join when no one is left."""
    comers = [Comer([1, 2], blanks), Comer([3], 1, after=1), Comer([4, 5, 6], 1, after=3)]
    options: dict[str, Any] = {"cache": "dual"}
    same(together(golden, comers, way, **options), alone(golden, comers, **options))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_shapes_that_stay_are_few(golden: Model, cache: str) -> None:
    """Rows that join are made up to a power of two."""
    comers = [Comer([n], 12, after=n // 3) for n in range(9)]
    sizes: list[int] = []
    together(golden, comers, Execution(static=True), sizes, cache=cache)
    alone_first = {3} if cache != "none" else set()  # those that join, in their first forward
    assert {*sizes} - alone_first <= {1, 2, 3, 4, 8, 16}
    assert max(sizes) == 16


rows = st.builds(
    Comer,
    prompt=st.lists(st.integers(0, 500), min_size=1, max_size=12),
    blanks=st.integers(1, 11),
    after=st.integers(0, 3),
    gone=st.none() | st.integers(1, 6),
)


@hypothesis(max_examples=3, deadline=None)
@given(
    comers=st.lists(rows, min_size=1, max_size=5),
    decoder=st.sampled_from(["threshold", "credit", "remdm", "first_hitting"]),
    cache=st.sampled_from(["none", "prefix", "dual"]),
    static=st.booleans(),
)
def test_whoever_comes_and_goes(
    golden: Model, comers: list[Comer], decoder: str, cache: str, static: bool
) -> None:
    comers = [Comer([1, 2], 13), *comers]  # of four blocks: still there when the last one comes
    options: dict[str, Any] = {"decoder": decoder, "cache": cache}
    found = together(golden, comers, Execution(static=static), **options)
    expected = alone(golden, comers, **options)
    stay = {n for n, comer in enumerate(comers) if comer.gone is None}
    assert stay <= {*found}
    same(found, {number: expected[number] for number in found})


def test_what_rows_left_behind_goes_with_them(golden: Model, caches: Sized) -> None:
    """Of those that joined only the cache of all is left."""
    counts: list[int] = []

    class Counted(list[int]):
        def append(self, size: int) -> None:
            counts.append(len(caches))

    together(golden, COMERS, Execution(), Counted(), cache="dual")
    assert counts.count(2) == 3  # the first forwards of rows that join
    assert {*counts} == {1, 2}


@dataclass(frozen=True)
class Late:
    """Commits the leftmost mask, and has a state once it was asked."""

    needs = frozenset({"confidence"})
    mutates_committed = False

    def init_state(self, batch: int, length: int) -> None:
        return None

    def step(self, state: Any, view: StepView) -> tuple[Any, Decision]:
        first = view.masked & (view.masked.cumsum(-1) == 1)
        seen = torch.ones(len(first)) if state is None else state + 1
        return seen, Decision(first)


def test_a_first_state_need_not_be_like_later_ones(golden: Model) -> None:
    options: dict[str, Any] = {"decoder": Late()}
    same(together(golden, COMERS, Execution(), **options), alone(golden, COMERS, **options))


def test_rows_of_other_kinds_are_not_put_together() -> None:
    one, other = (torch.zeros(2, 3), None), (torch.zeros(1, 3), None)
    joined = stacked([one, other])
    assert joined[0].shape == (3, 3)
    for wrong in ((torch.zeros(1, 4), None), (torch.zeros(1, 3).double(), None), (one[0], one[0])):
        with pytest.raises(ValueError, match="rows to put together must hold the same"):
            stacked([one, wrong])
