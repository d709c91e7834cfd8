"""Blanks that become more and fewer, against the authors' rule for one row at a time."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import dlm
from dlm.batch import Rows
from dlm.decoders import DECODERS
from dlm.endings import End
from dlm.execution import Execution
from dlm.growth import Growing, Growth, Part
from dlm.models.model import Model
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.waiting import Places

Toy = Callable[..., Model]
Schedule = Callable[[Model, str], dict[str, Any]]

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


@dataclass
class Plain:
    """The rule for one row in plain words: one token a forward, or all that are sure enough."""

    model: Model
    most: int
    budget: int
    bias: dict[int, float]
    threshold: float | None = None  # None takes the one token of lowest entropy
    spreads: bool = False
    in_vain: int = 0  # blanks that asked for another one there was no room for
    full: int = 0  # forwards of rows that may not grow

    def law(self, row: list[int], *, full: bool) -> Tensor:
        spec = self.model.spec
        logits = self.model.raw_logits(torch.tensor([row]))[0].double()
        for token, value in self.bias.items():
            logits[:, token] += value
        logits[:, [*spec.growing.banned, *([EXPAND] if full else [])]] = -torch.inf
        return logits.softmax(-1)

    def chosen(self, p: Tensor, blanks: list[int]) -> list[int]:
        if self.threshold is None:
            entropy = -torch.special.xlogy(p, p).sum(-1)
            return [min(blanks, key=lambda place: float(entropy[place]))]
        sure = p.amax(-1)
        best = max(blanks, key=lambda place: float(sure[place]))
        return [place for place in blanks if sure[place] >= self.threshold or place == best]

    def written(self, row: list[int], taken: dict[int, int], room: int) -> tuple[list[int], int]:
        """The row once masks have taken tokens, blanks gone and blanks come; how many came."""
        mask, delete = self.model.spec.mask_id, self.model.spec.eos_id
        gone = {place for place, token in taken.items() if token == delete}
        for place in sorted(gone) if self.spreads else ():
            while row[place + 1] == mask and place + 1 not in taken:
                place += 1
                gone.add(place)
        asked = sorted(place for place, token in taken.items() if token == EXPAND)
        more = asked[: min(self.budget, room + len(gone))]
        self.in_vain += len(asked) - len(more)
        after: list[int] = []
        for place, token in enumerate(row):
            if place in asked:
                after += [mask] * (2 if place in more else 1)
            elif place not in gone:
                after.append(taken.get(place, token))
        return after, len(more)

    def fill(self, row: list[int]) -> tuple[list[int], int, int]:
        """What the row becomes, forwards, and the positions of them all."""
        mask, forwards, queries = self.model.spec.mask_id, 0, 0
        length = len(row) - row.count(mask) + self.most
        while mask in row:
            full = len(row) == length or self.budget == 0
            p = self.law(row, full=full)
            blanks = [place for place, token in enumerate(row) if token == mask]
            taken = {place: int(p[place].argmax()) for place in self.chosen(p, blanks)}
            forwards, queries, self.full = forwards + 1, queries + len(row), self.full + full
            row, spent = self.written(row, taken, length - len(row))
            self.budget -= spent
        return row, forwards, queries


def check_plain(model: Model, settings: dict[str, Any], options: dict[str, Any]) -> list[Plain]:
    """That rows become what the rule makes of each, however many are decoded at a time."""
    rows = texts(model)
    plain = [Plain(model, **settings) for _ in rows]
    expected = [one.fill(row) for one, row in zip(plain, rows, strict=True)]
    for size in (None, 1, 3):
        out = dlm.infill(model, rows, batch_size=size, **options)
        assert list(zip(out.tokens, out.forwards, out.query_tokens, strict=True)) == expected
    lengths = [(len(made), len(row)) for (made, *_), row in zip(expected, rows, strict=True)]
    if "threshold" not in settings:
        assert any(made < row for made, row in lengths)
        assert any(made > row for made, row in lengths) == (settings["budget"] > 0)
    return plain


@pytest.mark.parametrize(("budget", "spreads"), [(24, False), (3, False), (0, False), (24, True)])
def test_rows_become_what_the_authors_make_of_each(
    grower: Model, budget: int, spreads: bool
) -> None:
    settings = {"most": 12, "budget": budget, "bias": bias(grower), "spreads": spreads}
    options = {**USUAL, "logit_bias": bias(grower), "broadcast_deletion": spreads}
    if budget != 24:  # which it is by itself
        options["expand_budget"] = budget
    check_plain(grower, settings, options)


@pytest.mark.parametrize(("most", "budget"), [(4, 20), (9, 5)])
@pytest.mark.parametrize("spreads", [False, True])
def test_many_at_a_time_grow_no_further_than_they_may(
    grower: Model, most: int, budget: int, spreads: bool
) -> None:
    """Of several that ask in one forward the leftmost get what room there is."""
    given = {EXPAND: 8.0, grower.spec.eos_id: 5.0}
    settings = {"most": most, "budget": budget, "bias": given, "spreads": spreads}
    options = {**USUAL, "logit_bias": given, "max_gen_length": most, "expand_budget": budget}
    options |= {"decoder": "threshold", "decoder_options": {"threshold": 0.1}}
    options["broadcast_deletion"] = spreads
    plain = check_plain(grower, {**settings, "threshold": 0.1}, options)
    assert any(each.in_vain for each in plain)
    assert any(each.full for each in plain)
    assert any(each.budget == 0 for each in plain) or budget > most


PAIRS = [
    (name, cache)
    for name, make in DECODERS.items()
    if not Traits.of(make()).mutates_committed and Traits.of(make()).branches == 1
    for cache in Traits.of(make()).caches
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
    told: list[int] = []  # rows of each forward
    tell = lambda step: told.append(sum(step.live))  # noqa: E731
    some = dict(dlm.infill_each(grower, rows, batch_size=3, row_keys=keys, tell=tell, **options))
    assert sum(told) == sum(whole.forwards)
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
    ({"decoder": "lopa"}, "decoder must not look ahead where blanks grow.* with 4 branches"),
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


@pytest.mark.parametrize(
    ("most", "budget", "taken", "expected", "left"),
    [
        (4, 9, "eed", "mmmm", (4, 7)),  # the blank that goes makes room for another
        (4, 9, "eem", "mmmm", (4, 8)),  # the leftmost gets what room there is
        (4, 9, "e7e", "mm7m", (3, 8)),
        (9, 1, "eee", "mmmm", (9, 0)),
        (9, 9, "d7d", "7", (8, 9)),
    ],
)
def test_decisions_of_one_forward(
    grower: Model, most: int, budget: int, taken: str, expected: str, left: tuple[int, int]
) -> None:
    mask, end = grower.spec.mask_id, grower.spec.eos_id
    named = {"e": EXPAND, "d": end, "m": mask, "7": 7}
    part = Part(0, 0, [EXPAND, mask, mask, mask, end], grower.spec, Growth(most, budget))
    row = [EXPAND, *(named[token] for token in taken), end]
    after = part.after(End(forwards=2, tokens=row, decoded=0, queries=10, path=None))
    assert after.tokens == [EXPAND, *(named[token] for token in expected), end]
    assert (after.growth.most, after.growth.budget) == left
    assert (after.forwards, after.queries, after.times) == (2, 10, 1)


def test_schedules_are_laid_out_for_the_rows_that_may_come(
    grower: Model, schedule: Schedule
) -> None:
    """Their tables are as long as a block of those, not of the rows as they are given."""
    options = schedule(grower, "block")
    options |= {"max_gen_length": 9, "temperature": 1.0, "logit_bias": {EXPAND: 9.0}}
    rows = texts(grower)
    for block_length in (None, 4):
        whole = dlm.infill(grower, rows, block_length=block_length, **options)
        assert max(map(len, whole.tokens)) > max(map(len, rows))
        alone = [
            dlm.infill(grower, row, block_length=block_length, row_keys=[key], **options).tokens[0]
            for key, row in enumerate(rows)
        ]
        assert alone == whole.tokens


def test_one_block_that_holds_all_that_may_come_is_one_block(
    grower: Model, schedule: Schedule
) -> None:
    """Blanks that a row begins with are some of those that it may come to."""
    options = schedule(grower, "generation")
    mask, end = grower.spec.mask_id, grower.spec.eos_id
    row = [11, mask, mask, mask, 20, end]
    for length in (None, 9):
        assert dlm.infill(grower, row, block_length=length, max_gen_length=9, **options).tokens
    with pytest.raises(ValueError, match=r"block_length must be None, or span .* got 2 blocks"):
        dlm.infill(grower, row, block_length=8, max_gen_length=9, **options)


@pytest.mark.parametrize("block_size", [None, 8])
def test_windows_hold_what_rows_come_to_and_no_more(grower: Model, block_size: int | None) -> None:
    model = replace(grower, spec=replace(grower.spec, block_size=block_size))
    options: dict[str, Any] = {"block_length": None, "logit_bias": {EXPAND: 99.0}}
    settings = Settings(decoder="left_to_right", stop_at_eos=False, **options)
    growing = Growing(model, texts(model), settings, Growth.of(12, None))
    spans, lay = [], growing.laid

    def laid(parts: Sequence[Part]) -> Rows:
        rows = lay(parts)
        spans.append(rows.canvas.span)
        return rows

    growing.laid = laid  # type: ignore[method-assign]
    assert {part.decoded for part in growing.run(3)} == {12}
    assert max(spans) == growing.span


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_rows_wait_for_company_where_a_cache_is_kept(
    grower: Model, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """Their first forward is theirs alone then, as of `batch_size` everywhere."""
    apart: list[bool] = []

    def places(count: int, **how: bool) -> Places:
        apart.append(how["apart"])
        return Places(count, **how)

    monkeypatch.setattr("dlm.growth.Places", places)
    options: dict[str, Any] = {**USUAL, "cache": cache, "logit_bias": bias(grower)}
    found = dlm.infill(grower, texts(grower), batch_size=3, **options)
    assert apart == [cache != "none"]
    assert found.tokens == dlm.infill(grower, texts(grower), **options).tokens
