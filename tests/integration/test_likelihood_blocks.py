"""Scores where attention is in blocks: of each block given those before it, as it is decoded."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.models.model import Model

FAMILIES = {"sdar": 4, "bd3lm": 4, "llada2": 8}
PROMPT = [5, 6, 7, 8]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, written: Callable[[str], Path]) -> Model:
    found = dlm.load(written(request.param), dtype="float32")
    assert found.spec.block_size == FAMILIES[request.param]
    return found


def parts(model: Model, prompt: list[int], length: int) -> list[tuple[int, int]]:
    """Where an answer crosses into another block of attention."""
    size = FAMILIES[model.spec.family]
    inside = [at for at in range(1, length) if (len(prompt) + at) % size == 0]
    return list(zip([0, *inside], [*inside, length], strict=True))


def drawn(model: Model, prompt: list[int], length: int) -> list[int]:
    options: dict[str, Any] = {"decoder": "random", "temperature": 1.0, "stop_at_eos": False}
    return dlm.generate(model, prompt, gen_length=length, seed=3, **options).tokens[0]


@torch.inference_mode()
def along(model: Model, prompt: list[int], answer: list[int], order: tuple[int, ...]) -> float:
    """ln p of the tokens of the last block of an answer, in an order."""
    state = [*prompt, *answer]
    for at in order:
        state[len(prompt) + at] = model.spec.mask_id
    total = 0.0
    for at in order:
        logits = model.raw_logits(torch.tensor([state]))[0, len(prompt) + at].double()
        logits[list(model.spec.banned)] = -torch.inf
        total += float(logits.log_softmax(-1)[answer[at]])
        state[len(prompt) + at] = answer[at]
    return total


@pytest.mark.parametrize("given", [4, 5, 7])
def test_a_chain_goes_from_block_to_block(model: Model, given: int) -> None:
    prompt = [*range(5, 5 + given)]
    answer = drawn(model, prompt, 13)
    chain: dict[str, Any] = {"estimator": "chain", "order": "confidence", "samples": 1}
    edges = parts(model, prompt, len(answer))
    assert len(edges) > 1
    scores = [
        dlm.log_likelihood(model, prompt + answer[:begin], answer[begin:end], **chain)
        for begin, end in edges
    ]
    assert dlm.log_likelihood(model, prompt, answer, **chain) == pytest.approx(
        sum(scores), abs=1e-4
    )


@pytest.mark.one_in(3)
def test_estimates_are_of_what_is_decoded(model: Model) -> None:
    """The mean over all orders within the blocks, which both estimators have as expectation."""
    answer = drawn(model, PROMPT, 7)
    exact = 0.0
    for begin, end in parts(model, PROMPT, len(answer)):
        orders = [*permutations(range(begin, end))]
        scores = [along(model, PROMPT, answer[:end], order) for order in orders]
        exact += sum(scores) / len(scores)
    for options in ({"samples": 256}, {"estimator": "chain", "samples": 64}):
        found = [dlm.log_likelihood(model, PROMPT, answer, seed=s, **options) for s in range(6)]
        values = torch.tensor(found, dtype=torch.float64)
        error = max(float(values.std()) / len(found) ** 0.5, 1e-3)
        assert abs(float(values.mean()) - exact) < 5 * error
