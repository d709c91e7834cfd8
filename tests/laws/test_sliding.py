"""Windows that cross the ends of blocks: of deferred commitment, and of WeDLM, which streams."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dlm
from dlm.execution import Execution
from dlm.models.model import Model

Traced = Callable[..., Execution]

MASK = 511
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
HOLES = [
    [5, MASK, 6, MASK, MASK, MASK, 7, 8, MASK, MASK, MASK, 9],
    [12, *[MASK] * 9],
    [11, *[MASK] * 3, 13, 14, *[MASK] * 12, 15],
]
REORDERED: dict[str, Any] = {"block_size": 64, "causal": True, "reordered": True}
FACTS: list[dict[str, Any]] = [
    *({}, {"shift": True}, {"block_size": 4}, {"block_size": 8, "shift": True}, REORDERED),
    *({"block_size": 4, "anchored": True}, {**REORDERED, "shift": True}),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "wedlm": {"threshold": 3.5, "penalty": 0.1, "window": 5, "sliding": True},
    "deferred_commitment": {"threshold": 0.1, "window": 4, "max_window": 6, "sliding": True},
}
NEVER = {"wedlm": {"threshold": 0.0}, "deferred_commitment": {"threshold": 2.0}}


def facts(model: Model, known: dict[str, Any]) -> Model:
    return Model(model.network, model.tokenizer, replace(model.spec, **known))


def run(
    model: Model, rows: list[list[int]], keys: list[int], decoder: str, **options: Any
) -> dlm.Generation:
    usual: dict[str, Any] = {"gen_length": 23, "temperature": 1.0, "stop_at_eos": False}
    usual |= {"row_keys": keys, "seed": 3, "decoder": decoder, "return_trajectory": True}
    usual["decoder_options"] = OPTIONS[decoder] | options.pop("more", {})
    return dlm.generate(model, rows, **{**usual, **options})


def fill(
    model: Model, rows: list[list[int]], keys: list[int], decoder: str, **options: Any
) -> dlm.Generation:
    usual: dict[str, Any] = {"temperature": 1.0, "row_keys": keys, "return_trajectory": True}
    usual |= {"decoder": decoder, "decoder_options": OPTIONS[decoder]}
    return dlm.infill(model, rows, **usual, **options)


def same(one: dlm.Generation, other: dlm.Generation) -> None:
    assert (one.tokens, one.forwards) == (other.tokens, other.forwards)
    assert one.trajectory is not None
    assert other.trajectory is not None
    for a, b in zip(one.trajectory, other.trajectory, strict=True):
        assert torch.equal(a.canvases, b.canvases)


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("wedlm", {}),
    ("wedlm", {"window": 1}),
    ("wedlm", {"window": 3, "threshold": 4.0}),
    ("wedlm", {"window": 16, "threshold": 3.0}),
    ("wedlm", {"penalty": 0.0, "threshold": 0.0}),
    ("deferred_commitment", {}),
    ("deferred_commitment", {"max_window": None}),
    ("deferred_commitment", {"window": 2, "threshold": 2.0}),
    ("deferred_commitment", {"window": 9, "max_window": 40, "threshold": 0.05}),
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("block_length", [1, 4, 7])
@pytest.mark.parametrize(("decoder", "more"), WAYS, ids=str)
def test_where_masks_are_seen_last_a_window_decodes_what_one_block_would(
    golden: Model, decoder: str, more: dict[str, Any], block_length: int, cache: str
) -> None:
    """Nothing in front of a mask, and no token, sees what the window leaves out."""
    model = facts(golden, REORDERED)
    found = run(model, ROWS, KEYS, decoder, cache=cache, block_length=block_length, more=more)
    more = {**more, "sliding": False}
    same(found, run(model, ROWS, KEYS, decoder, block_length=None, more=more))
    assert max(found.forwards) > 1


@pytest.mark.one_in(4)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_length", [1, 4, 7])
@pytest.mark.parametrize(("decoder", "more"), WAYS, ids=str)
def test_so_it_does_where_everything_is_seen_and_nothing_is_cached(
    golden: Model, decoder: str, more: dict[str, Any], block_length: int, shift: bool
) -> None:
    model = facts(golden, {"shift": shift})
    found = run(model, ROWS, KEYS, decoder, block_length=block_length, more=more)
    more = {**more, "sliding": False}
    same(found, run(model, ROWS, KEYS, decoder, block_length=None, more=more))


@pytest.mark.parametrize("block_length", [1, 4])
def test_a_cache_leaves_what_is_new_and_the_window(golden: Model, block_length: int) -> None:
    """From the block of the first mask that the last forward had, to the window's end."""
    model = facts(golden, REORDERED)
    found = run(model, ROWS, KEYS, "wedlm", cache="dual", block_length=block_length)
    assert found.trajectory is not None
    for prompt, tokens, history in zip(ROWS, found.query_tokens, found.trajectory, strict=True):
        begin, kept, end, computed = len(prompt), 0, 0, 0
        for canvas in history.canvases.tolist():
            first = canvas.index(MASK)
            block = begin + first - first % block_length
            reach = max(begin + first + 5, block + block_length)  # the active block is open
            end = max(end, min(reach, begin + 23))
            computed += end - kept
            kept = block
        assert tokens == computed


