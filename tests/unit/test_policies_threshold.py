"""Rules that compare scores with a bound: policies.md 4, 7, 9.1 to 9.4."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import (
    Entropy,
    EntropyBound,
    EntropyThreshold,
    Factor,
    Frechet,
    LocalLeap,
    LowConfidence,
    Margin,
    Threshold,
)
from dlm.models.model import Model
from dlm.types import AnyDecoder, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

rule = settings(max_examples=80, deadline=None)
chances = st.floats(0.0, 1.0, width=32)
coarse = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 0.9375, 1.0])  # with ties and bounds met


@st.composite
def rows(draw: st.DrawFn, values: st.SearchStrategy[float] = chances) -> dict[str, Any]:
    """Confidences of some positions, at least one of them masked."""
    width = draw(st.integers(1, 14))
    confidence = draw(st.lists(st.one_of(values, coarse), min_size=width, max_size=width))
    masked = draw(st.lists(st.booleans(), min_size=width, max_size=width))
    masked[draw(st.integers(0, width - 1))] = True
    return {"confidence": confidence, "masked": masked}


def open_columns(case: dict[str, Any]) -> list[int]:
    return [i for i, masked in enumerate(case["masked"]) if masked]


def best_first(case: dict[str, Any]) -> list[int]:
    return sorted(open_columns(case), key=lambda i: (-case["confidence"][i], i))


def commits(decoder: AnyDecoder, view: StepView) -> list[int]:
    decision = decoder.step(None, view)[1]
    return [i for i, on in enumerate(decision.commit[0].tolist()) if on]


@rule
@given(rows(), coarse, coarse, st.integers(0, 20))
def test_local_leap_equals_its_definition(
    view_of: View, case: dict[str, Any], threshold: float, relaxed: float, radius: int
) -> None:
    """T4.4: the O(n^2) rule; T4.3: nothing but masked positions of the block."""
    confidence, inside = case["confidence"], open_columns(case)
    anchors = [i for i in inside if confidence[i] >= threshold]
    wanted = {
        i
        for i in inside
        if i in anchors or (confidence[i] >= relaxed and any(abs(i - a) <= radius for a in anchors))
    } or {best_first(case)[0]}
    assert set(commits(LocalLeap(threshold, relaxed, radius), view_of(**case))) == wanted


@rule
@given(rows(), coarse, coarse, coarse, st.integers(0, 9), st.integers(0, 9))
def test_local_leap_grows_with_radius_and_as_the_relaxed_threshold_falls(
    view_of: View,
    case: dict[str, Any],
    threshold: float,
    low: float,
    high: float,
    radius: int,
    more: int,
) -> None:
    """T4.2."""
    low, high = sorted((low, high))
    view = view_of(**case)
    few = set(commits(LocalLeap(threshold, high, radius), view))
    assert few <= set(commits(LocalLeap(threshold, low, radius), view))
    assert few <= set(commits(LocalLeap(threshold, high, radius + more), view))


@rule
@given(rows(), coarse)
def test_local_leap_without_leaps_is_threshold(
    view_of: View, case: dict[str, Any], threshold: float
) -> None:
    """T4.1: no radius, or one threshold."""
    view = view_of(**case)
    wanted = commits(Threshold(threshold), view)
    assert commits(LocalLeap(threshold, 0.0, 0), view) == wanted
    assert commits(LocalLeap(threshold, threshold, 5), view) == wanted


def test_what_was_just_relaxed_anchors_nothing(view_of: View) -> None:
    view = view_of(confidence=[0.95, 0.8, 0.8, 0.8])
    assert commits(LocalLeap(0.9, 0.75, 1), view) == [0, 1]


def test_committed_positions_anchor_nothing(view_of: View) -> None:
    view = view_of(confidence=[0.95, 0.8, 0.7], masked=[False, True, True])
    assert commits(LocalLeap(0.9, 0.7, 3), view) == [1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 11), st.integers(1, 12))
def test_local_leap_takes_at_most_a_forward_a_token(
    toy: Toy, seed: int, length: int, block: int
) -> None:
    """T4.5, and T4.1 over a whole generation."""
    options: dict[str, Any] = {"gen_length": length, "block_length": block, "stop_at_eos": False}
    out = dlm.generate(toy(seed), [[1]], decoder=LocalLeap(0.6, 0.4, 2), **options)
    assert out.forwards[0] <= length
    for leap in (LocalLeap(0.6, 0.6, 4), LocalLeap(0.6, 0.1, 0)):
        one = dlm.generate(toy(seed), [[1]], decoder=leap, return_trajectory=True, **options)
        two = dlm.generate(
            toy(seed), [[1]], decoder=Threshold(0.6), return_trajectory=True, **options
        )
        assert one.trajectory is not None
        assert two.trajectory is not None
        assert one.trajectory[0].commits == two.trajectory[0].commits


@rule
@given(rows(), coarse, st.integers(1, 5))
def test_threshold_commits_what_reaches_it(
    view_of: View, case: dict[str, Any], threshold: float, quota: int
) -> None:
    """T9.1a, with the comparison at equality and the quota."""
    wanted = {i for i in open_columns(case) if case["confidence"][i] >= threshold}
    wanted |= set(best_first(case)[:quota]) if len(wanted) < quota else set()
    assert set(commits(Threshold(threshold), view_of(**case, quota=quota))) == wanted


@rule
@given(rows(), st.sampled_from([0.0, 0.25, 0.75, 1.0, 1.5, 3.0]))
def test_factor_commits_the_largest_safe_prefix(
    view_of: View, case: dict[str, Any], factor: float
) -> None:
    """T9.1b: n the largest with (n + 1)(1 - c_(n)) < f, at least 1."""
    order = best_first(case)
    safe = [
        n
        for n in range(1, len(order) + 1)
        if (n + 1) * (1 - case["confidence"][order[n - 1]]) < factor
    ]
    wanted = sorted(order[: max(safe, default=1)])
    assert commits(Factor(factor), view_of(**case)) == wanted


joint_tables = st.lists(st.integers(1, 1000), min_size=27, max_size=27)


@settings(max_examples=300, deadline=None)
@given(joint_tables, st.integers(0, 26), st.integers(0, 400000))
def test_factor_one_commits_the_joint_mode(
    view_of: View, weights: list[int], peak: int, height: int
) -> None:
    """T9.1c: of three tokens with any joint law, what is committed together is its joint mode."""
    weights = [w + height * (i == peak) for i, w in enumerate(weights)]
    joint = torch.tensor(weights, dtype=torch.float64).view(3, 3, 3) / sum(weights)
    marginals = [joint.sum([a for a in range(3) if a != axis]) for axis in range(3)]
    confidence = [float(m.max()) for m in marginals]
    chosen = commits(Factor(1.0), view_of(confidence=confidence))
    if len(chosen) < 2:
        return
    dropped = [axis for axis in range(3) if axis not in chosen]
    law = joint.sum(dropped) if dropped else joint
    mode = tuple(int(marginals[axis].argmax()) for axis in chosen)
    assert float(law[mode]) == float(law.max())


def test_factor_one_is_not_trivial(view_of: View) -> None:
    """The theorem above is met by two and three tokens at once, and not beyond its bound."""
    for confidence, count in (([0.9, 0.8, 0.76], 3), ([0.9, 0.7, 0.3], 2), ([0.6, 0.6, 0.6], 1)):
        assert len(commits(Factor(1.0), view_of(confidence=confidence))) == count


@rule
@given(rows(), st.sampled_from([0.0, 0.25, 0.5, 0.875]))
def test_frechet_commits_the_largest_safe_prefix(
    view_of: View, case: dict[str, Any], delta: float
) -> None:
    """9.2: n the largest with max(0, sum c - (n - 1)) - (1 - c_(n)) > delta, at least 1."""
    order = best_first(case)
    best = [case["confidence"][i] for i in order]
    safe = [
        n
        for n in range(1, len(order) + 1)
        if max(0.0, math.fsum(best[:n]) - (n - 1)) - (1 - best[n - 1]) > delta
    ]
    assert commits(Frechet(delta), view_of(**case)) == sorted(order[: max(safe, default=1)])


@rule
@given(rows(st.floats(0.75, 1.0, width=32)), st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0]))
def test_frechet_commits_all_that_factor_does(
    view_of: View, case: dict[str, Any], factor: float
) -> None:
    """9.2: with delta = 1 - f; the same where all confidences are equal."""
    view = view_of(**case)
    assert set(commits(Factor(factor), view)) <= set(commits(Frechet(1 - factor), view))
    case["confidence"] = [case["confidence"][0]] * len(case["masked"])
    view = view_of(**case)
    assert commits(Factor(factor), view) == commits(Frechet(1 - factor), view)


def eb_brute_force(order: Sequence[int], entropy: list[float], gamma: float) -> list[int]:
    """The largest prefix with sum - max <= gamma, at least 1."""
    safe = [
        n
        for n in range(1, len(order) + 1)
        if math.fsum(entropy[i] for i in order[:n]) - max(entropy[i] for i in order[:n]) <= gamma
    ]
    return sorted(order[: max(safe)])


@rule
@given(rows(), st.data(), st.sampled_from(["entropy", "confidence", "margin"]))
def test_entropy_bound_commits_the_longest_prefix(
    view_of: View, case: dict[str, Any], data: st.DataObject, order: str
) -> None:
    """9.4: by ascending error; gamma on the way is a sum of quarters, so met exactly."""
    width = len(case["masked"])
    eighths = st.integers(0, 8).map(lambda k: k / 8)
    entropy = data.draw(st.lists(eighths, min_size=width, max_size=width))
    gamma = data.draw(eighths)
    columns = open_columns(case)
    error = entropy if order == "entropy" else [-c for c in case["confidence"]]
    columns.sort(key=lambda i: (error[i], i))
    view = view_of(**case, margin=case["confidence"], entropy=entropy)
    found = commits(EntropyBound(gamma, order), view)
    assert found == eb_brute_force(columns, entropy, gamma)
    more = commits(EntropyBound(gamma + 0.25, order), view)
    assert set(found) <= set(more), "monotone in gamma"


def test_entropy_bound_at_its_ends(view_of: View) -> None:
    """9.4: gamma = 0 commits one token and all without entropy, a huge gamma all."""
    view = view_of(entropy=[0.5, 0.0, 0.25, 0.0, 0.125], masked=[True, True, True, True, False])
    assert commits(EntropyBound(0.0), view) == [1, 2, 3]
    assert commits(EntropyBound(1e9), view) == [0, 1, 2, 3]
    assert commits(EntropyBound(0.0), view_of(entropy=[0.5, 0.25])) == [1]


@rule
@given(rows(), rows(), st.sampled_from(["entropy", "confidence", "margin"]))
def test_entropy_bound_takes_each_row_by_itself(
    view_of: View, picked: Picked, one: dict[str, Any], two: dict[str, Any], order: str
) -> None:
    width = max(len(one["masked"]), len(two["masked"]))
    both = [
        [row[name] + [0] * (width - len(row[name])) for row in (one, two)]
        for name in ("confidence", "masked")
    ]
    masked = torch.tensor(both[1]).bool()
    decoder = EntropyBound(0.3, order)

    def view(select: slice) -> StepView:
        scores = torch.tensor(both[0]).float()[select]
        return view_of(masked=masked[select], confidence=scores, margin=scores, entropy=scores)

    together = decoder.step(None, view(slice(None)))[1].commit
    for row in range(2):
        alone = decoder.step(None, view(slice(row, row + 1)))[1].commit
        assert picked(together, row) == picked(alone)


@rule
@given(rows(), coarse, coarse)
def test_entropy_threshold_commits_what_is_certain(
    view_of: View, case: dict[str, Any], low: float, high: float
) -> None:
    """7.2 by brute force, and T7.2: monotone in the threshold."""
    low, high = sorted((low, high))
    entropy = case.pop("confidence")
    view = view_of(**case, entropy=entropy)
    inside = [i for i, masked in enumerate(case["masked"]) if masked]
    wanted = {i for i in inside if entropy[i] <= low} or {min(inside, key=lambda i: entropy[i])}
    found = set(commits(EntropyThreshold(low), view))
    assert found == wanted
    assert found <= set(commits(EntropyThreshold(high), view))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 10), st.integers(1, 10))
def test_entropy_threshold_at_its_ends(toy: Toy, seed: int, length: int, block: int) -> None:
    """T7.1: 0 is one token a forward, the least uncertain first; a huge one a forward a block."""
    options: dict[str, Any] = {
        "gen_length": length, "block_length": block, "stop_at_eos": False, "return_trajectory": True
    }  # fmt: skip
    model = toy(seed)
    slow = dlm.generate(model, [[1]], decoder=EntropyThreshold(0.0), **options)
    order = dlm.generate(model, [[1]], decoder=Entropy(), **options)
    assert slow.trajectory is not None
    assert order.trajectory is not None
    places = [(c.step, c.position, c.token) for c in slow.trajectory[0].commits]
    assert places == [(c.step, c.position, c.token) for c in order.trajectory[0].commits]
    fast = dlm.generate(model, [[1]], decoder=EntropyThreshold(99.0), **options)
    assert fast.forwards == [-(-length // block)]


def test_more_entropy_never_takes_more_forwards(toy: Toy) -> None:
    """T7.2, where the logits of a position never change."""
    table = toy(4).logits(torch.arange(97)[:, None])
    base = toy(table)

    class Frozen(type(base)):  # type: ignore[misc]
        def hidden(self, tokens: Any, positions: Any, *_: Any) -> Any:
            return positions.expand(tokens.shape)[..., None]

    model = Frozen(None, None, base.spec, table)
    taken = [
        dlm.generate(
            model, [[1]], decoder=EntropyThreshold(value), gen_length=30, block_length=10,
            stop_at_eos=False,
        ).forwards[0] for value in (0.0, 0.2, 0.5, 0.9, 1.3, 1.7, 2.1)
    ]  # fmt: skip
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == 30
    assert taken[-1] == 3


@pytest.mark.parametrize(("chance", "committed"), [(0.5, False), (0.9, True)])
def test_entropies_are_in_nats(toy: Toy, chance: float, committed: bool) -> None:
    """T7.3: of two tokens, even odds are 0.693 > 0.5 and (0.9, 0.1) is 0.325."""
    table = torch.full((97, 8), -torch.inf)
    table[:, 0], table[:, 1] = math.log(chance), math.log1p(-chance)
    out = dlm.generate(
        toy(table), [[1]], decoder=EntropyThreshold(0.5), gen_length=6, block_length=None
    )
    assert out.forwards == [1 if committed else 6]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4))
def test_two_tokens_have_one_order(toy: Toy, seed: int, quota: int) -> None:
    """9.3: with V = 2 confidence, margin and entropy rank alike."""
    table = torch.full((97, 8), -torch.inf)
    table[:, :2] = torch.randn(97, 2, generator=torch.Generator().manual_seed(seed)).round(
        decimals=2
    )
    found = [
        dlm.generate(toy(table), [[1]], decoder=decoder, gen_length=8, steps=-(-8 // quota)).tokens
        for decoder in (LowConfidence(), Margin(), Entropy())
    ]
    assert found[0] == found[1] == found[2]


def test_a_certain_position_is_first_under_every_score(view_of: View) -> None:
    view = view_of(confidence=[0.6, 1.0, 0.9], margin=[0.3, 1.0, 0.85], entropy=[0.9, 0.0, 0.2])
    for decoder in (LowConfidence(), Margin(), Entropy()):
        assert commits(decoder, view) == [1]


@pytest.mark.parametrize("decoder", [LowConfidence(), Margin(), Entropy()])
def test_position_temperature_goes_from_the_best_to_any_order(
    view_of: View, decoder: AnyDecoder
) -> None:
    """9.20: noise of size T ranks by softmax(score / T): a large T by chance, T = 0 by score."""
    gumbel = -(-torch.rand(4000, 4, generator=torch.Generator().manual_seed(0)).log()).log()
    scores = torch.tensor([[0.9, 0.5, 0.4, 0.3]]).expand(4000, 4)
    statistics = {"confidence": scores, "margin": scores, "entropy": -scores}
    for temperature, logits in ((1e6, torch.zeros(4)), (0.25, scores[0] / 0.25)):
        view = view_of(**statistics, position_noise=temperature * gumbel)
        found = decoder.step(None, view)[1].commit.float().mean(0)
        assert found.tolist() == pytest.approx(logits.softmax(-1).tolist(), abs=0.03)
    assert commits(decoder, view_of(**statistics)) == [0]


def test_a_quota_raises_the_minimum(view_of: View) -> None:
    decoders: list[AnyDecoder] = [
        Threshold(1.0), Factor(0.0), Frechet(1.0), EntropyBound(0.0), EntropyThreshold(0.0),
        LocalLeap(1.0, 1.0, 0),
    ]  # fmt: skip
    for decoder, quota in product(decoders, (1, 2, 3, 9)):
        scores = [0.5, 0.625, 0.75]
        view = view_of(confidence=scores, entropy=scores, quota=quota)
        assert len(commits(decoder, view)) == min(quota, 3), decoder
