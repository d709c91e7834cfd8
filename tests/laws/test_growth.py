"""Blanks that become more and fewer, against the authors' rule for one row at a time."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.traits import Traits

Toy = Callable[..., Model]

EXPAND = 50
LIKELY = {EXPAND: 2.6}  # so that a random network asks for blanks, and gives them up, now and then
USUAL: dict[str, Any] = {"decoder": "entropy", "block_length": None, "max_gen_length": 12}
ROWS = 8


@pytest.fixture
def grower(golden: Model) -> Model:
    """A random network that asks for blanks by a token."""
    return replace(golden, spec=replace(golden.spec, expand_id=EXPAND))


def bias(model: Model) -> dict[int, float]:
    return {**LIKELY, model.spec.eos_id: 2.4}


def texts(model: Model, count: int = ROWS) -> list[list[int]]:
    """Rows with one to four blanks in one place or two, ended by an end of text that is given."""
    mask, end = model.spec.mask_id, model.spec.eos_id
    rows = []
    for number in range(count):
        blanks, behind = [mask] * (1 + number % 3), [mask] * (number % 2)
        rows.append([11 + number, 12, *blanks, *range(20, 23 + number), *behind, 30, end])
    return rows


def as_the_authors_do(
    model: Model,
    row: list[int],
    most: int,
    budget: int,
    bias: dict[int, float],
    spreads: bool = False,
) -> tuple[list[int], int]:
    """One row, one token a forward, the one of lowest entropy: what it becomes, and forwards."""
    spec, row, forwards = model.spec, list(row), 0
    length = len(row) - row.count(spec.mask_id)
    banned = [*spec.growing.banned]
    while spec.mask_id in row:
        logits = model.raw_logits(torch.tensor([row]))[0].double()
        for token, value in bias.items():
            logits[:, token] += value
        logits[:, banned] = -torch.inf
        if len(row) == length + most or budget == 0:
            logits[:, spec.expand_id] = -torch.inf
        p = logits.softmax(-1)
        entropy = -torch.special.xlogy(p, p).sum(-1)
        blank = torch.tensor(row) == spec.mask_id
        place = int(entropy.masked_fill(~blank, torch.inf).argmin())
        token = int(logits[place].argmax())
        if token == spec.expand_id:
            row[place : place + 1] = [spec.mask_id] * 2
            budget -= 1
        elif token == spec.eos_id:
            del row[place]
            while spreads and row[place] == spec.mask_id:
                del row[place]
        else:
            row[place] = token
        forwards += 1
    return row, forwards


@pytest.mark.parametrize(
    ("budget", "spreads"), [(None, False), (3, False), (0, False), (None, True)]
)
def test_rows_become_what_the_authors_make_of_each(
    grower: Model, budget: int | None, spreads: bool
) -> None:
    rows, options = texts(grower), {**USUAL, "logit_bias": bias(grower)}
    options["broadcast_deletion"] = spreads
    most = 24 if budget is None else budget
    expected = [as_the_authors_do(grower, row, 12, most, bias(grower), spreads) for row in rows]
    for size in (None, 1, 3):
        out = dlm.infill(grower, rows, batch_size=size, expand_budget=budget, **options)
        assert list(zip(out.tokens, out.forwards, strict=True)) == expected
    longer = [len(made) > len(row) for (made, _), row in zip(expected, rows, strict=True)]
    shorter = [len(made) < len(row) for (made, _), row in zip(expected, rows, strict=True)]
    assert any(longer) == (budget != 0)
    assert any(shorter)


PAIRS = [
    (name, cache)
    for name, make in DECODERS.items()
    if not Traits.of(make()).mutates_committed
    for cache in Traits.of(make()).caches
    if cache != "prefix"
]


@pytest.mark.one_in(9)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
def test_rows_depend_on_nothing_beside_them(
    grower: Model,
    decoding: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    decoder: str,
    cache: str,
    static: bool,
) -> None:
    """Nor do they grow longer, or more often, than they may, however many positions at a time."""
    monkeypatch.setattr(Execution, "of", lambda model: Execution(static=static))
    rows = texts(grower)
    options = {**decoding(decoder), "block_length": 5, "max_gen_length": 7, "expand_budget": 9}
    options |= {"cache": cache, "temperature": 1.0, "logit_bias": bias(grower)}
    keys = list(range(70, 70 + ROWS))
    whole = dlm.infill(grower, rows, row_keys=keys, **options)
    lengths = [row.count(grower.spec.mask_id) for row in rows]
    for row, made, count in zip(rows, whole.tokens, lengths, strict=True):
        assert len(made) - len(row) + count <= 7
        assert not {grower.spec.mask_id, EXPAND} & {*made}
    for number in (1, 6):
        alone = dlm.infill(grower, rows[number], row_keys=keys[number : number + 1], **options)
        assert alone.tokens[0] == whole.tokens[number]
        assert alone.forwards[0] == whole.forwards[number]
    some = dict(dlm.infill_each(grower, rows, batch_size=3, row_keys=keys, **options))
    assert [some[number].tokens[0] for number in range(ROWS)] == whole.tokens
    assert [some[number].forwards[0] for number in range(ROWS)] == whole.forwards
    assert [some[number].decoded[0] for number in range(ROWS)] == whole.decoded
    assert [some[number].query_tokens[0] for number in range(ROWS)] == whole.query_tokens


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_recorded_steps_give_the_same(
    grower: Model,
    execution: Execution,
    trace: type[Any],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    rows, options = texts(grower), {**USUAL, "temperature": 1.0, "logit_bias": bias(grower)}
    options |= {"cache": cache}
    expected = dlm.infill(grower, rows, **options)
    monkeypatch.setattr(Execution, "of", lambda model: execution)
    before = trace.plays
    for _ in range(2):
        assert dlm.infill(grower, rows, batch_size=4, **options).tokens == expected.tokens
    assert trace.plays > before


def test_without_a_change_of_length_nothing_is_new(grower: Model) -> None:
    """Draws included: a row has its own noise until it changes its length."""
    spec = grower.spec
    options: dict[str, Any] = {"suppress_tokens": [EXPAND, spec.eos_id], "temperature": 1.0}
    options |= {"decoder": "margin", "block_length": 4}
    one = dlm.infill(grower, texts(grower), **options)
    other = dlm.infill(grower, texts(grower), max_gen_length=5, **options)
    assert replace(one, path_log_probability=None) == other


def test_what_is_drawn_after_a_change_is_drawn_anew(toy: Toy) -> None:
    """How often a row grows is geometric; with the noise it had before, it would grow for ever."""
    expand, mask, end = 0, 7, 6
    law = torch.full((97, 8), -torch.inf)
    law[:, expand], law[:, 1] = 0.0, 0.0
    model = toy(law, expand_id=expand)
    rows, count = [[2, mask, 3, end]] * 600, 600
    options: dict[str, Any] = {"decoder": "left_to_right", "temperature": 1.0}
    out = dlm.infill(model, rows, max_gen_length=30, **options)
    lengths = [len(row) - 3 for row in out.tokens]
    # Of single branching processes with two children or none: 1/2, 1/8, 1/16 ...
    expected = {1: 1 / 2, 2: 1 / 8, 3: 1 / 16, 4: 5 / 128}
    seen = Counter(lengths)
    for length, p in expected.items():
        sigma = (count * p * (1 - p)) ** 0.5
        assert abs(seen[length] - count * p) < 4 * sigma
    neighbours = [a == b for a, b in pairwise(out.tokens)]
    assert 0.1 < sum(neighbours) / len(neighbours) < 0.5  # keys of rows tell them apart


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_gen_length": 0}, "max_gen_length must be an int >= 1, got 0"),
    ({"expand_budget": -1}, "expand_budget must be an int >= 0, got -1"),
    ({"max_gen_length": 3}, "max_gen_length must hold the blanks of each text, got 3 for the 4"),
    ({"max_gen_length": 10_000}, "must fit the model's"),
    ({"broadcast_deletion": 1}, "broadcast_deletion must be True or False, got 1"),
    ({"batch_size": 0}, "batch_size must be an int >= 1, got 0"),
    ({"steps": 4}, "steps is not for blanks that grow: how many forwards"),
    ({"stop_at_eos": True}, "stop_at_eos is not for blanks that grow: end of text takes a blank"),
    ({"cfg_scale": 1.0}, "cfg_scale is not for blanks that grow"),
    ({"begin_suppress_tokens": [4]}, "begin_suppress_tokens is not for blanks that grow"),
    ({"return_order": True}, "return_order is not for blanks that grow: positions move"),
    ({"decoder": "wino"}, "decoder must not take tokens back where blanks grow"),
    ({"row_keys": [1]}, "row_keys must hold one int for each of the 8 prompts, got 1"),
    ({"gen_length": 9}, "gen_length is for generate"),
    ({"max_gen_lenght": 9}, "Did you mean 'max_gen_length'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_is_refused_when_asked_for(
    grower: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.infill_each(grower, texts(grower), **{"max_gen_length": 9, **options})


def test_networks_that_ask_for_no_blanks_are_refused(golden: Model) -> None:
    with pytest.raises(ValueError, match=r"DreamOn-v0-7B does, got 9 for llada"):
        dlm.infill(golden, texts(golden), max_gen_length=9)
    with pytest.raises(ValueError, match="expand_budget goes with max_gen_length, got 4 without"):
        dlm.infill(golden, texts(golden), expand_budget=4)
    with pytest.raises(ValueError, match="broadcast_deletion goes with max_gen_length, got True"):
        dlm.infill(golden, texts(golden), broadcast_deletion=True)