@pytest.mark.one_in(5)
@pytest.mark.parametrize("known", FACTS, ids=str)
@pytest.mark.parametrize("block_length", [1, 2, 4])
@pytest.mark.parametrize("decode", [run, fill])
@pytest.mark.parametrize("decoder", OPTIONS)
def test_a_row_stands_alone_and_an_exact_cache_is_exact(
    golden: Model,
    decoder: str,
    decode: Callable[..., dlm.Generation],
    block_length: int,
    known: dict[str, Any],
) -> None:
    model, rows = facts(golden, known), ROWS if decode is run else HOLES
    options: dict[str, Any] = {"block_length": block_length}
    plain = decode(model, rows, KEYS, decoder, **options)
    for cache in ("none", "dual"):
        options["cache"] = cache
        together = decode(model, rows, KEYS, decoder, **options)
        if "block_size" in known:
            same(together, plain)
        if decode is run:
            joining = run(model, rows, KEYS, decoder, batch_size=2, **options)
            assert joining.tokens == together.tokens
        for number, (row, key) in enumerate(zip(rows, KEYS, strict=True)):
            alone = decode(model, [row], [key], decoder, **options)
            assert alone.tokens[0] == together.tokens[number]
            assert alone.query_tokens[0] == together.query_tokens[number]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("known", [{}, {"block_size": 4}, REORDERED], ids=str)
@pytest.mark.parametrize("block_length", [1, 4])
@pytest.mark.parametrize("way", ["static", "recorded"])
@pytest.mark.parametrize("decoder", OPTIONS)
def test_however_steps_are_run(
    golden: Model, traced: Traced, decoder: str, way: str, block_length: int, known: dict[str, Any]
) -> None:
    model = facts(golden, known)
    execution = traced() if way == "recorded" else Execution(static=True)
    found = []
    for each in (Execution(), execution, execution):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model, each=each: each)
            found.append(fill(model, HOLES, KEYS, decoder, cache="dual", block_length=block_length))
    for other in found[1:]:
        same(other, found[0])
        assert other.query_tokens == found[0].query_tokens


@pytest.mark.parametrize("block_length", [1, 4, None])
@pytest.mark.parametrize("decoder", OPTIONS)
def test_a_budget_is_kept(golden: Model, decoder: str, block_length: int | None) -> None:
    model = facts(golden, REORDERED)
    blocks = 23 if block_length == 1 else 6
    options: dict[str, Any] = {"block_length": block_length, "more": NEVER[decoder]}
    for steps in (blocks, 23):
        assert max(run(model, ROWS, KEYS, decoder, steps=steps, **options).forwards) <= steps


def test_what_it_refuses(golden: Model) -> None:
    with pytest.raises(ValueError, match="window, if sliding, must be an int <= 64, got 65"):
        run(golden, ROWS, KEYS, "wedlm", more={"window": 65})
    model = facts(golden, {"block_size": 64, "causal": True})
    for decoder, blocks in (("wedlm", 5), ("deferred_commitment", 64)):
        with pytest.raises(ValueError, match=rf"one block at a time for llada.*decodes {blocks}"):
            run(model, ROWS, KEYS, decoder)
