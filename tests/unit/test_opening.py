"""What a decoder with blocks ahead of the active one opens, and what it may declare."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import D2F
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import Decision, StepView

Toy = Callable[..., Model]


def test_what_was_open_stays_so(golden: Model) -> None:
    """Whatever a decoder says later: tokens stand there by then."""
    ends: list[int] = []

    class Shrinking(D2F):
        def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
            return state, torch.where(view.step == 0, 12, 0)

        def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
            there = view.masked | view.editable
            ends.append(int(view.positions[there].max()))
            return D2F.step(self, state, view)

    options: dict[str, Any] = {"gen_length": 20, "block_length": 4, "stop_at_eos": False}
    dlm.generate(golden, [[1]], decoder=Shrinking(0.9, blocks=3), **options)
    assert ends == sorted(ends)
    assert ends[1] == 12


def test_rows_that_are_done_hold_no_columns_open(golden: Model) -> None:
    """The first row has twelve open until it ends; what is left has four."""
    seen: list[tuple[int, int]] = []

    class Unlike(D2F):
        def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
            return state, torch.where(view.row_stop - view.row_start > 12, 4, 12)

        def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
            seen.append((view.masked.shape[0], view.masked.shape[1]))
            return D2F.step(self, state, view)

    own = Unlike(0.0, blocks=3)
    options: dict[str, Any] = {"block_length": 4, "stop_at_eos": False}
    dlm.generate(golden, [[1], [2]], decoder=own, gen_length=[12, 40], **options)
    assert {width for rows, width in seen if rows == 2} == {12}
    assert {width for rows, width in seen if rows == 1} == {4}


@pytest.mark.parametrize(
    "made", [None, torch.ones(1), (None, torch.ones(1)), (None, torch.ones(2).long())]
)
def test_what_opens_no_columns_is_refused(toy: Toy, made: Any) -> None:
    class Wrong(D2F):
        def open(self, state: Tensor, view: StepView) -> Any:
            return made

    with pytest.raises(ValueError, match=r"Wrong: open must return \(state, int64 \[1\]\), got"):
        dlm.generate(toy(1), [[1]], decoder=Wrong(), gen_length=9, block_length=4)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"ahead": 2, "open": None}, "Told.open must be a method, as ahead is above 0"),
        ({"ahead": -1}, "Told.ahead must be an int >= 0, got -1"),
        *(
            ({"ahead": 2, name: True}, "Told.ahead must be 0 with mutates_committed, .* got 2")
            for name in ("mutates_committed", "cross_block")
        ),
    ],
    ids=str,
)
def test_what_blocks_ahead_do_not_go_with(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Traits.of(type("Told", (D2F,), declared)())


@pytest.mark.parametrize("columns", [-5, 0, 4, 6, 99])
def test_one_block_is_open_at_least_and_the_window_at_most(toy: Toy, columns: int) -> None:
    """What is beyond is not there for the decoder, whatever it would commit."""
    widths = []

    class Fixed(D2F):
        def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
            return state, torch.full_like(view.step, columns)

        def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
            widths.append(int(view.masked.sum()))
            return D2F.step(self, state, view)

    options: dict[str, Any] = {"gen_length": 20, "block_length": 4, "stop_at_eos": False}
    dlm.generate(toy(1), [[1]], decoder=Fixed(0.0, blocks=3), **options)
    assert widths[0] == min(max(columns, 4), 12)
