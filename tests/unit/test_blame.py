"""Errors of a step name the row that is to blame, and count its own forwards."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.blame import Peaks
from dlm.decoders.base import Policy, Stateless
from dlm.models.model import Model
from dlm.places import Places
from dlm.types import Decision, StepView

MASK = 7
Toy = Callable[..., Model]
MARK = 4  # the last token of the prompt that things go wrong with


def failing(toy: Toy, left: int) -> Model:
    """Its logits are NaN in the row of the mark, from so many masks left on."""
    base = toy(torch.cat((torch.zeros(96, 8), torch.full((1, 8), torch.nan))))

    class Failing(type(base)):  # type: ignore[misc]
        def hidden(self, tokens: Tensor, positions: Tensor, *more: Any, **named: Any) -> Tensor:
            masks = (tokens == MASK).sum(-1, keepdim=True)
            fails = (tokens == MARK).any(-1, keepdim=True) & (masks <= left)
            return torch.where(fails, 96, 0).expand(tokens.shape)[..., None]

    return Failing(base.network, None, base.spec, base.table)  # type: ignore[attr-defined]


@pytest.mark.parametrize("decoder", ["low_confidence", "random", "ssd", "wino"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_the_network_returned_is_named_by_row(
    toy: Toy, decoder: str, batch_size: int | None
) -> None:
    """The decoder is not to blame; a row that joined late counts from its own first forward."""
    prompts = [[1], [2, 3], [1, MARK], [2]]
    message = "^the network returned NaN or infinite logits at forward 0 of row 2$"
    with pytest.raises(ValueError, match=message):
        dlm.generate(
            failing(toy, 99), prompts, gen_length=6, decoder=decoder, batch_size=batch_size
        )


@pytest.mark.parametrize("decoder", ["ssd", "lopa"])
def test_a_branch_is_one_of_its_row(toy: Toy, decoder: str) -> None:
    with pytest.raises(ValueError, match=r" at forward [1-9] of row 1$"):
        dlm.generate(failing(toy, 4), [[1], [MARK], [2]], gen_length=6, decoder=decoder)


def test_columns_that_do_not_count_are_not_to_blame() -> None:
    wanted = torch.tensor([[True, False], [True, True]])
    maximum = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    assert Peaks(maximum, Places.all(wanted, torch.arange(4).view(2, 2))).broken() == [1]


def test_forwards_of_a_row_are_its_own(toy: Toy) -> None:
    """One row at a time: the third begins once twelve forwards have been made."""
    message = "^the network returned NaN or infinite logits at forward 2 of row 2$"
    rows = dlm.generate_each(
        failing(toy, 4), [[1], [2], [MARK]], gen_length=6, batch_size=1, stop_at_eos=False
    )
    assert [next(rows)[0], next(rows)[0]] == [0, 1]
    with pytest.raises(ValueError, match=message):
        next(rows)


@dataclass(frozen=True)
class Wrong(Stateless):
    """Commits the first mask, and where the window begins at `begin` what `decide` makes of it."""

    decide: Callable[[StepView, Tensor], Decision]
    begin: int
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    mutates_committed: ClassVar[bool] = True

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        first = view.masked & (view.masked.cumsum(-1) == 1)
        decision = self.decide(view, first)
        here = ((view.block_start == self.begin) & (view.step == 1))[:, None]
        remask = None if decision.remask is None else decision.remask & here
        commit = torch.where(here, decision.commit, first)
        return None, replace(decision, commit=commit, remask=remask)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (
            lambda view, first: Decision(torch.ones_like(view.masked)),
            "committed a position",
        ),
        (lambda view, first: Decision(torch.zeros_like(view.masked)), "made no net progress"),
        (lambda view, first: Decision(first, remask=view.masked & ~first), "remasked or edited"),
    ],
)
def test_a_broken_rule_is_named_by_row(
    toy: Toy, decide: Callable[[StepView, Tensor], Decision], message: str
) -> None:
    """The prompt of two tokens is that of row 1: its second forward goes wrong."""
    with pytest.raises(ValueError, match=f"^Wrong at forward 1 of row 1: {message}"):
        dlm.generate(toy(), [[1], [1, 2], [3]], gen_length=4, decoder=Wrong(decide, 2))


class Endless(Policy):
    """Declares one forward a block, and takes one more where the prompt has two tokens."""

    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def init_state(self, batch: int, length: int) -> None:
        return None

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        return (blanks > 0).long()

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        return None, Decision(view.masked & (view.block_start != 2)[:, None])


def test_a_row_beyond_its_bound_is_named(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"^Endless at forward 0 of row 1: kept decoding a row"):
        dlm.generate(toy(), [[1], [1, 2], [3]], gen_length=4, decoder=Endless())
