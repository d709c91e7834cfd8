"""Self-speculative decoding: what a plain rule commits, in fewer forwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import SSD
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
BASE = {
    "confidence": "low_confidence",
    "margin": "margin",
    "entropy": "entropy",
    "position": "left_to_right",
}

rule = settings(max_examples=160, deadline=None)


@rule
@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=3),
    shape=st.fixed_dictionaries(
        {
            "gen_length": st.integers(1, 12),
            "block_length": st.integers(1, 8),
            "steps": st.sampled_from([None, 1, 2, 3, 5, 40]),
            "stop_at_eos": st.booleans(),
        }
    ),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.3, 2.0, 8.0]),
    score=st.sampled_from(sorted(BASE)),
    branches=st.integers(2, 8),
    threshold=st.sampled_from([None, None, 0.0, 0.2, 0.4, 0.8, 1.1]),
)
def test_it_is_the_plain_rule(
    toy: Toy,
    prompts: list[list[int]],
    shape: dict[str, Any],
    seed: int,
    scale: float,
    score: str,
    branches: int,
    threshold: float | None,
) -> None:
    """To the last token, in no more forwards; and without branches what other decoders do."""
    model = toy(seed, scale)

    def made(decoder: str, **own: Any) -> dlm.Generation:
        return dlm.generate(model, prompts, decoder=decoder, decoder_options=own, **shape)

    many = made("ssd", score=score, threshold=threshold, branches=branches)
    one = made("ssd", score=score, threshold=threshold, branches=1)
    assert many.tokens == one.tokens
    assert all(few <= all_ for few, all_ in zip(many.forwards, one.forwards, strict=True))
    budget = shape["steps"]
    if budget is not None:
        blocks = -(-shape["gen_length"] // shape["block_length"])
        assert all(count <= max(budget, blocks) for count in one.forwards)
    if threshold is None:
        plain = made(BASE[score])
    elif budget is None and score == "confidence":
        plain = made("threshold", threshold=threshold)
    else:
        return
    assert (one.tokens, one.forwards) == (plain.tokens, plain.forwards)


def test_what_does_not_depend_is_proved_at_once(toy: Toy) -> None:
    """A network that never changes its mind: all branches of every forward are kept."""
    table = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(97, -1)
    found = dlm.generate(
        toy(table.clone()), [[1]], decoder="ssd", gen_length=17, block_length=None,
        decoder_options={"branches": 5, "score": "position"}, stop_at_eos=False,
    )  # fmt: skip
    assert found.forwards == [5]  # 1, then 4 proved and one more each time, but for the last
    assert found.query_tokens == [18 + 5 * 18 * 4]


def test_drafts_are_of_the_steps_of_a_budget(toy: Toy) -> None:
    """16 blanks in 8 forwards, two at a time: what a branch drafts is a step, or it proves none."""
    table = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(97, -1)
    shape: dict[str, Any] = {"gen_length": 16, "block_length": None, "stop_at_eos": False}
    for steps, forwards in ((8, 3), (16, 4), (5, 2)):
        found = dlm.generate(
            toy(table.clone()), [[1]], decoder="ssd", steps=steps,
            decoder_options={"branches": 5, "score": "position"}, **shape,
        )  # fmt: skip
        assert found.forwards == [forwards]


def drafts(decision: Decision) -> list[list[int]]:
    assert decision.lookahead is not None
    return [row.nonzero()[:, 0].tolist() for row in decision.lookahead[0]]


def test_one_passed_over_for_the_next_is_drafted_too(view_of: Callable[..., StepView]) -> None:
    """By rank: the best is committed; chains of those behind, and two with a swap."""
    view = view_of(confidence=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    _, decision = SSD(branches=6).step(None, view)
    assert decision.commit[0].tolist() == [True, *[False] * 5]
    assert drafts(decision) == [[], [1], [1, 2], [1, 2, 3], [2], [1, 3]]
    _, decision = SSD(branches=6, score="position").step(None, view)
    assert drafts(decision) == [[*range(1, end)] for end in range(1, 7)], "nothing is passed over"


def test_a_threshold_is_met(view_of: Callable[..., StepView]) -> None:
    view = view_of(confidence=[0.5, 0.75, 0.625, 0.75])
    _, decision = SSD(threshold=0.625).step(None, view)
    assert decision.commit[0].tolist() == [False, True, True, True]


def test_draws_follow_the_law_of_stepwise_decoding(toy: Toy) -> None:
    """Over 4,000 keys, two tokens from left to right: every pair as often, by chi-square."""
    count = 4000
    shape: dict[str, Any] = {"gen_length": 3, "temperature": 1.0, "stop_at_eos": False}
    seen: list[torch.Tensor] = []
    for decoder, own in (("ssd", {"score": "position"}), ("left_to_right", {})):
        out = dlm.generate(
            toy(1), [[1]] * count, decoder=decoder, decoder_options=own, seed=len(seen), **shape
        )
        pairs = torch.tensor(out.tokens)
        seen.append(torch.bincount((pairs[:, 1] * 8 + pairs[:, 2]), minlength=64).double())
    one, other = seen
    kept = one + other > 10
    found = ((one - other) ** 2 / (one + other))[kept].sum().item()
    free = int(kept.sum()) - 1
    assert found < free + 4 * (2 * free) ** 0.5


@pytest.mark.parametrize(
    "more",
    [
        {"cache": "prefix"},
        {"cache": "dual", "cfg_scale": 0.7},
        {"cache": "dual", "refresh_around": 4},
        {"cache": "prefix", "steps": 11},
        {"confidence_eos_eot_inf": True},
        {"suppress_tokens": [5, 6], "logit_bias": {7: 2.0}, "batch_size": 1},
    ],
    ids=str,
)
def test_it_stays_stepwise_with_other_options(golden: Model, more: dict[str, Any]) -> None:
    """Keys of a cache are those of a block's first forward for both."""
    rows = [[5, 6, 7, 8, 9], [12]]
    shape: dict[str, Any] = {"gen_length": 20, "block_length": 8, **more}
    found = dlm.generate(golden, rows, decoder="ssd", **shape)
    plain = dlm.generate(golden, rows, decoder="low_confidence", **shape)
    assert found.tokens == plain.tokens
    assert sum(found.forwards) <= sum(plain.forwards)
    assert "steps" in more or found.forwards != plain.forwards  # two at a time are seldom proved
