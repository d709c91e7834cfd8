"""A window that slides with the first mask: deferred commitment decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.decoders import DeferredCommitment
from dlm.types import Decision, StepView

History = list[tuple[StepView, Decision]]
Script = Callable[..., History]
View = Callable[..., StepView]
Picked = Callable[..., list[int]]

rule = settings(max_examples=80, deadline=None)


def reference(said: list[list[float]], threshold: float, size: int, most: int) -> list[list[int]]:
    """What each forward commits: the authors' window over one row, told again."""
    width = len(said[0])
    masked, left, right, count, made = [True] * width, 0, size, size, []
    for confidence in said:
        inside = [i for i in range(left, min(right, width)) if masked[i]]
        best = sorted(inside, key=lambda i: -confidence[i])
        chosen = best[: max(1, sum(confidence[i] >= threshold for i in inside))]
        for i in chosen:
            masked[i] = False
        made.append(sorted(chosen))
        if not any(masked):
            break
        count -= len(chosen)
        while not masked[left]:
            left += 1
        before, right = right, min(right + size - count, left + most, width)
        count += right - before
    return made


@rule
@given(
    data=st.data(),
    threshold=st.sampled_from([0.0, 0.5, 0.875, 2.0]),
    size=st.integers(1, 8),
    more=st.sampled_from([0, 1, 3, 99]),
)
def test_it_is_the_authors_window(
    script: Script, data: st.DataObject, threshold: float, size: int, more: int
) -> None:
    """Forward by forward, two rows at a time, which slide apart."""
    width = data.draw(st.integers(size, 20))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    said: list[torch.Tensor] = []

    def speak(number: int, view: StepView) -> Mapping[str, Any]:
        said.append(torch.randint(9, (2, width), generator=generator) / 8)  # with ties
        return {"confidence": said[-1]}

    decoder = DeferredCommitment(threshold, size, size + more)
    seen = script(decoder, speak, torch.ones(2, width, dtype=torch.bool))
    for row in range(2):
        wanted = reference([each[row].tolist() for each in said], threshold, size, size + more)
        found = [decision.commit[row].nonzero()[:, 0].tolist() for _, decision in seen]
        assert [each for each in found if each] == wanted


def test_what_is_given_counts_for_places_and_not_for_masks(view_of: View, picked: Picked) -> None:
    masked = [True, False, False, True, True, True]
    view = view_of(confidence=[0.95] * 6, masked=masked)
    assert picked(DeferredCommitment(0.9, 3).step(None, view)[1].commit) == [0, 3, 4]
    assert picked(DeferredCommitment(0.9, 3, 4).step(None, view)[1].commit) == [0, 3]
    assert picked(DeferredCommitment(0.9, 3, 3).step(None, view)[1].commit) == [0]


def test_a_budget_widens_the_window(view_of: View, picked: Picked) -> None:
    view = view_of(confidence=[0.1, 0.2, 0.3, 0.9, 0.8], quota=3)
    assert picked(DeferredCommitment(0.95, 2).step(None, view)[1].commit) == [0, 1, 2]
