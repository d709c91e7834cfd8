"""Reduction lattice C3: where two policies are one rule, their trajectories are the same bits.

Shapes: B rows, L canvas, W window, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import make
from dlm.decoders.base import Stateless
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.traits import Traits
from dlm.types import AnyDecoder, Decision, StepView

V, MASK = 8, 7
Toy = Callable[..., Model]
Policy = tuple[str | AnyDecoder, Mapping[str, Any]]

law = examples(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
thresholds = st.one_of(st.floats(0, 1), st.sampled_from([0.3, 0.6, 1.5]), st.just("attained"))
prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3)


@dataclass(frozen=True, slots=True)
class StaticModel(Model):
    """A mask predictor that sees positions and no tokens: the same logits at every forward."""

    table: Tensor  # float [L, V]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def hidden(self, tokens: Tensor, positions: Tensor, *more: Any, **options: Any) -> Tensor:
        return positions.expand(tokens.shape)[..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[..., 0]]


def static(seed: int, scale: float = 2.0, length: int = 48) -> Model:
    table = scale * torch.randn(length, V, generator=torch.Generator().manual_seed(seed))
    return StaticModel(None, None, ModelSpec("static", V, MASK, 6, (6, 5), 512, (V, V)), table)


@st.composite
def generations(draw: st.DrawFn, longest: int = 12) -> dict[str, Any]:
    """Options of a generation, divisible or not."""
    return {
        "gen_length": draw(st.integers(1, longest)),
        "block_length": draw(st.one_of(st.none(), st.integers(1, longest + 2))),
        "steps": draw(st.one_of(st.none(), st.integers(1, longest + 3))),
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "seed": draw(st.integers(0, 9)),
        "stop_at_eos": draw(st.booleans()),
    }


def decode(model: Model, rows: list[list[int]], policy: Policy, **options: Any) -> dlm.Generation:
    decoder, own = policy
    return dlm.generate(
        model, rows, decoder=decoder, decoder_options=own, return_trajectory=True, **options
    )


def canvases(out: dlm.Generation) -> list[list[list[int]]]:
    """What each forward of each row saw, and the end."""
    assert out.trajectory is not None
    seen = [trajectory.canvases.tolist() for trajectory in out.trajectory]
    return [[*row, end] for row, end in zip(seen, out.tokens, strict=True)]


def check_same(
    model: Model, rows: list[list[int]], one: Policy, other: Policy, **options: Any
) -> None:
    first, second = (decode(model, rows, policy, **options) for policy in (one, other))
    assert first.tokens == second.tokens
    assert first.forwards == second.forwards
    assert canvases(first) == canvases(second)


@dataclass(frozen=True, slots=True)
class Capped(Stateless):
    """The draft of WINO alone: c > threshold, at most 70% of the masks within 5 and 20."""

    threshold: float
    paper: ClassVar[str] = "arXiv:2507.18578"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence", "position_noise"})

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        commit = torch.zeros_like(view.masked)
        scores = view.tempered(view.want("confidence"))
        for row, confidence in enumerate(view.want("confidence").tolist()):
            masks = [i for i, masked in enumerate(view.masked[row].tolist()) if masked]
            sure = [i for i in masks if confidence[i] > float(torch.tensor(self.threshold))]
            sure.sort(key=lambda i: (-confidence[i], i))
            chosen = sure[: min(max(math.floor(0.7 * len(masks)), 5), 20)]
            rest = [i for i in masks if i not in chosen]
            rest.sort(key=lambda i: (-float(scores[row, i]), i))
            chosen += rest[: max(int(view.quota[row]) - len(chosen), 0)]
            commit[row, chosen] = True
        return None, Decision(commit)


LATTICE = [
    ("threshold threshold=1.5", "low_confidence"),
    ("factor factor=0", "low_confidence"),
    ("frechet delta=1", "low_confidence"),
    ("klass kl_threshold=0 threshold=t history=1", "low_confidence"),
    ("klass kl_threshold=9 threshold=1 history=1", "low_confidence"),
    ("pc_sampler lambda_=0 frequencies=flat", "low_confidence"),
    ("schedule", "low_confidence"),
    ("certainty_prior sigma=0.05", "low_confidence"),
    ("prophet early_threshold=200 mid_threshold=200 late_threshold=200", "low_confidence"),
    ("prophet early_threshold=0 mid_threshold=0 late_threshold=0", "threshold threshold=0"),
    ("prophet answer_start=99 early_threshold=0", "low_confidence"),
    ("info_gain branches=1", "low_confidence"),
    ("ssd branches=1", "low_confidence"),
    ("lopa branches=1 threshold=t", "threshold threshold=t"),
    ("lopa branches=1 threshold=2 score=margin", "margin"),
    ("local_leap threshold=t relaxed_threshold=t", "threshold threshold=t"),
    ("local_leap threshold=t relaxed_threshold=0 radius=0", "threshold threshold=t"),
    ("mutual_stability patience=0 drift=t", "threshold threshold=0.75"),
    ("mutual_stability patience=0 drift=9 threshold=t", "threshold threshold=t"),
    ("credit strength=0 threshold=t", "threshold threshold=t"),
    ("hierarchical threshold=t low_threshold=1", "threshold threshold=above"),
    ("block_refinement threshold=t", "threshold threshold=above"),
    ("entropy_bound gamma=0", "entropy"),
    ("entropy_threshold threshold=0", "entropy"),
    ("multi_block threshold=0 sub_block_length=99", "entropy"),
    ("deferred_commitment threshold=t window=99", "threshold threshold=t"),
    ("deferred_commitment threshold=t max_window=1", "left_to_right"),
    ("multi_block threshold=t sub_block_length=99", "entropy_threshold threshold=t"),
    ("entropy_bound gamma=0 order=margin", "margin"),
    ("entropy_bound gamma=99", "threshold threshold=0"),
    ("dilated base=64", "threshold threshold=0"),
    ("random", "first_hitting"),
    ("first_hitting order=2", "first_hitting"),
    ("pc_sampler lambda_=50 frequencies=flat", "left_to_right"),
]
"""Policies and their options: t any threshold, "above" the least value that exceeds it in float32,
"flat" the same frequency for each token."""


def policy(text: str, t: float) -> Policy:
    name, *pairs = text.split()
    strict = float(torch.tensor(t).nextafter(torch.tensor(torch.inf)))
    values = {"t": t, "above": strict, "flat": [1 / V] * V, "margin": "margin"}
    split = (pair.split("=") for pair in pairs)
    return name, {key: values[v] if v in values else json.loads(v) for key, v in split}


def best_confidence(model: Model, rows: list[list[int]], **options: Any) -> float:
    """The largest confidence of a first forward, which a threshold at it has to tell from less."""
    out = decode(model, rows, ("low_confidence", {}), **options | {"steps": None})
    assert out.trajectory is not None
    return out.trajectory[0].commits[0].confidence


def ranks(one: Policy) -> bool:
    name, own = one
    assert isinstance(name, str)
    return "position_noise" in Traits.of(make(name, **own)).needs


@pytest.mark.one_in(2)
@pytest.mark.parametrize("pair", LATTICE, ids=" = ".join)
@law
@given(
    rows=prompts,
    options=generations(),
    seed=st.integers(0, 99),
    fixed=st.booleans(),
    t=thresholds,
    warmth=st.sampled_from([0.0, 0.5]),
)
def test_reduction(
    toy: Toy,
    pair: tuple[str, str],
    rows: list[list[int]],
    options: dict[str, Any],
    seed: int,
    fixed: bool,
    t: float | str,
    warmth: float,
) -> None:
    """C3: at every budget, block length, temperature and position temperature."""
    model = static(seed) if fixed else toy(seed)
    if isinstance(t, str):
        t = best_confidence(model, rows, **options)
    one = pair[0]
    first, second = (policy(text, t) for text in pair)
    multiple = first[0] in ("pc_sampler", "certainty_prior")  # of what the other ranks by
    if not multiple and ranks(first) and ranks(second):
        options = options | {"position_temperature": warmth}
    if "block_refinement" in one:  # which scores by the tempered law
        options = options | {"temperature": round(options["temperature"])}
    if "order=2" in one and not fixed:  # a group of one is its own first: nothing to extrapolate
        options = options | {"steps": None}
    check_same(model, rows, first, second, **options)


@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_ancestral_without_a_grid_is_first_hitting(
    toy: Toy, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """T2.3: infinitely many steps reveal one uniformly random position a forward."""
    options["steps"] = None
    check_same(toy(seed), rows, ("ancestral", {}), ("first_hitting", {}), **options)


@law
@given(
    rows=prompts, options=generations(32), seed=st.integers(0, 99), threshold=st.floats(0.1, 0.9)
)
def test_wino_that_takes_nothing_back_is_a_capped_strict_threshold(
    toy: Toy, rows: list[list[int]], options: dict[str, Any], seed: int, threshold: float
) -> None:
    """C3: and uncapped where no block has more than 5 positions."""
    options["stop_at_eos"] = False  # what may be remasked is final later
    wino = ("wino", {"threshold": threshold, "threshold_back": 0.0})
    check_same(toy(seed), rows, wino, (Capped(threshold), {}), **options)
    options["block_length"] = min(options["block_length"] or 5, 5)
    strict = ("hierarchical", {"threshold": threshold, "low_threshold": 1.0})
    check_same(toy(seed), rows, wino, strict, **options)


def test_a_reduction_that_does_not_hold_is_noticed(toy: Toy) -> None:
    """Negative control: neighbours in the lattice differ somewhere."""
    options: dict[str, Any] = {"gen_length": 24, "block_length": None, "temperature": 1.0}
    for one, other in (
        ("local_leap threshold=0.6 relaxed_threshold=0.3", "threshold threshold=0.6"),
        ("credit threshold=0.6", "threshold threshold=0.6"),
        ("wino threshold=0.3 threshold_back=0", "threshold threshold=0.3"),
        ("pc_sampler lambda_=0", "low_confidence"),
        ("entropy", "margin"),
        ("random", "left_to_right"),
    ):
        first, second = policy(one, 0.0), policy(other, 0.0)
        with pytest.raises(AssertionError):
            check_same(toy(1), [[1], [2, 3]], first, second, stop_at_eos=False, **options)


@law
@given(
    rows=prompts, options=generations(), order=st.permutations(range(40)), p=st.floats(0.51, 0.99)
)
def test_with_two_tokens_a_bound_on_entropy_is_one_on_confidence(
    toy: Toy, rows: list[list[int]], options: dict[str, Any], order: list[int], p: float
) -> None:
    """C3: V = 2 and T = 0, h(p) = -p ln p - (1 - p) ln(1 - p)."""
    options["temperature"] = 0.0  # a threshold reads the sampled token, which is then the best
    gaps = torch.linspace(0.05, 5.0, 40)[torch.tensor(order)]
    table = torch.full((40, V), -torch.inf)
    table[:, 1] = 0.0
    table[:, 4] = gaps * (-1.0) ** torch.arange(40)
    entropy = -p * math.log(p) - (1 - p) * math.log1p(-p)
    bound = ("entropy_threshold", {"threshold": entropy})
    check_same(toy(table), rows, bound, ("threshold", {"threshold": p}), **options)
    for name in ("entropy", "margin"):
        check_same(toy(table), rows, (name, {}), ("low_confidence", {}), **options)


def first_commits(model: Model, policy: Policy, length: int) -> set[int]:
    out = decode(model, [[1]], policy, gen_length=length, block_length=None, stop_at_eos=False)
    assert out.trajectory is not None
    return {change.position for change in out.trajectory[0].commits if change.step == 0}


@law
@given(seed=st.integers(0, 999), length=st.integers(1, 12), factor=st.floats(0, 1))
def test_frechet_commits_all_that_factor_does(
    toy: Toy, seed: int, length: int, factor: float
) -> None:
    """C3: delta = 1 - f, at the first forward."""
    model = toy(seed, scale=4.0)
    some = first_commits(model, ("factor", {"factor": factor}), length)
    more = first_commits(model, ("frechet", {"delta": 1 - factor}), length)
    assert some <= more


def test_frechet_commits_more_where_confidences_differ_and_no_more_where_they_do_not(
    toy: Toy,
) -> None:
    """C3: the inclusion is strict somewhere; equal for c = 3/4, where both are 2."""
    pairs = [
        (
            first_commits(toy(seed, scale=4.0), ("factor", {"factor": 0.75}), 12),
            first_commits(toy(seed, scale=4.0), ("frechet", {"delta": 0.25}), 12),
        )
        for seed in range(20)
    ]
    assert any(some < more for some, more in pairs)
    even = torch.full((1, V), -torch.inf)
    even[0, :2] = torch.tensor([3.0, 1.0]).log()
    for name, own in (("factor", {"factor": 0.9}), ("frechet", {"delta": 0.1})):
        assert len(first_commits(toy(even), (name, own), 12)) == 2


@pytest.mark.parametrize("preset", ["reference", "paper", "safe"])
@law
@given(seed=st.integers(0, 99), length=st.integers(1, 16))
def test_saber_that_commits_one_takes_nothing_back(preset: str, seed: int, length: int) -> None:
    """C3: r <= a - 1 = 0. Under fixed logits what is left never exceeds the mean of what went."""
    one = ("saber", {"n": 1, "preset": preset})
    options: dict[str, Any] = {"gen_length": length, "block_length": None, "stop_at_eos": False}
    check_same(static(seed), [[1], [2, 3]], one, ("low_confidence", {}), **options)


@law
@given(seed=st.integers(0, 99), n=st.integers(1, 6), length=st.integers(1, 24))
def test_saber_takes_nothing_back_where_nothing_fell(seed: int, n: int, length: int) -> None:
    """C3: preset "safe" under fixed logits is n at a time, as no rest is above its past's mean."""
    options: dict[str, Any] = {"gen_length": length, "block_length": None, "stop_at_eos": False}
    out = decode(static(seed), [[1]], ("saber", {"n": n, "preset": "safe"}), **options)
    best = decode(static(seed), [[1]], ("low_confidence", {}), **options)
    seen, one_by_one = canvases(out)[0], canvases(best)[0]
    assert seen == [one_by_one[count] for count in (*range(0, length, n), length)]


