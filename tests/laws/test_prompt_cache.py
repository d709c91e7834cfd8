"""Rows that take over keys and values of others decode what they would alone."""

import gc
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dlm
from dlm.batch import Change, Rows, Terms, denoise
from dlm.cache import Cache, Refresh
from dlm.canvas import Canvas
from dlm.decoders import DECODERS
from dlm.endings import End, ended
from dlm.execution import Execution
from dlm.job import make_job
from dlm.models.model import Model
from dlm.outputs import Generation
from dlm.pages import FRONT, Ledger
from dlm.settings import Settings
from dlm.traits import Traits

Decoding = Callable[[str], dict[str, Any]]

CACHED = [name for name, make in DECODERS.items() if "prefix" in Traits.of(make()).caches]
FACTS: list[dict[str, Any]] = [
    {"block_size": 8},
    {"block_size": 64},
    {"block_size": 8, "shift": True},
    {"block_size": 8, "causal": True},
    {"block_size": 8, "causal": True, "reordered": True},
]
USUAL: dict[str, Any] = {
    "gen_length": 20,
    "block_length": 8,
    "temperature": 0.8,
    "cache": "prefix",
    "stop_at_eos": False,
}
TALK = torch.randint(1, 400, (140,), generator=torch.Generator().manual_seed(3)).tolist()


def in_blocks(golden: Model, **facts: Any) -> Model:
    return replace(golden, spec=replace(golden.spec, **facts))


def both(
    model: Model, kept: dlm.PromptCache, prompts: list[list[int]], **options: Any
) -> tuple[Generation, Generation]:
    """Decoded by themselves, and with what others left."""
    options = {**USUAL, **options}
    plain = dlm.generate(model, prompts, **options)
    found = dlm.generate(model, prompts, prompt_cache=kept, **options)
    assert found.tokens == plain.tokens
    assert found.forwards == plain.forwards
    return plain, found


@pytest.mark.one_in(16)
@pytest.mark.parametrize("decoder", CACHED)
@pytest.mark.parametrize("facts", FACTS, ids=str)
def test_rows_that_begin_alike_decode_what_they_would_alone(
    golden: Model, decoding: Decoding, decoder: str, facts: dict[str, Any]
) -> None:
    if decoder == "wino" and {"shift", "reordered"} & {*facts}:
        pytest.skip("wino asks what such a family cannot answer")
    model, options = in_blocks(golden, **facts), decoding(decoder)
    if decoder == "d2f" and model.spec.causal and not model.spec.reordered:
        options["decoder_options"] = {"blocks": 1}
    kept = dlm.PromptCache(model, gib=0.01)
    first = [TALK[:70], TALK[:9]]
    plain, found = both(model, kept, first, **options)
    assert found.query_tokens == plain.query_tokens
    answered = [*TALK[:70], *found.tokens[0], 1, 2, 3]  # a turn more
    plain, found = both(model, kept, [answered, TALK[:100], TALK[:12]], seed=1, **options)
    saved = [a - b for a, b in zip(plain.query_tokens, found.query_tokens, strict=True)]
    ahead = int(model.spec.shift)  # the column in front of a block is computed along with it
    assert saved[0] >= saved[1] == 64 - ahead
    assert saved[2] == 0


def test_of_an_answer_all_but_its_last_block_is_kept(golden: Model) -> None:
    model = in_blocks(golden, block_size=32)
    kept = dlm.PromptCache(model, gib=0.01)
    options = {"gen_length": 96, "block_length": 32}
    _, found = both(model, kept, [TALK[:40]], **options)
    row = [*TALK[:40], *found.tokens[0]]  # 136 tokens: its last block begins at 128
    assert len(kept.ledger.find(row)) == 4
    plain, found = both(model, kept, [row], **options)
    assert plain.query_tokens[0] - found.query_tokens[0] == 128


