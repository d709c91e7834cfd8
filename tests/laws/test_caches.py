"""Caches: exact where they say so, and a row's own business in any batch."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dlm
from dlm.cache import Cache, Refresh, Reuse
from dlm.decoders import DECODERS
from dlm.forward import Forward
from dlm.job import make_job
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits

MASK = 511
Decoding = Callable[[str], dict[str, Any]]

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
PAIRS = [
    (name, cache)
    for name, decoder in DECODERS.items()
    for cache in Traits.of(decoder()).caches
    if cache != "none"
]


def run(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 9, "block_length": 4, "stop_at_eos": False, "seed": 3}
    return dlm.generate(model, rows, row_keys=keys, **{**usual, **options})


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "cfg_scale": 0.7}], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_refreshed_at_every_forward_it_equals_no_cache(
    golden: Model, decoding: Decoding, decoder: str, cache: str, more: dict[str, Any], kept: bool
) -> None:
    """Where an interval might leave something out keys and values are kept, and never read."""
    options = {**decoding(decoder), "return_trajectory": True, **more}
    plain = run(golden, ROWS, KEYS, **options)
    every = {"refresh_every": 1, "refresh_answer_every": 1 if kept else None}
    cached = run(golden, ROWS, KEYS, cache=cache, **every, **options)
    assert (cached.tokens, cached.forwards) == (plain.tokens, plain.forwards)
    assert cached.query_tokens == plain.query_tokens
    assert plain.trajectory is not None
    assert cached.trajectory is not None
    for one, other in zip(plain.trajectory, cached.trajectory, strict=True):
        assert repr(one.commits) == repr(other.commits)  # confidences to the last bit, NaN too


@pytest.mark.one_in(12)
@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "cfg_scale": 0.7}], ids=str)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_refreshed_all_around_it_equals_no_cache(
    golden: Model,
    decoding: Decoding,
    decoder: str,
    cache: str,
    shift: bool,
    more: dict[str, Any],
) -> None:
    if shift and "leave_one_out" in Traits.of(DECODERS[decoder]()).needs:
        pytest.skip("a shifted family cannot tell")
    model = Model(golden.network, None, replace(golden.spec, shift=shift))
    options = {**decoding(decoder), **more}
    plain = run(model, ROWS, KEYS, **options)
    for around in (16, 1 << 20):  # no row is longer
        cached = run(model, ROWS, KEYS, cache=cache, refresh_around=around, **options)
        assert (cached.tokens, cached.forwards) == (plain.tokens, plain.forwards)
        assert cached.query_tokens == plain.query_tokens


@pytest.mark.one_in(9)
@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 1.0, "refresh_every": 2}, {"temperature": 1.0, "refresh_around": 2}],
    ids=str,
)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_a_row_does_not_depend_on_its_batch(
    golden: Model, decoding: Decoding, decoder: str, cache: str, more: dict[str, Any]
) -> None:
    options = {**decoding(decoder), "cache": cache, **more}
    together = run(golden, ROWS, KEYS, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(golden, [row], [key], **options)
        assert alone.tokens[0] == together.tokens[number]
        assert alone.forwards[0] == together.forwards[number]
        assert alone.query_tokens[0] == together.query_tokens[number]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_guided_rows_do_not_depend_on_their_batch(golden: Model, cache: str) -> None:
    options = {"decoder": "threshold", "decoder_options": {"threshold": 0.9}, "cfg_scale": 1.5}
    together = run(golden, ROWS, KEYS, cache=cache, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        assert (
            run(golden, [row], [key], cache=cache, **options).tokens[0] == together.tokens[number]
        )
    assert together.tokens != run(golden, ROWS, KEYS, **options).tokens


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_rows_that_finish_early_leave_the_others_alone(golden: Model, cache: str) -> None:
    blanks = [[*row, *[MASK] * 13] for row in ROWS]
    options: dict[str, Any] = {"block_length": 5, "cache": cache, "seed": 3, "temperature": 1.0}
    early = dlm.infill(golden, [[1, MASK], *blanks], row_keys=[7, *KEYS], **options)
    assert early.forwards[0] == 1
    later = dlm.infill(golden, blanks, row_keys=KEYS, **options)
    assert early.tokens[1:] == later.tokens


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_text_behind_the_blanks_is_seen(golden: Model, cache: str) -> None:
    """With one block over all blanks only the first forward, a whole one, could differ."""
    row = [3, MASK, MASK, 9, MASK, 20, 21, 22]
    options: dict[str, Any] = {"block_length": None, "decoder": "left_to_right", "seed": 1}
    every = dlm.infill(golden, [row], cache=cache, refresh_every=1, **options)
    assert every.tokens == dlm.infill(golden, [row], **options).tokens
    once = dlm.infill(golden, [row, [4, MASK, 5]], cache=cache, **options)
    assert once.tokens[0] == dlm.infill(golden, [row], cache=cache, **options).tokens[0]
    # Whole: 8. Then from the first blank on: 7 to the end of the row, 4 to the last blank.
    expected = {"prefix": 8 + 2 * 7, "dual": 8 + 2 * 4}
    assert once.query_tokens[0] == expected[cache]
    for block_length in (None, 8):  # one token more on either side of what is blank
        options |= {"block_length": block_length, "refresh_around": 1}
        near = dlm.infill(golden, [row, [4, *[MASK] * 8]], cache=cache, **options)
        assert near.query_tokens[0] == {"prefix": 8 + 2 * 8, "dual": 8 + 2 * 6}[cache]


def test_a_wide_batch_computes_nothing_more_of_a_narrow_row(golden: Model) -> None:
    """A dual cache keeps the text behind the blanks as the first forward saw it, in any batch."""
    narrow, wide = [3, MASK, MASK, MASK, 9, 20, 21, 22, 23, 24], [1, *[MASK] * 9]
    options: dict[str, Any] = {"block_length": None, "decoder": "left_to_right", "cache": "dual"}
    options["return_trajectory"] = True
    alone = dlm.infill(golden, [narrow], **options)
    beside = dlm.infill(golden, [narrow, wide], **options)
    afresh = dlm.infill(golden, [narrow], **{**options, "refresh_every": 1})

    def confidences(out: dlm.Generation) -> list[float]:
        assert out.trajectory is not None
        return [change.confidence for change in out.trajectory[0].commits]

    assert confidences(beside) == pytest.approx(confidences(alone), rel=1e-5)
    assert confidences(beside) != pytest.approx(confidences(afresh), rel=1e-5)


@pytest.mark.parametrize(
    ("cache", "refresh", "around", "queries"),
    [
        # A prompt of 3, blocks of 4, 4 and 2 masks, one token a forward: every block begins with
        # a whole forward of 13, and goes on with what its cache leaves to compute.
        ("none", None, 0, 10 * 13),
        ("prefix", None, 0, 3 * 13 + 3 * 10 + 3 * 6 + 1 * 2),
        ("dual", None, 0, 3 * 13 + 3 * 4 + 3 * 4 + 1 * 2),
        ("dual", 2, 0, 5 * 13 + 2 * 4 + 2 * 4 + 1 * 2),
        ("prefix", 1, 0, 10 * 13),
        ("prefix", None, 2, 3 * 13 + 3 * 12 + 3 * 8 + 1 * 4),
        ("dual", None, 2, 3 * 13 + 3 * 8 + 3 * 8 + 1 * 4),
        ("dual", 2, 4, 5 * 13 + 2 * 11 + 2 * 10 + 1 * 6),
    ],
)
@pytest.mark.parametrize("guided", [False, True])
def test_no_forward_is_wasted(
    golden: Model, cache: str, refresh: int | None, around: int, queries: int, guided: bool
) -> None:
    out = dlm.generate(
        golden,
        [[1, 2, 3]],
        gen_length=10,
        block_length=4,
        stop_at_eos=False,
        cache=cache,
        refresh_every=refresh,
        refresh_around=around,
        cfg_scale=0.5 * guided,
    )
    assert out.forwards == [10]
    assert out.query_tokens == [queries * (2 if guided else 1)]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_is_allocated_once(
    golden: Model, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[int] = []
    evaluate = Forward.__call__

    def watched(self: Forward, *given: Any) -> Any:
        out = evaluate(self, *given)
        assert self.cache is not None
        places.append(self.cache.layers[-1][0].data_ptr())
        return out

    monkeypatch.setattr(Forward, "__call__", watched)
    run(golden, [[1, 2], [3]], [0, 1], cache=cache)
    assert len(places) == 9
    assert len(set(places)) == 1


def test_queries_beyond_the_row_are_read_by_nobody() -> None:
    cache = Cache(rows=2, length=3)
    whole = torch.arange(6.0).view(2, 1, 3, 1)
    assert Refresh(cache, 3).update(whole, -whole, 0)[0] is whole
    columns = torch.tensor([[1, 2], [2, 3]])  # 3 is beyond
    new = torch.tensor([[10.0, 11.0], [12.0, 13.0]]).view(2, 1, 2, 1)
    places = columns + torch.tensor([[0], [4]])
    keys, values = Reuse(cache, places, 3).update(new, -new, 0)
    assert keys[:, 0, :, 0].tolist() == [[0.0, 10.0, 11.0], [3.0, 4.0, 12.0]]
    assert torch.equal(values, -keys)
    narrow = Cache(rows=1, length=2)
    narrow.follow(cache, torch.tensor([1]), 0)
    keys, _ = Reuse(narrow, torch.tensor([[0]]), 2).update(new[:1, :, :1], new[:1, :, :1], 0)
    assert keys[:, 0, :, 0].tolist() == [[10.0, 4.0]]


@pytest.mark.parametrize("decoder", sorted({*DECODERS} - {name for name, _ in PAIRS}))
def test_decoders_that_reach_back_are_refused(golden: Model, decoder: str) -> None:
    with pytest.raises(
        ValueError, match=r"cache must be 'none' for .*'dual'; with .*'safe'} it takes"
    ):
        run(golden, [[1]], [0], decoder=decoder, cache="dual")
    options = {"preset": "safe"}
    assert run(golden, [[1]], [0], decoder=decoder, decoder_options=options, cache="dual")


def test_options_that_do_not_fit_are_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match="refresh_every goes with cache 'prefix' or 'dual'"):
        run(golden, [[1]], [0], refresh_every=2)
    with pytest.raises(ValueError, match="refresh_every must be an int >= 1, got 0"):
        run(golden, [[1]], [0], cache="dual", refresh_every=0)
    with pytest.raises(ValueError, match="refresh_around goes with cache 'prefix' or 'dual'"):
        run(golden, [[1]], [0], refresh_around=2)
    with pytest.raises(ValueError, match="refresh_around must be an int >= 0, got -1"):
        run(golden, [[1]], [0], cache="dual", refresh_around=-1)
    for value in (False, 0.0, torch.tensor(0)):  # all of which equal 0
        with pytest.raises(ValueError, match="refresh_around must be an int >= 0, got"):
            run(golden, [[1]], [0], cache="dual", refresh_around=value)
    final = Model(golden.network, None, replace(golden.spec, block_size=4))
    with pytest.raises(ValueError, match=r"refresh_around must be 0 for .* block are final, got 2"):
        run(final, [[1]], [0], cache="dual", refresh_around=2)
    with pytest.raises(ValueError, match="cache must be 'none' or 'prefix' for Wino"):
        run(golden, [[1]], [0], decoder="wino", cache="dual")
    with pytest.raises(ValueError, match=r"unknown cache 'duel'. Did you mean 'dual'"):
        run(golden, [[1]], [0], cache="duel")


def test_the_cache_of_a_batch_goes_when_the_batch_shrinks(
    golden: Model, caches: Iterable[Cache]
) -> None:
    rows = [[5, 511, 511], [6, *[511] * 6]]
    settings = Settings(cache="dual", block_length=3, stop_at_eos=False)
    job = make_job(golden, rows, [(0, len(row)) for row in rows], settings)
    with torch.inference_mode():
        seen = [[cache.rows for cache in caches] for _ in job.steps()]
    assert seen == [[2]] * 2 + [[1]] * 4
