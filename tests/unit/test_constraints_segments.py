"""Groups that are brought together in one order, and walks of an automaton."""

import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dlm.constraints.automaton import Arrows, Automaton
from dlm.constraints.chain import TOGETHER, walked
from dlm.constraints.segments import Segments
from dlm.models.spec import ModelSpec

SPEC = ModelSpec("table", 8, 7, 6, (6, 5), 512, (8, 8))


@hypothesis(max_examples=50, deadline=None)
@given(data=st.data())
def test_segments_reduce_groups(data: st.DataObject) -> None:
    """Of any sizes, empty ones and large ones included."""
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 2, 31, 32, 33, 1100]), min_size=1, max_size=6)
    )
    groups = torch.cat([torch.full((size,), name) for name, size in enumerate(sizes)])
    draw = torch.Generator().manual_seed(0)
    groups = groups[torch.randperm(len(groups), generator=draw)]
    values = torch.randn(2, len(groups), generator=draw).double()
    segments = Segments.of(groups, len(sizes))
    for how in (torch.logsumexp, torch.amax):
        found = segments.reduce(values, how)
        for name, size in enumerate(sizes):
            some = values[:, groups == name]
            expected = how(some, -1) if size else torch.full((2,), -torch.inf).double()
            assert torch.allclose(found[:, name], expected, rtol=1e-12)


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
            assert walked(automaton, given_, torch.tensor([count])).tolist() == [state]
        if count < len(tokens):
            state = int(automaton.following[state, automaton.class_of[tokens[count]]])
