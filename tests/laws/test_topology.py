"""Families that predict the next token, and families whose attention is block-causal."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.canvas import active_length
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.models.model import Model, block_causal, causal_context
from dlm.models.spec import ModelSpec
from dlm.traits import Traits

Decoding = Callable[[str], dict[str, Any]]
Toy = Callable[..., Model]

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [1, 2, 3, 4]]
KEYS = [40, 41, 42, 43]
CAUSAL: dict[str, Any] = {"block_size": 8, "causal": True}
LAST: dict[str, Any] = {**CAUSAL, "reordered": True}  # masks stand last
BEHIND: dict[str, Any] = {"block_size": 8, "anchored": True}  # blocks begin behind the prompt
FACTS: list[dict[str, Any]] = [
    *({"block_size": 8}, {"block_size": 8, "shift": True}),
    *(CAUSAL, LAST, BEHIND, {**BEHIND, "shift": True}),
]
EXACT = [
    (name, cache)
    for name, make in DECODERS.items()
    for cache in Traits.of(make()).caches
    if cache != "none"
]


def facts(model: Model, **changes: Any) -> Model:
    return Model(model.network, model.tokenizer, replace(model.spec, **changes))


def run(model: Model, rows: list[list[int]], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 13, "block_length": 4, "stop_at_eos": False, "seed": 3}
    return dlm.generate(model, rows, return_trajectory=True, **{**usual, **options})


def same(one: dlm.Generation, other: dlm.Generation) -> None:
    assert one.tokens == other.tokens
    assert one.forwards == other.forwards
    assert one.trajectory is not None
    assert other.trajectory is not None
    for a, b in zip(one.trajectory, other.trajectory, strict=True):
        assert torch.equal(a.canvases, b.canvases)
        assert [c[:3] for c in a.commits] == [c[:3] for c in b.commits]


@pytest.mark.parametrize(
    ("block_length", "block_size", "expected"),
    [
        (32, None, 32),
        (None, None, None),
        (32, 4, 4),
        (None, 4, 4),
        (8, 32, 8),
        (20, 32, 16),
        (6, 7, 1),
    ],
)
def test_a_block_divides_the_block_of_the_network(
    block_length: int | None, block_size: int | None, expected: int | None
) -> None:
    spec = ModelSpec("any", 9, 8, 7, (7,), 99, (9, 9), block_size=block_size)
    assert active_length(block_length, spec) == expected


def test_queries_see_their_block_and_those_before() -> None:
    at = torch.arange(7)[None]
    seen = block_causal(at, at, 3)[0]
    assert seen.sum(-1).tolist() == [3, 3, 3, 6, 6, 6, 7]
    behind = block_causal(at, at, 3, torch.tensor([0, 2, 5]))
    counts = [[3, 3, 3, 6, 6, 6, 7], [2, 2, 5, 5, 5, 7, 7], [5, 5, 5, 5, 5, 7, 7]]
    assert behind.sum(-1).tolist() == counts


@pytest.mark.one_in(16)
@pytest.mark.parametrize("known", FACTS, ids=str)
@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "cfg_scale": 0.7}], ids=str)
@pytest.mark.parametrize(("decoder", "cache"), EXACT)
def test_a_block_causal_cache_is_exact(
    golden: Model,
    decoding: Decoding,
    decoder: str,
    cache: str,
    more: dict[str, Any],
    known: dict[str, Any],
) -> None:
    """What is final is computed once, and every block decides as if all were computed again."""
    if {"shift", "reordered"} & {*known} and decoder == "wino":
        pytest.skip("wino asks what such a family cannot answer")
    if "reordered" in known and "cfg_scale" in more:
        pytest.skip("it is refused")
    model = facts(golden, **known)
    options = {**decoding(decoder), "row_keys": KEYS, **more}
    ahead = Traits.of(DECODERS[decoder]()).ahead
    if ahead and model.spec.causal and not model.spec.reordered:
        with pytest.raises(ValueError, match="decoder must decode one block at a time for llada"):
            run(model, ROWS, **options)
        options["decoder_options"] = {"blocks": 1}
    plain = run(model, ROWS, **options)
    cached = run(model, ROWS, cache=cache, **options)
    same(cached, plain)
    assert sum(cached.query_tokens) < sum(plain.query_tokens)


@pytest.mark.usefixtures("stands_alone")
@pytest.mark.parametrize("known", FACTS, ids=str)
@pytest.mark.parametrize("decoder", ["low_confidence", "threshold", "klass", "remdm", "local_leap"])
def test_a_block_causal_cache_gives_the_same_bits(
    golden: Model, decoding: Decoding, decoder: str, known: dict[str, Any]
) -> None:
    """Every statistic, to the last bit of float32; of more decoders in `test_bits.py`."""
    model = facts(golden, **known)
    options = {**decoding(decoder), "row_keys": KEYS, "temperature": 1.0}
    plain, cached = (run(model, ROWS, cache=cache, **options) for cache in ("none", "dual"))
    assert repr(plain.trajectory) == repr(cached.trajectory)


@pytest.mark.parametrize("known", [FACTS[0], CAUSAL, LAST, BEHIND], ids=str)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_of_a_block_causal_network_stand_alone(
    golden: Model, cache: str, known: dict[str, Any]
) -> None:
    model = facts(golden, **known)
    together = run(model, ROWS, cache=cache, row_keys=KEYS, temperature=1.0)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(model, [row], cache=cache, row_keys=[key], temperature=1.0)
        assert alone.tokens[0] == together.tokens[number]
        assert alone.query_tokens[0] == together.query_tokens[number]


@pytest.mark.parametrize(
    "known",
    [{}, {"causal": True}, {"causal": True, "reordered": True}, {"anchored": True}],
    ids=str,
)
def test_given_text_between_blanks_is_cached_too(golden: Model, known: dict[str, Any]) -> None:
    """Whole blocks that hold no blank are passed over, and still seen."""
    model = facts(golden, block_size=4, **known)
    blank = golden.spec.mask_id
    row = [3, blank, blank, *range(20, 34), blank, 9, blank, 8, 7, 6, 5, 4, blank, 2]
    options: dict[str, Any] = {"block_length": 4, "return_trajectory": True}
    plain, cached = (
        dlm.infill(model, [row, [1, blank]], cache=cache, **options) for cache in ("none", "prefix")
    )
    same(cached, plain)


@pytest.mark.parametrize("known", [FACTS[0], CAUSAL, LAST, BEHIND], ids=str)
@pytest.mark.parametrize("static", [False, True])
def test_a_last_block_may_be_short(
    golden: Model, monkeypatch: pytest.MonkeyPatch, static: bool, known: dict[str, Any]
) -> None:
    """Fewer columns are left to compute than the window has."""
    model = facts(golden, **known)
    plain = run(model, [[1] * 8], gen_length=18, block_length=8)
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    same(run(model, [[1] * 8], gen_length=18, block_length=8, cache="dual"), plain)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("refresh_every", [None, 3])
@pytest.mark.parametrize("known", [FACTS[0], CAUSAL, LAST, BEHIND], ids=str)
def test_a_row_may_be_shorter_than_the_window(
    golden: Model,
    monkeypatch: pytest.MonkeyPatch,
    known: dict[str, Any],
    refresh_every: int | None,
    static: bool,
) -> None:
    """Where prompt and blanks end before the window of a longer row does."""
    model = facts(golden, **known)
    blank = model.spec.mask_id
    rows = [[5, 6, 7, blank, blank, blank, blank], [blank] * 17, [8, blank]]
    options: dict[str, Any] = {"return_trajectory": True, "block_length": 8}
    plain = dlm.infill(model, rows, **options)
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    same(dlm.infill(model, rows, cache="dual", refresh_every=refresh_every, **options), plain)


@pytest.mark.parametrize(
    "known",
    [{}, {"causal": True}, {"causal": True, "reordered": True}, {"anchored": True}],
    ids=str,
)
def test_refreshing_an_exact_cache_computes_rows_from_their_beginning(
    golden: Model, known: dict[str, Any]
) -> None:
    model = facts(golden, block_size=4, **known)
    kept, again = (run(model, ROWS, cache="dual", refresh_every=n) for n in (None, 2))
    same(again, kept)
    assert sum(again.query_tokens) > sum(kept.query_tokens)


def test_blocks_are_counted_from_the_blocks_of_the_network(toy: Toy) -> None:
    """The first block to decode is what the prompt leaves of the network's block."""
    out = run(toy(1, block_size=4), [[1, 2, 3, 4, 5, 6]], decoder="random", gen_length=7)
    assert out.trajectory is not None
    blocks = [(6 + change.position) // 4 for change in out.trajectory[0].commits]
    assert blocks == sorted(blocks)
    assert blocks.count(1) == 2


@pytest.mark.parametrize("more", [{"block_size": 4}, CAUSAL, LAST, BEHIND], ids=str)
def test_made_anew_every_time_it_is_no_cache(golden: Model, more: dict[str, Any]) -> None:
    model = facts(golden, **more)
    plain, anew = run(model, ROWS), run(model, ROWS, cache="prefix", refresh_every=1)
    same(anew, plain)
    assert anew.query_tokens == plain.query_tokens
    assert repr(anew.trajectory) == repr(plain.trajectory)  # confidences to the last bit


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_shifted_network_refreshed_every_time_equals_no_cache(golden: Model, cache: str) -> None:
    model = facts(golden, shift=True)
    every = {"refresh_every": 1, "refresh_answer_every": 1}  # which keeps what nobody reads
    same(run(model, ROWS, cache=cache, **every), run(model, ROWS))
    often = run(model, ROWS, cache=cache, refresh_every=2, row_keys=KEYS)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(model, [row], cache=cache, refresh_every=2, row_keys=[key])
        assert alone.tokens[0] == often.tokens[number]


def test_a_shifted_token_is_read_in_front_of_it(golden: Model) -> None:
    """Left to right, one at a time: what a plain loop over raw logits gives."""
    model = facts(golden, shift=True)
    row = [5, 6, 7]
    out = run(model, [row], decoder="left_to_right", block_length=None, gen_length=6)
    for _ in range(6):
        tokens = torch.tensor([[*row, *[model.spec.mask_id] * (9 - len(row))]])
        logits: Tensor = model.raw_logits(tokens)[0, len(row) - 1]
        logits[torch.tensor(model.spec.banned)] = -torch.inf
        row.append(int(logits.argmax()))
    assert out.tokens[0] == row[3:]


def test_what_a_shifted_family_cannot_do_is_refused(golden: Model) -> None:
    model = facts(golden, shift=True)
    with pytest.raises(ValueError, match=r"must not begin with a mask for llada, .* in row 0"):
        dlm.infill(model, [[model.spec.mask_id, 4]])
    with pytest.raises(ValueError, match=r"decoder must not ask .* for llada, .* got 'wino'"):
        run(model, ROWS, decoder="wino")


def test_a_network_without_a_cache_refuses_one(golden: Model) -> None:
    with pytest.raises(ValueError, match="cache must be 'none' for llada"):
        run(facts(golden, caches=False), ROWS, cache="dual")


@pytest.mark.parametrize("decoder", ["threshold", "saber", "wino"])
def test_what_is_before_a_block_sees_nothing_behind_itself(golden: Model, decoder: str) -> None:
    """Saber has all blocks so far for one; WINO's shadows see what a block does but their place."""
    seen: list[Tensor] = []

    class Watched(Model):
        def hidden(self, *given: Any, **options: Any) -> Tensor:
            seen.append(options["attend"][0])
            return Model.hidden(self, *given, **options)

    model = Watched(golden.network, None, replace(golden.spec, **CAUSAL))
    out = run(model, [[5, 6, 7]], decoder=decoder)
    assert len(seen) == out.forwards[0]
    columns = torch.arange(16)[None]
    begins = torch.tensor([3, 7, 11, 15])
    ends = torch.tensor([7, 11, 15, 16])
    first = begins * 0 + 3 if decoder == "saber" else begins
    expected = causal_context(columns.expand(4, -1), columns, first, ends)
    blocks = []
    for attend in seen:
        (block,) = (i for i in range(4) if torch.equal(attend[:16, :16], expected[i]))
        blocks.append(block)
        for place, shadow in enumerate(attend[16:, :16]):
            own = min(int(begins[block]) + place, 15)
            assert shadow.nonzero()[:, 0].tolist() == [i for i in range(ends[block]) if i != own]
    assert blocks == sorted(blocks)
    assert {*blocks} == {*range(4)}
    assert (decoder == "wino") == (len(seen[0]) > 16)
