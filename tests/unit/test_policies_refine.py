"""Hierarchical, credit and block refinement: policies.md 9.10 and 9.11."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import BlockRefinement, Credit, Hierarchical, Threshold
from dlm.decoders.credit import Credits
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Script = Callable[..., list[tuple[StepView, Decision]]]
Picked = Callable[..., list[int]]

rule = settings(max_examples=80, deadline=None)
eighths = st.integers(0, 8).map(lambda k: k / 8)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    width = draw(st.integers(1, 14))
    masked = draw(st.lists(st.booleans(), min_size=width, max_size=width))
    masked[draw(st.integers(0, width - 1))] = True
    confidence = draw(st.lists(eighths, min_size=width, max_size=width))
    return {"confidence": confidence, "masked": masked}


def runs(open_: list[bool]) -> list[list[int]]:
    """Maximal stretches of open positions."""
    found: list[list[int]] = []
    for i, on in enumerate(open_):
        if on and i and open_[i - 1]:
            found[-1].append(i)
        elif on:
            found.append([i])
    return found


def chosen(confidence: list[float], open_: list[bool], high: float, low: float) -> set[int]:
    """Everything sure, the best of each run above the low gate, the best of all."""
    inside = [i for i, on in enumerate(open_) if on]
    best_of = [max(run, key=lambda i: (confidence[i], -i)) for run in runs(open_)]
    found = {i for i in inside if confidence[i] > high}
    found |= {i for i in best_of if confidence[i] > low}
    return found or {max(inside, key=lambda i: (confidence[i], -i))}


@rule
@given(rows(), eighths, eighths)
def test_hierarchical_equals_its_definition(
    view_of: View, picked: Picked, case: dict[str, Any], high: float, low: float
) -> None:
    """9.10, by runs; both comparisons strict."""
    _, decision = Hierarchical(high, low).step(None, view_of(**case))
    wanted = chosen(case["confidence"], case["masked"], high, low)
    assert set(picked(decision.commit)) == wanted


@rule
@given(st.lists(eighths, min_size=1, max_size=12), eighths, eighths)
def test_one_run_is_a_threshold_with_a_low_gate(
    view_of: View, picked: Picked, confidence: list[float], high: float, low: float
) -> None:
    """9.10: the best one goes anyway, so the low gate says nothing."""
    view = view_of(confidence=confidence)
    _, decision = Hierarchical(high, low).step(None, view)
    best = max(range(len(confidence)), key=lambda i: (confidence[i], -i))
    wanted = {i for i, c in enumerate(confidence) if c > high} | {best}
    assert set(picked(decision.commit)) == wanted


@rule
@given(rows(), eighths, eighths, st.integers(1, 3))
def test_hierarchical_commits_one_more_than_it_remasks(
    view_of: View, picked: Picked, case: dict[str, Any], high: float, low: float, quota: int
) -> None:
    """9.10: doubted positions count as masks, and one more is chosen than doubted."""
    chance = case["confidence"]
    view = view_of(**case, token_probability=chance, quota=quota)
    _, decision = Hierarchical(high, low, remask=True).step(None, view)
    assert decision.remask is not None
    commit, remask = picked(decision.commit), picked(decision.remask)
    masks = sum(case["masked"])
    assert len(commit) - len(remask) >= min(quota, masks)
    doubted = {i for i, open_ in enumerate(case["masked"]) if not open_ and chance[i] < low}
    edit = set(picked(decision.edit)) if decision.edit is not None else set()
    assert set(remask) | edit <= doubted
    assert not set(remask) & edit
    open_ = [m or i in doubted for i, m in enumerate(case["masked"])]
    wanted = chosen(chance, open_, high, low)
    if len(wanted) >= len(doubted) + quota:
        assert set(commit) | edit == wanted
    else:
        assert len({*commit, *edit}) == min(len(doubted) + quota, sum(open_))


def test_hierarchical_doubts_nothing_at_the_last_forward(view_of: View) -> None:
    view = view_of(
        confidence=[0.1, 0.9], token_probability=[0.1, 0.9], masked=[False, True], step=1, limit=2
    )
    _, decision = Hierarchical(remask=True).step(None, view)
    assert decision.remask is not None
    assert not decision.remask.any()
    earlier = replace(view, limit=torch.tensor([3]))
    _, decision = Hierarchical(remask=True).step(None, earlier)
    assert decision.remask is not None
    assert int(decision.commit.sum() - decision.remask.sum()) >= 1


@pytest.mark.parametrize("prediction", [3, 5])
def test_a_doubted_token_that_is_chosen_again_is_no_edit(view_of: View, prediction: int) -> None:
    view = view_of(
        confidence=[0.1, 0.9], masked=[False, True], tokens=[3, 7], sampled=[prediction, 1],
        step=1, limit=2,
    )  # fmt: skip
    _, decision = Hierarchical(remask=True).step(None, view)
    assert decision.edit is not None
    assert decision.edit.tolist() == [[prediction != 3, False]]
    assert decision.remask is not None
    assert not decision.remask.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
def test_credit_without_strength_is_threshold(toy: Toy, seed: int, length: int, block: int) -> None:
    """9.10."""
    options: dict[str, Any] = {
        "gen_length": length, "block_length": block, "stop_at_eos": False, "return_trajectory": True
    }  # fmt: skip
    found = [
        dlm.generate(toy(seed), [[1], [2, 2]], decoder=decoder, **options)
        for decoder in (Credit(0.6, strength=0.0), Threshold(0.6))
    ]
    assert found[0].tokens == found[1].tokens
    assert found[0].forwards == found[1].forwards


def speak(view_of: View, token: int, confidence: float, step: int) -> StepView:
    return view_of(confidence=[confidence], sampled=[token], step=step)


def credit_of(state: Credits, token: int) -> float:
    """Of the first position."""
    return float((state.credit * (state.tokens == token))[0, 0].sum())


def test_old_credit_decays_geometrically(view_of: View) -> None:
    """9.10: token 3 gains c^g four times, then a flip to 5 leaves it to decay."""
    decoder = Credit(decay=0.8, exponent=0.2)
    state = decoder.init_state(1, 1)
    for step in range(4):
        state, adjustment = decoder.adjust(state, speak(view_of, 3, 0.5, step))
    gain = 0.5**0.2
    built = gain * sum(0.8**k for k in range(4))
    assert credit_of(state, 3) == pytest.approx(built, rel=1e-6)
    for step in range(4, 9):
        state, adjustment = decoder.adjust(state, speak(view_of, 5, 0.25, step))
        assert credit_of(state, 3) == pytest.approx(built * 0.8 ** (step - 3), rel=1e-6)
    assert credit_of(state, 5) == pytest.approx(0.25**0.2 * sum(0.8**k for k in range(5)), rel=1e-6)
    assert adjustment.tokens is not None
    assert adjustment.bonus is not None
    bonus = float((adjustment.bonus * (adjustment.tokens == 3))[0, 0].sum())
    assert bonus == pytest.approx(0.7 * math.log1p(built * 0.8**5), rel=1e-6)


def test_a_full_list_gives_up_its_smallest(view_of: View) -> None:
    decoder = Credit(decay=1.0, exponent=1.0, slots=3)
    state = decoder.init_state(1, 1)
    for step, (token, chance) in enumerate([(1, 0.5), (2, 0.25), (3, 0.75), (2, 0.125), (4, 0.9)]):
        state, _ = decoder.adjust(state, speak(view_of, token, chance, step))
    assert credit_of(state, 1) == pytest.approx(0.5)
    assert credit_of(state, 3) == pytest.approx(0.75)
    assert credit_of(state, 4) == pytest.approx(0.9)
    assert credit_of(state, 2) == 0, "0.375 was the least; 4 begins without its credit"
    assert sorted(state.tokens[0, 0].tolist()) == [1, 3, 4]


def test_adaptive_credit_has_no_parameters(view_of: View) -> None:
    """Strength and decay are 1 - masks / blanks, the exponent is 1."""
    decoder = Credit(adaptive=True, strength=9.0, decay=0.1, exponent=3.0)
    state = decoder.init_state(1, 4)
    fields: dict[str, Any] = {"confidence": [0.5] * 4, "sampled": [2] * 4}
    state, adjustment = decoder.adjust(state, view_of(**fields, step=0))
    assert adjustment.bonus is not None
    assert not adjustment.bonus.any(), "nothing is committed yet"
    masked = [False, True, True, True]
    state, adjustment = decoder.adjust(state, view_of(**fields, masked=masked, step=1))
    assert adjustment.bonus is not None
    credit = 0.25 * 0.5 + 0.5
    assert float(adjustment.bonus[0, 1].sum()) == pytest.approx(0.25 * math.log1p(credit))
    assert not adjustment.bonus[0, 0].any(), "no credit where a token stands"


def test_credits_end_with_their_block_and_generation(toy: Toy, view_of: View) -> None:
    decoder = Credit()
    state = decoder.init_state(1, 1)
    for step in range(3):
        state, _ = decoder.adjust(state, speak(view_of, 3, 0.9, step))
    state, _ = decoder.adjust(state, speak(view_of, 5, 0.5, 0))
    assert credit_of(state, 3) == 0
    assert credit_of(state, 5) == pytest.approx(0.5**0.2)
    # An early stop leaves masks behind in a generation, and must leave no credit.
    ends = torch.zeros(97, 8)
    ends[:, 6] = 0.5
    strong = Credit(0.99, strength=50.0, decay=1.0)
    first = dlm.generate(toy(ends), [[1]], decoder=strong, gen_length=9)
    assert first.forwards[0] < 9
    after = dlm.generate(toy(8), [[2]], decoder=strong, gen_length=9, stop_at_eos=False)
    fresh = dlm.generate(
        toy(8), [[2]], decoder=Credit(0.99, strength=50.0, decay=1.0), gen_length=9,
        stop_at_eos=False,
    )  # fmt: skip
    assert after.tokens == fresh.tokens


def test_credit_reaches_the_logits(toy: Toy) -> None:
    """Strong credit keeps the token that came first, and commits earlier for it."""
    options: dict[str, Any] = {"gen_length": 12, "block_length": None, "stop_at_eos": False}
    differs = shorter = 0
    for seed in range(10):
        plain = dlm.generate(toy(seed), [[1]], decoder=Threshold(0.9), **options)
        fused = dlm.generate(toy(seed), [[1]], decoder=Credit(0.9, strength=3.0), **options)
        differs += plain.tokens != fused.tokens
        shorter += fused.forwards[0] < plain.forwards[0]
    assert differs
    assert shorter > 5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), eighths)
def test_refinement_without_editing_is_llada_two(
    toy: Toy, seed: int, length: int, block: int, threshold: float
) -> None:
    """9.11: c > threshold or the best one; an editing threshold of 1 changes no token."""
    options: dict[str, Any] = {"gen_length": length, "block_length": block, "stop_at_eos": False}
    plain = dlm.generate(toy(seed), [[1]], decoder=BlockRefinement(threshold), **options)
    above = dlm.generate(
        toy(seed), [[1]], decoder=Threshold(math.nextafter(threshold, 2)), **options
    )
    assert plain.tokens == above.tokens
    assert plain.forwards == above.forwards
    never = dlm.generate(
        toy(seed), [[1]], decoder=BlockRefinement(threshold, editing_threshold=1.0), **options
    )
    assert never.tokens == plain.tokens
    assert never.forwards == [plain.forwards[0] + -(-length // block)], "one look at a full block"


@rule
@given(rows(), eighths, eighths, st.data())
def test_edits_are_changes_of_mind(
    view_of: View, picked: Picked, case: dict[str, Any], low: float, edit: float, data: Any
) -> None:
    """9.11: Gamma and Delta, strict; given positions are never edited."""
    width = len(case["masked"])

    def row(values: st.SearchStrategy[Any]) -> Any:
        return data.draw(st.lists(values, min_size=width, max_size=width))

    sampled, tokens = row(st.integers(0, 2)), row(st.integers(0, 2))
    given_ = row(st.booleans())
    editable = [not m and not g for m, g in zip(case["masked"], given_, strict=True)]
    view = view_of(**case, sampled=sampled, tokens=tokens, editable=editable)
    decoder = BlockRefinement(low, editing_threshold=edit)
    _, decision = decoder.step(decoder.init_state(1, width), view)
    c = case["confidence"]
    inside = [i for i, open_ in enumerate(case["masked"]) if open_]
    gamma = {i for i in inside if c[i] > low} or {max(inside, key=lambda i: (c[i], -i))}
    assert set(picked(decision.commit)) == gamma
    assert decision.edit is not None
    assert picked(decision.edit) == [
        i for i in range(width) if editable[i] and sampled[i] != tokens[i] and c[i] > edit
    ]


@pytest.mark.parametrize("cap", [0, 1, 5, 16])
def test_a_cycle_of_edits_ends_by_the_cap(script: Script, cap: int) -> None:
    """9.11: A -> B -> A for ever."""

    def flip(number: int, view: StepView) -> dict[str, Tensor]:
        width = view.masked.shape[1]
        return {
            "confidence": torch.full((1, width), 0.99),
            "sampled": torch.full((1, width), number % 2),
        }

    decoder = BlockRefinement(0.5, editing_threshold=0.5, max_post_steps=cap)
    history = script(decoder, flip, [True] * 4, most=5 + cap)
    assert len(history) == 1 + cap
    limited = script(decoder, flip, [True] * 4, limit=3)
    assert len(limited) == min(3, 1 + cap)


def test_post_steps_stop_when_nothing_is_edited(script: Script) -> None:
    """Edits at forwards 1 and 2, none at 3: forward 3 is the last."""

    def settle(number: int, view: StepView) -> dict[str, Tensor]:
        return {"confidence": torch.ones(1, 3), "sampled": torch.full((1, 3), min(number, 2))}

    history = script(BlockRefinement(0.5, editing_threshold=0.5), settle, [True] * 3)
    edits = []
    for _, decision in history:
        assert decision.edit is not None
        edits.append(int(decision.edit.sum()))
    assert edits == [0, 3, 3, 0]


def test_edits_never_touch_what_is_given(toy: Toy) -> None:
    """A network that wants 3 everywhere, and then 2, around a text with two blanks."""
    table = torch.zeros(97, 8)
    table[:, 3] = 9.0
    table[::3, 2] = 18.0
    row = [1, 7, 4, 4, 7, 5]
    out = dlm.infill(
        toy(table), row, decoder=BlockRefinement(0.5, editing_threshold=0.1), block_length=None,
        return_trajectory=True,
    )  # fmt: skip
    assert [t for t, before in zip(out.tokens[0], row, strict=True) if before != 7] == [1, 4, 4, 5]
    assert out.trajectory is not None
    assert {change.position for change in out.trajectory[0].edits} <= {1, 4}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_post_steps_are_counted_by_block(
    toy: Toy, seed: int, length: int, block: int, cap: int
) -> None:
    decoder = BlockRefinement(0.3, editing_threshold=0.05, max_post_steps=cap)
    out = dlm.generate(
        toy(seed), [[1]], decoder=decoder, gen_length=length, block_length=block,
        stop_at_eos=False, temperature=1.0, return_trajectory=True,
    )  # fmt: skip
    assert out.trajectory is not None
    canvases = out.trajectory[0].canvases.tolist()
    for end in range(block, length + block, block):
        done = min(end, length)
        at_rest = [c for c in canvases if 7 not in c[:done] and all(t == 7 for t in c[done:])]
        # The first forward of the next block sees the same.
        assert len(at_rest) <= cap + (done < length)
