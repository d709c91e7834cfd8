"""Streaming parallel decoding: low entropy, the sooner the nearer to the first mask."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm
from dlm.decoders import WeDLM
from dlm.models.model import Model
from dlm.types import StepView

Toy = Callable[..., Model]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

eighths = st.integers(0, 24).map(lambda n: n / 8)  # with ties and bounds met


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    threshold=eighths,
    penalty=st.sampled_from([0.0, 0.125, 1.0]),
    window=st.integers(1, 9),
)
def test_it_is_its_definition(
    view_of: View,
    picked: Picked,
    data: st.DataObject,
    threshold: float,
    penalty: float,
    window: int,
) -> None:
    width = data.draw(st.integers(1, 14))
    entropy = data.draw(st.lists(eighths, min_size=width, max_size=width))
    masked = data.draw(st.lists(st.booleans(), min_size=width, max_size=width))
    masked[data.draw(st.integers(0, width - 1))] = True
    first = masked.index(True)
    cost = {
        i: entropy[i] + penalty * (i - first)
        for i in range(first, min(first + window, width))
        if masked[i]
    }
    wanted = [i for i in cost if cost[i] < threshold] or [min(cost, key=lambda i: (cost[i], i))]
    view = view_of(masked=masked, entropy=entropy)
    assert picked(WeDLM(threshold, penalty, window).step(None, view)[1].commit) == wanted


SAME = [
    ({"threshold": 0.0, "penalty": 0.0, "window": 99}, "entropy", {}),
    ({"threshold": 1.5, "penalty": 0.0, "window": 99}, "entropy_threshold", {"threshold": 1.5}),
    ({"window": 1}, "left_to_right", {}),
    ({"penalty": 99.0}, "left_to_right", {}),
]


@pytest.mark.parametrize(("options", "name", "others"), SAME, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_simpler_rules_at_its_ends(
    toy: Toy, seed: int, options: dict[str, Any], name: str, others: dict[str, Any]
) -> None:
    runs = [
        dlm.generate(
            toy(seed), [[1], [2, 3]], decoder=decoder, decoder_options=more, gen_length=13,
            block_length=7, temperature=1.0, stop_at_eos=False, return_trajectory=True,
        )
        for decoder, more in (("wedlm", options), (name, others))
    ]  # fmt: skip
    assert runs[0].trajectory is not None
    assert runs[1].trajectory is not None
    for one, other in zip(runs[0].trajectory, runs[1].trajectory, strict=True):
        assert torch.equal(one.canvases, other.canvases)


def test_a_budget_reaches_beyond_the_window(toy: Toy) -> None:
    """Which holds at least what is due at a forward."""
    options = {"threshold": 0.0, "window": 1}
    out = dlm.generate(
        toy(0), [[1]], decoder="wedlm", decoder_options=options, gen_length=12, steps=3,
        stop_at_eos=False,
    )  # fmt: skip
    assert out.forwards == [3]
