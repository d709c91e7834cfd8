"""What forwards leave out of a block that is decoded, told again in a plain loop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.models.model import Model, block_causal
from dlm.progress import ForwardPlan, Scope
from dlm.traits import Traits
from dlm.types import Decision, StepView
from tests.laws.kept_columns import Columns

Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]

MASK = 511
LONG = 1000  # forwards, more than any row takes
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
APART = [
    [5 + row, *(token for n in each for token in [MASK] * n + [9] * (4 - n))]
    for row, each in enumerate([[1, 3, 4, 2], [2, 4, 1, 4], [3, 1, 4, 4], [4, 4, 2, 1]])
]
"""Rows whose blocks have so many masks each: they part company."""


def takes(name: str) -> bool:
    """Whether a decoder goes by masks alone, one row at a time."""
    traits = Traits.of(DECODERS[name]())
    changes = traits.mutates_committed or traits.reads_committed
    return traits.branches == 1 and not changes and "dual" in traits.caches


TAKES = [name for name in DECODERS if takes(name)]


def run(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 14, "block_length": 4, "stop_at_eos": False, "seed": 3}
    return dlm.generate(model, rows, row_keys=keys, **{**usual, **options})


def loop(
    model: Model,
    prompt: list[int],
    every: int | None,
    decoded_every: int,
    block_length: int | None,
    *,
    cache: str = "dual",
    answer_kept: bool = False,
    around: int = 0,
) -> tuple[list[int], int]:
    """The likeliest token of the surest mask, a forward each; tokens and positions computed."""
    begin, size, grid = len(prompt), block_length or 14, model.spec.block_size
    row = torch.tensor([prompt + [MASK] * 14])
    length, ahead = row.shape[1], int(model.spec.shift)
    layers: dict[int, list[Tensor]] = {}
    last, computed = begin, 0
    origin = begin - begin % size if grid else begin
    for block in range(origin, length, size):
        end, fresh = min(block + size, length), -1
        for spent in range(end - max(block, begin)):
            refresh = spent == 0 or (every is not None and spent % every == 0)
            whole = (spent if every is None else spent % every) % decoded_every == 0
            masked = (row[0] == MASK).tolist()
            first, stop = block - around, length if cache == "prefix" else end + around
            if grid:
                place = block - block % grid
                stop = min(place + grid, length)
                first = 0 if refresh and (spent or block == origin) else last if refresh else place
            elif refresh and answer_kept and (spent or block > begin):
                first = last - around
            elif refresh:
                first, stop = 0, length
            last = block - block % grid if grid else block
            needed = [
                column
                for column in range(max(0, first - ahead), min(stop, length))
                if not block <= column < end
                or whole
                or masked[column]
                or column == fresh
                or (ahead and column + 1 < end and masked[column + 1])
            ]
            places = torch.tensor([needed])
            keys = torch.arange(length)[None]
            mask = model.attention_mask(block_causal(places, keys, grid)) if grid else None
            view = Columns(layers, needed, length)
            states = model.network.states(row[:, needed], mask, places, view)
            computed += len(needed)
            open_ = [column for column in range(block, end) if masked[column]]
            at = [needed.index(column - ahead) for column in open_]
            logits = model.logits(states[0, at])
            logits[:, list(model.spec.banned)] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            chosen = int(best.argmax())
            fresh = open_[chosen]
            row[0, fresh] = token[chosen]
    return row[0].tolist()[begin:], computed


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("decoded_every", [2, 3, LONG])
@pytest.mark.parametrize(("every", "block_length"), [(None, 4), (2, 7), (5, None), (None, 7)])
@pytest.mark.parametrize("more", [
    {}, {"cache": "prefix"}, {"answer_kept": True}, {"around": 3},
    {"around": 2, "answer_kept": True},
], ids=str)  # fmt: skip
@torch.inference_mode()
def test_it_is_what_a_plain_loop_makes_of_it(
    golden: Model,
    more: dict[str, Any],
    every: int | None,
    block_length: int | None,
    decoded_every: int,
    shift: bool,
) -> None:
    model = Model(golden.network, None, replace(golden.spec, shift=shift))
    options: dict[str, Any] = {
        "cache": more.get("cache", "dual"),
        "refresh_every": every,
        "refresh_around": more.get("around", 0),
        "refresh_answer_every": LONG if more.get("answer_kept") else None,
        "refresh_decoded_every": decoded_every,
        "block_length": block_length,
    }
    found = run(model, ROWS, KEYS, **options)
    for number, prompt in enumerate(ROWS):
        told, computed = loop(model, prompt, every, decoded_every, block_length, **more)
        assert found.tokens[number] == told
        assert found.query_tokens[number] == computed


@pytest.mark.one_in(2)
@pytest.mark.parametrize("decoded_every", [2, LONG])
@pytest.mark.parametrize(("every", "block_length"), [(None, 4), (3, 4), (None, 2), (2, 1)])
@pytest.mark.parametrize("grid", [4, 8])
@pytest.mark.parametrize("shift", [False, True])
@torch.inference_mode()
def test_also_where_a_cache_is_exact(
    golden: Model, shift: bool, grid: int, every: int | None, block_length: int, decoded_every: int
) -> None:
    """A block is computed as a whole by the first forward of the next one: its keys are exact."""
    spec = replace(golden.spec, shift=shift, block_size=grid)
    model = Model(golden.network, None, spec)
    options: dict[str, Any] = {"cache": "dual", "refresh_every": every}
    options |= {"refresh_decoded_every": decoded_every, "block_length": block_length}
    found = run(model, ROWS, KEYS, **options)
    for number, prompt in enumerate(ROWS):
        told, computed = loop(model, prompt, every, decoded_every, block_length)
        alone = run(model, [prompt], [0], **options)
        assert found.tokens[number] == alone.tokens[0] == told
        assert found.query_tokens[number] == alone.query_tokens[0] == computed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("facts", [
    {}, {"shift": True}, {"block_size": 4, "anchored": True}
], ids=str)  # fmt: skip
@pytest.mark.parametrize("decoder", TAKES)
def test_one_layer_has_the_keys_of_its_tokens_whatever_else_a_row_holds(
    golden_folder: Path, decoding: Decoding, decoder: str, facts: dict[str, Any]
) -> None:
    """No forward is left out that a token was never seen by, nor one that a mask is read at."""
    golden = dlm.load(golden_folder, dtype="float32", device="cpu")
    golden.network.model.layers = golden.network.model.layers[:1]
    model = Model(golden.network, None, replace(golden.spec, **facts))
    options = {**decoding(decoder), "temperature": 0.7, "block_length": 4}
    plain = dlm.infill(model, APART, cache="none", **options)
    for every in (2, LONG):
        found = dlm.infill(model, APART, cache="dual", refresh_decoded_every=every, **options)
        assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("more", [
    {"refresh_decoded_every": 3},
    {"refresh_decoded_every": LONG, "refresh_every": 3, "cfg_scale": 0.6},
    {"refresh_decoded_every": LONG, "refresh_answer_every": 5, "refresh_prompt_every": 7},
    {"refresh_decoded_every": 4, "refresh_around": 2, "cache": "prefix"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("decoder", TAKES)
def test_a_row_does_not_depend_on_its_batch(
    golden: Model, decoding: Decoding, decoder: str, more: dict[str, Any]
) -> None:
    options = {**decoding(decoder), "cache": "dual", "temperature": 1.0, **more}
    options["cache"] = more.get("cache", "dual")
    together = run(golden, ROWS, KEYS, **options)
    joining = run(golden, ROWS, KEYS, batch_size=2, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(golden, [row], [key], **options)
        for name in ("tokens", "forwards", "query_tokens"):
            assert getattr(alone, name)[0] == getattr(together, name)[number], name
            assert getattr(alone, name)[0] == getattr(joining, name)[number], name


@pytest.mark.one_in(3)
@pytest.mark.parametrize("facts", [
    {}, {"shift": True}, {"block_size": 4}, {"block_size": 4, "anchored": True},
    {"block_size": 4, "causal": True}, {"block_size": 4, "causal": True, "reordered": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("more", [
    {"refresh_decoded_every": LONG},
    {"refresh_decoded_every": 2, "decoder": "threshold"},
    {"refresh_decoded_every": LONG, "refresh_every": 3, "cfg_scale": 0.6},
    {"refresh_decoded_every": LONG, "decoder": "d2f"},
    {"refresh_decoded_every": LONG, "refresh_answer_every": 5, "refresh_around": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("way", ["static", "recorded"])
def test_however_steps_are_run(
    golden: Model,
    asked: list[ForwardPlan],
    traced: Traced,
    trace: Any,
    way: str,
    more: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Where shapes stay as they are more is computed, and kept by nobody."""
    if "block_size" in facts and "refresh_around" in more:
        pytest.skip("what is in front of a block is final")
    if more.get("decoder") == "d2f" and "causal" in facts and "reordered" not in facts:
        pytest.skip("one block sees all of itself")
    if "reordered" in facts and "cfg_scale" in more:
        pytest.skip("it is refused")
    model = Model(golden.network, None, replace(golden.spec, **facts))
    execution = traced() if way == "recorded" else Execution(static=True)
    options = {"cache": "dual", "row_keys": [1, 2, 3, 4], "block_length": 4, **more}
    found = []
    for each in (Execution(), execution, execution, execution):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model, each=each: each)
            before = trace.plays
            asked.clear()
            found.append(dlm.infill(model, APART, temperature=1.0, **options))
            assert (trace.plays > before) == (way == "recorded" and each is execution)
            played = way == "recorded" and len(found) > 2  # all that was recorded before
            assert any(plan.spared for plan in asked) or played or len(more) > 1
    for other in found[1:]:
        assert (other.tokens, other.forwards) == (found[0].tokens, found[0].forwards)
        assert other.query_tokens == found[0].query_tokens


