"""Decoders with branches: what they declare, choose and look ahead at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders.base import Stateless
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.types import Decision, StepView

MASK = 7
Toy = Callable[..., Model]


def first(view: StepView) -> Tensor:
    """The first mask of each row."""
    return view.masked & (view.masked.cumsum(-1) == 1)


def last_of(masked: Tensor) -> Tensor:
    """The last one marked of each row."""
    return masked & (masked.flip(-1).cumsum(-1).flip(-1) == 1)


def second(view: StepView) -> Tensor:
    """One try for each of two branches: none, and the last mask behind the first one."""
    rest = last_of(view.masked & ~first(view))
    return torch.stack((torch.zeros_like(rest), rest), 1)


def ones(view: StepView) -> Tensor:
    """Always the second branch."""
    return torch.ones(view.masked.shape[0], dtype=torch.int64)


@dataclass(frozen=True)
class Ahead(Stateless):
    """Commits the first mask, and follows functions besides."""

    tries: Callable[[StepView], Any] = second
    winner: Callable[[StepView], Any] = ones
    branches: int = 2
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def choose(self, state: None, view: StepView) -> Any:
        return self.winner(view)

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        return None, Decision(first(view), lookahead=self.tries(view))


@dataclass(frozen=True)
class Slow(Ahead):
    """Commits the first mask of a block, and fills the others in branches, or none."""

    idle: bool = False

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        commit = first(view) & (view.step == 0)[:, None]
        rest = view.masked & ~commit
        tries = torch.stack([rest & (rest.cumsum(-1) == 1)] * 2, 1)
        return None, Decision(commit, lookahead=None if self.idle else tries)


def run(model: Model, decoder: Any, **options: Any) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 6, "block_length": 3, "stop_at_eos": False}
    return dlm.generate(model, [[1], [2, 3]], decoder=decoder, **{**usual, **options})


def test_what_the_chosen_branch_filled_is_committed(toy: Toy) -> None:
    """By the forward that saw it, with the confidence of the one that drew it."""
    found = run(toy(), Ahead(), return_trajectory=True, return_order=True, return_top_tokens=2)
    assert found.forwards == [4, 4]  # two of a block: one of it alone, then what was tried
    assert found.decoded == [6, 6]
    assert found.trajectory is not None
    assert found.order is not None
    assert found.order[0] == [0, 1, 1, 2, 3, 3]
    one, two, *_ = found.trajectory[0].commits
    assert (one.step, one.position, two.step) == (0, 0, 1)
    mirror = {c.position: c for c in found.trajectory[0].commits}
    # The last position of a block was drawn beside the first one, by the forward before.
    alone = run(toy(), Ahead(lambda view: None), return_trajectory=True, return_top_tokens=2)
    assert alone.trajectory is not None
    begin = {c.position: c for c in alone.trajectory[0].commits}[0]
    assert mirror[0].confidence == begin.confidence
    assert found.top_tokens is not None
    for token, tops, change in zip(
        found.tokens[0], found.top_tokens[0], sorted(mirror.values(), key=lambda c: c.position),
        strict=True,
    ):  # fmt: skip
        assert tops[0][0] == token == change.token
        assert tops[0][1] == pytest.approx(torch.tensor(change.confidence).log().item())


def test_the_decoder_sees_the_branch_that_it_chose(toy: Toy) -> None:
    """And is not asked where the branches are alike."""
    seen: list[tuple[int, int, int]] = []

    def choose(view: StepView) -> Tensor:
        assert view.masked.shape[:2] == (2, 2) == view.block_start.shape
        assert view.want("confidence").shape == view.tokens.shape
        masks = view.masked.sum(-1)
        filled = (view.tokens != MASK) & ~view.masked
        seen.append((int(masks[0, 0]), int(masks[0, 1]), int(filled[0, 1].sum())))
        return ones(view)

    run(toy(), Ahead(winner=choose), gen_length=3)
    assert seen == [(2, 1, 2)]


def test_what_a_branch_filled_is_progress(toy: Toy) -> None:
    """Commits come through branches alone, but for the first one of a block."""
    found = run(toy(), Slow())
    assert found.forwards == [6, 6]
    with pytest.raises(ValueError, match="made no net progress in a row"):
        run(toy(), Slow(idle=True))


def test_noise_of_branches_is_for_a_step_alone(toy: Toy) -> None:
    odd = type("Odd", (Ahead,), {"needs": frozenset({"branch_noise"})})
    with pytest.raises(ValueError, match=r"'branch_noise' was not computed: .* in `step` alone$"):
        run(toy(), odd(winner=lambda view: view.want("branch_noise")))


def test_a_step_tells_of_the_row_without_its_branches(toy: Toy) -> None:
    settings = Settings(decoder=Ahead(), gen_length=6, stop_at_eos=False)
    job = generation_job(toy(), [[1], [2, 3]], settings)
    for step in job.steps():
        view = step.view
        before = step.before.tokens.gather(1, view.positions)
        assert torch.equal(view.tokens, before)
        assert torch.equal(view.masked, before == MASK)
        assert not (view.editable & view.masked).any()
        after = step.tokens.gather(1, view.positions)
        assert torch.equal(torch.where(step.decision.commit, view.sampled, before), after)


def test_logits_that_are_no_numbers_are_refused(toy: Toy) -> None:
    """Of any branch."""
    table = torch.zeros(97, 8)
    for broken in (table[0], table[50:]):
        broken.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        run(toy(table), Ahead(branches=3, tries=lambda view: second(view)[:, [0, 1, 1]]))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Ahead(lambda v: second(v).long()), r"Ahead: lookahead must be a bool tensor, got"),
        (Ahead(lambda v: 5), r"Ahead: lookahead must be a bool tensor, got 5"),
        (Ahead(lambda v: second(v)[:, :1]), r"lookahead must be \[2, 2, 3\], got \[2, 1, 3\]"),
        (Ahead(lambda v: first(v)[:, None].expand(-1, 2, -1)), "looked ahead at a position"),
        (Ahead(lambda v: second(v) | ~v.masked[:, None]), "looked ahead at a position"),
        (Ahead(branches=1), "Ahead: lookahead needs branches above 1"),
        (Ahead(winner=lambda v: ones(v) + 1), "chose a branch that is not there"),
        (Ahead(winner=lambda v: -ones(v)), "chose a branch that is not there"),
        (Ahead(winner=lambda v: ones(v).int()), r"choose must return int64 of shape \[2\]"),
        (Ahead(winner=lambda v: ones(v)[:1]), r"choose must return int64 .*, got torch.int64 \[1"),
        (Ahead(winner=lambda v: 1), r"choose must return int64 of shape \[2\], got 1"),
        (Ahead(branches=0), "branches must be"),
        (Ahead(branches=True), "branches must be"),
    ],
)
def test_the_contract_is_enforced(toy: Toy, decoder: Ahead, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(toy(), decoder)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"choose": None}, r"^Odd\.choose must be a method, as branches are above 1"),
        ({"mutates_committed": True}, r"^Odd\.mutates_committed must be False, as branches"),
        ({"cross_block": True}, r"^Odd\.cross_block must be False, as branches are above 1"),
        ({"adjust": lambda self, state, view: None}, r"^Odd\.adjust must not be there"),
    ],
    ids=["choose", "mutates_committed", "cross_block", "adjust"],
)
def test_what_branches_cannot_do_is_refused(toy: Toy, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(toy(), type("Odd", (Ahead,), extra)())


def test_noise_of_branches_needs_them(toy: Toy) -> None:
    odd = type("Odd", (Ahead,), {"needs": frozenset({"branch_noise"})})
    with pytest.raises(ValueError, match=r"^Odd\.needs must not name 'branch_noise', as branches"):
        run(toy(), odd(branches=1))
