"""What decoders may declare beyond one block and one commit a forward, and what that costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS, make
from dlm.decoders.base import Policy
from dlm.kernels import token_statistics_reference
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import Adjustment, Decision, StepView

MASK, EOS, EOT = 7, 6, 5
Toy = Callable[..., Model]


@dataclass(frozen=True)
class Reaching(Policy):
    """A decoder that follows a function and may do everything."""

    decide: Callable[[StepView], Decision]
    extra: int = 0
    across: bool = True
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    mutates_committed: ClassVar[bool] = True

    @property
    def cross_block(self) -> bool:
        return self.across

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        return blanks + self.extra * (blanks > 0)

    def init_state(self, batch: int, length: int) -> None:
        return None

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        return None, self.decide(view)


def first(view: StepView) -> Tensor:
    return view.masked & (view.masked.cumsum(-1) == 1)


def test_a_wide_window_reaches_back_and_never_ahead(toy: Toy) -> None:
    seen = []

    def decide(view: StepView) -> Decision:
        seen.append((view.masked[0].tolist(), view.editable[0].tolist(), view.block_start.tolist()))
        return Decision(first(view))

    dlm.generate(
        toy(), [[1, 2]], decoder=Reaching(decide), gen_length=4, block_length=2, stop_at_eos=False
    )
    masked, editable, start = seen[2]  # the first forward of the second block
    assert masked[:4] == [False, False, True, True]
    assert editable[:4] == [True, True, False, False]
    assert start == [4]
    assert seen[0][0][:4] == [True, True, False, False], "the second block is not open yet"


def test_an_earlier_block_is_filled_again_before_the_next_opens(toy: Toy) -> None:
    """Block 1 takes position 0 back; block 2 opens only once it stands."""
    starts = []

    def decide(view: StepView) -> Decision:
        starts.append(int(view.block_start))
        again = (view.block_start == 3) & (view.step == 0)
        remask = view.editable & (view.positions == 1) & again[:, None]
        return Decision(first(view), remask=remask)

    out = dlm.generate(
        toy(3), [[1]], decoder=Reaching(decide, extra=1), gen_length=6, block_length=2,
        stop_at_eos=False, return_trajectory=True,
    )  # fmt: skip
    assert starts == [1, 1, 3, 3, 3, 5, 5]
    trajectory = out.trajectory[0]  # type: ignore[index]
    assert [change.position for change in trajectory.remasks] == [0]
    assert MASK not in out.tokens[0]


def test_a_full_block_is_held_and_edited(toy: Toy) -> None:
    def decide(view: StepView) -> Decision:
        full = ~view.masked.any(-1)
        edit = view.editable & full[:, None]
        return Decision(first(view), edit=edit, hold=(view.masked.sum(-1) == 1))

    out = dlm.generate(
        toy(3), [[1]], decoder=Reaching(decide, extra=1, across=False), gen_length=4,
        block_length=2, stop_at_eos=False, return_trajectory=True, temperature=1.0,
    )  # fmt: skip
    assert out.forwards == [6]
    edits = out.trajectory[0].edits  # type: ignore[index]
    assert [(change.step, change.position) for change in edits] == [(2, 0), (2, 1), (5, 2), (5, 3)]
    assert [change.token for change in edits] == out.tokens[0]


def test_a_stop_token_in_a_held_block_is_not_final(toy: Toy) -> None:
    table = torch.zeros(97, 8)
    table[:, EOS] = 9.0

    def decide(view: StepView) -> Decision:
        return Decision(first(view), hold=(view.masked.sum(-1) == 1))

    options: dict[str, Any] = {"gen_length": 4, "block_length": 2}
    held = Reaching(decide, extra=1, across=False)
    assert dlm.generate(toy(table), [[1]], decoder=held, **options).forwards == [3]
    reaching = Reaching(lambda view: Decision(first(view)))
    assert dlm.generate(toy(table), [[1]], decoder=reaching, **options).forwards == [4]


@pytest.mark.parametrize("extra", [0, 3])
def test_a_declared_bound_is_kept(toy: Toy, extra: int) -> None:
    """One that never commits is stopped at the forwards it declares, not run forever."""
    idle = Reaching(lambda view: Decision(torch.zeros_like(view.masked)), extra=extra)
    with pytest.raises(
        ValueError, match=f"forward {1 + extra} of row 0: kept decoding .* max_forwards"
    ):
        dlm.generate(toy(), [[1]], decoder=idle, gen_length=2, stop_at_eos=False)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"hold": torch.zeros(2, dtype=torch.bool)}, r"hold must be torch.bool of shape \[1\]"),
        ({"hold": torch.zeros(1)}, r"hold must be torch.bool .* got torch.float32"),
        ({"time": torch.zeros(1, dtype=torch.float64)}, r"time must be torch.float32"),
        ({"time": 0.5}, "got 0.5"),
    ],
)
def test_row_values_of_a_decision_are_checked(
    toy: Toy, decision: dict[str, Any], message: str
) -> None:
    rule = Reaching(lambda view: Decision(first(view), **decision))
    with pytest.raises(ValueError, match=message):
        dlm.generate(toy(), [[1]], decoder=rule, gen_length=2)


def test_hold_needs_a_bound(toy: Toy) -> None:
    class Unbounded(Reaching):
        max_forwards = None  # type: ignore[assignment]

    rule = Unbounded(lambda view: Decision(first(view), hold=torch.ones(1, dtype=torch.bool)))
    with pytest.raises(ValueError, match="hold needs max_forwards"):
        dlm.generate(toy(), [[1]], decoder=rule, gen_length=2)


def projected(base: Model, name: str, **options: Any) -> list[int]:
    """Positions that each projection to the vocabulary was asked for."""
    counts: list[int] = []

    class Counting(type(base)):  # type: ignore[misc]
        def logits(self, hidden: Tensor) -> Tensor:
            counts.append(hidden.shape[0])
            return super().logits(hidden)  # type: ignore[no-any-return]

    model = Counting(None, None, base.spec, base.table)  # type: ignore[attr-defined]
    dlm.generate(
        model, [[1], [2, 3]], decoder=name, decoder_options=options, gen_length=6,
        stop_at_eos=False,
    )  # fmt: skip
    return counts


@pytest.mark.parametrize(
    "name", ["first_hitting", "random", "left_to_right", "ancestral", "dilated"]
)
def test_order_only_decoders_project_what_they_commit(toy: Toy, name: str) -> None:
    """L V work for L tokens: the point of first hitting; one that ranks projects every mask."""
    assert Traits.of(make(name)).order_only
    assert sum(projected(toy(2), name)) == 12
    assert projected(toy(2), "entropy") == [12, 10, 8, 6, 4, 2]


def test_committed_tokens_are_projected_only_where_read(toy: Toy) -> None:
    """WINO judges them by their shadows alone, ReMDM's rates by nothing."""
    first, shadows, *_ = projected(toy(2), "wino", threshold=2.0, threshold_back=0.0)
    assert (first, shadows) == (12, 0)
    second, shadows = projected(toy(2), "wino", threshold=2.0, threshold_back=0.0)[2:4]
    assert (second, shadows) == (10, 2)
    assert Traits.of(make("remdm", variant="cap")).order_only
    assert not Traits.of(make("remdm", variant="conf")).order_only
    assert sum(projected(toy(2), "remdm", variant="cap", eta=0.0)) == 12


