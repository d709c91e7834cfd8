"""Groups that are brought together in one order, and walks of an automaton."""

import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dlm.constraints.automaton import Arrows, Automaton
from dlm.constraints.chain import TOGETHER, walked
from dlm.constraints.segments import Segments
from dlm.constraints.stack import Stack
from dlm.models.spec import ModelSpec

SPEC = ModelSpec("table", 8, 7, 6, (6, 5), 512, (8, 8))


@hypothesis(max_examples=50, deadline=None)
@given(data=st.data(), width=st.sampled_from([2, 4, 16]))
def test_segments_reduce_groups(data: st.DataObject, width: int) -> None:
    """Of any sizes, empty ones and large ones included."""
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 2, 31, 32, 33, 1100]), min_size=1, max_size=6)
    )
    groups = torch.cat([torch.full((size,), name) for name, size in enumerate(sizes)])
    draw = torch.Generator().manual_seed(0)
    groups = groups[torch.randperm(len(groups), generator=draw)]
    values = torch.randn(2, 3, len(groups), generator=draw).double()
    segments = Segments.of(groups, len(sizes), width)
    for how in (torch.logsumexp, torch.amax):
        found = segments.of_rows(torch.tensor([0, 0])).reduce(values, how)
        for name, size in enumerate(sizes):
            some = values[..., groups == name]
            expected = how(some, -1) if size else torch.full((2, 3), -torch.inf).double()
            assert torch.allclose(found[..., name], expected, rtol=1e-12)


@hypothesis(max_examples=50, deadline=None)
@given(
    sets=st.lists(
        st.lists(st.sampled_from([0, 1, 2, 5, 40, 300]), min_size=1, max_size=5),
        min_size=2,
        max_size=4,
    )
)
def test_stacked_sets_have_the_bits_of_each(sets: list[list[int]]) -> None:
    draw = torch.Generator().manual_seed(1)
    each = [torch.cat([torch.full((n,), name) for name, n in enumerate(sizes)]) for sizes in sets]
    lone = [Segments.of(groups, len(sizes), 4) for groups, sizes in zip(each, sets, strict=True)]
    order = torch.randint(len(sets), (6,), generator=draw)
    stack = Segments.stacked(lone).of_rows(order)
    values = torch.randn(6, 2, max(map(len, each)), generator=draw).double()
    for how in (torch.logsumexp, torch.amax):
        together = stack.reduce(values, how)
        for row, place in enumerate(order.tolist()):
            own = values[row : row + 1, :, : len(each[place])]
            alone = lone[place].reduce(own, how)[0]
            assert torch.equal(together[row, :, : len(sets[place])], alone)
            assert together[row, :, len(sets[place]) :].isneginf().all()


@hypothesis(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.lists(st.integers(0, 4), max_size=9),
    before=st.sampled_from([0, TOGETHER - 3, 2 * TOGETHER]),
)
def test_walks_put_neighbours_together(seed: int, tokens: list[int], before: int) -> None:
    """Some at a time."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 3, (3, 5), generator=draw)
    source, label = (table >= 0).nonzero(as_tuple=True)
    arrows = Arrows(source, label, table[source, label])
    automaton = Automaton.of(arrows, torch.tensor([True, False, False]), 0, SPEC)
    tokens = [3] * before + tokens
    state = automaton.start
    for count in range(len(tokens) + 1):
        if count >= before:
            given_ = torch.tensor([tokens], dtype=torch.int64)
            assert walked(Stack.of([automaton]), given_, torch.tensor([count])).tolist() == [state]
        if count < len(tokens):
            state = int(automaton.following[state, automaton.class_of[tokens[count]]])
