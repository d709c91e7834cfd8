"""How sure the model was of each token when it was written, in results and in trajectories."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import DECODERS
from dlm.models.model import Model
from dlm.trajectory import Change, Trajectory

Toy = Callable[..., Model]
PROMPTS = [[1, 2, 3, 4, 3, 2, 1], [2], [3, 1, 4]]


@pytest.mark.parametrize("decoder", DECODERS)
def test_each_token_has_that_of_the_forward_that_wrote_it_last(
    toy: Toy, decoding: Callable[[str], dict[str, Any]], decoder: str
) -> None:
    options = {**decoding(decoder), "gen_length": 11, "block_length": 4, "temperature": 1.0}
    out = dlm.generate(toy(5), PROMPTS, return_trajectory=True, return_order=True, **options)
    assert out.trajectory is not None
    assert out.log_probabilities is not None
    assert out.order is not None
    for row, tokens in enumerate(out.tokens):
        made = {(c.step, c.position): c for c in [*out.trajectory[row].commits,
                                                  *out.trajectory[row].edits]}  # fmt: skip
        for at, (token, found) in enumerate(zip(tokens, out.log_probabilities[row], strict=True)):
            change = made.get((out.order[row][at], at))
            if change is None or change.token != token:
                assert math.isnan(found)
                assert token == 6  # filled in
            else:
                assert found == math.log(change.confidence)


def test_what_no_forward_wrote_has_none(toy: Toy) -> None:
    out = dlm.infill(
        toy(1), [[1, 7, 2, 7, 7], [7, 3]], decoder="left_to_right", return_trajectory=True
    )
    assert out.log_probabilities is not None
    given = [[math.isnan(value) for value in row] for row in out.log_probabilities]
    assert given == [[True, False, True, False, False], [False, True]]
    assert dlm.generate(toy(1), [[1]], gen_length=4).log_probabilities is None


def test_what_was_taken_back_or_overwritten_does_not_count() -> None:
    trajectory = Trajectory(
        canvases=torch.zeros(4, 3, dtype=torch.int64),
        commits=[Change(0, 0, 8, 0.5), Change(0, 1, 9, 0.25), Change(2, 0, 7, 0.125),
                 Change(2, 2, 4, 0.0)],
        remasks=[Change(1, 0, 8, 0.1)],
        edits=[Change(3, 1, 6, 0.75)],
    )  # fmt: skip
    found = trajectory.log_probabilities([7, 6, 4])
    assert found == [math.log(0.125), math.log(0.75), -math.inf]
    assert math.isnan(trajectory.log_probabilities([7, 9, 4])[1])
