"""Mean-field parallel decoding (policies.md section 9.17): couplings, updates, whole decodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import MeanField, mean_field
from dlm.decoders.history import Summary
from dlm.models.model import Model
from dlm.types import StepView

MASK = 7
View = Callable[..., StepView]
Picked = Callable[..., list[int]]
Law = Sequence[float]


def view_with(view_of: View, laws: Sequence[Law], **fields: Any) -> StepView:
    """A view of positions that predict so, all of a law listed."""
    best = torch.tensor(laws).sort(stable=True, descending=True)
    return view_of(top_tokens=best.indices, top_probabilities=best.values, **fields)


def overlap(p: Law, q: Law) -> float:
    """1 - JS / ln 2, by the definition."""

    def divergence(a: Law, b: Law) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return 1 - (divergence(p, middle) + divergence(q, middle)) / (2 * math.log(2))


def strengths(given_: Sequence[Law], iterations: int) -> list[float]:
    """q of each, by the formula."""
    tops = [sorted(law, reverse=True)[:2] for law in given_]
    alone = [math.log(first / second) for first, second in tops]
    places = range(len(given_))
    pairs = {(i, j): overlap(given_[i], given_[j]) for i in places for j in places if i != j}
    q = [1 / (1 + math.exp(-b)) for b in alone]
    for _ in range(iterations):
        held = [sum(pairs[i, j] * q[j] for j in places if i != j) for i in places]
        q = [1 / (1 + math.exp(h - b)) for b, h in zip(alone, held, strict=True)]
    return q


laws = st.lists(
    st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6).map(
        lambda weights: [weight / sum(weights) for weight in weights]
    ),
    min_size=1,
    max_size=6,
)
rule = settings(max_examples=40, deadline=None)


@rule
@given(laws, st.integers(0, 4))
def test_strengths_are_those_of_the_formula(
    view_of: View, given_: list[Law], iterations: int
) -> None:
    found = MeanField(iterations=iterations).strength(view_with(view_of, given_))
    assert found[0].tolist() == pytest.approx(strengths(given_, iterations), abs=2e-5)


def test_like_predictions_hold_each_other_back(view_of: View, picked: Picked) -> None:
    """Three sure positions, b = ln 19 = 2.944 each. The first two predict the same, D = 1;

    with the third they share nothing, D = 0. Its q stays at sigma(2.944) = 0.95, theirs is
    sigma(2.944 - 0.95) = 0.880, then sigma(2.944 - 0.880) = 0.887: below 0.9.
    """
    sure, other = [0.95, 0.05, 0, 0], [0, 0, 0.05, 0.95]
    view = view_with(view_of, [sure, sure, other])
    found = MeanField().strength(view)[0].tolist()
    assert found == pytest.approx([0.8874, 0.8874, 0.95], abs=1e-3)
    assert picked(MeanField().step(None, view)[1].commit) == [2]
    assert picked(MeanField(0.88).step(None, view)[1].commit) == [0, 1, 2]
    assert picked(MeanField(iterations=0).step(None, view)[1].commit) == [0, 1, 2]


def test_without_anything_in_common_it_is_a_threshold(view_of: View, picked: Picked) -> None:
    """D = 0: q = p_(1) / (p_(1) + p_(2))."""
    view = view_with(
        view_of, [[0.92, 0.08, 0, 0, 0, 0], [0, 0, 0.88, 0.12, 0, 0], [0, 0, 0, 0, 0.95, 0.05]]
    )  # fmt: skip
    assert MeanField().strength(view)[0].tolist() == pytest.approx([0.92, 0.88, 0.95], abs=1e-5)
    assert picked(MeanField().step(None, view)[1].commit) == [0, 2]


def test_couplings_are_those_of_masks_alone(view_of: View) -> None:
    near, far = [0.9, 0.1, 0, 0], [0, 0.1, 0.9, 0]
    assert overlap(near, far) == pytest.approx(0.1)
    view = view_with(view_of, [near, far, near], masked=[True, True, False])
    pair = mean_field.coupled(Summary.of(view), view.masked)
    assert pair[0, :2, :2].flatten().tolist() == pytest.approx([0, 0.1, 0.1, 0], abs=2e-6)
    assert not pair[0, 2].any()
    assert not pair[0, :, 2].any()


@rule
@given(laws, st.randoms(use_true_random=False))
def test_it_does_not_matter_where_a_position_stands(
    view_of: View, given_: list[Law], order: Any
) -> None:
    index = order.sample(range(len(given_)), len(given_))
    straight = MeanField().strength(view_with(view_of, given_))[0]
    mixed = MeanField().strength(view_with(view_of, [given_[i] for i in index]))[0]
    assert torch.equal(mixed, straight[index])


def test_the_rest_of_a_list_is_one_token(view_of: View) -> None:
    """Lists without a token in common share the mass of what they leave out."""
    view = view_of(
        top_tokens=[[0, 1], [2, 3], [0, 2]],
        top_probabilities=[[0.5, 0.25], [0.5, 0.25], [0.75, 0.25]],
    )  # fmt: skip
    wanted = {
        (0, 1): overlap([0.5, 0.25, 0, 0, 0.25], [0, 0, 0.5, 0.25, 0.25]),
        (0, 2): overlap([0.5, 0.25, 0, 0, 0.25], [0.75, 0, 0.25, 0, 0]),
        (1, 2): overlap([0, 0, 0.5, 0.25, 0.25], [0.75, 0, 0.25, 0, 0]),
    }
    found = mean_field.coupled(Summary.of(view), view.masked)[0]
    for (i, j), value in wanted.items():
        assert float(found[i, j]) == pytest.approx(value, abs=2e-6)
        assert found[i, j] == found[j, i]


def test_few_pairs_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide windows are compared in parts, which bounds the memory."""
    chance = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    best = chance.topk(3)
    now, masked = Summary(best.indices, best.values), torch.ones(2, 9, dtype=torch.bool)
    whole = mean_field.coupled(now, masked)
    monkeypatch.setattr(mean_field, "PAIRS", 2 * 9 * 3**2 * 2)
    assert torch.equal(mean_field.coupled(now, masked), whole)


