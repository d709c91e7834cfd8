"""Rows that wait for others to end decode what they would beside them, however many wait."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

import dlm
from dlm.batch import Batch, Change
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.job import generation_job
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.trajectory import Recorder, Written

Decoding = Callable[[str], dict[str, Any]]
Toy = Callable[..., Model]

PAIRS = [
    (name, cache)
    for name, make in DECODERS.items()
    for cache in Traits.of(make()).caches
    if cache != "prefix"
]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [1, 2], [3], [4] * 9, [20, 21], [9, 8, 7]]
KEYS = list(range(40, 40 + len(ROWS)))
USUAL: dict[str, Any] = {
    "gen_length": 9,
    "block_length": 4,
    "stop_at_eos": False,
    "seed": 3,
    "row_keys": KEYS,
    "return_order": True,
    "return_trajectory": True,
}


def same(one: dlm.Generation, other: dlm.Generation) -> None:
    """Also in the numbers of forwards; confidences to what batches of other sizes leave."""
    for field in fields(dlm.Generation):
        if field.name not in ("trajectory", "path_log_probability"):
            assert getattr(one, field.name) == getattr(other, field.name)
    assert one.trajectory is not None
    assert other.trajectory is not None
    for a, b in zip(one.trajectory, other.trajectory, strict=True):
        assert a.canvases.equal(b.canvases)
        for kind in ("commits", "remasks", "edits"):
            assert [c[:3] for c in getattr(a, kind)] == [c[:3] for c in getattr(b, kind)]
        assert a.times == pytest.approx(b.times)


@pytest.mark.one_in(18)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_the_number_of_rows_decoded_at_a_time_changes_nothing(
    golden: Model,
    decoding: Decoding,
    monkeypatch: pytest.MonkeyPatch,
    decoder: str,
    cache: str,
    static: bool,
) -> None:
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    options = {**USUAL, **decoding(decoder), "cache": cache, "temperature": 0.8}
    whole = dlm.generate(golden, ROWS, **options)
    for size in (1, 5):
        same(whole, dlm.generate(golden, ROWS, batch_size=size, **options))


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_rows_may_all_end_at_once(golden: Model, cache: str, size: int) -> None:
    """As many forwards as batches, if nobody was left when the last ones were done."""
    options = {**USUAL, "gen_length": 1, "cache": cache}
    whole = dlm.generate(golden, ROWS, **options)
    same(whole, dlm.generate(golden, ROWS, batch_size=size, **options))


def test_blanks_anywhere(golden: Model) -> None:
    mask = golden.spec.mask_id
    rows = [[*row, mask, 3, *[mask] * (index + 1)] for index, row in enumerate(ROWS)]
    options = {**USUAL, "cache": "dual"}
    del options["gen_length"]
    same(dlm.infill(golden, rows, **options), dlm.infill(golden, rows, batch_size=3, **options))


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_end_at_stop_tokens(toy: Toy, cache: str) -> None:
    options = {**USUAL, "stop_at_eos": True, "gen_length": 24, "temperature": 1.0, "cache": cache}
    model = toy(1)
    rows = [[number % 5] for number in range(12)]
    options["row_keys"] = range(12)
    whole = dlm.generate(model, rows, **options)
    assert len(set(whole.forwards)) > 3
    same(whole, dlm.generate(model, rows, batch_size=4, **options))


@pytest.mark.parametrize("size", [1, 4, 8])
def test_no_more_rows_are_decoded_than_asked_for_and_none_waits_in_vain(
    golden: Model, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Where rows need unlike numbers of forwards others join before the last one is done."""
    together: list[set[int]] = []
    step = Batch.step

    def watched(batch: Batch) -> Any:
        together.append({name for name, live in zip(batch.names, batch.live, strict=True) if live})
        return step(batch)

    monkeypatch.setattr(Batch, "step", watched)
    options = {**USUAL, "decoder": "threshold", "decoder_options": {"threshold": 0.004}}
    options |= {"row_keys": range(24), "temperature": 0.8}
    rows = [row for row in ROWS for _ in range(3)]
    out = dlm.generate(golden, rows, batch_size=size, **options)
    assert max(map(len, together)) == size
    assert len(set(out.forwards)) > 1
    in_turns = -(-len(rows) // size)
    assert len(together) <= in_turns * max(out.forwards)
    full = sum(len(names) == size for names in together)
    assert full * size >= sum(out.forwards) - size * max(out.forwards)  # but at the end


def test_each_row_is_told_once_it_is_done(golden: Model) -> None:
    options = {**USUAL, "decoder": "threshold", "decoder_options": {"threshold": 0.003}}
    whole = dlm.generate(golden, ROWS, **options)
    told: list[int] = []  # rows of each forward
    tell = lambda step: told.append(sum(step.live))  # noqa: E731
    made = iter(dlm.generate_each(golden, ROWS, batch_size=3, tell=tell, **options))
    found = dict([next(made)])
    assert set(found) < {0, 1, 2}  # those that begin
    assert len(told) == min(whole.forwards[:3])
    for number, one in made:
        assert number not in found
        found[number] = one
    assert sorted(found) == list(range(len(ROWS)))
    for number, one in found.items():
        assert one.tokens == [whole.tokens[number]]
        assert one.forwards == [whole.forwards[number]]
        assert one.order is not None
        assert whole.order is not None
        assert one.order == [whole.order[number]]
    assert sum(told) == sum(whole.forwards)


def test_nothing_is_kept_of_rows_that_were_told(
    golden: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    for kind in (Recorder, Written):
        begin = kind.__init__

        def noted(self: Any, *given: Any, begin: Any = begin) -> None:
            begin(self, *given)
            kept.append(self)

        monkeypatch.setattr(kind, "__init__", noted)
    each = dlm.generate_each(golden, ROWS, batch_size=2, return_top_tokens=3, **USUAL)
    assert len(list(each)) == len(ROWS)
    assert [type(one) for one in kept] == [Recorder, Written]
    assert not any(one.rows for one in kept)
    assert not kept[1].likeliest


def test_what_is_no_batch_size_is_refused_at_once(golden: Model) -> None:
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, got 0"):
        dlm.generate(golden, [[1]], gen_length=9, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, got True"):
        dlm.infill(golden, [[1, golden.spec.mask_id]], batch_size=True)
    with pytest.raises(ValueError, match=r"unknown option 'batchsize'\. Did you mean 'batch_size'"):
        dlm.generate_each(golden, [[1]], batchsize=3)
    with pytest.raises(ValueError, match="gen_length must be an int >= 1, got 0"):
        dlm.generate_each(golden, [[1]], gen_length=0)
    told: Any = 3
    with pytest.raises(ValueError, match="tell must be a function that takes a step, or None"):
        dlm.generate_each(golden, [[1]], gen_length=4, tell=told)
    with pytest.raises(ValueError, match="tell must be a function that takes a step, or None"):
        dlm.infill_each(golden, [[1, golden.spec.mask_id]], tell=told)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("block_length", [None, 4])
def test_rows_of_lengths_of_their_own_are_what_they_are_alone(
    golden: Model, block_length: int | None
) -> None:
    lengths = [1, 9, 4, 13, 2, 7, 5, 3]
    options = {**USUAL, "temperature": 0.8, "block_length": block_length, "cache": "dual"}
    del options["gen_length"]
    whole = dlm.generate(golden, ROWS, gen_length=lengths, **options)
    same(whole, dlm.generate(golden, ROWS, gen_length=lengths, batch_size=3, **options))
    assert [*map(len, whole.tokens)] == lengths
    for number, (row, length, key) in enumerate(zip(ROWS, lengths, KEYS, strict=True)):
        alone = dlm.generate(golden, row, gen_length=length, **{**options, "row_keys": [key]})
        assert alone.tokens[0] == whole.tokens[number]
        assert alone.forwards[0] == whole.forwards[number]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4], "gen_length must be an int, or one for each of the 8 prompts, got 1"),
        ([], r"gen_length must be an int, or one for each prompt, got \[\]"),
        ([4] * 7 + [0], "gen_length must be an int >= 1, got 0"),
        ("4", "gen_length must be an int >= 1, got '4'"),
        ({4}, r"gen_length must be an int, or one for each prompt, got \{4\}"),
        (torch.tensor(4), r"gen_length must be an int, or one for each prompt, got tensor\(4\)"),
    ],
)
def test_lengths_that_fit_no_rows_are_refused(golden: Model, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.generate(golden, ROWS, gen_length=lengths)


@torch.inference_mode()
def test_rows_given_up_again_and_again_leave_one_place_each(golden: Model) -> None:
    """Whoever says so may name all rows that it ever gave up, those that are done among them."""
    options = {name: value for name, value in USUAL.items() if not name.startswith("return")}
    job = generation_job(golden, ROWS, Settings(**options), batch_size=2)
    over: set[int] = set()
    done: set[int] = set()
    for step in job.steps(lambda: Change(leave=frozenset(over))):
        assert sum(step.live) <= 2
        done |= {name for name, ended in zip(step.names, step.done, strict=True) if ended}
        over.update(done, {0})
    assert done == {*range(1, len(ROWS))}
