"""States that no text tells apart, against pairs told apart one after the other."""

import random
from math import log2

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor

from dlm.constraints.expressions import automaton_of, text
from dlm.constraints.language import ByteAutomaton
from dlm.constraints.lists import Lists
from dlm.constraints.minimal import kinds_of


def told_apart(letters: Tensor, accepting: Tensor) -> Tensor:
    """Which pairs of states some text tells apart (Moore 1956)."""
    apart = accepting[:, None] != accepting
    while True:
        behind = apart[letters[:, None], letters].any(2)
        if torch.equal(apart | behind, apart):
            return apart
        apart = apart | behind


@hypothesis(max_examples=200, deadline=None)
@given(states=st.integers(1, 30), classes=st.integers(1, 4), seed=st.integers(0, 1 << 30))
def test_kinds_are_of_states_that_nothing_tells_apart(states: int, classes: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    letters = torch.randint(states, (states, classes), generator=draw)
    accepting = torch.rand(states, generator=draw) < 0.3
    kind = kinds_of(letters, accepting)
    assert torch.equal(kind[:, None] != kind, told_apart(letters, accepting))


@hypothesis(max_examples=20, deadline=None)
@given(states=st.integers(1, 30), seed=st.integers(0, 1 << 30))
def test_the_smallest_automaton_takes_the_same_texts(states: int, seed: int) -> None:
    draw = random.Random(seed)
    following = torch.full((states + 1, 256), states)
    for row in following[:-1]:
        row[97], row[98] = draw.randrange(states + 1), draw.randrange(states + 1)
    accepting = torch.tensor([draw.random() < 0.3 for _ in range(states)] + [False])
    raw = ByteAutomaton(following, accepting, 0)
    small = raw.smallest()
    ends = 1 << 20
    left = torch.where(accepting, 0, ends)
    for _ in range(states):
        left = torch.minimum(left, left[following].amin(1) + 1)
    assert torch.equal(raw.live, left < ends)
    for _ in range(20):
        one, two = raw.start, small.start
        for byte in draw.choices(b"ab", k=draw.randrange(12)):
            one, two = int(following[one, byte]), int(small.following[two, byte])
        assert accepting[one] == small.accepting[two]
        assert raw.live[one] == small.live[two]


def test_long_texts_take_time_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its square: a state is looked at again only as what it leads to was split."""
    draw, seen, of = random.Random(0), [], Lists.of

    def counted(lists: Lists, some: Tensor) -> tuple[Tensor, Tensor]:
        found = of(lists, some)
        seen.append(len(found[0]))
        return found

    monkeypatch.setattr(Lists, "of", counted)
    length, signs = 2000, "abcdefghij"
    made = automaton_of(text("".join(draw.choices(signs, k=length))))
    assert len(made.accepting) == length + 2
    assert 0 < sum(seen) <= (length + 2) * (len(signs) + 1) * log2(length)
    seen.clear()
    assert int(made.live.sum()) == length + 1
    assert 0 < sum(seen) <= length
