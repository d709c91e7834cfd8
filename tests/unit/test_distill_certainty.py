"""Certainty-forcing distillation: its masks and its loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dlm.distill.certainty import (
    Loss,
    block_numbers,
    certainty_loss,
    complementary_views,
    draw_blocks,
)

MASK = 7


def loss(logits: Tensor, targets: list[int], second: list[int], weight: float = 2.0) -> Loss:
    return certainty_loss(
        logits,
        torch.tensor(targets),
        torch.tensor(second, dtype=torch.bool),
        temperature=0.5,
        weight=weight,
    )


def test_blocks_are_counted_from_the_response() -> None:
    found = block_numbers(
        torch.tensor([2, 1]), torch.tensor([7, 4]), 7, block_length=2, block_size=None
    )
    assert found.tolist() == [[-1, -1, 0, 0, 1, 1, 2], [-1, 0, 0, 1, -1, -1, -1]]


def test_blocks_of_block_causal_attention_keep_its_borders() -> None:
    start, end = torch.tensor([3]), torch.tensor([9])
    whole = block_numbers(start, end, 9, block_length=4, block_size=4)
    assert whole.tolist() == [[-1, -1, -1, 0, 1, 1, 1, 1, 2]]
    half = block_numbers(start, end, 9, block_length=2, block_size=4)
    assert half.tolist() == [[-1, -1, -1, 1, 2, 2, 3, 3, 4]]
    assert draw_blocks(half, torch.tensor([0.0])).tolist() == [1]
    assert draw_blocks(half, torch.tensor([0.999])).tolist() == [4]


def test_without_a_block_length_the_response_is_one_block() -> None:
    found = block_numbers(torch.tensor([1]), torch.tensor([4]), 4, block_length=None,
                          block_size=None)  # fmt: skip
    assert found.tolist() == [[-1, 0, 0, 0]]


def test_every_block_is_drawn_alike_and_none_is_empty() -> None:
    block = block_numbers(torch.tensor([2]), torch.tensor([8]), 8, block_length=2, block_size=None)
    spread = (torch.arange(300) + 0.5) / 300
    drawn = draw_blocks(block.expand(300, -1), spread)
    assert torch.bincount(drawn).tolist() == [100, 100, 100]


@given(
    st.integers(1, 5), st.integers(1, 12), st.sampled_from([None, 1, 3, 4]), st.integers(0, 2**31)
)
def test_views_share_out_the_active_block(
    prompt: int, response: int, block_length: int | None, seed: int
) -> None:
    """T7.4: every token to learn is masked in exactly one of the two views."""
    noise = torch.Generator().manual_seed(seed)
    start = torch.tensor([prompt, 1])
    end = torch.tensor([prompt + response, 1 + response])
    length = int(end.max())
    rows = torch.randint(0, MASK, (2, length), generator=noise)
    block = block_numbers(start, end, length, block_length=block_length, block_size=None)
    active = draw_blocks(block, torch.rand(2, generator=noise))
    views = complementary_views(
        rows, block, active, torch.rand(2, length, generator=noise), mask_id=MASK, ratio=0.5
    )
    inside = block == active[:, None]
    assert inside.any(-1).all()
    assert torch.equal(views.masked.sum(0), inside.long())
    for tokens, masked in zip(views.tokens, views.masked, strict=True):
        hidden = masked | (block > active[:, None])
        assert (tokens[hidden] == MASK).all()
        assert torch.equal(tokens[~hidden], rows[~hidden])


@pytest.mark.parametrize(("ratio", "first"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_the_ratio_is_the_share_of_the_first_view(ratio: float, first: int) -> None:
    uniform = torch.arange(1000)[None] / 1000
    block = torch.zeros(1, 1000, dtype=torch.int64)
    views = complementary_views(block, block, torch.tensor([0]), uniform, mask_id=7, ratio=ratio)
    assert views.masked.sum(-1)[:, 0].tolist() == [first, 1000 - first]


def test_loss_adds_the_views_and_the_entropy_of_what_is_right() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    found = loss(logits, [0, 0, 0, 0], [0, 0, 1, 1])
    surprise = -logits.log_softmax(-1)[:, 0]
    p = (logits / 0.5).softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    cross = surprise[:2].mean() + surprise[2:].mean()
    certain = entropy[0] + entropy[2:].mean()
    torch.testing.assert_close(found.total, cross + 2 * certain)
    torch.testing.assert_close(found.cross_entropy, cross / 2)
    torch.testing.assert_close(found.entropy, certain / 2)
    assert found.right == 0.75


def test_entropy_is_in_nats() -> None:
    """T7.3: ln 2 of two equal tokens; at temperature 1/2, logits count twice."""
    for p, nats in ((0.5, math.log(2)), (0.9, 0.3251)):
        logits = torch.tensor([[math.log(p), math.log(1 - p)]]) / 2 + torch.tensor([1e-9, 0])
        assert loss(logits, [0], [0]).entropy.item() == pytest.approx(nats / 2, abs=1e-4)


def test_no_certainty_is_forced_where_the_prediction_is_wrong() -> None:
    """T7.4: the gradient of the entropy term is zero there, and not elsewhere."""
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    targets = logits.argmax(-1).tolist()
    targets[1], targets[4] = (targets[1] + 1) % 5, (targets[4] + 2) % 5
    second = [0, 0, 0, 1, 1, 1]
    gradients = []
    for weight in (0.0, 3.0):
        (gradient,) = torch.autograd.grad(loss(logits, targets, second, weight).total, logits)
        gradients.append(gradient)
    moved = (gradients[1] - gradients[0]).abs().amax(-1) > 1e-9
    assert moved.tolist() == [True, False, True, True, False, True]


def test_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(1)
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = logits.argmax(-1).tolist()
    targets[2] = (targets[2] + 1) % 5

    def total(values: Tensor) -> Tensor:
        return loss(values, targets, [0, 0, 0, 0, 1, 1, 1]).total

    assert torch.autograd.gradcheck(total, (logits,))


@pytest.mark.parametrize("second", [0, 1])
def test_an_empty_view_costs_nothing(second: int) -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    found = loss(logits, [1, 2], [second, second])
    found.total.backward()
    assert found.total.item() == pytest.approx(math.log(3))  # argmax is 0, so none is right
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_low_precision_logits_are_measured_in_float32() -> None:
    logits = torch.tensor([[4.0, 0.0, 1.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(
        loss(logits, [0], [0]).total, loss(logits.float(), [0], [0]).total, rtol=0, atol=0
    )
