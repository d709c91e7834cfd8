"""The kernels beside the network against torch; `test_triton_scan.py` runs these interpreted.

DLM_TEST_DEVICE=cuda runs the same cases on a GPU. All is equal to the bit.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.execution import Execution
from dlm.kernels import canvas, canvas_check, fused_canvas, fused_ranking, ranking
from dlm.kernels.canvas import Rows, Stops
from dlm.models.model import Model

DEVICE = os.environ.get("DLM_TEST_DEVICE", "cpu")
MASK, EOS, STOP = 7, 8, 9
NAN, INF = float("nan"), float("inf")
CASES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_canvas, "ON_CPU", True)


def same(found: Any, expected: Any) -> None:
    """Of tensors, or tuples of them, with their dtypes and shapes."""
    if not isinstance(expected, Tensor):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found, expected), (found, expected)


class Source:
    """Random tensors of a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator).to(DEVICE)

    def flags(self, share: float, *shape: int) -> Tensor:
        """Bool, of which a share is set."""
        return (torch.rand(shape, generator=self.generator) < share).to(DEVICE)


def rows_of(source: Source, count: int, length: int, block_length: int, *, wide: bool) -> Rows:
    """Ragged rows, some of them without a mask; as columns of a wider canvas where that is asked.

    As `dlm.canvas.build` lays them out: blanks between what is given, the first at `start`.
    """
    columns = torch.arange(length, device=DEVICE)
    start = source.whole(0, length - 1, count)
    stop = start + 1 + (source.whole(0, length, count) % (length - start))
    inside = (columns >= start[:, None]) & (columns < stop[:, None])
    blank = inside & (source.flags(0.8, count, length) | (columns == start[:, None]))
    room = 3 if wide else 0
    tokens = source.whole(0, 5, count, length + room)
    tokens = tokens.where(source.flags(0.9, count, length + room), STOP)[:, :length]
    share = torch.tensor([0.0, 0.2, 0.9], device=DEVICE)[source.whole(0, 2, count)]
    masks = torch.rand(count, length, generator=source.generator).to(DEVICE) < share[:, None]
    tokens[masks & blank] = MASK
    tokens[masks & ~blank & source.flags(0.2, count, length)] = MASK  # a prompt may hold its id
    if wide:
        blank = torch.cat((blank, ~blank[:, :1].expand(-1, room)), 1)[:, :length]
    origin = start - start % (block_length * (1 + count % 2))
    blocks = -(-length // block_length) + 1
    return Rows(tokens, blank, start, origin, stop, source.whole(0, 9, count, blocks + 1)[:, 1:])


shapes = st.tuples(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.sampled_from([1, 2, 9, 40, 1024, 1025, 2100]),
    st.integers(1, 12),
    st.booleans(),
)
Shape = tuple[int, int, int, int, bool]


@CASES
@given(shapes, st.integers(1, 40), st.booleans(), st.booleans())
def test_writing(shape: Shape, width: int, edits: bool, remasks: bool) -> None:
    seed, count, length, block_length, wide = shape
    source = Source(seed)
    rows = rows_of(source, count, length, block_length, wide=wide)
    begin = source.whole(0, length - 1, count)
    positions = (begin[:, None] + torch.arange(width, device=DEVICE)).clamp(max=length - 1)
    sampled = source.whole(10, 20, count, width)
    commit, edit, remask = (source.flags(0.4, width, count).t() for _ in range(3))
    changes = (commit, edit if edits else None, remask if remasks else None)
    given_ = rows.tokens, positions, sampled, changes, MASK
    kept = rows.tokens.clone()
    same(fused_canvas.write(*given_), canvas.write(*given_))
    assert torch.equal(rows.tokens, kept)


@CASES
@given(
    shapes,
    st.sampled_from([None, (), (STOP,), (STOP, EOS)]),
    st.sampled_from(["token", "block", "row"]),
)
def test_stopping(
    shape: Shape, ids: tuple[int, ...] | None, settled: Literal["token", "block", "row"]
) -> None:
    seed, count, length, block_length, wide = shape
    source = Source(seed)
    rows = rows_of(source, count, length, block_length, wide=wide)
    begin = rows.origin + source.whole(0, 2, count) * block_length
    known = None if ids is None else torch.tensor(ids, dtype=torch.int64, device=DEVICE)
    stops = Stops(known, EOS, settled)
    given_ = rows, begin, source.flags(0.3, count), MASK, block_length, stops
    same(fused_canvas.stop(*given_), canvas.stop(*given_))


@CASES
@given(shapes, st.booleans(), st.booleans(), st.integers(0, 3))
def test_locating(shape: Shape, cross: bool, begins: bool, ahead: int) -> None:
    """The first forward, whose block is -1 and where no row holds, and later ones."""
    seed, count, length, block_length, wide = shape
    source = Source(seed)
    rows = rows_of(source, count, length, block_length, wide=wide)
    block, hold = source.whole(0, 2, count), source.flags(0.3, count)
    if begins:
        rows.tokens[torch.arange(count, device=DEVICE), rows.start] = MASK
        block, hold = torch.full_like(block, -1), torch.zeros_like(hold)
    last = (rows.stop - 1 - rows.origin) // block_length
    block = block.minimum(last)
    ahead = 0 if cross else ahead
    width = int((rows.stop - rows.origin).max()) if cross else block_length * (1 + ahead)
    given_ = rows, block, hold, MASK, block_length, width, cross, ahead
    same(fused_canvas.locate(*given_), canvas.locate(*given_))


@CASES
@given(shapes, st.sampled_from([1, 3, 33, 1030]), st.sampled_from([1, 2]))
def test_stretches(shape: Shape, queries: int, halves: int) -> None:
    seed, count, length, block_length, wide = shape
    source = Source(seed)
    rows = rows_of(source, count, length, block_length, wide=wide)
    begin = source.whole(-1, length - 1, count)
    given_ = rows.tokens, rows.blank, begin, rows.stop, queries, length + 5, halves
    same(fused_canvas.stretch(*given_), canvas.stretch(*given_))


@CASES
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([1, 5, 32, 70]))
def test_looking(seed: int, count: int, width: int) -> None:
    source = Source(seed)
    blank = source.flags(0.7, width, count).t()
    masked = blank & source.flags(0.5, width, count).t()
    given_ = masked, blank, source.whole(0, 4, count), source.whole(0, 5, count)
    same(fused_canvas.look(*given_), canvas.look(*given_))