@pytest.mark.parametrize("name", ["saber", "low_confidence", "wino", "klass"])
def test_windows_are_no_wider_than_what_is_decoded(toy: Toy, name: str) -> None:
    """A long prompt makes no state wider, and casts no shadow."""
    widths = set()
    decoder: Any = make(name)

    class Spy(type(decoder)):  # type: ignore[misc]
        def step(self, state: Any, view: StepView) -> Any:
            widths.add(view.masked.shape[1])
            return decoder.step(state, view)

    rows = [[1] * 50, [2] * 9]
    dlm.generate(toy(2), rows, decoder=Spy(), gen_length=6, block_length=None)
    assert widths == {6}


def test_shadows_are_counted_as_queries(toy: Toy) -> None:
    """A prompt of 2 and blocks of 3 and 1: six positions and the block's shadows a forward."""
    out = dlm.generate(
        toy(2), [[1, 2]], decoder="wino", decoder_options={"threshold": 2.0},
        gen_length=4, block_length=3, stop_at_eos=False,
    )  # fmt: skip
    assert out.forwards == [4]
    assert out.query_tokens == [4 * 6 + 3 * 3 + 1 * 1]


@dataclass(frozen=True)
class Adjusting(Policy):
    """Raises token 3 of every position by a bonus, and scales rows."""

    adjustment: Callable[[StepView], Adjustment]
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    adjust_needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def init_state(self, batch: int, length: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def adjust(self, state: Tensor, view: StepView) -> tuple[Tensor, Adjustment]:
        assert view.confidence is not None
        assert ((view.sampled >= 0) & (view.sampled < MASK)).all()
        return state + 1, self.adjustment(view)

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        assert (state == view.step + 1).all(), "adjust hands its state on"
        return state, Decision(first(view))


def test_adjusted_logits_are_sampled_and_measured(toy: Toy) -> None:
    def bonus(view: StepView) -> Adjustment:
        tokens = torch.full((*view.masked.shape, 1), 3)
        return Adjustment(tokens=tokens, bonus=torch.full(tokens.shape, 50.0))

    options: dict[str, Any] = {"gen_length": 3, "block_length": None, "return_trajectory": True}
    out = dlm.generate(toy(4), [[1]], decoder=Adjusting(bonus), **options)
    assert out.tokens == [[3, 3, 3]]
    assert all(c.confidence > 0.999 for c in out.trajectory[0].commits)  # type: ignore[index]

    def confidences(scale: float, statistics: bool) -> list[float]:
        def scaled(view: StepView) -> Adjustment:
            return Adjustment(torch.full(view.step.shape, scale), scale_statistics=statistics)

        out = dlm.generate(toy(4), [[1]], decoder=Adjusting(scaled), **options)
        return [change.confidence for change in out.trajectory[0].commits]  # type: ignore[index]

    plain = confidences(1.0, True)
    assert confidences(2.0, False) == plain
    assert all(hot > cold for hot, cold in zip(confidences(2.0, True), plain, strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", DECODERS)
def test_float64_statistics_decide_the_same(
    golden: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C6: no decision hangs on float32 rounding of the statistics."""
    options: dict[str, Any] = {"decoder": name, "gen_length": 12, "block_length": 6}
    options |= {"stop_at_eos": False, "return_trajectory": True}
    fast = dlm.generate(golden, [[5, 6, 7], [8]], **options)

    def exact(*args: Any, **kwargs: Any) -> Any:
        wide = token_statistics_reference(*args, **kwargs)
        return type(wide)(
            *(
                getattr(wide, field).float()
                if getattr(wide, field) is not None and getattr(wide, field).is_floating_point()
                else getattr(wide, field)
                for field in wide.__slots__
            )
        )

    monkeypatch.setattr("dlm.measure.token_statistics", exact)
    slow = dlm.generate(golden, [[5, 6, 7], [8]], **options)
    assert slow.tokens == fast.tokens
    assert slow.forwards == fast.forwards


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("scores", "modle", "Did you mean 'model'"),
        ("top", -1, r"Odd.top must be an int >= 0"),
        ("caches", ("prefx",), "unknown cache of Odd 'prefx'. Did you mean 'prefix'"),
        ("cross_block", "no", "Odd.cross_block must be True or False"),
        ("adjust_needs", ["confidence"], "Odd.adjust_needs must be a set"),
        ("init_state", None, "Odd.init_state must be a method, got None"),
        ("step", "first", "Odd.step must be a method, got 'first'"),
        ("adjust", 2.0, "Odd.adjust must be a method, got 2.0"),
        ("max_forwards", 8, "Odd.max_forwards must be a method, got 8"),
    ],
)
def test_declarations_are_checked(attribute: str, value: Any, message: str) -> None:
    class Odd(Policy):
        init_state, step = Reaching.init_state, Reaching.step

    setattr(Odd, attribute, value)
    with pytest.raises(ValueError, match=message):
        Traits.of(Odd())  # type: ignore[arg-type]
