"""What a decoder carries from forward to forward: any value made of tensors, one way or another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders.base import Policy
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
PROMPTS = [[1, 2, 3], [4, 0, 1, 2, 3], [4], [2, 3]]


@dataclass(frozen=True)
class Kept:
    """A state of another maker: a dataclass, with another inside."""

    seen: Tensor  # float32 [B, W], sum of confidences
    more: "Kept | None" = None


@dataclass
class Loose:
    """One that may change."""

    seen: Tensor


@dataclass(frozen=True)
class Derived:
    """One that is not made of what it holds."""

    seen: Tensor
    twice: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.seen)


@dataclass(frozen=True, init=False)
class Closed:
    """One with a constructor of its own."""

    seen: Tensor

    def __init__(self, value: Tensor) -> None:
        object.__setattr__(self, "seen", value)


class Named(NamedTuple):
    seen: Tensor
    more: object = None


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda x: x, lambda s: s),
    "tuple": (lambda x: (x, None), lambda s: s[0]),
    "named": (lambda x: Named(x, (x, None)), lambda s: s.more[0]),
    "dataclass": (Kept, lambda s: s.seen),
    "nested": (lambda x: Kept(x, Kept(x)), lambda s: s.more.seen),
    "both": (lambda x: (None, Kept(x)), lambda s: s[1].seen),
}
"""How a tensor is put into a state, and taken out of it."""


@dataclass(frozen=True)
class Summing(Policy):
    """Commits what was surest over all forwards, more positions in some rows than in others."""

    into: Callable[[Tensor], Any]
    out: Callable[[Any], Tensor]
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def init_state(self, batch: int, length: int) -> Any:
        return self.into(torch.zeros(batch, length))

    def step(self, state: Any, view: StepView) -> tuple[Any, Decision]:
        total = self.out(state) + view.want("confidence")
        rank = total.masked_fill(~view.masked, -1.0).argsort(-1, descending=True).argsort(-1)
        count = view.row_start % 3 + 1
        return self.into(total), Decision((rank < count[:, None]) & view.masked)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "tuple"])
@pytest.mark.parametrize("static", [False, True])
def test_a_state_of_any_form_decides_what_its_tuple_does(
    golden: Model, form: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a ragged batch whose rows leave one by one."""
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    options: dict[str, Any] = {"gen_length": 9, "block_length": 4, "temperature": 0.7}
    options |= {"return_order": True, "stop_at_eos": False}
    found, twin = (
        dlm.generate(golden, PROMPTS, decoder=Summing(*FORMS[name]), **options)
        for name in (form, "tuple")
    )
    assert len(set(found.forwards)) > 1, "rows must leave at different forwards"
    assert found == twin


@pytest.mark.parametrize("form", FORMS)
def test_a_state_of_any_form_is_recorded(
    toy: Toy, trace: Any, traced: Callable[..., Execution], form: str
) -> None:
    options: dict[str, Any] = {"gen_length": 11, "block_length": 4, "return_order": True}
    options |= {"decoder": Summing(*FORMS[form]), "temperature": 0.8, "stop_at_eos": False}

    def run(execution: Execution) -> dlm.Generation:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model: execution)
            return dlm.generate(toy(5), PROMPTS, **options)

    before = trace.plays
    recorded = run(traced())
    assert trace.plays > before
    assert recorded == run(Execution())


ODD: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: {"seen": x}, r"frozen dataclass of those, got \{'seen'"),
    (lambda x: [x], r"frozen dataclass of those, got \["),
    (lambda x: (x, 3), "frozen dataclass of those, got 3"),
    (Loose, "frozen dataclass of those, got Loose"),
    (Derived, "frozen dataclass of those, got Derived"),
    (Closed, "frozen dataclass of those, got Closed"),
    (lambda x: Kept, "frozen dataclass of those, got <class"),
    (lambda x: Kept(x, "late"), "frozen dataclass of those, got 'late'"),  # type: ignore[arg-type]
    (lambda x: x.sum(), r"leading axis of 4, one for each row, got torch.float32 \[\]"),
    (lambda x: (x, x.T), r"leading axis of 4, one for each row, got torch.float32 \[2, 4\]"),
]


@pytest.mark.parametrize(("into", "message"), ODD, ids=[message[-20:] for _, message in ODD])
@pytest.mark.parametrize("late", [False, True])
def test_a_state_that_has_no_rows_is_refused(
    toy: Toy, into: Callable[[Tensor], Any], message: str, late: bool
) -> None:
    """Before the first forward, or at the forward that made it: not once a row leaves."""
    forwards = 0

    class Watched(type(toy())):  # type: ignore[misc]
        def logits(self, hidden: Tensor) -> Tensor:
            nonlocal forwards
            forwards += 1
            return super().logits(hidden)  # type: ignore[no-any-return]

    @dataclass(frozen=True)
    class Odd(Summing):
        def init_state(self, batch: int, length: int) -> Any:
            first = torch.zeros(batch, length)
            return first if late else self.into(first)

    base: Any = toy()
    model = Watched(None, None, base.spec, base.table)
    with pytest.raises(ValueError, match=f"^Odd: state must .*{message}"):
        dlm.generate(model, PROMPTS, decoder=Odd(into, lambda s: s), gen_length=4, block_length=2)
    assert forwards == int(late)
