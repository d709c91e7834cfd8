"""The selection rules decoders share."""

import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm.decoders.select import SCORES, at_least, certainty, rank, top, total
from dlm.types import StepView

scores_and_masks = st.integers(1, 9).flatmap(
    lambda width: st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=width, max_size=width),
        st.lists(st.booleans(), min_size=width, max_size=width),
    )
)


@given(scores_and_masks, st.integers(0, 10))
def test_top_is_the_sorted_prefix(case: tuple[list[float], list[bool]], count: int) -> None:
    scores, allowed = case
    order = sorted((i for i, on in enumerate(allowed) if on), key=lambda i: (-scores[i], i))
    found = top(torch.tensor([scores]), torch.tensor([allowed]), torch.tensor([count]))
    assert [i for i, on in enumerate(found[0].tolist()) if on] == sorted(order[:count])


@given(scores_and_masks, st.data())
def test_at_least_adds_only_what_is_missing(
    case: tuple[list[float], list[bool]], data: st.DataObject
) -> None:
    scores, allowed = case
    chosen = [on and data.draw(st.booleans()) for on in allowed]
    count = data.draw(st.integers(0, 10))
    found = at_least(
        torch.tensor([chosen]), torch.tensor([scores]), torch.tensor([allowed]),
        torch.tensor([count]),
    )[0].tolist()  # fmt: skip
    assert all(now for now, before in zip(found, chosen, strict=True) if before)
    assert sum(found) == max(sum(chosen), min(count, sum(allowed)))


def test_forbidden_scores_rank_behind_the_worst_allowed() -> None:
    scores = torch.tensor([[9.0, -torch.inf, 1.0]])
    allowed = torch.tensor([[False, True, True]])
    assert rank(scores, allowed).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("count", [1, 2])
def test_ties_go_to_the_lower_position(count: int) -> None:
    found = top(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.tensor([count]))
    assert found.tolist() == [[True, count > 1, False]]


@given(st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=40), st.randoms())
def test_a_total_is_the_same_in_any_order_and_beside_any_padding(
    values: list[float], random: Random
) -> None:
    some = torch.tensor([values + [9.0] * 5])
    where = torch.tensor([[True] * len(values) + [False] * 5])
    order = list(range(some.shape[1]))
    random.shuffle(order)
    found = total(some, where)
    assert torch.equal(found, total(some[:, order], where[:, order]))
    assert torch.equal(found, total(some[:, : len(values)], where[:, : len(values)]))
    assert float(found) == pytest.approx(math.fsum(values), abs=len(values) * 2.0**-40)


def test_a_total_of_what_floats_round_away_is_the_same_in_any_order() -> None:
    values = torch.tensor([[2.0**-53, 2.0**-53, 1.0]])
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    assert values.double().sum(-1) != values.flip(1).double().sum(-1)
    assert torch.equal(total(values, everywhere), total(values.flip(1), everywhere))


@pytest.mark.parametrize("score", SCORES)
def test_the_most_certain_position_scores_most(
    view_of: Callable[..., StepView], score: str
) -> None:
    """The last one, whose entropy is the least."""
    rising, falling = [0.1, 0.2, 0.9], [2.0, 1.0, 0.5]
    view = view_of(confidence=rising, margin=rising, entropy=falling)
    assert certainty(view, score).argsort(-1).tolist() == [[0, 1, 2]]
