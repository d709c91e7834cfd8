"""Blocks in a pipeline: D2F's decoding, against its authors' loop told again."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import D2F, Threshold
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

BEHIND: dict[str, Any] = {"block_size": 8, "anchored": True}
CACHES: list[dict[str, Any]] = [
    {"cache": "none"},
    {"cache": "prefix"},
    *({"cache": "dual", "refresh_every": every} for every in (None, 2)),
    {"cache": "dual", "refresh_around": 2},
    {"cache": "prefix", "refresh_answer_every": 3, "refresh_prompt_every": 4},
    {"cache": "dual", "refresh_every": 2, "refresh_answer_every": 3},
]

rule = settings(max_examples=40, deadline=None)


def authors(
    model: Model, prompt: list[int], ends: list[int], skip: float, add: float, decoded: float
) -> list[list[int]]:
    """The canvas of every forward, of an answer whose blocks end there, one row at a time.

    Blocks are appended, and the prompt is one that is done.
    """
    spec, first = model.spec, len(prompt)
    blocks = [*pairwise([first, *ends])]
    tokens, canvases, open_ = [*prompt], [], 0

    def share(block: int) -> float:
        begin, end = blocks[block]
        return sum(token != spec.mask_id for token in tokens[begin:end]) / (end - begin)

    while open_ < len(blocks) or spec.mask_id in tokens:
        if open_ < len(blocks) and (open_ == 0 or share(open_ - 1) >= add):
            begin, end = blocks[open_]
            tokens += [spec.mask_id] * (end - begin)
            open_ += 1
        canvases.append([*tokens, *[spec.mask_id] * (ends[-1] - len(tokens))][first:])
        at = torch.arange(len(tokens))
        number = (at[:, None] >= torch.tensor([begin for begin, _ in blocks])).sum(-1)
        if not spec.anchored:
            number = at // 4
        attend = (number[None, :] <= number[:, None])[None]
        hidden = model.hidden(torch.tensor([tokens]), at[None], None, attend=attend)
        logits = model.logits(hidden)[0].float()
        logits[:, torch.tensor(spec.banned)] = -torch.inf
        best, found = logits.softmax(-1).max(-1)
        relies = [block == 0 or share(block - 1) >= decoded for block in range(open_)]
        for block, (begin, end) in enumerate(blocks[:open_]):
            masks = [i for i in range(begin, end) if tokens[i] == spec.mask_id]
            sure = [i for i in masks if best[i] > skip]
            if masks and not sure and relies[block]:
                sure = [max(masks, key=lambda i: float(best[i]))]
            for i in sure:
                tokens[i] = int(found[i])
    return canvases


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("facts", [{"anchored": True}, {}, {"anchored": True, "shift": True}])
@pytest.mark.parametrize(
    ("skip", "add", "decoded"), [(0.05, 0.1, 0.95), (0.3, 0.5, 0.5), (0.02, 0.0, 1.0), (1, 1, 1)]
)
def test_it_is_the_authors_loop(
    golden: Model, facts: dict[str, Any], cache: str, skip: float, add: float, decoded: float
) -> None:
    """Canvas for canvas, blocks counted from the prompt's end or from the beginning of the row."""
    model = Model(golden.network, None, replace(golden.spec, block_size=4, **facts))
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16]]
    own = {"threshold": skip, "block_add_threshold": add, "decoded_token_threshold": decoded}
    out = dlm.generate(
        model,
        prompts,
        decoder="d2f",
        decoder_options={**own, "blocks": 9},
        gen_length=18,
        cache=cache,
        stop_at_eos=False,
        return_trajectory=True,
    )
    assert out.trajectory is not None
    for prompt, told in zip(prompts, out.trajectory, strict=True):
        given_, last = len(prompt), len(prompt) + 18
        first = given_ + 4 if facts else given_ + 4 - given_ % 4
        ends = [*range(first, last, 4), last]
        wanted = authors(model, prompt, ends, skip, add, decoded)
        assert told.canvases.tolist() == wanted


@rule
@given(
    seed=st.integers(0, 99),
    threshold=st.floats(0, 1),
    length=st.integers(1, 6),
    gen_length=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 0.7]),
    steps=st.sampled_from([None, 3, 9]),
)
def test_one_block_at_a_time_is_a_threshold(
    toy: Toy,
    seed: int,
    threshold: float,
    length: int,
    gen_length: int,
    temperature: float,
    steps: int | None,
) -> None:
    """Whether there are no others or those wait until the one in front is done."""
    options: dict[str, Any] = {
        "gen_length": gen_length, "block_length": length, "temperature": temperature,
        "steps": steps, "return_trajectory": True,
    }  # fmt: skip
    rows = [[1], [2, 3, 4]]
    found = [
        dlm.generate(toy(seed), rows, decoder=D2F(threshold, *more), **options)
        for more in ((0.1, 0.95, 1), (1.0, 0.95, 3))
    ]

    class Drawn(Threshold):
        """Of the law that tokens are drawn by."""

        scores = "sampling"

    above = torch.tensor(threshold).nextafter(torch.tensor(2.0))  # `>`, where it has `>=`
    wanted = dlm.generate(toy(seed), rows, decoder=Drawn(float(above)), **options)
    for one in found:
        assert (one.tokens, one.forwards) == (wanted.tokens, wanted.forwards)


