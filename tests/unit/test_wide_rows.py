"""Rows of tens of thousands of columns: exact sums, and the decoders that average by them."""

from collections.abc import Callable

import pytest
import torch

from dlm.decoders import Prophet, Saber
from dlm.decoders.saber import Confidences
from dlm.decoders.select import exact_sum, total
from dlm.types import StepView

WIDE = 40_000
View = Callable[..., StepView]
Picked = Callable[..., list[int]]


def test_a_sum_of_ones_is_their_number() -> None:
    ones = torch.ones(1, WIDE)
    assert exact_sum(ones, ones > 0).tolist() == [WIDE]
    assert total(256 * ones, ones > 0).tolist() == [256 * WIDE]
    assert total(-256 * ones, ones > 0).tolist() == [-256 * WIDE]


@pytest.mark.parametrize("value", [0.7, 2.0**-25])
def test_the_mean_of_equal_values_is_that_value(value: float) -> None:
    level = torch.full((1, WIDE), value)
    assert float(exact_sum(level, level > 0) / WIDE) == float(level[0, 0])


@pytest.mark.parametrize("count", [1, 300, 16_384, 32_767, WIDE - 1])
def test_a_sum_is_the_rounded_integer_beside_any_padding(count: int) -> None:
    """The marked few of a wide row have the bits they have alone, added in Python's integers."""
    generator = torch.Generator().manual_seed(count)
    values = torch.rand(1, WIDE, generator=generator)
    where = torch.arange(WIDE)[None] < count
    units = sum(round(value * 2**48) for value in values[0, :count].tolist())
    assert exact_sum(values, where).tolist() == [float(units) / 2**48]
    assert torch.equal(exact_sum(values, where), exact_sum(values[:, :count], where[:, :count]))
    shifted = torch.rand(1, WIDE, generator=generator) * 512 - 256
    assert torch.equal(total(shifted, where), total(shifted[:, :count], where[:, :count]))
    assert torch.equal(total(shifted, where), total(shifted.flip(1), where.flip(1)))


@pytest.mark.parametrize("preset", ["reference", "paper", "safe"])
def test_saber_commits_what_is_above_the_mean(view_of: View, picked: Picked, preset: str) -> None:
    """35,000 were committed by confidence 1: of 0.5 everywhere the n = 2 first ones follow."""
    masked = torch.arange(WIDE) >= WIDE - 5000
    level = torch.full((WIDE,), 0.5).masked_fill(~masked, 1.0)
    view = view_of(confidence=level, token_probability=level, masked=masked, step=1)
    committed = torch.ones(1, WIDE).masked_fill(masked, -1.0)
    nothing = torch.zeros(1)
    state = Confidences(level[None], committed, nothing.double(), nothing.long())
    _, decision = Saber(2, preset=preset).step(state, view)
    assert picked(decision.commit) == [WIDE - 5000, WIDE - 4999]


def test_prophet_sees_a_clear_answer(view_of: View) -> None:
    """Every position of 40,000 is 128 nats ahead, or none is."""
    listed = torch.ones(WIDE, 2, dtype=torch.int64)
    for second, clear in ((0.0, True), (0.5, False)):
        pair = torch.tensor([1.0 - second, second]).expand(WIDE, 2)
        view = view_of(confidence=pair[:, 0], top_tokens=listed, top_probabilities=pair)
        assert bool(Prophet().clear(view)) is clear
