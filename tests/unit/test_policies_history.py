"""Policies that compare a forward with those before: policies.md 9.5 and 9.13."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import Klass, MutualStability
from dlm.decoders.history import Summary, js_divergence, kl_divergence
from dlm.models.model import Model
from dlm.types import AnyDecoder, Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Script = Callable[..., list[tuple[StepView, Decision]]]
Picked = Callable[..., list[int]]
Speech = Callable[[int, StepView], dict[str, Tensor]]

LN2 = math.log(2)


def listed(probabilities: Tensor, count: int) -> dict[str, Tensor]:
    """Fields of a view for distributions [..., V]: the likeliest tokens and the best one."""
    top = probabilities.float().sort(dim=-1, descending=True, stable=True)
    return {
        "top_tokens": top.indices[..., :count],
        "top_probabilities": top.values[..., :count],
        "confidence": top.values[..., 0],
        "sampled": top.indices[..., 0],
    }


def summary(probabilities: Tensor, count: int) -> Summary:
    fields = listed(probabilities, count)
    return Summary(fields["top_tokens"], fields["top_probabilities"])


def dense_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).nan_to_num(nan=0.0).sum(-1)


def dense_js(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return (dense_kl(p, middle) + dense_kl(q, middle)) / 2


def laws(seed: int, vocabulary: int, scale: float) -> tuple[Tensor, Tensor]:
    """Two related distributions, float64 [1, 5, V]: from almost equal to unrelated."""
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.randn(2, 1, 5, vocabulary, generator=generator, dtype=torch.float64) * scale
    mixed = one + two * torch.tensor([0.0, 0.01, 0.1, 1.0, 3.0], dtype=torch.float64)[:, None]
    return one.softmax(-1), mixed.softmax(-1)


rule = settings(max_examples=60, deadline=None)


@rule
@given(st.integers(0, 9999), st.integers(2, 64), st.floats(0.1, 2.0))
def test_divergences_of_whole_vocabularies_are_exact(
    seed: int, vocabulary: int, scale: float
) -> None:
    """9.5: V no longer than the list."""
    p, q = laws(seed, vocabulary, scale)
    now, before = summary(p, 64), summary(q, 64)
    assert kl_divergence(now, before).tolist()[0] == pytest.approx(
        dense_kl(p, q).tolist()[0], rel=1e-4, abs=3e-6
    )
    assert js_divergence(now, before).tolist()[0] == pytest.approx(
        dense_js(p, q).tolist()[0], rel=1e-4, abs=3e-6
    )


@rule
@given(st.integers(0, 9999), st.integers(5, 300), st.floats(0.1, 2.0), st.sampled_from([1, 8, 64]))
def test_divergences_of_lists_never_exceed_the_whole(
    seed: int, vocabulary: int, scale: float, count: int
) -> None:
    """9.5: data processing."""
    p, q = laws(seed, vocabulary, scale)
    kl = kl_divergence(summary(p, count), summary(q, count))[0]
    assert (kl >= 0).all()
    assert (kl <= dense_kl(p, q)[0] * 1.0001 + 3e-6).all()
    assert kl[0].item() == pytest.approx(0.0, abs=1e-6)


def only(laws: Tensor, count: int) -> Tensor:
    """The likeliest tokens of each, 0 for the others, and the rest as one token more."""
    least = laws.topk(min(count, laws.shape[-1])).values[..., -1:]
    kept = laws.where(laws >= least, 0.0)
    return torch.cat((kept, (1 - kept.sum(-1, keepdim=True)).clamp(min=0.0)), -1)


@rule
@given(st.integers(0, 9999), st.integers(5, 300), st.floats(0.1, 2.0), st.sampled_from([1, 8, 64]))
def test_drift_of_lists_is_of_all_that_either_has(
    seed: int, vocabulary: int, scale: float, count: int
) -> None:
    """9.13: what comes into a list or leaves it counts by itself, as LESS counts it."""
    p, q = laws(seed, vocabulary, scale)
    js = js_divergence(summary(p, count), summary(q, count))[0]
    wanted = dense_js(only(p, count), only(q, count))[0]
    assert js.tolist() == pytest.approx(wanted.tolist(), rel=1e-4, abs=3e-6)
    assert (js >= 0).all()
    assert (js <= LN2 + 1e-6).all()


@pytest.mark.parametrize("tokens", [[1, 2], [1, 3]])
def test_drift_of_the_least_probability_is_a_number(tokens: list[int]) -> None:
    least = Summary(torch.tensor([[[1, 2]]]), torch.tensor([[[1.0, 1e-45]]]))
    other = Summary(torch.tensor([[tokens]]), torch.tensor([[[1.0, 1e-45]]]))
    for now, before in ((least, other), (other, least), (least, Summary.empty(1, 1, 2))):
        assert 0.0 <= js_divergence(now, before).item() <= LN2 + 1e-6


def test_a_tail_that_is_another_is_drift() -> None:
    """0.8 of both are of one token, and the rest of tokens that the other law does not have."""
    p, q = torch.zeros(2, 1, 1, 20)
    p[..., 0] = q[..., 0] = 0.8
    p[..., 1:8], q[..., 8:15] = 0.2 / 7, 0.2 / 7
    assert js_divergence(summary(p, 8), summary(q, 8)).item() == pytest.approx(0.2 * LN2)


def test_divergences_at_their_ends() -> None:
    p, q = torch.eye(4)[None, :2], torch.eye(4)[None, 1:3]
    now, before = summary(p, 64), summary(q, 64)
    assert js_divergence(now, before)[0].tolist() == pytest.approx([LN2, LN2])
    assert kl_divergence(now, before)[0].tolist() == [math.inf, math.inf]
    assert kl_divergence(now, now)[0].tolist() == [0.0, 0.0]


def constant(*peaks: float, count: int = 64) -> Speech:
    """The same distribution at every forward: token 0 has the peak, 15 others the rest."""
    row = torch.tensor([[[p, *[(1 - p) / 15] * 15] for p in peaks]])
    return lambda number, view: listed(row, count)


def counts(history: list[tuple[StepView, Decision]]) -> list[int]:
    return [int(decision.commit.sum()) for _, decision in history]


@pytest.mark.parametrize("history", [1, 2, 3, 5])
def test_klass_commits_what_is_constant_at_forward_h_plus_one(script: Script, history: int) -> None:
    """9.5: h divergences need h + 1 forwards; until then the best one goes alone."""
    found = counts(script(Klass(history=history), constant(*[0.95] * 10), [True] * 10))
    assert found == [1] * history + [10 - history]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_less_commits_what_is_constant_at_forward_p_plus_one(script: Script, patience: int) -> None:
    """9.13."""
    decoder = MutualStability(patience=patience)
    found = counts(script(decoder, constant(*[0.95] * 10, count=8), [True] * 10))
    assert found == [1] * patience + [10 - patience]


def test_less_without_patience_is_a_threshold(script: Script) -> None:
    decoder = MutualStability(patience=0)
    peaks = [0.95, 0.75, 0.7499, 0.9, 0.3]
    assert counts(script(decoder, constant(*peaks, count=8), [True] * 5)) == [3, 1, 1]


def test_thresholds_at_equality(script: Script) -> None:
    """0.4: c is strict in KLASS, c and JS are not in LESS."""
    assert counts(script(Klass(0.75, history=1), constant(*[0.75] * 3), [True] * 3)) == [1, 1, 1]
    less = MutualStability(0.75, patience=1, drift=0.0)
    assert counts(script(less, constant(*[0.75] * 3, count=8), [True] * 3)) == [1, 2]


def test_klass_without_a_bound_on_kl_is_a_quota(script: Script) -> None:
    """9.5: no divergence is below 0."""
    assert counts(script(Klass(kl_threshold=0.0), constant(*[0.95] * 6), [True] * 6)) == [1] * 6
    speech = constant(*[0.95] * 6)
    assert counts(script(Klass(kl_threshold=0.0), speech, [True] * 6, limit=2)) == [3, 3]


def moving(peaks: list[list[float]], tokens: list[list[int]] | None = None) -> Speech:
    """By forward and position: the peak, and which token has it."""

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        at = min(number, len(peaks) - 1)
        rows = []
        for column, peak in enumerate(peaks[at]):
            row = [(1 - peak) / 15] * 16
            row[tokens[at][column] if tokens else 0] = peak
            rows.append(row)
        return listed(torch.tensor([rows]), 64)

    return speak


def test_klass_counts_stable_forwards_in_a_row(script: Script, picked: Picked) -> None:
    """Position 1 moves at forward 2, so it is stable twice in a row at forward 4 only."""
    peaks = [[0.99, 0.92, 0.5, 0.4, 0.3, 0.2]] * 2 + [[0.99, 0.99, 0.5, 0.4, 0.3, 0.2]] * 4
    history = script(Klass(kl_threshold=0.01, history=2), moving(peaks), [True] * 6)
    # Forwards 0 and 1 take positions 0 and 1 by confidence; hide them from the fallback:
    assert [picked(decision.commit) for _, decision in history][:2] == [[0], [1]]
    peaks = [[0.999, 0.998, 0.997, 0.996, 0.992 if n < 2 else 0.95] for n in range(6)]
    history = script(Klass(0.9, 0.001, history=3), moving(peaks), [True] * 5)
    found = [picked(decision.commit) for _, decision in history]
    assert found == [[0], [1], [2], [3], [4]], "4 falls back: it moved at forward 2"
    history = script(Klass(0.9, 0.1, history=3), moving(peaks), [True] * 5)
    assert [picked(decision.commit) for _, decision in history] == [[0], [1], [2], [3, 4]]


def test_less_counts_forwards_with_one_best_token(script: Script, picked: Picked) -> None:
    peaks = [[0.99, 0.98, 0.97, 0.8, 0.8]] * 5
    tokens = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], *[[0, 0, 0, 0, 1]] * 3]
    history = script(MutualStability(patience=2, drift=9.0), moving(peaks, tokens), [True] * 5)
    assert [picked(d.commit) for _, d in history] == [[0], [1], [2, 3], [4]]


@pytest.mark.parametrize("decoder", [Klass(history=2), MutualStability(patience=2)])
def test_a_new_block_begins_without_history(view_of: View, decoder: AnyDecoder) -> None:
    """9.5, 9.13: stable forwards of the block before count for nothing."""
    speech = constant(*[0.95] * 4, count=64 if isinstance(decoder, Klass) else 8)
    state = decoder.init_state(1, 4)
    found = []
    for step in (0, 1, 2, 0, 1, 2):
        view = view_of(masked=[True] * 4, step=step)
        state, decision = decoder.step(state, view_of(**speech(step, view), step=step))
        found.append(int(decision.commit.sum()))
    assert found == [1, 1, 4, 1, 1, 4]


@pytest.mark.parametrize("name", ["klass", "mutual_stability"])
def test_blocks_of_a_generation_begin_anew(toy: Toy, name: str) -> None:
    table = torch.zeros(1, 8)
    table[0, 1] = 9.0
    out = dlm.generate(
        toy(table), [[1], [2, 3]], decoder=name, gen_length=15, block_length=5, stop_at_eos=False,
        return_trajectory=True,
    )  # fmt: skip
    assert out.trajectory is not None
    for trajectory in out.trajectory:
        steps = [change.step for change in trajectory.commits]
        assert [steps.count(step) for step in range(9)] == [1, 1, 3] * 3


def flat_then_sure(vocabulary: int, token: int, chance: float) -> Speech:
    """Undecided among all tokens at first, then sure of one that was not listed."""
    flat = torch.full((1, 4, vocabulary), 1 / vocabulary)
    sure = torch.full((1, 4, vocabulary), (1 - chance) / (vocabulary - 1))
    sure[..., token] = chance
    return lambda number, view: listed(flat if number < 2 else sure, 64)


@pytest.mark.parametrize("vocabulary", [60, 20000])
def test_a_jump_to_a_token_that_was_not_listed_is_not_stable(
    script: Script, vocabulary: int
) -> None:
    """KL(p_t || p_{t-1}) is above 3 nats at the jump, whatever the lists of 64 have in common."""
    speech = flat_then_sure(vocabulary, vocabulary - 1, 0.95)
    p, q = (speech(number, None) for number in (2, 1))  # type: ignore[arg-type]
    assert p["confidence"][0, 0].item() == pytest.approx(0.95)
    assert q["confidence"][0, 0].item() == pytest.approx(1 / vocabulary)
    assert counts(script(Klass(), speech, [True] * 4))[:3] == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_distributions_are_the_models_own(toy: Toy, temperature: float) -> None:
    """Constant logits are stable at any temperature: p is untempered and without noise."""
    table = torch.zeros(1, 8)
    table[0, 1] = 9.0
    out = dlm.generate(
        toy(table), [[1]], decoder="klass", gen_length=9, temperature=temperature,
        stop_at_eos=False,
    )  # fmt: skip
    assert out.forwards == [3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.data())
def test_fallbacks_make_progress(script: Script, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = data.draw(st.integers(1, 9))

    def speak(number: int, view: StepView) -> dict[str, Tensor]:
        return listed((3 * torch.randn(1, width, 7, generator=generator)).softmax(-1), 5)

    decoders: list[Any] = [Klass(0.1, 9.0, 1), MutualStability(0.1, 1, 0.5)]
    for decoder in decoders:
        found = counts(script(decoder, speak, [True] * width))
        assert sum(found) == width
        assert min(found) >= 1