@CASES
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (3, 5), (1, 4096), (5, 3000)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_judging(
    seed: int, shape: tuple[int, int], edits: bool, remasks: bool, advances: bool
) -> None:
    """Decisions that keep the rules but for one column, or for none."""
    source = Source(seed)
    blank = source.flags(0.7, *shape)
    masked = blank & source.flags(0.5, *shape)
    editable = blank & ~masked
    commit, edit, remask = masked.clone(), editable.clone(), editable & source.flags(0.2, *shape)
    odd = int(source.whole(0, 5, 1))
    row, column = (source.whole(0, n - 1, 1) for n in shape)
    if odd < 3:
        (commit, edit, remask)[odd][row, column] ^= True
    elif odd == 3:
        commit[row] = False
    given_ = (commit, edit if edits else None, remask if remasks else None), masked, editable
    same(fused_canvas.judge(*given_, advances), canvas.judge(*given_, advances))


values = st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, INF, -INF, NAN, 1e-45])
boards = st.tuples(st.integers(1, 3), st.integers(1, 40)).flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]),
        st.integers(0, 10**6),
    )
)
Board = tuple[tuple[int, int], list[float], int]


@CASES
@given(boards, st.sampled_from([torch.float32, torch.float64]), st.integers(-1, 45))
def test_ranks(board: Board, dtype: torch.dtype, number: int) -> None:
    shape, given_, seed = board
    source = Source(seed)
    scores = torch.tensor(given_, dtype=dtype, device=DEVICE).view(shape)
    allowed, chosen = source.flags(0.6, *shape), source.flags(0.2, *shape)
    every_rank(scores, allowed, chosen, number, source.whole(0, shape[1] + 1, shape[0]))