def test_what_is_as_sure_as_the_threshold_waits(view_of: View, picked: Picked) -> None:
    view = view_of(confidence=[0.5, 0.75, 0.5], block_length=3)
    assert picked(D2F(0.5).step(torch.tensor([3]), view)[1].commit) == [1]


def test_a_block_that_may_rely_on_its_context_commits_one(view_of: View, picked: Picked) -> None:
    """The third has a neighbour that is half decoded; the second one that is done."""
    masked = [False] * 4 + [False, False, True, True] + [True] * 4
    view = view_of(masked=masked, confidence=[0.5] * 12, step=1, block_length=4)
    for decoded, commits in ((0.95, [6]), (0.5, [6, 8])):
        decoder = D2F(decoded_token_threshold=decoded)
        assert picked(decoder.step(torch.tensor([12]), view)[1].commit) == commits


@pytest.mark.parametrize(("decoded", "blocks"), [(0, 1), (3, 1), (4, 2), (32, 2), (33, 2), (64, 2)])
def test_the_next_one_opens_at_a_tenth_of_the_last(
    view_of: View, decoded: int, blocks: int
) -> None:
    """3 of 32 are less than 0.1 of them, 4 are more."""
    masked = [i >= decoded for i in range(96)]
    view = view_of(masked=masked, step=1, block_start=7, block_length=32)
    state, columns = D2F().open(torch.tensor([7 + 32]), view)
    assert (state.tolist(), columns.tolist()) == ([7 + 32 * blocks], [32 * blocks])


def test_a_row_begins_with_one_open_block(view_of: View) -> None:
    """And so does one whose open blocks are all done; there are no more than the window has."""
    view = view_of(masked=[False] * 3 + [True] * 5, block_start=20, block_length=3)
    for state, columns in ((0, 3), (20, 3), (23, 6), (26, 6), (29, 9)):
        assert D2F().open(torch.tensor([state]), view)[1].tolist() == [columns]


def test_one_block_opens_a_forward(toy: Toy) -> None:
    """However sure everything is: what is far ahead waits for its forward."""
    out = dlm.generate(
        toy(1),
        [[1]],
        decoder=D2F(threshold=0.0),
        gen_length=10,
        block_length=4,
        stop_at_eos=False,
        return_trajectory=True,
    )
    assert out.trajectory is not None
    assert [(c.canvases == 7).sum(-1).tolist() for c in out.trajectory] == [[10, 6, 2]]


def test_a_budget_is_that_of_the_active_block(view_of: View, picked: Picked) -> None:
    """Masks behind it have a budget of their own."""
    view = view_of(confidence=[0.2, 0.1, 0.3, 0.95, 0.9, 0.1], quota=2, block_length=3)
    commit = D2F(threshold=0.92).step(torch.tensor([6]), view)[1].commit
    assert picked(commit) == [0, 2, 3]


@pytest.mark.parametrize("steps", [3, 5, 9, 40])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_no_row_takes_more_forwards_than_it_may(golden: Model, steps: int, cache: str) -> None:
    out = dlm.generate(
        golden,
        [[5, 6, 7], [8]],
        decoder=D2F(threshold=0.9, blocks=3),
        gen_length=20,
        block_length=8,
        steps=steps,
        cache=cache,
        stop_at_eos=False,
    )
    assert max(out.forwards) <= steps


def test_it_takes_fewer_forwards_than_block_by_block() -> None:
    """What it is for: certain tokens of later blocks do not wait."""
    model = dlm.load(block_size=8)
    options: dict[str, Any] = {"gen_length": 64, "stop_at_eos": False, "cache": "dual"}
    prompts = ["Compute: 6*8, 9*7, 5*4, 12+6", "Tom has 3 boxes with 4 apples each. How many?"]
    several, one = (dlm.generate(model, prompts, decoder=D2F(blocks=n), **options) for n in (4, 1))
    assert all(a < b for a, b in zip(several.forwards, one.forwards, strict=True))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("facts", [{}, {"shift": True}, {"block_size": 8}, BEHIND], ids=str)
