"""`pad_after_eos`: what is behind a stop token is padding at once, and is never decoded."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

import dlm
from dlm.decoders import DECODERS, EntropyThreshold, LowConfidence, Threshold
from dlm.models.model import Model
from dlm.traits import Traits
from dlm.types import AnyDecoder

MASK, EOS, STOPS = 7, 6, (5, 6)
Toy = Callable[..., Model]
Decoding = Callable[[str], dict[str, Any]]
Look = Callable[[list[int]], Tensor]
ALLOWED = [
    name
    for name, make in DECODERS.items()
    if not Traits.of(make()).mutates_committed and Traits.of(make()).branches == 1
]
PAIRS = [(name, cache) for name in ALLOWED for cache in Traits.of(DECODERS[name]()).caches]

law = examples(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3)


def commits(decoder: AnyDecoder, confidence: list[float], entropy: list[float]) -> list[bool]:
    """What is committed beside the best one."""
    if isinstance(decoder, Threshold):
        return [c >= decoder.threshold for c in confidence]
    if isinstance(decoder, EntropyThreshold):
        return [h <= decoder.threshold for h in entropy]
    return [False] * len(confidence)


def reference(
    look: Look, prompt: list[int], length: int, block: int, decoder: AnyDecoder
) -> list[list[int]]:
    """What each forward sees of the generation, and its end; one row, one step after the other."""
    row, start, seen = [*prompt, *[MASK] * length], len(prompt), []
    while MASK in row:
        seen.append(row[start:])
        chance = look(row)
        confidence = chance.amax(-1).tolist()
        entropy = torch.special.entr(chance).sum(-1).tolist()
        first = row.index(MASK)
        begin = first - (first - start) % block
        inside = [i for i in range(begin, min(begin + block, len(row))) if row[i] == MASK]
        score = confidence if not isinstance(decoder, EntropyThreshold) else [-h for h in entropy]
        sure = commits(decoder, confidence, entropy)
        for i in {max(inside, key=lambda at: score[at]), *(i for i in inside if sure[i])}:
            row[i] = int(chance[i].argmax())
        ends = [i for i in range(start, len(row)) if row[i] in STOPS]
        if ends:
            row[ends[0] :] = [EOS if token == MASK else token for token in row[ends[0] :]]
        if ends and MASK not in row[: ends[0]]:
            row[ends[0] + 1 :] = [EOS] * len(row[ends[0] + 1 :])
    return [*seen, row[start:]]


@law
@given(
    rows=prompts,
    seed=st.integers(0, 99),
    length=st.integers(1, 12),
    block=st.integers(1, 12),
    decoder=st.sampled_from([LowConfidence(), Threshold(0.4), EntropyThreshold(0.9)]),
)
def test_it_is_the_plain_loop_with_padding(
    toy: Toy,
    chances: Callable[[Model, list[int]], Tensor],
    rows: list[list[int]],
    seed: int,
    length: int,
    block: int,
    decoder: AnyDecoder,
) -> None:
    """Canvas for canvas, in one batch."""
    model = toy(seed)
    out = dlm.generate(
        model, rows, decoder=decoder, gen_length=length, block_length=block, pad_after_eos=True,
        return_trajectory=True,
    )  # fmt: skip
    assert out.trajectory is not None
    for row, one, end in zip(rows, out.trajectory, out.tokens, strict=True):
        wanted = reference(partial(chances, model), row, length, block, decoder)
        assert [*one.canvases.tolist(), end] == wanted


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("decoder", "cache"), PAIRS)
@pytest.mark.parametrize("facts", [{}, {"block_size": 3}, {"shift": True}], ids=str)
def test_nothing_behind_a_stop_token_is_decoded(
    golden: Model, decoding: Decoding, decoder: str, cache: str, facts: dict[str, Any]
) -> None:
    """By no decoder, at any temperature, with caches; and rows are what they are alone."""
    stops = tuple(range(0, 512, 16))  # so that some come soon
    model = Model(golden.network, None, replace(golden.spec, stop_ids=stops, **facts))
    rows = [[1, 2, 3], [4, 9, 6, 7, 8, 30], [9]]
    options: dict[str, Any] = {
        **decoding(decoder), "cache": cache, "gen_length": 16, "block_length": 6,
        "temperature": 0.9, "seed": 5, "pad_after_eos": True, "return_trajectory": True,
        "row_keys": [0, 1, 2],
    }  # fmt: skip
    out = dlm.generate(model, rows, **options)
    assert out.trajectory is not None
    for one, tokens in zip(out.trajectory, out.tokens, strict=True):
        for number, canvas in enumerate(one.canvases.tolist()):
            ends = [i for i, token in enumerate(canvas) if token in stops]
            behind = canvas[ends[0] :] if ends else []
            assert model.spec.mask_id not in behind
            late = [change for change in one.commits if change.step == number]
            assert not ends or all(change.position < ends[0] for change in late)
        ends = [i for i, token in enumerate(tokens) if token in stops]
        assert tokens[ends[0] + 1 :] == [model.spec.eos_id] * (15 - ends[0]) if ends else True
    for row, prompt in enumerate(rows):
        alone = dlm.generate(model, [prompt], **{**options, "row_keys": [row]})
        assert alone.tokens[0] == out.tokens[row]
        assert alone.forwards[0] == out.forwards[row]


def test_one_token_a_forward_takes_as_many_as_it_commits(toy: Toy) -> None:
    """Without it all of a block is decoded that is not left of the end."""
    model = toy(12)
    options: dict[str, Any] = {"gen_length": 24, "block_length": None}
    plain = dlm.generate(model, [[1], [2, 3], [4]], **options)
    found = dlm.generate(model, [[1], [2, 3], [4]], pad_after_eos=True, **options)
    assert found.forwards == found.decoded
    assert sum(found.forwards) < sum(plain.forwards)


def test_a_row_without_an_end_is_what_it_was(toy: Toy) -> None:
    options: dict[str, Any] = {"gen_length": 9, "block_length": 4, "suppress_tokens": STOPS}
    plain = dlm.generate(toy(3), [[1], [2, 3]], **options)
    found = dlm.generate(toy(3), [[1], [2, 3]], pad_after_eos=True, **options)
    assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_of_a_form_are_whole(temperature: float) -> None:
    model, form = dlm.load(), "[0-9]{1,4}(,[0-9]{2}){0,2}"
    options: dict[str, Any] = {
        "gen_length": 12, "block_length": None, "temperature": temperature,
        "constraint": dlm.Constraint.regex(model, form),
    }  # fmt: skip
    prompts = [f"Compute: {number}*3" for number in range(8)]
    out = dlm.generate(model, prompts, pad_after_eos=True, **options)
    assert out.texts is not None
    assert all(re.fullmatch(form, text) for text in out.texts)
    assert sum(out.forwards) < sum(dlm.generate(model, prompts, **options).forwards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_after_eos": 1}, "pad_after_eos must be True or False, got 1"),
        ({"stop_at_eos": False}, "pad_after_eos goes with stop_at_eos, got True with False"),
        ({"decoder": "saber"}, "pad_after_eos must be off for Saber, which takes tokens back"),
        ({"decoder": "ssd"}, "pad_after_eos must be off for SSD, which looks ahead, got True"),
    ],
    ids=str,
)
def test_what_it_is_refused_with(toy: Toy, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.generate(toy(), [[1]], **{"pad_after_eos": True, **options})


def test_a_row_that_was_padded_has_no_path(toy: Toy) -> None:
    out = dlm.generate(
        toy(12), [[1], [2, 3], [4]], decoder="first_hitting", temperature=1.0, gen_length=24,
        block_length=None, pad_after_eos=True,
    )  # fmt: skip
    assert out.path_log_probability is not None
    for tokens, path in zip(out.tokens, out.path_log_probability, strict=True):
        assert (path is None) == any(token in STOPS for token in tokens[:-1])
