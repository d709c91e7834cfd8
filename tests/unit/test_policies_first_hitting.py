"""First hitting beyond its law: order 2, which extrapolates the tokens of a group."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import FirstHitting
from dlm.decoders.history import Summary
from dlm.models.model import Model
from dlm.types import StepView

Toy = Callable[..., Model]


def seen(
    view_of: Callable[..., StepView], step: int, probabilities: list[list[float]], quota: int
) -> StepView:
    """Two masks, the second of which comes first, each with its three likeliest tokens."""
    view = view_of(masked=[[True, True]], uniform=[[0.75, 0.25]])
    return replace(
        view,
        step=torch.tensor([step]),
        quota=torch.tensor([quota]),
        top_tokens=torch.tensor([[[1, 2, 3], [1, 2, 3]]]),
        top_probabilities=torch.tensor([probabilities]),
    )


def test_order_2_is_linear_in_the_place_within_the_group(
    view_of: Callable[..., StepView],
) -> None:
    """Token j of a group gets f + j / gap (f - f_before), f log-probabilities; the first none."""
    policy = FirstHitting(order=2)
    before = [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]
    now = [[0.25, 0.25, 0.5], [0.125, 0.125, 0.75]]
    state = policy.init_state(1, 2)
    state, first = policy.extrapolate(state, seen(view_of, 0, before, quota=2))
    assert first.bonus is not None
    assert (first.bonus == 0).all(), "nothing to extrapolate from"
    state, second = policy.extrapolate(state, seen(view_of, 1, now, quota=2))
    assert second.bonus is not None
    slope = torch.tensor(now[0]).log() - torch.tensor(before[0]).log()
    torch.testing.assert_close(second.bonus[0, 0], slope / 2)  # j = 1, and 2 came between
    assert (second.bonus[0, 1] == 0).all()  # j = 0


def test_order_2_leaves_unlisted_tokens_alone(view_of: Callable[..., StepView]) -> None:
    policy = FirstHitting(order=2)
    state = policy.init_state(1, 2)._replace(
        before=Summary(torch.tensor([[[1, 7], [1, 7]]]), torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])),
        gap=torch.tensor([1]),
    )
    rows = [[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]
    _, adjustment = policy.extrapolate(state, seen(view_of, 1, rows, quota=2))
    assert adjustment.bonus is not None
    assert adjustment.bonus[0, 0].tolist() == pytest.approx([-0.693147, 0.0, 0.0])


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_order_2_of_unchanging_predictions_is_order_1(toy: Toy, steps: int) -> None:
    """2.3: with f the same at every forward all orders are bit for bit P-fixed."""
    base = toy(torch.randn(97, 8, generator=torch.Generator().manual_seed(5)))

    class Fixed(type(base)):  # type: ignore[misc]
        def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, *_: Any) -> torch.Tensor:
            return (positions % 97).expand_as(tokens)[..., None]

    model = Fixed(None, None, base.spec, base.table)  # type: ignore[attr-defined]
    options: dict[str, Any] = {"gen_length": 6, "steps": steps, "temperature": 1.0}
    options |= {"decoder": "first_hitting", "stop_at_eos": False}
    for seed in range(10):
        one, two = (
            dlm.generate(model, [[1]], seed=seed, decoder_options={"order": order}, **options)
            for order in (1, 2)
        )
        assert one.tokens == two.tokens


def test_order_2_changes_only_groups(toy: Toy) -> None:
    """One token a forward is exact already, and stays so."""

    def tokens(steps: int | None, order: int) -> list[list[int]]:
        return [
            dlm.generate(
                toy(3, 3.0), [[1]], decoder="first_hitting", decoder_options={"order": order},
                gen_length=8, steps=steps, temperature=1.0, seed=seed, stop_at_eos=False,
            ).tokens[0]
            for seed in range(20)
        ]  # fmt: skip

    assert tokens(None, 1) == tokens(None, 2)
    assert tokens(3, 1) != tokens(3, 2)
