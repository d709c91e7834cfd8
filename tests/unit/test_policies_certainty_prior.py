"""Decoding by certainty prior (policies.md section 9.19): densities, scores and whole decodes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import CertaintyPrior
from dlm.models.model import Model
from dlm.types import StepView

MASK = 7
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

rule = settings(max_examples=40, deadline=None)


def density(decoded: list[bool], place: int, sigma: float) -> float:
    """By the definition, one position at a time, as far as float64 sees the kernel."""
    far = math.ceil(9 * sigma) + len(decoded)
    total = among = 0.0
    for other in range(-far, len(decoded) + far):
        weight = math.exp(-((place - other) ** 2) / (2 * sigma**2))
        total += weight
        if other < 0 or (decoded[other] if other < len(decoded) else decoded[-1]):
            among += weight
    return among / total


@rule
@given(
    st.lists(st.booleans(), min_size=1, max_size=14), st.sampled_from([0.7, 3.0, 10.0]),
    st.integers(0, 3), st.integers(1, 9),
)  # fmt: skip
def test_densities_are_those_of_the_definition(
    view_of: View, decoded: list[bool], sigma: float, behind: int, block: int
) -> None:
    """Of any block of a generation: before it all is decoded, behind it nothing."""
    begin = min(behind * block, (len(decoded) - 1) // block * block)
    whole = [place < begin or (place < begin + block and is_) for place, is_ in enumerate(decoded)]
    masked = [not is_ for is_ in whole[begin : begin + block]]
    short = block - len(masked)
    view = view_of(
        confidence=[0.5] * block, masked=masked + [False] * short, editable=[False] * block,
        block_start=begin + 20, row_start=20, row_stop=20 + len(decoded),
    )  # fmt: skip
    found = CertaintyPrior(sigma).density(view)[0].tolist()
    for column in range(len(masked)):
        wanted = max(density(whole, begin + column, sigma), 2**-32)
        assert found[column] == pytest.approx(wanted, abs=1e-8)


def test_a_less_sure_position_beside_the_prompt_goes_first(view_of: View, picked: Picked) -> None:
    """k = 1, e^-0.5, e^-2, ... with sigma 1 sum to 2.5066. Where none of five masks is decoded

    the first has a density of (0.6065 + 0.1353 + 0.0111 + 0.0003) / 2.5066 = 0.3006, the second
    of (0.1353 + 0.0111 + 0.0003) / 2.5066 = 0.0585.
    """
    decoder = CertaintyPrior(1.0)
    view = view_of(confidence=[0.2, 0.9, 0.95, 0.95, 1.0])
    assert decoder.density(view)[0, :2].tolist() == pytest.approx([0.3006, 0.0585], abs=1e-4)
    assert picked(decoder.step(None, view)[1].commit) == [0]  # 0.0601 against 0.0527
    less = view_of(confidence=[0.17, 0.9, 0.95, 0.95, 1.0])
    assert picked(decoder.step(None, less)[1].commit) == [1]  # 0.0511


def test_the_last_position_decides_what_counts_behind_it(view_of: View) -> None:
    """With it the end is as dense as the beginning; in the middle of a row nothing follows."""
    masked = [False, True, False]
    one = CertaintyPrior(2.0).density(view_of(confidence=[0.5] * 3, masked=masked))[0]
    assert float(one[0]) == pytest.approx(float(one[2]))
    end = view_of(confidence=[0.5] * 3, masked=masked, row_stop=9)
    assert float(CertaintyPrior(2.0).density(end)[0, 2]) < float(one[2])


@rule
@given(st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=1, max_size=9), st.booleans())
def test_a_kernel_of_no_width_or_of_any_leaves_confidence(
    view_of: View, picked: Picked, confidence: list[float], wide: bool
) -> None:
    """9.19: sigma -> 0 hits the floor everywhere, sigma -> infinity sees one density."""
    view = view_of(confidence=confidence)
    (found,) = picked(CertaintyPrior(10000.0 if wide else 0.05).step(None, view)[1].commit)
    assert confidence[found] == max(confidence)


def plainly(model: Model, prompt: list[int], length: int, block: int, sigma: float) -> list[int]:
    """One token a forward over the whole canvas, written from the paper."""
    canvas = [*prompt, *[MASK] * length]
    for _ in range(length):
        open_ = [i for i, token in enumerate(canvas) if token == MASK]
        ends = len(prompt) + ((open_[0] - len(prompt)) // block + 1) * block
        logits = model.raw_logits(torch.tensor([canvas]))[0].double()
        logits[:, MASK] = -torch.inf
        chance, token = logits.softmax(-1).max(-1)
        decoded = [each != MASK for each in canvas[len(prompt) :]]

        def score(place: int, chance: Any = chance, decoded: Any = decoded) -> float:
            around = density(decoded, place - len(prompt), sigma)
            return float(chance[place]) * max(around, 2**-32)

        best = max((i for i in open_ if i < ends), key=score)
        canvas[best] = int(token[best])
    return canvas[len(prompt) :]


@pytest.mark.parametrize("block", [12, 4])
@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_whole_decodes_are_those_of_a_plain_loop(
    toy: Callable[..., Model], block: int, sigma: float
) -> None:
    model = toy(5)
    for prompt in ([1, 2], [3]):
        out = dlm.generate(
            model, [prompt], decoder="certainty_prior", decoder_options={"sigma": sigma},
            gen_length=12, block_length=block, stop_at_eos=False,
        )  # fmt: skip
        assert out.tokens == [plainly(model, prompt, 12, block, sigma)]
