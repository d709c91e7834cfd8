"""Saber (policies.md section 5): the three presets against a slow copy of the rule."""

from collections.abc import Callable
from fractions import Fraction
from itertools import count
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import Saber
from dlm.decoders.saber import PRESETS
from dlm.decoders.select import exact_sum
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Script = Callable[..., list[tuple[StepView, Decision]]]
Picked = Callable[..., list[int]]

every_preset = pytest.mark.parametrize("preset", PRESETS)
rule = settings(max_examples=40, deadline=None)


class Facts(NamedTuple):
    """Section 5.3: what a preset means, as its options there are called."""

    floor: bool
    committed: bool  # conf_of
    current: bool  # mean_over
    only_positive_drop: bool
    exclude_just_accepted: bool


MEANING = {
    "reference": Facts(False, False, False, False, False),
    "paper": Facts(True, True, True, False, False),
    "safe": Facts(True, True, True, True, True),
}


class Slow:
    """Saber for one row in one block, position by position, means as fractions."""

    def __init__(self, preset: str, n: int, mu: int, width: int) -> None:
        self.facts, self.n, self.mu = MEANING[preset], n, mu
        self.last = [Fraction(0)] * width
        self.accepted: dict[int, Fraction] = {}

    def step(self, masked: list[int], best: list[float], own: list[float]) -> tuple[Any, Any]:
        width, facts = len(best), self.facts
        c = [
            Fraction(own[i] if facts.committed and i not in masked else best[i])
            for i in range(width)
        ]
        past = list(self.accepted.values())
        bar = sum(past, Fraction(0)) / len(past) if past else Fraction(1)
        accept = [i for i in masked if c[i] > bar]
        if len(accept) < self.n:
            accept = sorted(masked, key=lambda i: (-c[i], i))[: self.n]
        self.accepted |= {i: c[i] for i in accept}
        a = len(accept)
        r = max(1, a // self.mu) if facts.floor else max(self.n // 2, -(-a // self.mu))
        r = 0 if set(masked) == set(accept) else max(min(r, a - 1), 0)
        committed = [i for i in range(width) if i not in masked]
        candidates = committed if facts.exclude_just_accepted else sorted({*committed, *accept})
        change = {i: c[i] - self.last[i] for i in candidates}
        if facts.only_positive_drop:
            change = {i: value for i, value in change.items() if value < 0}
        remask = sorted(change, key=lambda i: (change[i], i))[:r]
        if facts.current:
            for i in remask:
                del self.accepted[i]
        self.last = c
        return set(accept) - set(remask), set(remask) - set(accept)


def stream(seed: int, width: int) -> Callable[[int, StepView], dict[str, Tensor]]:
    """Confidences in 64ths, so that differences are exact."""
    generator = torch.Generator().manual_seed(seed)

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        both = torch.randint(0, 65, (2, 1, width), generator=generator) / 64
        return {"confidence": both.amax(0), "token_probability": both[0]}

    return speak


@every_preset
@rule
@given(st.integers(0, 9999), st.integers(1, 24), st.integers(1, 6), st.integers(1, 9))
def test_every_decision_is_that_of_the_slow_copy(
    script: Script, picked: Picked, preset: str, seed: int, width: int, n: int, mu: int
) -> None:
    """T5.1, T5.2 and T5.5: the mean is recomputed, the count is the formula, nets >= 1."""
    history = script(Saber(n, mu, preset), stream(seed, width), [True] * width)
    slow = Slow(preset, n, mu, width)
    assert len(history) <= width
    for view, decision in history:
        assert decision.remask is not None
        commit, remask = slow.step(
            picked(view.masked), view.want("confidence")[0].tolist(),
            view.want("token_probability")[0].tolist(),
        )  # fmt: skip
        assert set(picked(decision.commit)) == commit
        assert set(picked(decision.remask)) == remask


@every_preset
@pytest.mark.parametrize("confidence", [0.75, 0.7, 0.9, 1.0, 1 / 126464, 1 / 157184, 1e-9])
def test_constant_confidence_never_beats_its_own_mean(
    script: Script, preset: str, confidence: float
) -> None:
    """T5.3: n = 2 gains one position a forward but for the last two: L - 1 forwards."""

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        level = torch.full(view.masked.shape, confidence)
        return {"confidence": level, "token_probability": level}

    length = 20
    history = script(Saber(2, preset=preset), speak, [True] * length)
    wanted = length // 2 if preset == "safe" else length - 1  # nothing fell, so safe keeps both
    assert len(history) == wanted


def test_a_float_mean_would_be_beaten() -> None:
    """The control of T5.3: added up in float32, the mean of equal values is below them."""
    level = torch.full((1, 30), 0.7)
    lengths = torch.arange(1, 31)
    assert (level.cumsum(-1) / lengths < level).any()
    for length in lengths.tolist():
        part = level[:, :length]
        assert float(exact_sum(part, part > 0) / length) == float(level[0, 0])


@rule
@given(st.integers(0, 9999), st.integers(2, 12))
def test_without_backtracking_it_is_a_moving_threshold(
    view_of: View, picked: Picked, seed: int, width: int
) -> None:
    """T5.4: n = 1 commits {c > tau} or the best, tau the mean of past commits."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Saber(1, mu=10**6, preset="safe")
    state = decoder.init_state(1, width)
    left, past = list(range(width)), list[float]()
    for step in count():
        if not left:
            return
        row = (torch.randint(0, 65, (width,), generator=generator) / 64).tolist()
        masked = [i in left for i in range(width)]
        rising = [2.0 + step] * width  # so that nothing is taken back
        view = view_of(confidence=row, masked=masked, token_probability=rising, step=step)
        state, decision = decoder.step(state, view)
        bar = sum(map(Fraction, past), Fraction(0)) / len(past) if past else Fraction(1)
        wanted = [i for i in left if row[i] > bar] or [max(left, key=lambda i: (row[i], -i))]
        assert picked(decision.commit) == wanted
        assert decision.remask is not None
        assert not decision.remask.any()
        past += [row[i] for i in wanted]
        left = [i for i in left if i not in wanted]


@every_preset
def test_the_position_that_fell_is_remasked(view_of: View, picked: Picked, preset: str) -> None:
    """T5.6: by 0.5, while others rise."""
    decoder = Saber(2, preset=preset)
    state = decoder.init_state(1, 8)
    masked = [False] * 4 + [True] * 4
    first = view_of(confidence=[0.75] * 8, token_probability=[0.75] * 8, masked=masked, step=1)
    state, _ = decoder.step(state, first)
    levels = [0.875, 0.875, 0.25, 0.875, 0.8125, 0.8125, 0.75, 0.75]
    view = view_of(confidence=levels, token_probability=levels, masked=masked, step=2)
    _, decision = decoder.step(state, view)
    assert decision.remask is not None
    assert picked(decision.remask) == [2]
    assert picked(decision.commit) == [4, 5]


def test_presets_differ_in_whose_confidence_falls(view_of: View, picked: Picked) -> None:
    """The reference follows the best token of a committed position, the paper its own token."""
    found = {}
    for preset in PRESETS:
        decoder = Saber(2, preset=preset)
        state = decoder.init_state(1, 5)
        masked = [False, False, True, True, True]
        flat = [0.5] * 5
        state, _ = decoder.step(
            state, view_of(confidence=flat, token_probability=flat, masked=masked, step=1)
        )
        view = view_of(
            confidence=[0.25, 0.5, 0.5, 0.5, 0.5], token_probability=[0.5, 0.125, 0, 0, 0],
            masked=masked, step=2,
        )  # fmt: skip
        _, decision = decoder.step(state, view)
        assert decision.remask is not None
        found[preset] = picked(decision.remask)
    assert found == {"reference": [0], "paper": [1], "safe": [1]}


def test_the_safe_preset_keeps_what_did_not_fall(view_of: View) -> None:
    decoder = Saber(2, preset="safe")
    masked = [False, True, True, True]
    level = [0.5] * 4
    view = view_of(confidence=level, token_probability=level, masked=masked, step=1)
    state, _ = decoder.step(decoder.init_state(1, 4), view)
    _, decision = decoder.step(state, view)
    assert decision.remask is not None
    assert not decision.remask.any()


@every_preset
def test_the_mean_is_over_earlier_blocks_too(view_of: View, picked: Picked, preset: str) -> None:
    """Confidence 0.75, 0.875 and 0.78: only the second block is above the mean so far, at once.

    By the mean of each block all would be committed one by one.
    """
    decoder = Saber(1, preset=preset)
    wide = PRESETS[preset].everywhere
    state = decoder.init_state(1, 12 if wide else 4)
    found: list[list[int]] = []
    tokens = [7] * 12
    while 7 in tokens:
        first = tokens.index(7) // 4 * 4
        window = range(0 if wide else first, 12 if wide else first + 4)
        level = [[0.75, 0.875, 0.78][i // 4] for i in window]
        masked = [tokens[i] == 7 and i < first + 4 for i in window]
        view = view_of(
            confidence=level, token_probability=level, masked=masked, block_start=window[0],
            editable=[tokens[i] != 7 for i in window],
            step=sum(token != 7 for token in tokens[first : first + 4]),
        )  # fmt: skip
        state, decision = decoder.step(state, view)
        found.append([window[i] for i in picked(decision.commit)])
        tokens = [0 if i in found[-1] else token for i, token in enumerate(tokens)]
    assert found == [[0], [1], [2], [3], [4, 5, 6, 7], [8], [9], [10], [11]]


@every_preset
@rule
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_blocks_and_prompts(
    toy: Toy, preset: str, seed: int, length: int, block: int, n: int
) -> None:
    """T5.1 over blocks; the safe preset never reaches back to an earlier one."""
    out = dlm.generate(
        toy(seed), [[1, 2], [3]], decoder=Saber(n, preset=preset), gen_length=length,
        block_length=block, stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert max(out.forwards) <= length
    assert out.trajectory is not None
    for trajectory in out.trajectory:
        masks = (trajectory.canvases == 7).sum(-1).tolist()
        assert masks == sorted(set(masks), reverse=True), "each forward gains a position"
        for change in trajectory.remasks if preset == "safe" else []:
            canvas = trajectory.canvases[change.step].tolist()
            assert change.position // block == canvas.index(7) // block


def test_other_presets_do_reach_back(toy: Toy) -> None:
    """Or the assertion above would be about nothing."""
    found = {}
    for preset in PRESETS:
        out = dlm.generate(
            toy(3), [[1]] * 8, decoder=Saber(preset=preset), gen_length=24, block_length=4,
            stop_at_eos=False, return_trajectory=True, temperature=1.0,
        )  # fmt: skip
        assert out.trajectory is not None
        found[preset] = any(
            change.position // 4 < one.canvases[change.step].tolist().index(7) // 4
            for one in out.trajectory for change in one.remasks
        )  # fmt: skip
    assert found == {"reference": True, "paper": True, "safe": False}


@every_preset
@pytest.mark.parametrize("n", [2, 3, 9])
def test_never_more_than_is_masked(view_of: View, picked: Picked, preset: str, n: int) -> None:
    """The authors' top-n of fewer than n masked positions takes committed ones."""
    decoder = Saber(n, preset=preset)
    view = view_of(
        confidence=[0.9, 0.1, 0.9, 0.9], token_probability=[0.9] * 4,
        masked=[False, True, False, False], editable=[False, False, True, False],
    )  # fmt: skip
    _, decision = decoder.step(decoder.init_state(1, 4), view)
    assert picked(decision.commit) == [1]
    assert decision.remask is not None
    assert not decision.remask.any(), "none once all is committed"
