"""Sub-blocks that open before those in front are done: d3LLM's multi-block decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import EntropyThreshold, MultiBlock
from dlm.models.model import Model
from dlm.types import Decision, StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]
History = list[tuple[StepView, Decision]]
Script = Callable[..., History]

rule = settings(max_examples=60, deadline=None)


def reference(
    said: list[list[float]],
    blank: list[bool],
    threshold: float,
    add: float,
    length: int,
    variant: str,
) -> list[list[int]]:
    """What each forward commits: the authors' loops over one row, told again block by block."""
    blocks = [range(at, min(at + length, len(blank))) for at in range(0, len(blank), length)]
    masked, opened, made = list(blank), 1, []
    for entropy in said:
        last = [i for i in blocks[opened - 1] if blank[i]]
        done = sum(not masked[i] for i in last)
        if opened < len(blocks) and (done == len(last) or done / len(last) >= add):
            opened += 1
        while not any(masked[i] for block in blocks[:opened] for i in block):
            opened += 1  # where blanks stand apart
        inside = [i for block in blocks[:opened] for i in block if masked[i]]
        if variant == "llada":
            chosen = {i for i in inside if entropy[i] <= threshold}
            chosen.add(min(inside, key=lambda i: entropy[i]))
        else:
            chosen = {i for i in inside if entropy[i] < threshold}
        foremost = next(block for block in blocks if any(masked[i] for i in block))
        if not chosen & set(foremost):
            chosen.add(min((i for i in foremost if masked[i]), key=lambda i: entropy[i]))
        for i in chosen:
            masked[i] = False
        made.append(sorted(chosen))
        if not any(masked):
            break
    return made


@rule
@given(
    data=st.data(),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.875]),
    add=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]),
    length=st.integers(1, 6),
    variant=st.sampled_from(["llada", "dream"]),
)
def test_it_is_the_authors_loop(
    script: Script, data: st.DataObject, threshold: float, add: float, length: int, variant: str
) -> None:
    """Forward by forward, two rows at a time, blanks anywhere, any lengths."""
    width = data.draw(st.integers(1, 20))
    blank = [
        data.draw(st.lists(st.booleans(), min_size=width, max_size=width).filter(any))
        for _ in range(2)
    ]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    said: list[torch.Tensor] = []

    def speak(number: int, view: StepView) -> Mapping[str, Any]:
        said.append(torch.randint(9, (2, width), generator=generator) / 8)  # with ties
        return {"entropy": said[-1]}

    decoder = MultiBlock(threshold, add, length, variant)
    seen = script(decoder, speak, blank)
    for row in range(2):
        entropies = [each[row].tolist() for each in said]
        wanted = reference(entropies, blank[row], threshold, add, length, variant)
        found = [decision.commit[row].nonzero()[:, 0].tolist() for _, decision in seen]
        assert [each for each in found if each] == wanted


@pytest.mark.parametrize(
    ("decoded", "opens"), [(0, False), (3, False), (4, True), (32, True)], ids=str
)
def test_the_next_one_opens_at_a_tenth_of_the_last(
    view_of: View, picked: Picked, decoded: int, opens: bool
) -> None:
    """3 of 32 are less than 0.1 of them, 4 are more."""
    masked = [i >= decoded for i in range(64)]
    entropy = [9.0] * 64
    entropy[40] = 0.1
    view = view_of(masked=masked, entropy=entropy, step=1)
    commit = MultiBlock().step(torch.ones(1, dtype=torch.int64), view)[1].commit
    assert (40 in picked(commit)) is opens
    assert (decoded in picked(commit)) is (decoded < 32)  # the first one makes progress


def test_a_share_is_met_by_as_many_tokens_as_it_names(view_of: View, picked: Picked) -> None:
    """1 of 10 is a tenth, whatever floating point makes of 1 - 9 / 10."""
    view = view_of(masked=[False] + [True] * 19, entropy=[1.0] * 19 + [0.1], step=1)
    decoder = MultiBlock(sub_block_length=10)
    assert 19 in picked(decoder.step(torch.ones(1, dtype=torch.int64), view)[1].commit)


def test_one_sub_block_opens_a_forward(script: Script) -> None:
    """However sure everything is: what is far ahead waits for its forward."""
    seen = script(MultiBlock(sub_block_length=4), lambda *_: {"entropy": [0.0] * 16}, [True] * 16)
    found = [decision.commit[0].nonzero()[:, 0].tolist() for _, decision in seen]
    assert found == [list(range(at, at + 4)) for at in (0, 4, 8, 12)]


def test_a_block_begins_with_one_open_sub_block(view_of: View, picked: Picked) -> None:
    view = view_of(entropy=[0.0] * 8, step=0, block_start=40)
    decoder = MultiBlock(block_add_threshold=1.0, sub_block_length=4)
    state, decision = decoder.step(torch.tensor([7]), view)
    assert picked(decision.commit) == [0, 1, 2, 3]
    assert state.tolist() == [1]


@pytest.mark.parametrize("variant", ["llada", "dream"])
def test_a_budget_reaches_beyond_what_is_open(view_of: View, picked: Picked, variant: str) -> None:
    entropy = [0.9, 0.8, 0.3, 0.2, 0.1, 0.7]
    view = view_of(entropy=entropy, quota=4)
    decoder = MultiBlock(0.0, block_add_threshold=1.0, sub_block_length=2, variant=variant)
    commit = decoder.step(torch.ones(1, dtype=torch.int64), view)[1].commit
    assert picked(commit) == [0, 1, 3, 4]  # what is open first, then the least uncertain


@rule
@given(
    seed=st.integers(0, 99),
    gen_length=st.integers(1, 14),
    length=st.integers(1, 5),
    temperature=st.sampled_from([0.0, 0.7]),
    threshold=st.floats(0, 2),
)
def test_sub_blocks_that_open_one_by_one_are_blocks(
    toy: Toy, seed: int, gen_length: int, length: int, temperature: float, threshold: float
) -> None:
    """Forward by forward: what `entropy_threshold` does with blocks of that length."""
    model, rows = toy(seed), [[1], [2, 3, 4]]
    options: dict[str, Any] = {
        "gen_length": gen_length, "temperature": temperature, "return_trajectory": True
    }  # fmt: skip
    one_by_one = MultiBlock(threshold, 1.0, length)
    found = dlm.generate(model, rows, decoder=one_by_one, block_length=None, **options)
    wanted = dlm.generate(
        model, rows, decoder=EntropyThreshold(threshold), block_length=length, **options
    )
    assert (found.tokens, found.forwards) == (wanted.tokens, wanted.forwards)
    for one, other in zip(found.trajectory or [], wanted.trajectory or [], strict=True):
        assert one.canvases.equal(other.canvases)


def test_it_takes_fewer_forwards_than_block_by_block(toy: Toy) -> None:
    """What it is for: certain tokens of later blocks do not wait."""
    model, rows = toy(3), [[1], [2, 3]]
    options: dict[str, Any] = {"gen_length": 40, "stop_at_eos": False}
    own = {"threshold": 1.2, "sub_block_length": 8}
    several = dlm.generate(
        model, rows, decoder="multi_block", decoder_options=own, block_length=None, **options
    )
    one = dlm.generate(model, rows, decoder=EntropyThreshold(1.2), block_length=8, **options)
    assert all(a < b for a, b in zip(several.forwards, one.forwards, strict=True))
