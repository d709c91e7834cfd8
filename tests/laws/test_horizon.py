"""Masks far behind the active block that no forward sees, told again in a plain loop."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS
from dlm.execution import STRIDE, Execution
from dlm.models.model import Model
from dlm.progress import ForwardPlan, Scope
from dlm.traits import Traits
from tests.laws.kept_columns import Columns

Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]

MASK = 511
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
LONG = 1000  # tokens, more than any row has
APART = [
    [5 + row, *(token for n in each for token in [MASK] * n + [9] * (4 - n)), *[MASK] * 8]
    for row, each in enumerate([[1, 3, 4, 2], [2, 4, 1, 4], [3, 1, 4, 4], [4, 4, 2, 1]])
]
"""Rows whose blocks have so many masks each, and more behind them: they part company."""
PAIRS = [
    (name, cache) for name, make in DECODERS.items() for cache in Traits.of(make()).caches
]  # fmt: skip


def run(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 34, "block_length": 4, "stop_at_eos": False, "seed": 3}
    return dlm.generate(model, rows, row_keys=keys, **{**usual, **options})


def loop(
    model: Model, prompt: list[int], cache: str, window: int, size: int, every: int
) -> tuple[list[int], int]:
    """The likeliest token of the surest mask, a forward each; tokens and positions computed."""
    begin, ahead, computed = len(prompt), int(model.spec.shift), 0
    row = torch.tensor([prompt + [MASK] * 34])
    for block in range(begin, row.shape[1], size):
        end = min(block + size, row.shape[1])
        seen = min(block + size + window, row.shape[1])
        layers: dict[int, list[Tensor]] = {}
        for spent in range(end - block):
            whole = cache == "none" or spent % every == 0
            last = seen if whole or cache == "prefix" else end
            columns = slice(0 if whole else block - ahead, last)
            layers = {} if whole else layers
            places = torch.arange(columns.start, columns.stop)[None]
            view = Columns(layers, columns, seen)
            states = model.states(row[:, columns], places, None, view)
            computed += last - columns.start
            at = block - columns.start - ahead
            logits = model.logits(states[0, at : at + end - block])
            logits[:, list(model.spec.banned)] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            chosen = int(best.masked_fill(row[0, block:end] != MASK, -1.0).argmax())
            row[0, block + chosen] = token[chosen]
    return row[0].tolist()[begin:], computed


@pytest.mark.one_in(3)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("every", [LONG, 3])
@pytest.mark.parametrize("block_length", [4, 7])
@pytest.mark.parametrize("window", [0, 5, 16, LONG])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@torch.inference_mode()
def test_it_is_what_a_plain_loop_makes_of_it(
    golden: Model, cache: str, window: int, block_length: int, every: int, shift: bool
) -> None:
    model = Model(golden.network, None, replace(golden.spec, shift=shift))
    options: dict[str, Any] = {"cache": cache, "suffix_window": window}
    if cache != "none":
        options["refresh_every"] = every
    found = run(model, ROWS, KEYS, block_length=block_length, **options)
    for number, prompt in enumerate(ROWS):
        told, computed = loop(model, prompt, cache, window, block_length, every)
        assert found.tokens[number] == told
        assert found.query_tokens[number] == computed


@pytest.mark.one_in(24)
@pytest.mark.parametrize("more", [
    {"suffix_window": 6}, {"suffix_window": 0, "cfg_scale": 0.6},
    {"suffix_window": 9, "gen_length": [7, 34, 20], "position_temperature": 0.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_a_row_does_not_depend_on_its_batch(
    golden: Model, decoding: Decoding, decoder: str, cache: str, more: dict[str, Any]
) -> None:
    options = {**decoding(decoder), "cache": cache, "temperature": 1.0, **more}
    lengths = options.pop("gen_length", 34)
    lengths = lengths if isinstance(lengths, list) else [lengths] * len(ROWS)
    together = run(golden, ROWS, KEYS, gen_length=lengths, **options)
    joining = run(golden, ROWS, KEYS, gen_length=lengths, batch_size=2, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(golden, [row], [key], gen_length=lengths[number], **options)
        for name in ("tokens", "forwards", "query_tokens"):
            for batch in (together, joining):
                assert getattr(alone, name)[0] == getattr(batch, name)[number], name


@pytest.mark.one_in(3)
@pytest.mark.one_in(3)
@pytest.mark.parametrize("facts", [{}, {"shift": True}], ids=str)
@pytest.mark.parametrize("more", [
    {}, {"cache": "dual"}, {"cache": "prefix", "refresh_every": 3, "cfg_scale": 0.6},
    {"cache": "dual", "refresh_decoded_every": LONG, "decoder": "d2f"},
    {"cache": "dual", "refresh_prompt_every": 3, "refresh_around": 2, "refresh_every": 2},
    {"cache": "prefix", "decoder": "ssd"}, {"decoder": "saber"}, {"decoder": "multi_block"},
    {"cache": "prefix", "decoder": "wino"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("way", ["static", "recorded"])
def test_however_steps_are_run(
    golden: Model, traced: Traced, trace: Any, way: str, more: dict[str, Any], facts: dict[str, Any]
) -> None:
    if facts and more.get("decoder") == "wino":
        pytest.skip("no shadows where a token is predicted by the one before it")
    model = Model(golden.network, None, replace(golden.spec, **facts))
    execution = traced() if way == "recorded" else Execution(static=True)
    options = {"row_keys": [1, 2, 3, 4], "block_length": 4, "suffix_window": 3, **more}
    rows = [each + [MASK] * 9 * (n % 2) for n, each in enumerate(APART)]
    found = []
    for each in (Execution(), execution, execution, execution):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model, each=each: each)
            before = trace.plays
            found.append(dlm.infill(model, rows, temperature=1.0, **options))
            assert (trace.plays > before) == (way == "recorded" and each is execution)
    for other in found[1:]:
        assert (other.tokens, other.forwards) == (found[0].tokens, found[0].forwards)
        assert other.query_tokens == found[0].query_tokens


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_text_costs_the_same_however_long_it_could_be(golden: Model, cache: str) -> None:
    spec = replace(golden.spec, stop_ids=tuple(range(0, 511, 7)))
    model = Model(golden.network, None, spec)
    options: dict[str, Any] = {"suffix_window": 4, "cache": cache, "stop_at_eos": True}
    short, long = (run(model, ROWS, KEYS, gen_length=n, **options) for n in (90, 200))
    for row in range(len(ROWS)):
        assert long.tokens[row][:90] == short.tokens[row]
    assert long.forwards == short.forwards
    assert long.query_tokens == short.query_tokens
    assert max(short.forwards) < 80


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_what_is_given_behind_is_seen(golden: Model, cache: str) -> None:
    """And with it the masks in front of it; those behind it are not."""
    row = [3, *[MASK] * 9, 20, 21, *[MASK] * 9]
    options: dict[str, Any] = {"block_length": 3, "cache": cache}
    first = dlm.infill(golden, [row], suffix_window=0, **options)
    cut = dlm.infill(golden, [row[:12]], **options)
    assert first.tokens[0][:9] == cut.tokens[0][:9]
    closed = [*row[:12], *[MASK] * 3, 22]
    plain = dlm.infill(golden, [closed], **options)
    found = dlm.infill(golden, [closed], suffix_window=0, **options)
    assert (found.tokens, found.query_tokens) == (plain.tokens, plain.query_tokens)


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_no_more_is_asked_for_than_is_seen(
    golden: Model, asked: list[ForwardPlan], cache: str
) -> None:
    run(golden, ROWS[:1], KEYS[:1], cache=cache, suffix_window=6)
    whole = 7 + 34
    seen = [min(7 + 4 * (block + 1) + 6, whole) for block in range(9) for _ in range(4)][:34]
    assert [plan.across for plan in asked] == seen
    assert [plan.lengths for plan in asked] == [[end] for end in seen]
    if cache == "prefix":
        assert max(plan.reach for plan in asked) == 4 + 6


def test_shapes_that_stay_are_few() -> None:
    """Columns of the canvas are told in steps of those that canvases have."""
    plan = ForwardPlan([300, 280], [256, 200], [Scope.ROW] * 2, 0, 32, None, sees=[100, 90])
    seen = plan.seen()
    assert (seen.lengths, seen.tails, seen.across) == ([100, 90], [56, 10], 100)
    asked = Execution(static=True).rounded(plan, 300)
    assert (asked.lengths, asked.across) == ([100, 90], 2 * STRIDE)
    assert Execution(static=True).rounded(replace(plan, sees=[290, 90]), 300).across == 300
    assert Execution().rounded(plan, 300).across == 100
    assert asked.shape(300) != replace(asked, across=300).shape(300)
    assert plan.select([1]).sees == [90]
    assert ForwardPlan.stack([plan, plan.select([0])]).sees == [100, 90, 100]


def test_where_it_is_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match="suffix_window must be an int >= 0, got -1"):
        run(golden, [[1]], [0], suffix_window=-1)
    options: dict[str, Any] = {"cache": "dual", "refresh_answer_every": 4}
    with pytest.raises(ValueError, match=r"suffix_window .* None with refresh_answer_every, got 8"):
        run(golden, [[1]], [0], suffix_window=8, **options)
    final = Model(golden.network, None, replace(golden.spec, block_size=4))
    with pytest.raises(ValueError, match="suffix_window must be None for llada, where no block"):
        run(final, [[1]], [0], suffix_window=8)