@pytest.mark.parametrize("preset", ["reference", "paper", "safe"])
@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_saber_that_completes_the_block_is_all_at_once(
    toy: Toy, preset: str, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """C3: n at least the block leaves nothing to take back."""
    options["stop_at_eos"] = False
    every = ("saber", {"n": 20, "preset": preset})
    check_same(toy(seed), rows, every, ("threshold", {"threshold": 0.0}), **options)


@pytest.mark.parametrize("c", [0.75, 0.7])
@pytest.mark.parametrize("preset", ["reference", "paper"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 40])
def test_saber_gains_one_a_forward_where_all_are_alike(
    toy: Toy, c: float, preset: str, length: int
) -> None:
    """T5.3: c > mean c holds nowhere, so n = 2 commits two and takes one back, L - 1 times."""
    table = torch.full((1, V), -torch.inf)
    table[0, :2] = torch.tensor([c, 1 - c]).log()
    out = decode(
        toy(table), [[1]], ("saber", {"preset": preset}), gen_length=length, block_length=None,
        stop_at_eos=False,
    )  # fmt: skip
    assert out.forwards == [max(length - 1, 1)]


@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99), steps=st.integers(1, 15))
def test_remdm_without_remasking_is_ancestral(
    toy: Toy, rows: list[list[int]], options: dict[str, Any], seed: int, steps: int
) -> None:
    """C3: sigma = 0 with the same noise; ReMDM alone goes on over its grid once all is there."""
    options |= {"block_length": None, "steps": steps, "stop_at_eos": False}
    still = decode(toy(seed), rows, ("remdm", {"variant": "cap", "eta": 0.0}), **options)
    grid = decode(toy(seed), rows, ("ancestral", {"cached": False}), **options)
    assert still.tokens == grid.tokens
    for one, other in zip(canvases(still), canvases(grid), strict=True):
        assert one[: len(other)] == other
        assert all(canvas == other[-1] for canvas in one[len(other) :])


@pytest.mark.parametrize(
    ("alg", "name"),
    [("entropy", "entropy"), ("topk_margin", "margin"), ("maskgit_plus", "low_confidence")],
)
@law
@given(rows=prompts, options=generations(), seed=st.integers(0, 99))
def test_dream_ranks_like_the_plain_orders(
    toy: Toy, alg: str, name: str, rows: list[list[int]], options: dict[str, Any], seed: int
) -> None:
    """C3: without filters and with T in {0, 1}; its grid ends at 1e-3, so the last two go at once.

    floor(m delta / t_k) is 0 at k = 0 and m - 1 <= N - 2 later, so each forward is one grid time
    late and the last, which takes all, comes with two masks left.
    """
    options |= {"block_length": None, "steps": None, "stop_at_eos": False}
    options["temperature"] = round(options["temperature"])
    ours = canvases(decode(toy(seed), rows, ("dream", {"alg": alg}), **options))
    plain = canvases(decode(toy(seed), rows, (name, {}), **options))
    last = max(options["gen_length"] - 1, 1)
    for one, other in zip(ours, plain, strict=True):
        assert len(one) == last + 1
        assert one[:last] == other[:last]