def check(model: Model, kept: dlm.PromptCache) -> None:
    """Every page holds what a forward of all in front of it, and of itself, makes of it."""
    rows: dict[int, list[int]] = {FRONT: []}
    for (front, tokens), slot in reversed(kept.ledger.slots.items()):  # from the front of each row
        rows[slot] = [*rows[front], *tokens]
        length = len(rows[slot])
        positions, cache = torch.arange(length)[None], Cache(1, length)
        attend = positions[:, None] <= positions[..., None] if model.spec.causal else None
        ids, view = torch.tensor([rows[slot]]), Refresh(cache, length)
        with torch.inference_mode():
            model.hidden(ids, positions, None, view, attend=attend)
        for mine, theirs in zip(kept.layers, cache.layers, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                last = other[0, length - kept.page : length]
                torch.testing.assert_close(one[slot], last, atol=1e-5, rtol=1e-5)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("facts", FACTS, ids=str)
@pytest.mark.parametrize("decoder", ["threshold", "block_refinement"])
def test_pages_hold_what_would_be_computed(
    golden: Model, decoder: str, facts: dict[str, Any]
) -> None:
    """Also of rows that end early, and whose end is filled behind what was computed."""
    model = in_blocks(golden, **facts, stop_ids=tuple(range(40)), eos_id=0)
    kept = dlm.PromptCache(model, gib=0.01)
    options = {"decoder": decoder, "gen_length": 70, "stop_at_eos": True}
    for seed in range(3):
        _, found = both(model, kept, [TALK[:30], TALK[:70]], seed=seed, **options)
    assert kept.tokens
    assert any(row[-8:] == [0] * 8 for row in found.tokens)
    check(model, kept)


def three_pages(model: Model) -> dlm.PromptCache:
    token = 4 * 2 * 64 * len(model.network.model.layers)  # bytes: keys and values of 64 floats
    return dlm.PromptCache(model, gib=3.5 * 32 * token / (1 << 30))


def test_little_room_is_as_good_for_what_it_holds(golden: Model) -> None:
    """Pages make room for others while rows of one batch are kept."""
    model = in_blocks(golden, block_size=32)
    kept = three_pages(model)
    for start in (0, 3, 0, 40, 3):
        both(model, kept, [TALK[start:], TALK[start:], TALK[start + 1 :]])
        check(model, kept)
    assert kept.tokens == 32 * 3


@pytest.mark.parametrize("gib", [1e-9, 1e7], ids=["no page", "no memory"])
def test_no_room_at_all_is_told(
    golden: Model, caplog: pytest.LogCaptureFixture, gib: float
) -> None:
    model = in_blocks(golden, block_size=32)
    kept = dlm.PromptCache(model, gib=gib)
    with caplog.at_level(logging.WARNING):
        both(model, kept, [TALK])
        both(model, kept, [TALK])
    assert len(caplog.records) == 1
    assert "no prompts are kept" in caplog.text
    assert kept.tokens == 0


@pytest.mark.parametrize("way", ["plain", "static", "recorded"])
def test_rows_that_join_take_over_and_leave(
    golden: Model, traced: Callable[..., Execution], way: str
) -> None:
    """Also where one is given up, which leaves what it had."""
    model = in_blocks(golden, block_size=8)
    execution = {"plain": Execution, "static": lambda: Execution(static=True), "recorded": traced}
    how = execution[way]()
    options = {**USUAL, "gen_length": 40, "row_keys": [0]}
    begun = dlm.generate(model, TALK[:125], **options).tokens[0][:3]  # up to the end of a page
    prompts = [TALK[:70], TALK[:125], TALK[:40], [*TALK[:125], *begun, 1, 2, 3]]
    rows = [[*prompt, *[511] * 40] for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "of", lambda model: how)
        jobs = [make_job(model, [row], [(0, len(row))], Settings(**options)) for row in rows]
    comes, made = {0: [0], 2: [1], 5: [2], 9: [3]}, 0

    def arrivals() -> Rows | None:
        names = comes.get(made)
        if names is None:
            return None
        canvas = Canvas.stack([jobs[name].canvas for name in names], 0)
        return Rows(canvas, [len(rows[name]) for name in names], names)

    def change() -> Change:
        nonlocal made
        made += 1
        return Change(frozenset({1} if made == 8 else ()), arrivals())

    terms = Terms.of(model, jobs[0].settings, jobs[0].decoder, how, 48)
    kept = dlm.PromptCache(model, gib=0.01)
    ends: dict[int, End] = {}
    reused: dict[int, int] = {}
    first = arrivals()
    assert first is not None
    with torch.inference_mode():
        for step in denoise(terms, first, change, kept):
            ends.update(ended(step))
            reused.update(zip(step.names, step.reused, strict=True))
    assert reused == {0: 0, 1: 64, 2: 32, 3: 128}
    assert ends.keys() == {0, 2, 3}
    for name, end in ends.items():
        alone = dlm.generate(model, rows[name][:-40], **options)
        length = len(rows[name])
        assert end.tokens[length - 40 : length] == alone.tokens[0]


def test_rows_given_up_all_together_leave_what_they_have(golden: Model) -> None:
    model = in_blocks(golden, block_size=8)
    kept = dlm.PromptCache(model, gib=0.01)
    for forwards, tokens in ((1, 96), (4, 128)):
        snapshots = dlm.stream(model, TALK[:125], prompt_cache=kept, **USUAL)
        for _ in range(forwards):
            next(snapshots)
        snapshots.close()  # type: ignore[attr-defined]
        assert kept.tokens == tokens
    check(model, kept)


@pytest.mark.parametrize("within", ["find", "add"])
def test_a_stream_may_be_collected_while_its_cache_is_in_use(
    golden: Model, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    """As by the garbage collector: in the same thread, which must not wait for itself."""
    model = in_blocks(golden, block_size=32)
    kept, prompt = three_pages(model), TALK[:100]
    left = [dlm.stream(model, TALK[n:], prompt_cache=kept, **USUAL) for n in (7, 9)]
    for each in left:  # the first to go must not let the other one in
        next(each)
    both(model, kept, [prompt if within == "find" else TALK[20:]])  # all that there is room for
    look, found = getattr(Ledger, within), []

    def collecting(ledger: Ledger, tokens: list[int]) -> Any:
        slots = look(ledger, tokens)
        while left:
            left.pop().close()  # type: ignore[attr-defined]
        return slots

    monkeypatch.setattr(Ledger, within, collecting)

    def decode() -> None:
        snapshots = dlm.stream(model, prompt, prompt_cache=kept, **USUAL)
        next(snapshots)
        check(model, kept)
        *_, last = snapshots
        found.append(last.tokens)

    work = threading.Thread(target=decode, daemon=True)
    work.start()
    work.join(60)
    assert not left
    assert found, "it waits for itself, or it failed"
    assert found == dlm.generate(model, [prompt], **USUAL).tokens
    check(model, kept)


def test_a_stream_may_be_collected_with_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    model = in_blocks(dlm.load(None), block_size=8)
    kept = dlm.PromptCache(model, gib=0.01)
    snapshots: Any = dlm.stream(model, TALK[:40], prompt_cache=kept, **USUAL)
    next(snapshots)
    ring = [snapshots]
    ring.append(ring)
    del model, kept, snapshots, ring
    gc.collect()
    assert not failed


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_what_could_not_be_copied_is_not_kept(
    golden: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    model = in_blocks(golden, block_size=8)
    kept = dlm.PromptCache(model, gib=0.01)
    both(model, kept, [TALK[:40]])
    with monkeypatch.context() as patch:
        patch.setattr(kept, "copy", raising(error()))
        if error is torch.OutOfMemoryError:
            both(model, kept, [TALK[50:]])
            assert "what was kept is forgotten" in caplog.text
        else:
            with pytest.raises(error):
                dlm.generate(model, [TALK[50:]], prompt_cache=kept, **USUAL)
    assert kept.tokens == 0
    both(model, kept, [TALK[50:]])
    both(model, kept, [TALK[50:]])
    check(model, kept)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_another_kind_of_numbers_begins_anew(golden: Model) -> None:
    model = in_blocks(golden, block_size=8)
    kept = dlm.PromptCache(model, gib=0.01)
    both(model, kept, [TALK[:70]])
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = both(model, kept, [TALK[:70]])
        assert found.query_tokens == plain.query_tokens
        plain, found = both(model, kept, [TALK[:70]])
        assert found.query_tokens < plain.query_tokens
    both(model, kept, [TALK[:70]])
    check(model, kept)


def test_a_prompt_cache_must_fit(golden: Model) -> None:
    with pytest.raises(ValueError, match="prompt_cache must be None for llada: a prompt's keys"):
        dlm.PromptCache(golden)
    model = in_blocks(golden, block_size=8)
    for gib in (0, -1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="gib must be"):
            dlm.PromptCache(model, gib=gib)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown option 'gb'.*'gib'"):
        dlm.PromptCache(model, gb=1)  # type: ignore[call-arg]
    kept = dlm.PromptCache(model)
    for options in ({"cache": "none"}, {"cfg_scale": 1.0}, {"refresh_every": 1}):
        with pytest.raises(ValueError, match="prompt_cache goes with cache 'prefix' or 'dual'"):
            dlm.generate(model, [1], prompt_cache=kept, **{**USUAL, **options})
    with pytest.raises(ValueError, match=r"prompt_cache must be a dlm\.PromptCache, got True"):
        dlm.stream(model, [1], prompt_cache=True, **USUAL)  # type: ignore[arg-type]
    others = in_blocks(golden, block_size=16), replace(model, network=dlm.load(None).network)
    for other in others:
        with pytest.raises(ValueError, match="prompt_cache must be one of this model"):
            dlm.generate(other, [1], prompt_cache=kept, **USUAL)
