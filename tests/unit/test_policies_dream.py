"""Dream's algorithms and dilated rounds: policies.md 9.9 and 9.15, orders set by a clock."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import Dilated, Dream
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Script = Callable[..., list[tuple[StepView, Decision]]]
Picked = Callable[..., list[int]]

EPSILON = Fraction(1, 1000)
SCORES = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}
rule = settings(max_examples=60, deadline=None)


def plan(masks: int, steps: int) -> list[int]:
    """floor(m (1 - s / t)) over linspace(1, eps, N + 1), all at the last; no empty steps."""
    found, left = [], masks
    for k in range(steps):
        t, s = (1 - n * (1 - EPSILON) / steps for n in (k, k + 1))
        count = left if k + 1 == steps else math.floor(left * (1 - s / t))
        left -= count
        found += [count] if count else []
    return found


def quiet(number: int, view: StepView) -> dict[str, Tensor]:
    level = torch.linspace(0.1, 0.9, view.masked.shape[1])[None]
    return {"confidence": level, "margin": level, "entropy": -level}


@rule
@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from(list(SCORES)))
@example(999, 3, "entropy")  # 333 at the second step, which rounding would make 332
def test_counts_are_those_of_the_grid(script: Script, masks: int, steps: int, alg: str) -> None:
    """9.9: exact arithmetic; the counts add up to all masks, in no more forwards than steps."""
    history = script(Dream(alg), quiet, [True] * masks, limit=steps)
    found = [int(decision.commit.sum()) for _, decision in history]
    assert found == plan(masks, steps)
    assert sum(found) == masks
    assert len(found) <= steps


@rule
@given(st.integers(1, 40))
def test_without_a_budget_the_grid_has_a_step_a_mask(script: Script, masks: int) -> None:
    history = script(Dream(), quiet, [True] * masks)
    assert [int(decision.commit.sum()) for _, decision in history] == plan(masks, masks)


def test_times_are_those_of_the_grid_and_fall(script: Script) -> None:
    history = script(Dream(), quiet, [True] * 9, limit=9)
    times = []
    for _, decision in history:
        assert decision.time is not None
        times.append(float(decision.time))
    grid = [float(1 - k * (1 - EPSILON) / 9) for k in range(1, 10)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 0
    assert all(min(abs(time - t) for t in grid) < 1e-6 for time in times[:-1])


def test_rows_keep_their_own_counts(toy: Toy) -> None:
    """Batch means would couple them: 12, 3 and 7 masks with one budget."""
    rows = [[1, *[7] * count] for count in (12, 3, 7)]
    for steps in (1, 2, 4, 8):
        out = dlm.infill(
            toy(), rows, decoder="dream", steps=steps, block_length=None, return_trajectory=True
        )
        assert out.trajectory is not None
        for count, one in zip((12, 3, 7), out.trajectory, strict=True):
            found = [change.step for change in one.commits]
            assert [found.count(k) for k in range(max(found) + 1)] == plan(count, steps)


@pytest.mark.parametrize("alg", SCORES)
def test_each_algorithm_ranks_by_its_own_score(view_of: View, picked: Picked, alg: str) -> None:
    scores = {
        "confidence": [0.9, 0.1, 0.2, 0.3], "margin": [0.1, 0.9, 0.2, 0.3],
        "entropy": [0.9, 0.8, 0.1, 0.7],
    }  # fmt: skip
    decoder = Dream(alg)
    assert decoder.needs == {SCORES[alg], "position_noise"}
    view = view_of(**scores, limit=4)
    _, decision = decoder.step(decoder.init_state(1, 4), view)
    wanted = {"maskgit_plus": 0, "topk_margin": 1, "entropy": 2}[alg]
    assert picked(decision.commit) == [wanted]
    noisy = view_of(**scores, limit=4, position_noise=[0.0, 0.0, 0.0, 9.0])
    assert picked(decoder.step(decoder.init_state(1, 4), noisy)[1].commit) == [3]


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_origin_reveals_each_mask_by_chance(view_of: View, steps: int) -> None:
    """A mask goes with probability 1 - s / t at each step, given that any goes: i.i.d. laws."""
    rows, masks = 20000, 3
    generator = torch.Generator().manual_seed(steps)
    noise = torch.rand(rows, masks, generator=generator)
    decoder = Dream("origin")
    view = view_of(uniform=noise, limit=steps)
    (after, _), decision = decoder.step(decoder.init_state(rows, masks), view)
    first = after - 1  # the grid step that revealed any
    delta = float(1 - EPSILON) / steps
    survive = [max(1 - k * delta, 0.0) for k in range(steps)] + [0.0]
    for k in range(steps):
        none, here = survive[k] ** masks, survive[k + 1] ** masks
        share = float((first == k).float().mean())
        assert share == pytest.approx(none - here, abs=0.015)
        if int((first == k).sum()) > 1000:
            chance = (survive[k] - survive[k + 1]) * survive[k] ** 2 / (none - here)
            found = decision.commit[first == k].float().mean(0)
            assert found.tolist() == pytest.approx([chance] * masks, abs=0.06)


def test_origin_spreads_positions_evenly_over_the_grid(view_of: View) -> None:
    """Over all forwards each position goes at any step alike, the last taking epsilon more."""
    rows, masks, steps = 6000, 3, 4
    generator = torch.Generator().manual_seed(1)
    decoder = Dream("origin")
    state = decoder.init_state(rows, masks)
    masked = torch.ones(rows, masks, dtype=torch.bool)
    when = torch.full((rows, masks), -1)
    for step in range(masks):
        noise = torch.rand(rows, masks, generator=generator)
        view = view_of(masked=masked, uniform=noise, limit=steps, step=step)
        state, decision = decoder.step(state, view)
        when = torch.where(decision.commit, state[0][:, None] - 1, when)
        masked = masked & ~decision.commit
    assert not masked.any()
    for column in range(masks):
        share = when[:, column].bincount(minlength=steps) / rows
        assert share.tolist() == pytest.approx([0.24975] * 3 + [0.25075], abs=0.025)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 30))
def test_origin_ends_within_its_steps(script: Script, seed: int, masks: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def noise(number: int, view: StepView) -> dict[str, Tensor]:
        return {"uniform": torch.rand(1, masks, generator=generator)}

    history = script(Dream("origin"), noise, [True] * masks, limit=steps)
    assert len(history) <= min(steps, masks)
    assert all(decision.commit.any() for _, decision in history)


def test_scores_are_of_the_tempered_and_filtered_law(toy: Toy) -> None:
    """9.9: after T and top-p. Position 2 is flatter, but one token holds its nucleus."""
    table = torch.full((4, 8), -torch.inf)
    table[1, :4] = torch.tensor([0.5, 0.5, 1e-9, 1e-9]).log()
    table[2, :4] = torch.tensor([0.65, 0.15, 0.1, 0.1]).log()
    table[3, :4] = 0.0
    base = toy(table)

    class ByPosition(type(base)):  # type: ignore[misc]
        def hidden(self, tokens: Tensor, positions: Tensor, *_: Any) -> Tensor:
            return positions.expand(tokens.shape)[..., None]

    model = ByPosition(None, None, base.spec, table)
    options: dict[str, Any] = {
        "gen_length": 3, "block_length": None, "steps": 3, "stop_at_eos": False,
        "return_trajectory": True,
    }  # fmt: skip

    def first(decoder: str, **more: Any) -> int:
        out = dlm.generate(model, [[1]], decoder=decoder, **options, **more)
        assert out.trajectory is not None
        return out.trajectory[0].commits[0].position

    assert first("dream") == 0, "0.69 nats against 1.02"
    laws: list[dict[str, float]] = [{"top_p": 0.6}, {"temperature": 0.25}]
    for law in laws:
        assert first("dream", **law) == 1
        assert first("entropy", **law) == 0, "which ranks by the model's own law"


def rounds(length: int, base: int) -> list[int]:
    """Round of each index of a block, from the definition."""
    found = [0] * length
    number = 0
    while 0 in found:
        number += 1
        stride = -(-length // base**number)
        for index in range(0, length, stride):
            found[index] = found[index] or number
    return found


@rule
@given(st.integers(1, 70), st.integers(2, 5))
def test_rounds_partition_the_block_and_keep_apart(
    script: Script, picked: Picked, length: int, base: int
) -> None:
    """9.15, any K: round t commits what stands stride_t apart; the last has stride 1."""
    history = script(Dilated(base), lambda *_: {}, [True] * length)
    number = rounds(length, base)
    wanted = [[i for i in range(length) if number[i] == r] for r in range(1, max(number) + 1)]
    found = [picked(decision.commit) for _, decision in history]
    assert found == [row for row in wanted if row]
    assert sorted(chain(*found)) == list(range(length))
    assert len(found) <= max(1, math.ceil(math.log(length, base) - 1e-9))
    for columns in found:
        stride = -(-length // base ** number[columns[0]])
        assert all(b - a >= stride for a, b in pairwise(columns))


def test_thirty_two_positions_take_five_rounds(script: Script) -> None:
    history = script(Dilated(), lambda *_: {}, [True] * 32)
    assert [int(decision.commit.sum()) for _, decision in history] == [2, 2, 4, 8, 16]


@rule
@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_what_is_given_leaves_gaps_in_the_rounds(
    script: Script, picked: Picked, blank: list[bool]
) -> None:
    """Infilling: indices count from the start of the block to its last blank."""
    length = max(i for i, open_ in enumerate(blank) if open_) + 1
    number = rounds(length, 2)
    wanted = [
        [i for i in range(length) if number[i] == r and blank[i]] for r in range(1, max(number) + 1)
    ]
    history = script(Dilated(), lambda *_: {}, blank)
    assert [picked(decision.commit) for _, decision in history] == [row for row in wanted if row]


def test_a_quota_takes_the_next_rounds_first(view_of: View, picked: Picked) -> None:
    view = view_of(masked=[True] * 8, quota=5)
    assert picked(Dilated().step(None, view)[1].commit) == [0, 1, 2, 4, 6]
