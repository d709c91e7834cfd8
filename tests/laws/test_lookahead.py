"""Branches: where each lies means nothing, and neither caches nor other rows see the others."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders.base import Stateless
from dlm.decoders.select import rank
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.progress import ForwardPlan, Scope
from dlm.types import Decision, StepView

Traced = Callable[..., Execution]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
LENGTHS = [21, 9, 15]
COUNT = 3


@dataclass(frozen=True)
class Turned(Stateless):
    """Tries the next best, the second best and none, which is gone on with by turns.

    Where each of them lies turns from forward to forward, too.
    """

    turn: int = 0
    rests: bool = False  # whether it tries nothing at every other forward
    branches: ClassVar[int] = COUNT
    paper: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def choose(self, state: None, view: StepView) -> Tensor:
        step = view.step[:, 0]
        kind = step * view.row_start[:, 0]  # so that rows come to their blocks at different times
        return (kind + self.turn * step) % COUNT

    def step(self, state: None, view: StepView) -> tuple[None, Decision]:
        place = rank(view.want("confidence"), view.masked)
        rest = view.masked & (place > 0)
        tries = [rest & (place == number + 1) for number in range(COUNT)]
        tries[-1] = torch.zeros_like(rest)
        begin = self.turn * (view.step[:, None] + 1)  # of the next forward
        order = (torch.arange(COUNT, device=begin.device) - begin) % COUNT
        lookahead = torch.stack(tries, 1).gather(1, order[..., None].expand(-1, -1, rest.shape[1]))
        if self.rests:
            lookahead &= (view.step % 2 == 0)[:, None, None]
        return None, Decision(view.masked & (place == 0), lookahead=lookahead)


def run(model: Model, decoder: Any, rows: list[list[int]] = ROWS, **options: Any) -> Any:
    usual: dict[str, Any] = {"gen_length": LENGTHS[: len(rows)], "block_length": 7, "seed": 3}
    usual |= {"temperature": 0.7, "row_keys": KEYS[: len(rows)], "stop_at_eos": False}
    usual |= {"return_order": True, "return_trajectory": True}
    return dlm.generate(model, rows, decoder=decoder, **{**usual, **options})


def told(found: dlm.Generation) -> tuple[Any, ...]:
    return found.tokens, found.forwards, found.query_tokens, found.order


def confidences(found: dlm.Generation) -> list[float]:
    return [change.confidence for row in found.trajectory or [] for change in row.commits]


WAYS: list[dict[str, Any]] = [
    {},
    {"cache": "dual"},
    {"cache": "prefix", "cfg_scale": 0.5},
    {"cache": "dual", "refresh_every": 2},
    {"cache": "prefix", "refresh_every": 3, "cfg_scale": 0.5},
    {"cache": "dual", "refresh_every": 2, "refresh_around": 2},
    {"cache": "dual", "refresh_every": 2, "refresh_prompt_every": 3},
    {"cache": "dual", "refresh_answer_every": 30, "refresh_around": 2},
    {"cache": "dual", "refresh_prompt_every": 30, "refresh_around": 2},
]


@pytest.mark.parametrize("more", WAYS, ids=str)
def test_where_a_branch_lies_means_nothing(golden: Model, more: dict[str, Any]) -> None:
    """A cache that the others wrote to as well would tell."""
    found = [run(golden, Turned(turn), **more) for turn in range(COUNT)]
    assert told(found[0]) == told(found[1]) == told(found[2])
    for other in found[1:]:  # rounding may differ from line to line
        assert confidences(other) == pytest.approx(confidences(found[0]), abs=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rests", [False, True])
@pytest.mark.parametrize("more", WAYS, ids=str)
def test_a_row_does_not_depend_on_its_batch(
    golden: Model, more: dict[str, Any], rests: bool
) -> None:
    decoder = Turned(1, rests)
    together = run(golden, decoder, **more)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(golden, decoder, [row], row_keys=[key], gen_length=LENGTHS[number], **more)
        for one, all_ in zip(told(alone), told(together), strict=True):
            assert one[0] == all_[number]
    by_turns = run(golden, decoder, batch_size=2, **more)
    assert told(by_turns) == told(together)


@pytest.mark.parametrize("more", WAYS, ids=str)
def test_recorded_steps_do_the_same(
    golden: Model, traced: Traced, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    plain = run(golden, Turned(1), **more)
    execution = traced()
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    for _ in range(3):
        found = run(golden, Turned(1), **more)
        assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
        assert found.order == plain.order


def test_branches_of_a_batch_are_alike_where_those_of_all_its_parts_are() -> None:
    parts = [ForwardPlan([3], [3], [Scope.ROW], 0, 9, None, alike=alike) for alike in (True, False)]
    assert not ForwardPlan.stack(parts).alike
    assert not ForwardPlan.stack(parts[::-1]).alike
    assert ForwardPlan.stack(parts[:1] * 2).alike
    assert parts[0].shape(3) != parts[1].shape(3)


@pytest.mark.parametrize(
    "facts",
    [
        *({"block_size": 4}, {"block_size": 8, "causal": True}),
        {"block_size": 8, "causal": True, "reordered": True},
    ],
    ids=str,
)
def test_prompts_are_kept_and_taken_over(golden: Model, facts: dict[str, Any]) -> None:
    """By every branch, of networks whose attention is in blocks."""
    model = replace(golden, spec=replace(golden.spec, **facts))
    rows = [list(range(1, 71)), list(range(101, 140))]
    plain = run(model, Turned(), rows, cache="prefix")
    assert run(model, Turned(), rows).tokens == plain.tokens  # there caches are exact
    kept = dlm.PromptCache(model, gib=0.01)
    first = run(model, Turned(), rows, cache="prefix", prompt_cache=kept)
    again = run(model, Turned(), rows, cache="prefix", prompt_cache=kept)
    assert first.tokens == again.tokens == plain.tokens
    assert first.query_tokens == plain.query_tokens
    saved = [a - b for a, b in zip(plain.query_tokens, again.query_tokens, strict=True)]
    assert saved == [64, 32]  # before a first forward branches are alike, and computed once


@pytest.mark.parametrize("decoder", ["lopa", Turned()], ids=str)
def test_texts_are_of_their_language(decoder: Any) -> None:
    """A token that a branch fills is one of a text of the language, whatever is drawn next."""
    model = dlm.load()
    language = dlm.Constraint.regex(model, r"(ab|ba)+c")
    shape: dict[str, Any] = {"gen_length": 24, "block_length": 8, "temperature": 1.5, "seed": 2}
    found = dlm.generate(model, ["x", "y = "], decoder=decoder, constraint=language, **shape)
    assert found.texts is not None
    for text in found.texts:
        assert re.fullmatch(r"(ab|ba)+c", text)


def test_a_row_alone_shares_its_recordings(golden: Model, traced: Traced) -> None:
    """Whatever its length: of a first forward, of branches, and of all of them made again."""
    execution = traced()
    for length in (7, 9, 11, 13):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model: execution)
            rows = [list(range(1, length))]
            run(golden, Turned(), rows, cache="dual", refresh_every=2, gen_length=21)
    assert execution.lanes is not None
    (lane,) = execution.lanes.unused
    assert [len(work.steps.recordings) for work in lane.kept] == [3]