def plainly(model: Model, prompt: list[int], length: int, block: int) -> tuple[list[int], int]:
    """The tokens and the forwards of the rule over a whole vocabulary."""
    canvas, forwards = [*prompt, *[MASK] * length], 0
    while MASK in canvas:
        forwards += 1
        first = canvas.index(MASK) - len(prompt)
        ends = len(prompt) + (first // block + 1) * block
        open_ = [i for i, token in enumerate(canvas[:ends]) if token == MASK]
        logits = model.raw_logits(torch.tensor([canvas]))[0].double()
        logits[:, MASK] = -torch.inf
        chance = logits.softmax(-1)
        q = strengths([chance[i].tolist() for i in open_], 2)
        sure = [i for i, each in zip(open_, q, strict=True) if each >= 0.65]
        for place in sure or [open_[q.index(max(q))]]:
            canvas[place] = int(chance[place].argmax())
    return canvas[len(prompt) :], forwards


@pytest.mark.parametrize("block", [10, 4])
def test_whole_decodes_are_those_of_a_plain_loop(toy: Callable[..., Model], block: int) -> None:
    """With a vocabulary of 8, which the lists hold."""
    total = 0
    for seed in range(4):
        model = toy(seed)
        out = dlm.generate(
            model, [[1, 2]], decoder="mean_field", decoder_options={"threshold": 0.65},
            gen_length=10, block_length=block, stop_at_eos=False,
        )  # fmt: skip
        tokens, forwards = plainly(model, [1, 2], 10, block)
        assert out.tokens == [tokens]
        assert out.forwards == [forwards]
        total += forwards
    assert 4 < total < 40