def test_a_row_takes_what_it_would_alone(
    golden: Model, facts: dict[str, Any], cache: dict[str, Any], seed: int
) -> None:
    """Also of what is computed: others of its batch may have more blocks open, or end later."""
    if "block_size" in facts and {*cache} - {"cache", "refresh_every"}:
        pytest.skip("its cache is exact")
    model = Model(golden.network, None, replace(golden.spec, **facts))
    draw, mask = Random(seed), golden.spec.mask_id
    for _ in range(3):
        rows = [
            [*draw.choices(range(1, 60), k=draw.randint(1, 9)), *[mask] * draw.randint(1, 30), *end]
            for end in ([], [7, 8, mask, 5], [5] * 9)
        ]
        own = D2F(
            draw.choice([0.1, 0.2, 0.3]),
            block_add_threshold=draw.choice([0.0, 0.3]),
            decoded_token_threshold=draw.choice([0.5, 1.0]),
            blocks=draw.randint(3, 5),
        )
        options: dict[str, Any] = {
            **cache,
            "decoder": own,
            "block_length": draw.choice([3, 4]),
            "temperature": draw.choice([0.0, 0.8]),
            "stop_at_eos": False,
        }
        together = dlm.infill(model, rows, row_keys=[3, 4, 5], **options)
        for number, row in enumerate(rows):
            alone = dlm.infill(model, [row], row_keys=[3 + number], **options)
            assert alone.tokens[0] == together.tokens[number]
            assert alone.forwards[0] == together.forwards[number]
            assert alone.query_tokens[0] == together.query_tokens[number]


def test_a_forward_computes_what_is_open_and_no_more(golden: Model) -> None:
    """As many positions go through the network as are counted."""
    seen: list[int] = []

    class Counting(Model):
        def hidden(self, tokens: Tensor, *given: Any, **options: Any) -> Tensor:
            seen.append(tokens.numel())
            return Model.hidden(self, tokens, *given, **options)

    for facts in ({}, {"block_size": 8}, BEHIND):
        model = Counting(golden.network, None, replace(golden.spec, **facts))
        seen.clear()
        options: dict[str, Any] = {"gen_length": 32, "block_length": 8, "stop_at_eos": False}
        out = dlm.generate(
            model, [[5] * 8], decoder=D2F(0.03, block_add_threshold=0.6), cache="dual", **options
        )
        assert sum(seen) == out.query_tokens[0]
        if facts:  # else the first forward of a block makes the row anew
            assert max(seen[1:]) < 40 - 8


def test_what_is_around_open_blocks_is_computed_with_them(golden: Model) -> None:
    """Three blocks of four tokens and two on either side, of six blocks behind eight tokens."""

    class Three(D2F):
        def open(self, state: Tensor, view: StepView) -> tuple[Tensor, Tensor]:
            return state, torch.full_like(view.step, 12)

    own = Three(1.0, decoded_token_threshold=1.0, blocks=3)  # a token of the first of them each
    options: dict[str, Any] = {"gen_length": 24, "block_length": 4, "stop_at_eos": False}
    out = dlm.generate(golden, [[5] * 8], decoder=own, cache="dual", refresh_around=2, **options)
    first, others = 32, (16, 16, 16, 14, 10, 6)
    assert out.query_tokens == [6 * first + 3 * sum(others)]


def test_blocks_ahead_take_nothing_from_a_budget(golden: Model) -> None:
    """Two forwards a block are two of each of its four masks, however many more are open."""
    own = D2F(1.0, block_add_threshold=0.0, decoded_token_threshold=1.0, blocks=3)
    options: dict[str, Any] = {"gen_length": 20, "block_length": 4, "stop_at_eos": False}
    out = dlm.generate(golden, [[5, 6], [7]], decoder=own, steps=10, **options)
    assert out.forwards == [10, 10]


def test_blocks_that_are_not_open_cost_nothing() -> None:
    model = dlm.load(block_size=8)
    options: dict[str, Any] = {"gen_length": 64, "cache": "dual", "stop_at_eos": False}
    few, many = (D2F(block_add_threshold=0.9, blocks=n) for n in (4, 8))
    found = [dlm.generate(model, "Compute: 6*8, 9*7", decoder=d, **options) for d in (few, many)]
    assert found[0].query_tokens == found[1].query_tokens
    assert found[0].tokens == found[1].tokens


def test_a_row_without_a_second_block_is_as_wide_as_it_is(toy: Toy) -> None:
    """No forward computes what is behind its end."""
    options: dict[str, Any] = {"cache": "none", "stop_at_eos": False, "return_trajectory": True}
    widths = []

    class Watched(D2F):
        def step(self, state: Tensor, view: StepView) -> tuple[Tensor, Decision]:
            widths.append(view.masked.shape[1])
            return D2F.step(self, state, view)

    dlm.generate(toy(1), [[1, 2]], decoder=Watched(0.9), gen_length=5, **options)
    assert {*widths} == {5}