def every_rank(scores: Tensor, allowed: Tensor, chosen: Tensor, number: int, count: Tensor) -> None:
    for name in ("descending", "rank"):
        one, other = (getattr(by, name)(scores, allowed) for by in (fused_ranking, ranking))
        same(one, other)
    for most in (number, count):
        same(fused_ranking.top(scores, allowed, most), ranking.top(scores, allowed, most))
    given_ = chosen, scores, allowed, count
    same(fused_ranking.at_least(*given_), ranking.at_least(*given_))


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, pytest.param(300, marks=pytest.mark.slow)])
def test_ranks_of_all_widths(width: int) -> None:
    """With many ties, in memory that is no one piece."""
    source = Source(width)
    scores = (source.whole(-5, 5, width, 2) / 7).t()
    allowed, chosen = (source.flags(0.5, width, 2).t() for _ in range(2))
    every_rank(scores, allowed, chosen, width // 2, source.whole(0, width, 2))


def test_ranks_of_the_widest_window() -> None:
    source = Source(0)
    scores, allowed = source.whole(-50, 50, 1, 1024) / 7, source.flags(0.5, 1, 1024)
    same(fused_ranking.rank(scores, allowed), ranking.rank(scores, allowed))
    assert fused_ranking.covers(scores, allowed)
    assert not fused_ranking.covers(*(torch.cat((x, x), 1) for x in (scores, allowed)))


@pytest.mark.parametrize("width", [1, 40])
def test_ranks_of_whole_numbers(width: int) -> None:
    source = Source(width)
    scores, allowed = source.whole(-3, 3, 2, width) << 40, source.flags(0.5, 2, width)
    assert fused_ranking.covers(scores, allowed)
    assert not fused_ranking.covers(scores, allowed, allowed), "which have no infinity"
    same(fused_ranking.rank(scores, allowed), ranking.rank(scores, allowed))
    same(fused_ranking.top(scores, allowed, 2), ranking.top(scores, allowed, 2))


def test_the_self_check_passes() -> None:
    assert canvas_check.difference(torch.device(DEVICE)) is None


GENERATIONS: list[tuple[str, dict[str, Any], bool]] = [
    ("low_confidence", {"cache": "dual"}, True),
    ("low_confidence", {"cache": "dual"}, False),
    ("threshold", {"cache": "dual", "refresh_every": 2}, True),
    ("wino", {"cache": "prefix"}, True),
]
MORE: list[tuple[str, dict[str, Any], bool]] = [
    ("low_confidence", {"cache": "prefix", "cfg_scale": 1.0, "stop_at_eos": False}, True),
    ("low_confidence", {"cache": "prefix", "cfg_scale": 1.0, "stop_at_eos": False}, False),
    ("saber", {}, True),
    ("remdm", {"steps": 12, "temperature": 1.0}, True),
    ("left_to_right", {}, True),
    ("entropy_bound", {}, True),
    ("lopa", {"cache": "dual", "refresh_every": 2}, True),
]


@pytest.fixture(scope="module")
def model(golden_folder: Path) -> Model:
    return dlm.load(golden_folder, dtype="float32", device=DEVICE)


@pytest.mark.parametrize(
    ("decoder", "options", "static"),
    [*GENERATIONS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
)
def test_whole_generations(
    model: Model, decoder: str, options: dict[str, Any], static: bool, monkeypatch: Any
) -> None:
    """Ragged rows, whose last blocks are short, in shapes as a GPU has them and as a CPU has."""
    used: set[str] = set()
    for module in (fused_canvas, fused_ranking):
        for name in ("write", "stop", "locate", "stretch", "look", "judge", "_launch"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, noting(getattr(module, name), name, used))

    def run() -> Any:
        monkeypatch.setattr(Execution, "of", lambda _: Execution(static=static))
        out = dlm.generate(
            model,
            [[1, 2, 3], [4], [1, 2, 3, 4, 5, 6, 7]],
            decoder=decoder,
            gen_length=10,
            block_length=4,
            seed=1,
            **options,
        )
        return out.tokens, out.forwards

    found = run()
    assert used >= {"write", "stop", "locate", "look", "judge", "_launch"}
    assert ("stretch" in used) == ("cache" in options)
    monkeypatch.setattr(fused_canvas, "ON_CPU", False)
    monkeypatch.setattr(fused_canvas, "ON_CUDA", False)
    used.clear()
    assert run() == found
    assert not used


def noting(call: Callable[..., Any], name: str, used: set[str]) -> Callable[..., Any]:
    """The same, and its name is noted."""

    def noted(*given_: Any, **more: Any) -> Any:
        used.add(name)
        return call(*given_, **more)

    return noted
