"""The programme and the fits of learned schedules (policies.md 6.6), without a network."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.distill.schedule_paper import reveal_probability, score_scale, step_size
from dlm.distill.schedule_program import ErrorTable
from dlm.distill.schedule_scale import LEAST, MOST, Alignment


def table_of(seed: int, length: int, *, whole: bool) -> ErrorTable:
    """Random errors, with many ties where they are whole."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(length + 1, length, generator=generator, dtype=torch.float64)
    sums = ((3 * steps).floor() if whole else steps).cumsum(-1)
    mistakes = torch.cat((torch.zeros(length + 1, 1, dtype=torch.float64), sums), 1)
    counts = torch.arange(length + 1)
    return ErrorTable(mistakes.masked_fill(counts > counts[:, None], torch.inf), 1)


def compositions(length: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum of so many, each at least 1."""
    for cuts in itertools.combinations(range(1, length), parts - 1):
        ends = (0, *cuts, length)
        yield tuple(b - a for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "real"])
@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_the_programme_equals_brute_force(seed: int, length: int, whole: bool) -> None:
    """T6.4, ties too: the least error, then the least sum of squares."""
    table = table_of(seed, length, whole=whole)
    for forwards in range(1, min(length, 4) + 1):
        found = table.best(forwards)
        assert len(found) == forwards
        assert sum(found) == length
        assert min(found) >= 1

        def key(counts: tuple[int, ...]) -> tuple[float, int]:
            return table.predicted(counts), sum(n * n for n in counts)

        best = min(map(key, compositions(length, forwards)))
        assert key(found)[0] == pytest.approx(best[0], abs=1e-12)
        if whole:
            assert key(found) == best


@pytest.mark.parametrize("forwards", [1, 3, 4, 12])
def test_a_flat_table_gives_even_steps(forwards: int) -> None:
    table = ErrorTable.of([[[]] * 12], [12])
    counts = table.best(forwards)
    assert max(counts) - min(counts) <= 1
    assert table.predicted(counts) == 0


@pytest.mark.parametrize("forwards", [0, 5, True, 2.0])
def test_forwards_beyond_the_masks_are_refused(forwards: int) -> None:
    with pytest.raises(ValueError, match="forwards must be an int"):
        ErrorTable.of([[[]] * 4], [4]).best(forwards)


def test_the_table_counts_ranks() -> None:
    """Two blocks, of 2 and 1 masks: e_2 from one state of each row, e_1 from two."""
    rows = [[[0], [], [0]], [[1], [0], []]]
    table = ErrorTable.of(rows, [2, 1])
    assert table.samples == 4
    # e_2(1): the first row is wrong at rank 0; e_2(2): the second one at rank 1 as well. Two
    # samples stand for four.
    assert table.mistakes[2].tolist() == [0, 2, 4]
    assert table.mistakes[1].tolist() == [0, 2, torch.inf]
    assert table.predicted((1, 1)) == 1.0
    assert table.predicted((2,)) == 1.0


def test_tables_of_more_samples_are_their_mean() -> None:
    one = ErrorTable.of([[[0, 1], [0]]], [2])
    two = ErrorTable.of([[[], []], [[1], []], [[], []]], [2])
    assert one.mixed(two).predicted((2,)) == pytest.approx((2 + 0 + 1 + 0) / 4)


def logits(seed: int, rows: int = 12, tokens: int = 9, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed))


scales = st.floats(0.3, 3.0)
seeds = st.integers(0, 1000)


@settings(max_examples=40, deadline=None)
@given(seeds, scales)
def test_slopes_are_finite_differences(seed: int, scale: float) -> None:
    """T6.3: the gradient formula, and the second derivative, a sum of variances."""
    fit = Alignment.of(logits(seed), logits(seed + 1))
    step = 1e-4

    def loss(at: float) -> float:
        return float(fit.divergence(at).sum())

    first, second = fit.slopes(scale)
    assert first == pytest.approx((loss(scale + step) - loss(scale - step)) / (2 * step), abs=1e-5)
    around = fit.slopes(scale + step)[0] - fit.slopes(scale - step)[0]
    assert second == pytest.approx(around / (2 * step), abs=1e-5)
    assert second >= 0


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.55, 1.9))
def test_the_fit_finds_the_scale_of_the_teacher(seed: int, scale: float) -> None:
    student = logits(seed)
    fit = Alignment.of(student, (student.double() * scale).float())
    found = fit.fit()
    assert found == pytest.approx(scale, rel=1e-5)
    assert found is not None
    assert fit.loss(found) == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_fit_is_the_least_of_a_grid(seed: int) -> None:
    fit = Alignment.of(logits(seed), logits(seed + 1, spread=1.0))
    found = fit.fit()
    grid = [fit.loss(float(a)) for a in torch.linspace(LEAST, MOST, 200)]
    if found is None:
        assert grid.index(min(grid)) in (0, 199)
    else:
        assert fit.loss(found) <= min(grid) + 1e-12


@pytest.mark.parametrize(("factor", "kept"), [(0.4, False), (0.6, True), (1.9, True), (2.1, False)])
def test_scales_out_of_range_are_rejected(factor: float, kept: bool) -> None:
    student = logits(3)
    assert (Alignment.of(student, factor * student).fit() is not None) == kept


def test_equal_laws_fit_exactly_one() -> None:
    fit = Alignment.of(logits(5), logits(5))
    assert fit.fit() == 1.0
    assert fit.loss(1.0) == pytest.approx(0, abs=1e-12)


def test_no_position_and_flat_laws_fit_one() -> None:
    empty = Alignment.of(torch.zeros(0, 4), torch.zeros(0, 4))
    assert (empty.fit(), empty.loss(1.0)) == (1.0, 0.0)
    assert Alignment.of(torch.zeros(3, 4), logits(1, 3, 4)).fit() == 1.0


def test_broken_logits_are_refused() -> None:
    broken = logits(1)
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        Alignment.of(broken, logits(2))


def test_parts_join() -> None:
    one, two = Alignment.of(logits(1), logits(2)), Alignment.of(logits(3), logits(4))
    whole = Alignment.of(torch.cat((logits(1), logits(3))), torch.cat((logits(2), logits(4))))
    assert Alignment.join([one, two]).slopes(0.9) == pytest.approx(whole.slopes(0.9))


@pytest.mark.parametrize("seed", range(4))
def test_closed_form_equals_gradient_descent(seed: int) -> None:
    """T6.2: what the paper's steps of SGD converge to."""
    student, teacher = logits(seed).exp(), logits(seed + 9).exp()
    scale = torch.ones((), requires_grad=True)
    optimiser = torch.optim.SGD([scale], lr=0.2 / float(student.square().sum()))
    for _ in range(200):
        optimiser.zero_grad()
        (teacher - scale * student).square().sum().backward()
        optimiser.step()
    assert score_scale(student, teacher) == pytest.approx(scale.item(), rel=1e-4)


def test_step_size_is_the_least_squares_one() -> None:
    student, teacher = logits(1).softmax(-1), logits(2).softmax(-1)
    step, weight = 0.1, 1.4  # Delta, w(t) / w(tau)
    found = step_size(student, teacher, step, weight)

    def loss(kappa: float) -> float:
        return float((kappa * student - step * weight * teacher).double().square().sum())

    assert loss(found) <= min(loss(found - 1e-3), loss(found + 1e-3))
    assert step_size(student, student, step) == pytest.approx(step)
    # An agreement ratio: where laws differ the step is shorter.
    assert step_size(student, teacher, step) < step


def test_reveal_probability_of_linear_noise() -> None:
    """Phi Delta / t, at most 1: r(t) = 1 / t for alpha = 1 - t."""
    assert reveal_probability(lambda t: 1 - t, 0.5, 0.1, 1.3) == pytest.approx(1.3 * 0.1 / 0.5)
    assert reveal_probability(lambda t: 1 - t, 0.05, 0.1) == 1.0
    cosine = reveal_probability(lambda t: 1 - torch.cos(torch.pi / 2 * (1 - t)), 0.5, 0.1)
    angle = torch.tensor(torch.pi / 4)
    assert cosine == pytest.approx(0.1 * float(torch.pi / 2 * angle.sin() / angle.cos()))


def test_projections_refuse_what_has_none() -> None:
    with pytest.raises(ValueError, match="one shape"):
        score_scale(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="0 everywhere"):
        score_scale(torch.zeros(2), torch.ones(2))
