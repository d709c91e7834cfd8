"""The contract between the loop and a decoder, seen from decoders that keep and break it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders.base import Stateless
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import Decision, StepView

MASK, EOS, EOT = 7, 6, 5
Toy = Callable[..., Model]


@dataclass(frozen=True)
class Rule(Stateless):
    """A decoder that follows a function."""

    decide: Callable[[StepView], Decision]
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        return None, self.decide(view)


@dataclass(frozen=True)
class Changing(Rule):
    """One that may remask and edit."""

    mutates_committed: ClassVar[bool] = True


def first(view: StepView) -> Tensor:
    return view.masked & (view.masked.cumsum(-1) == 1)


@pytest.mark.parametrize(
    ("decide", "mutates", "message"),
    [
        (lambda v: Decision(torch.ones_like(v.masked)), False, "not masked"),
        (lambda v: Decision(torch.zeros_like(v.masked)), False, "no net progress"),
        (lambda v: Decision(v.masked.long()), False, "commit must be bool"),
        (lambda v: Decision(v.masked[:, :1]), False, "commit must be bool"),
        (lambda v: Decision(first(v), remask=~v.masked), False, "needs mutates_committed"),
        (lambda v: Decision(first(v), remask=v.masked), True, "remasked or edited"),
        (lambda v: Decision(first(v), remask=~v.masked), True, "no net progress"),
    ],
)
def test_contract_is_enforced(
    toy: Toy, decide: Callable[[StepView], Decision], mutates: bool, message: str
) -> None:
    rule = Changing(decide) if mutates else Rule(decide)
    with pytest.raises(ValueError, match=message):
        dlm.generate(toy(), [[1]], decoder=rule, gen_length=3, block_length=2, stop_at_eos=False)


@pytest.mark.parametrize(
    "step", [lambda v: Decision(first(v)), lambda v: [None, Decision(first(v))],
             lambda v: (None, first(v)), lambda v: (None, None, Decision(first(v)))],
)  # fmt: skip
def test_a_step_returns_state_and_decision(toy: Toy, step: Callable[[StepView], Any]) -> None:
    class Odd(Rule):
        def step(self, state: None, view: StepView) -> Any:
            return self.decide(view)

    with pytest.raises(ValueError, match=r"^Odd: step must return \(state, Decision\), got "):
        dlm.generate(toy(), [[1]], decoder=Odd(step), gen_length=3)


def test_a_decoder_without_a_first_state_is_refused(toy: Toy) -> None:
    class Odd:
        def step(self, state: None, view: StepView) -> tuple[None, Decision]:
            return None, Decision(first(view))

    decoder: Any = Odd()
    for call in (dlm.generate, dlm.stream):
        with pytest.raises(ValueError, match=r"Odd\.init_state must be a method, got None"):
            call(toy(), [1], decoder=decoder, gen_length=3)


def test_edits_take_the_prediction(toy: Toy) -> None:
    """Position 1 is committed at once and edited once everything else is."""

    def decide(view: StepView) -> Decision:
        last = view.masked.sum(-1, keepdim=True) <= 1
        return Decision(first(view), edit=view.editable & (view.positions == 1) & last)

    out = dlm.generate(
        toy(5), [[1]], decoder=Changing(decide), gen_length=3, return_trajectory=True,
        stop_at_eos=False, temperature=1.0,
    )  # fmt: skip
    trajectory = out.trajectory[0]  # type: ignore[index]
    (edit,) = trajectory.edits
    assert (edit.step, edit.position) == (2, 0)
    assert edit.token == out.tokens[0][0] != MASK
    # The edit's token is a draw of its own: keyed by the forward, not a left-over.
    again = dlm.generate(
        toy(5), [[1]], decoder=Rule(lambda v: Decision(first(v))), gen_length=3,
        return_trajectory=True, stop_at_eos=False, temperature=1.0,
    )  # fmt: skip
    assert again.trajectory[0].commits == trajectory.commits  # type: ignore[index]
    model = toy(torch.zeros(97, 8).index_fill(1, torch.tensor([3]), 9.0))
    fixed = dlm.generate(model, [[1]], decoder=Changing(decide), gen_length=3)
    assert fixed.tokens == [[3, 3, 3]]


def test_remasks_are_written_and_recorded(toy: Toy) -> None:
    """Commit two at the first forward and take one back; then one at a time."""

    def decide(view: StepView) -> Decision:
        start = view.masked & (view.step == 0)[:, None]
        second = view.editable & (view.positions == 2) & (view.step == 1)[:, None]
        rest = view.masked & (view.masked.cumsum(-1) <= 2) & (view.step > 0)[:, None]
        return Decision(torch.where((view.step == 0)[:, None], start & (view.positions < 3), rest),
                        remask=second)  # fmt: skip

    out = dlm.generate(
        toy(5), [[1]], decoder=Changing(decide), gen_length=5, return_trajectory=True,
        stop_at_eos=False,
    )  # fmt: skip
    trajectory = out.trajectory[0]  # type: ignore[index]
    (remask,) = trajectory.remasks
    assert (remask.step, remask.position) == (1, 1)
    assert trajectory.canvases[1][1] == remask.token != MASK
    assert trajectory.canvases[2].tolist().count(MASK) == 2
    assert trajectory.canvases[2][1] == MASK
    assert MASK not in out.tokens[0]
    assert out.decoded == [5]


@dataclass(frozen=True)
class Counting(Changing):
    """Commits the first mask and counts its own commits, as rows of a tuple state."""

    def init_state(self, batch: int, length: int) -> Any:
        return (torch.zeros(batch, dtype=torch.int64), torch.arange(batch))

    def step(self, state: Any, view: StepView) -> Any:
        count, row = state
        assert row.shape[0] == view.tokens.shape[0]
        assert (count == view.positions.new_tensor(self.expected(row, view))).all()
        return (count + 1, row), Decision(first(view))

    @staticmethod
    def expected(row: Tensor, view: StepView) -> list[int]:
        """Row r began with r + 1 tokens, so its first mask tells how many it has committed."""
        spots = torch.where(view.masked, view.positions, 999).amin(-1)
        return [int(spot) - int(r) - 1 for spot, r in zip(spots, row, strict=True)]


def test_state_follows_its_rows(toy: Toy) -> None:
    rows = [[*[1] * (i + 1), *[MASK] * n] for i, n in enumerate((2, 7, 1, 4))]
    out = dlm.infill(toy(), rows, decoder=Counting(lambda v: Decision(first(v))), block_length=None)
    assert out.forwards == [2, 7, 1, 4]


def test_a_mutating_decoder_finishes_its_block_before_a_stop(toy: Toy) -> None:
    table = torch.zeros(97, 8)
    table[:, EOS] = 9.0
    options: dict[str, Any] = {"gen_length": 6, "block_length": 3}
    rule, changing = (kind(lambda v: Decision(first(v))) for kind in (Rule, Changing))
    assert dlm.generate(toy(table), [[1]], decoder=rule, **options).forwards == [1]
    assert dlm.generate(toy(table), [[1]], decoder=changing, **options).forwards == [3]


def test_only_committed_blanks_are_editable(toy: Toy) -> None:
    seen = []

    def decide(view: StepView) -> Decision:
        seen.append((view.positions[view.editable].tolist(), view.tokens[view.masked].tolist()))
        return Decision(first(view))

    dlm.infill(toy(), [[1, MASK, MASK, 4, MASK]], decoder=Changing(decide), block_length=3)
    assert [editable for editable, _ in seen] == [[], [1], []]
    assert all(token == MASK for _, masked in seen for token in masked)


@dataclass(frozen=True)
class Bare:
    """Declares nothing."""

    def init_state(self, batch: int, length: int) -> None:
        return None

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        for name in ("confidence", "margin", "entropy", "token_probability", "uniform"):
            assert view.want(name).shape == view.masked.shape
        with pytest.raises(ValueError, match="name it in the decoder's `needs`"):
            view.want("logits")
        return None, Decision(first(view), remask=torch.zeros_like(view.masked))


def test_a_decoder_that_declares_nothing_gets_everything(toy: Toy) -> None:
    out = dlm.generate(toy(), [[1]], decoder=Bare(), gen_length=3)  # type: ignore[arg-type]
    assert len(out.tokens[0]) == 3


@pytest.mark.parametrize(
    ("needs", "message"),
    [(["confidence"], "needs must be a set"), ({"confidense"}, "Did you mean 'confidence'")],
)
def test_needs_are_checked(toy: Toy, needs: Any, message: str) -> None:
    class Odd(Bare):
        pass

    Odd.needs = needs  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        dlm.generate(toy(), [[1]], decoder=Odd(), gen_length=3)  # type: ignore[arg-type]


def test_sampled_may_be_named_among_the_needs(toy: Toy) -> None:
    """Every view has it; it makes no statistic of itself, and costs no projection by itself."""

    class Sampled(Rule):
        needs: ClassVar[frozenset[str]] = frozenset({"sampled"})

    def decide(view: StepView) -> Decision:
        assert view.want("sampled").dtype == torch.int64
        return Decision(first(view))

    assert Traits.of(Sampled(decide)).needs == frozenset()
    assert len(dlm.generate(toy(), [[1]], decoder=Sampled(decide), gen_length=3).tokens[0]) == 3


def test_logits_are_given_without_banned_tokens(toy: Toy) -> None:
    def decide(view: StepView) -> Decision:
        logits = view.want("logits")
        assert logits.shape == (*view.masked.shape, 8)
        assert (logits[..., MASK] == -torch.inf).all()
        assert (logits[..., 2] == -torch.inf).all()
        assert logits[..., 1].isfinite().all()
        return Decision(first(view))

    class Reader(Rule):
        needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    dlm.generate(toy(), [[1]], decoder=Reader(decide), gen_length=3, suppress_tokens=[2])


def test_what_a_decoder_writes_to_its_view_changes_nothing(toy: Toy) -> None:
    """It is read-only, which no tensor can be: prompts and what is sampled stay as they are."""
    given = [[3, MASK, 2, MASK]]
    seen: list[StepView] = []

    def scribble(view: StepView) -> Decision:
        made = Decision(first(view))
        for field in fields(view):
            part = getattr(view, field.name)
            if isinstance(part, torch.Tensor):
                part.fill_(True) if part.dtype == torch.bool else part.fill_(999)
        seen.append(view)
        return made

    class Ordering(Rule):
        needs: ClassVar[frozenset[str]] = frozenset()
        blind: ClassVar[bool] = True

    for kind in (Rule, Ordering, Changing):
        found, expected = (
            dlm.infill(toy(), given, decoder=kind(how), return_trajectory=True)
            for how in (scribble, plain)
        )
        assert found.tokens == expected.tokens
        assert str(found.trajectory) == str(expected.trajectory)
    assert len(seen) == 6


def plain(view: StepView) -> Decision:
    return Decision(first(view))


def test_a_temperature_of_positions_is_for_those_who_say_that_they_take_it(toy: Toy) -> None:
    @dataclass(frozen=True)
    class Undeclared:
        def init_state(self, batch: int, length: int) -> None:
            return None

        def step(self, state: None, view: StepView) -> tuple[None, Decision]:
            return None, Decision(first(view))

    options: dict[str, Any] = {"decoder": Undeclared(), "gen_length": 3}
    assert dlm.generate(toy(), [[1]], **options).tokens
    with pytest.raises(ValueError, match="does not say that it ranks positions"):
        dlm.generate(toy(), [[1]], position_temperature=1.0, **options)