@pytest.mark.parametrize("more", [
    {"cache": "prefix"}, {"cache": "dual", "refresh_around": 3}, {"cache": "dual"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("block_length", [None, 16])
def test_what_is_given_behind_the_blanks_is_computed_whatever_else_is_in_the_batch(
    golden: Model, block_length: int | None, more: dict[str, Any]
) -> None:
    """A window is as wide as the longest row's, and reaches beyond the blanks of others."""
    rows = [[5, *[MASK] * 4, 7, 8, 9], [6, *[MASK] * 12]]
    options: dict[str, Any] = {"block_length": block_length, "temperature": 1.0, **more}
    together = dlm.infill(golden, rows, refresh_decoded_every=LONG, **options)
    alone = dlm.infill(golden, rows[:1], refresh_decoded_every=LONG, **options)
    assert together.tokens[0] == alone.tokens[0]
    assert together.query_tokens[0] == alone.query_tokens[0]


def test_rows_that_compute_more_do_not_keep_others_from_leaving_something_out(
    golden: Model, asked: list[ForwardPlan]
) -> None:
    dlm.infill(golden, APART, block_length=4, cache="dual", refresh_decoded_every=LONG)
    assert {plan.spared > 0 for plan in asked if plan.scope is None} == {False, True}


@dataclass(frozen=True)
class Lingers:
    """Commits a block at once, and stays in it for two forwards more."""

    needs: ClassVar[frozenset[str]] = frozenset()
    mutates_committed: ClassVar[bool] = False

    def init_state(self, rows: int, window: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64)

    def max_forwards(self, blanks: Tensor, limit: Tensor) -> Tensor:
        return (blanks > 0) * 3

    def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
        return state, Decision(view.masked, hold=view.step < 2)


class Reads(Lingers):
    """It asks about tokens that are decoded, without changing any."""

    needs: ClassVar[frozenset[str]] = frozenset({"leave_one_out"})
    reads_committed: ClassVar[bool] = False


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("way", [Execution(), Execution(static=True)])
def test_a_forward_that_nothing_is_left_for(
    golden: Model, monkeypatch: pytest.MonkeyPatch, way: Execution, shift: bool
) -> None:
    monkeypatch.setattr(Execution, "of", lambda model: way)
    model = Model(golden.network, None, replace(golden.spec, shift=shift))
    options: dict[str, Any] = {"cache": "dual", "decoder": Lingers()}
    found = run(model, ROWS, KEYS, refresh_decoded_every=LONG, **options)
    plain = run(model, ROWS, KEYS, **options)
    assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
    blocks, short = 4, 14 % 4  # each whole, then what was written, then nothing
    front = blocks * 2 if shift else 0  # the column in front of a block is computed all the same
    for row, count in zip(ROWS, found.query_tokens, strict=True):
        assert count == blocks * (len(row) + 14) + 3 * 4 + short + front


def test_what_is_left_out_is_told_in_few_numbers_where_shapes_stay() -> None:
    """Each is a recording."""
    plan = ForwardPlan([300], [256], [Scope.WINDOW], 0, 32, None)
    static = Execution(static=True)
    for width, each in ((4, 1), (8, 1), (20, 4), (32, 4), (256, 32)):
        wide = replace(plan, width=width)
        told = [static.rounded(replace(wide, spared=n), 300).spared for n in range(width)]
        assert told == [n - n % each for n in range(width)]
    assert Execution().rounded(replace(wide, spared=77), 300).spared == 77
    assert plan.shape(300) != replace(plan, spared=8).shape(300)
    rows = [replace(plan, scopes=[Scope.ROW], spared=n) for n in (0, 8)]
    assert rows[0].shape(300) == rows[1].shape(300)
    assert ForwardPlan.stack([replace(plan, spared=9), replace(plan, spared=4)]).spared == 4


def test_where_it_is_refused(golden: Model) -> None:
    for decoder in ("ssd", "lopa", "info_gain", "remdm", "wino", Reads()):
        options: dict[str, Any] = {"decoder": decoder, "cache": "prefix"}
        does = "looks ahead" if decoder in ("ssd", "lopa", "info_gain") else "what is decoded"
        with pytest.raises(ValueError, match=rf"refresh_decoded_every must be None or 1 .* {does}"):
            run(golden, [[1]], [0], refresh_decoded_every=4, **options)
        run(golden, [[1]], [0], refresh_decoded_every=1, **options)
    with pytest.raises(ValueError, match="refresh_decoded_every goes with cache 'prefix' or"):
        run(golden, [[1]], [0], refresh_decoded_every=2)
    with pytest.raises(ValueError, match="refresh_decoded_every must be an int >= 1, got 0"):
        run(golden, [[1]], [0], cache="dual", refresh_decoded_every=0)


def test_nothing_is_left_out_where_every_forward_is_whole(golden: Model) -> None:
    """At every forward, or where no cache is read, nothing is left out."""
    for more in ({"refresh_decoded_every": 1}, {"refresh_decoded_every": 5, "refresh_every": 1}):
        found = run(golden, ROWS, KEYS, cache="dual", **more)
        every = more.get("refresh_every")
        plain = run(golden, ROWS, KEYS, cache="dual", refresh_every=every)
        assert (found.tokens, found.query_tokens) == (plain.tokens, plain.query_tokens)
