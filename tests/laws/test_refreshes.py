"""What a refresh leaves as it is, of prompts and of answers, told again in a plain loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.progress import ForwardPlan, Scope
from dlm.traits import Traits
from tests.laws.kept_columns import Columns

Decoding = Callable[[str], dict[str, Any]]
Traced = Callable[..., Execution]

MASK = 511
APART = [
    [5 + row, *(token for n in each for token in [MASK] * n + [9] * (4 - n))]
    for row, each in enumerate([[1, 3, 4, 2], [2, 4, 1, 4], [3, 1, 4, 4], [4, 4, 2, 1]])
]
"""Rows whose blocks have so many masks each: they part company."""
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
KEYS = [40, 41, 42]
LONG = 1000  # forwards, more than any row takes
PAIRS = [
    (name, cache)
    for name, decoder in DECODERS.items()
    for cache in Traits.of(decoder()).caches
    if cache != "none"
]


def run(model: Model, rows: list[list[int]], keys: list[int], **options: Any) -> dlm.Generation:
    usual = {"gen_length": 14, "block_length": 4, "stop_at_eos": False, "seed": 3}
    return dlm.generate(model, rows, row_keys=keys, **{**usual, **options})


def loop(
    model: Model,
    prompt: list[int],
    *,
    cache: str,
    every: int | None,
    answer_every: int | None,
    prompt_every: int | None,
    gen_length: int,
    block_length: int | None,
) -> tuple[list[int], int]:
    """The likeliest token of the surest mask, a forward each; tokens and positions computed."""
    begin, size = len(prompt), block_length or gen_length
    row = torch.tensor([prompt + [MASK] * gen_length])
    length, ahead = row.shape[1], int(model.spec.shift)
    layers: dict[int, list[Tensor]] = {}
    answered, whole, last_block, computed = LONG, LONG, begin, 0
    for block in range(begin, length, size):
        end = min(block + size, length)
        for spent in range(end - block):
            refresh = spent == 0 or (every is not None and spent % every == 0)
            first, last = last_block, length if cache == "prefix" else end
            if refresh and answered >= (answer_every or 0):
                first, last, answered = begin, length, 0
                if whole >= (prompt_every or 0):
                    first, whole = 0, 0
            answered, whole, last_block = answered + 1, whole + 1, block
            columns = slice(max(0, first - ahead), last)
            places = torch.arange(length)[None, columns]
            view = Columns(layers, columns, length)
            states = model.states(row[:, columns], places, None, view)
            computed += last - columns.start
            at = block - columns.start - ahead
            logits = model.logits(states[0, at : at + end - block])
            logits[:, list(model.spec.banned)] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            best = best.masked_fill(row[0, block:end] != MASK, -1.0)
            chosen = int(best.argmax())
            row[0, block + chosen] = token[chosen]
    return row[0].tolist()[begin:], computed


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("every", "block_length"), [(None, 4), (2, 4), (3, 7), (1, None)])
@pytest.mark.parametrize(
    ("answer_every", "prompt_every"),
    [(None, LONG), (None, 5), (None, 2), (LONG, None), (6, None), (4, 9), (9, 2), (None, None)],
)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@torch.inference_mode()
def test_it_is_what_a_plain_loop_makes_of_it(
    golden: Model,
    cache: str,
    answer_every: int | None,
    prompt_every: int | None,
    every: int | None,
    block_length: int | None,
    shift: bool,
) -> None:
    model = Model(golden.network, None, replace(golden.spec, shift=shift))
    options: dict[str, Any] = {"cache": cache, "gen_length": 14, "block_length": block_length}
    intervals: dict[str, Any] = {"answer_every": answer_every, "prompt_every": prompt_every}
    named = {f"refresh_{name}": value for name, value in intervals.items()}
    found = run(model, ROWS, KEYS, refresh_every=every, **named, **options)
    for number, prompt in enumerate(ROWS):
        told, computed = loop(model, prompt, every=every, **intervals, **options)
        assert found.tokens[number] == told
        assert found.query_tokens[number] == computed


@pytest.mark.one_in(8)
@pytest.mark.parametrize("more", [
    {"refresh_every": 2, "refresh_prompt_every": 3},
    {"refresh_answer_every": 5, "refresh_prompt_every": 7},
    {"refresh_answer_every": LONG, "refresh_around": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_a_row_does_not_depend_on_its_batch(
    golden: Model, decoding: Decoding, decoder: str, cache: str, more: dict[str, Any]
) -> None:
    """Some rows compute a window, others the block before it, what is behind their prompt, all."""
    options = {**decoding(decoder), "cache": cache, "temperature": 1.0, **more}
    together = run(golden, ROWS, KEYS, **options)
    for number, (row, key) in enumerate(zip(ROWS, KEYS, strict=True)):
        alone = run(golden, [row], [key], **options)
        for name in ("tokens", "forwards", "query_tokens"):
            assert getattr(alone, name)[0] == getattr(together, name)[number], name


@pytest.fixture(scope="module")
def sharp(golden_folder: Path) -> Model:
    """The golden network with attention that tells one key from another."""
    model = dlm.load(golden_folder, dtype="float32", device="cpu")
    for name, weight in model.network.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            weight.data *= 3
    return model


@pytest.mark.one_in(3)
@pytest.mark.parametrize("decoder", ["low_confidence", "info_gain", "ssd"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("around", [0, 4])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize(
    ("every", "answer_every", "prompt_every"),
    [(None, None, LONG), (2, None, 3), (None, LONG, None), (3, 4, 6)],
)
def test_what_is_computed_in_vain_is_not_kept(
    sharp: Model,
    cache: str,
    every: int | None,
    answer_every: int | None,
    prompt_every: int | None,
    around: int,
    shift: bool,
    decoder: str,
) -> None:
    """The window of a row that computes more, which others compute at the same time."""
    model = Model(sharp.network, None, replace(sharp.spec, shift=shift))
    options: dict[str, Any] = {"block_length": 4, "cache": cache, "temperature": 1.0}
    options |= {"decoder": decoder, "stop_at_eos": False}
    options |= {"refresh_every": every, "refresh_around": around}
    options |= {"refresh_answer_every": answer_every, "refresh_prompt_every": prompt_every}
    rows = [[7] * 2 * n + row for n, row in enumerate(APART)]
    together = dlm.infill(model, rows, row_keys=[0, 1, 2, 3], **options)
    for key, row in enumerate(rows):
        alone = dlm.infill(model, [row], row_keys=[key], **options)
        for name in ("tokens", "forwards", "query_tokens"):
            assert getattr(alone, name)[0] == getattr(together, name)[key], name


@pytest.mark.parametrize("shift", [False, True])
def test_nor_of_rows_that_joined_and_compute_more_at_every_forward(
    sharp: Model, shift: bool
) -> None:
    """Blocks of one token: nothing makes anew what a window in vain would leave in a prompt."""
    model = Model(sharp.network, None, replace(sharp.spec, shift=shift))
    options: dict[str, Any] = {"block_length": 1, "cache": "dual", "return_trajectory": True}
    options |= {"refresh_around": 3, "refresh_prompt_every": 3, "decoder": "left_to_right"}
    rows = [[*range(10 * n, 10 * n + 7), *[MASK] * (4 + 13 * (n % 2))] for n in range(1, 9)]
    together = dlm.infill(model, rows, batch_size=2, **options)
    for number, row in enumerate(rows):
        alone = dlm.infill(model, [row], row_keys=[number], **options)
        assert together.tokens[number] == alone.tokens[0]
        assert together.trajectory is not None
        assert alone.trajectory is not None
        found, expected = (
            [change.confidence for change in each.commits]
            for each in (together.trajectory[number], alone.trajectory[0])
        )
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_what_is_made_anew_at_every_forward_is_never_left_out(
    golden: Model, decoding: Decoding, decoder: str, cache: str
) -> None:
    options = {**decoding(decoder), "cache": cache, "refresh_every": 3}
    plain = run(golden, ROWS, KEYS, **options)
    for name in ("refresh_answer_every", "refresh_prompt_every"):
        found = run(golden, ROWS, KEYS, **{name: 1, **options})
        assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
        assert found.query_tokens == plain.query_tokens


@pytest.mark.parametrize("more", [
    {"cache": "dual", "refresh_prompt_every": LONG},
    {"cache": "dual", "refresh_prompt_every": 4, "refresh_every": 2, "cfg_scale": 0.7},
    {"cache": "prefix", "refresh_prompt_every": 3, "refresh_every": 2},
    {"cache": "prefix", "refresh_prompt_every": LONG, "decoder": "wino"},
    {"cache": "dual", "refresh_prompt_every": 3, "refresh_every": 2, "decoder": "ssd"},
    {"cache": "dual", "refresh_prompt_every": 5, "refresh_around": 2, "decoder": "klass"},
    {"cache": "dual", "refresh_answer_every": LONG, "refresh_around": 2},
    {"cache": "dual", "refresh_answer_every": 4, "refresh_prompt_every": 7, "cfg_scale": 0.7},
    {"cache": "prefix", "refresh_answer_every": 5, "decoder": "wino"},
    {"cache": "dual", "refresh_answer_every": 6, "decoder": "ssd"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("way", ["static", "recorded"])
def test_however_steps_are_run(
    golden: Model, traced: Traced, trace: Any, way: str, more: dict[str, Any]
) -> None:
    """The device is told how many rows compute what, and finds out which."""
    execution = traced() if way == "recorded" else Execution(static=True)
    options = {"row_keys": [1, 2, 3, 4], "block_length": 4, "temperature": 1.0, **more}
    found = []
    for each in (Execution(), execution, execution, execution):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Execution, "of", lambda model, each=each: each)
            before = trace.plays
            found.append(dlm.infill(golden, APART, **options))
            assert (trace.plays > before) == (way == "recorded" and each is execution)
    for other in found[1:]:
        assert (other.tokens, other.forwards) == (found[0].tokens, found[0].forwards)
        assert other.query_tokens == found[0].query_tokens


def test_answers_of_other_lengths_are_recorded_apart() -> None:
    """A recording computes so many positions of a row, whoever plays it."""
    short, long = (
        ForwardPlan([200, 90], [n, 30], [Scope.ANSWER] * 2, 0, 9, None) for n in (64, 128)
    )
    assert (short.tail, long.tail) == (64, 128)
    assert short.shape(200) != long.shape(200)
    mixed = (replace(plan, scopes=[Scope.ANSWER, Scope.WINDOW]) for plan in (short, long))
    assert len({plan.shape(200) for plan in mixed}) == 2


def test_blocks_without_blanks_are_stepped_over(golden: Model) -> None:
    """The next block computes from where the last tokens were decoded, however far that is."""
    row = [3, *[MASK] * 2, *[9] * 7, *[MASK] * 2, 7]
    out = dlm.infill(golden, [row], block_length=2, cache="dual", refresh_answer_every=LONG)
    assert out.query_tokens[0] == 13 + 2 + (11 - 1) + (12 - 9)


def test_text_behind_the_blanks_is_computed(golden: Model) -> None:
    """With all but the prompt, which ends where the first blank is."""
    row = [3, 4, MASK, MASK, 9, MASK, 20, 21]
    out = dlm.infill(
        golden, [row, [4, MASK, 5]], block_length=2, cache="dual", refresh_prompt_every=LONG
    )
    # A whole row, the first block; what is behind the prompt, as blocks of 2 lie there.
    assert out.query_tokens[0] == 8 + 2 + 6
    assert out.query_tokens[1] == 3


def test_where_it_is_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match="refresh_prompt_every goes with cache 'prefix' or"):
        run(golden, [[1]], [0], refresh_prompt_every=2)
    with pytest.raises(ValueError, match="refresh_prompt_every must be an int >= 1, got 0"):
        run(golden, [[1]], [0], cache="dual", refresh_prompt_every=0)
    final = Model(golden.network, None, replace(golden.spec, block_size=4))
    for name in ("refresh_answer_every", "refresh_prompt_every"):
        options: dict[str, Any] = {"cache": "dual", name: 2}
        with pytest.raises(ValueError, match=rf"{name} must be None for .*, got 2"):
            run(final, [[1]], [0], **options)
