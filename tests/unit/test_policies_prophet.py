"""Prophet (policies.md section 9.19): thresholds by progress, the answer region, whole decodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import Prophet
from dlm.models.model import Model
from dlm.types import StepView

MASK = 7
View = Callable[..., StepView]
Picked = Callable[..., list[int]]


def view_with(view_of: View, margins: Sequence[float], **fields: Any) -> StepView:
    """A view whose best tokens are so many nats ahead."""
    second = [1 / (1 + math.exp(margin)) for margin in margins]
    pairs = [[1 - each, each] for each in second]
    listed = [[1, 2]] * len(pairs)
    confidence = [pair[0] for pair in pairs]
    return view_of(confidence=confidence, top_tokens=listed, top_probabilities=pairs, **fields)


@pytest.mark.parametrize(
    ("forward", "limit", "bar"),
    [
        (1, 100, 7.5), (32, 100, 7.5), (33, 100, 5.0), (66, 100, 5.0), (67, 100, 2.5),
        (100, 100, 2.5), (1, 3, 5.0), (2, 3, 5.0), (1, 2, 5.0), (1, 1, 2.5), (1, 4, 7.5),
    ],
)  # fmt: skip
def test_the_threshold_falls_with_progress(
    view_of: View, picked: Picked, forward: int, limit: int, bar: float
) -> None:
    """Below 0.33 of the forwards 7.5 nats, below 0.67 then 5, then 2.5; the first one counts."""
    for margin, clear in ((bar - 0.01, False), (bar + 0.01, True)):
        view = view_with(view_of, [margin] * 3, step=forward - 1, limit=limit)
        found = picked(Prophet().step(None, view)[1].commit)
        assert found == ([0, 1, 2] if clear else [0])


def test_without_a_budget_a_block_has_a_forward_for_each_blank(
    view_of: View, picked: Picked
) -> None:
    """At the 2nd of 6 forwards 0.33 is reached, whatever is left of the 6 blanks."""
    masked = [True, False, True, True, False, False, False]
    editable = [False, True, False, False, True, True, False]
    for step, clear in ((0, False), (1, True)):
        view = view_with(view_of, [6.0] * 7, masked=masked, editable=editable, step=step)
        assert picked(Prophet().step(None, view)[1].commit) == ([0, 2, 3] if clear else [0])


def test_margins_are_averaged(view_of: View, picked: Picked) -> None:
    """(2 + 8.1) / 2 is above 5, (2 + 7.9) / 2 is not; given and committed columns do not count."""
    masked = [True, True, False]
    for high, clear in ((8.1, True), (7.9, False)):
        view = view_with(view_of, [2.0, high, 50.0], masked=masked, step=1, limit=4)
        assert picked(Prophet().step(None, view)[1].commit) == ([0, 1] if clear else [1])


def test_the_answer_region_counts_from_the_first_blank(view_of: View, picked: Picked) -> None:
    """Its committed positions count like masks, and nothing beside it does."""
    decoder = Prophet(answer_start=3, answer_length=2)
    row = {"row_start": 8, "block_start": 10, "step": 1, "limit": 4}  # columns 1 and 2
    masked, editable = [True, False, True, True], [False, True, False, False]
    for answer, clear in (([4.0, 6.5], True), ([4.0, 5.5], False)):
        view = view_with(
            view_of, [0.1, *answer, 0.2], masked=masked, editable=editable, **row
        )  # fmt: skip
        assert picked(decoder.step(None, view)[1].commit) == ([0, 2, 3] if clear else [2])


@pytest.mark.parametrize("start", [0, 6])
def test_a_block_without_the_answer_keeps_to_its_quota(
    view_of: View, picked: Picked, start: int
) -> None:
    decoder = Prophet(0.0, 0.0, 0.0, answer_start=start, answer_length=2)
    view = view_with(view_of, [90.0] * 4, row_start=8, block_start=10, step=3, limit=4, quota=2)
    assert picked(decoder.step(None, view)[1].commit) == [0, 1]


def test_one_possible_token_is_as_clear_as_can_be(view_of: View, picked: Picked) -> None:
    """Its margin of infinity counts as 128 nats: nothing averages it away, nothing is NaN."""
    view = view_of(
        confidence=[1.0, 0.5], top_tokens=[[1, -1], [1, 2]], step=0, limit=9,
        top_probabilities=[[1.0, 0.0], [0.5, 0.5]],
    )  # fmt: skip
    assert picked(Prophet().step(None, view)[1].commit) == [0, 1]
    assert picked(Prophet(early_threshold=64.5).step(None, view)[1].commit) == [0]


def plainly(
    model: Model, prompt: list[int], length: int, steps: int, bars: Sequence[float],
    region: range | None,
) -> tuple[list[int], int]:  # fmt: skip
    """One block: the tokens, and in how many forwards, as the authors' code has the rule."""
    canvas = [*prompt, *[MASK] * length]
    for forward in range(1, steps + 1):
        open_ = [i for i, token in enumerate(canvas) if token == MASK]
        logits = model.raw_logits(torch.tensor([canvas]))[0].double()
        logits[:, MASK] = -torch.inf
        best, second = logits.topk(2).values.unbind(-1)
        token, chance = logits.argmax(-1), logits.softmax(-1).amax(-1)
        answer = open_ if region is None else [len(prompt) + each for each in region]
        mean = sum(float(best[i] - second[i]) for i in answer) / len(answer)
        progress = forward / steps
        bar = bars[0] if progress < 0.33 else bars[1] if progress < 0.67 else bars[2]
        quota = length // steps + (forward <= length % steps)
        chosen = sorted(open_, key=lambda i: (-float(chance[i]), i))
        for place in chosen if mean >= bar else chosen[:quota]:
            canvas[place] = int(token[place])
        if mean >= bar or MASK not in canvas:
            break
    return canvas[len(prompt) :], forward


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99), st.integers(3, 12), st.integers(1, 12), st.booleans(), st.booleans(),
    st.lists(st.floats(0.5, 4.0), min_size=3, max_size=3),
)  # fmt: skip
def test_whole_decodes_are_those_of_a_plain_loop(
    toy: Callable[..., Model], seed: int, length: int, steps: int, budget: bool, told: bool,
    bars: list[float],
) -> None:  # fmt: skip
    model = toy(seed)
    steps = min(steps, length) if budget else length
    decoder = Prophet(bars[0], bars[1], bars[2], 1 if told else None, 2)
    out = dlm.generate(
        model, [[1, 2]], decoder=decoder, gen_length=length, block_length=None,
        steps=steps if budget else None, stop_at_eos=False,
    )  # fmt: skip
    region = range(1, 3) if told else None
    tokens, forwards = plainly(model, [1, 2], length, steps, bars, region)
    assert out.tokens == [tokens]
    assert out.forwards == [forwards]


def test_thresholds_are_compared_as_they_are(view_of: View) -> None:
    """Whatever torch's default dtype: bfloat16 has no 5.01."""
    view = view_with(view_of, [5.005], step=1, limit=4)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert not Prophet(mid_threshold=5.01).clear(view)
    finally:
        torch.set_default_dtype(torch.float32)
