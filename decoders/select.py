"""Selection rules that decoders share: pure functions of scores and a mask, or of a view.

Shapes: B rows, W window. Ties go to the lower position.
"""

import torch
from torch import Tensor

from dlm.kernels import fused_ranking, ranking
from dlm.types import StepView

SCORES = ("confidence", "margin", "entropy")
"""Statistics that say how certain a position is."""

NEVER = 1 << 40
"""A step or an index that no block reaches."""

_FIXED = 2.0**48
_HALF = 24  # bits
_NARROW = 1 << 14
"""Columns whose multiples of 2^-48 an int64 holds the sum of, twice over."""
_LARGEST = 2.0**8


def descending(scores: Tensor, allowed: Tensor) -> Tensor:
    """Columns of each row, the best allowed one first, those not allowed last; int64 [B, W]."""
    fast = fused_ranking.covers(scores, allowed)
    return (fused_ranking.descending if fast else ranking.descending)(scores, allowed)


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Rank of each allowed position of its row, 0 for the highest score. int64 [B, W].

    Positions that are not allowed rank behind all that are, whatever their score.
    """
    fast = fused_ranking.covers(scores, allowed)
    return (fused_ranking.rank if fast else ranking.rank)(scores, allowed)


def top(scores: Tensor, allowed: Tensor, count: Tensor | int) -> Tensor:
    """Mark the `count` ([B] or one int) best allowed positions of each row, or all. bool."""
    fast = fused_ranking.covers(scores, allowed, count=count)
    return (fused_ranking.top if fast else ranking.top)(scores, allowed, count)


def at_least(chosen: Tensor, scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Add the best allowed positions until each row has `count` [B] chosen. bool [B, W]."""
    fast = fused_ranking.covers(scores, allowed, chosen, count=count)
    return (fused_ranking.at_least if fast else ranking.at_least)(chosen, scores, allowed, count)


def prefix(holds: Tensor, allowed: Tensor) -> Tensor:
    """Length of the longest prefix of allowed columns in which a condition holds. int64 [B].

    Args:
        holds: bool [B, W], by rank: whether the condition holds with so many positions.
        allowed: bool [B, W]; as many ranks count as a row has allowed positions.
    """
    ranks = torch.arange(holds.shape[-1], device=holds.device)
    inside = ranks < allowed.sum(-1, keepdim=True)
    return (holds & inside).int().cumprod(-1).sum(-1)


def exact_sum(values: Tensor, where: Tensor) -> Tensor:
    """Sum of float32 values in [0, 1] over the marked columns, float64 [B].

    Added as multiples of 2^-48 and rounded once, so the result depends neither on the order of
    addition nor on padding, and the mean of equal values down to 2^-25 is that value: in floating
    point c = 0.7 everywhere has a mean below 0.7. Of a wide row the high and the low bits are
    added apart, as one int64 holds no more than 2^15 ones: the number is what one sum would be.
    """
    fixed = (values.double() * _FIXED).round().long().masked_fill(~where, 0)
    if fixed.shape[-1] <= _NARROW:
        return fixed.sum(-1).double() / _FIXED
    high = fixed >> _HALF
    low = (fixed - (high << _HALF)).sum(-1)
    high = high.sum(-1) + (low >> _HALF)  # so that both are exact in float64
    return (high.double() * 2.0**_HALF + (low & ((1 << _HALF) - 1)).double()) / _FIXED


def total(values: Tensor, where: Tensor) -> Tensor:
    """The same of float32 values up to 256 in size, nats or probabilities, in multiples of 2^-40.

    Shapes [..., W] to [...].
    """
    return exact_sum(values / _LARGEST, where) * _LARGEST


def certainty(view: StepView, score: str) -> Tensor:
    """One of `SCORES` as what the most certain position has most of: minus the entropy; float32."""
    value = view.want(score)
    return -value if score == "entropy" else value


def log_margin(likeliest: Tensor) -> Tensor:
    """How far the best token is ahead: ln p_(1) - ln p_(2) nats, float32 [B, W].

    Infinite where no other token has any probability.

    Args:
        likeliest: probabilities, the largest first, float32 [B, W, K].
    """
    first, second = likeliest[..., 0], likeliest[..., 1]
    return torch.where(second > 0, first.log() - second.log(), float("inf"))


def soonest(due: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """The first step at which any mask of a row is due, int64 [B], and those due, bool [B, W]."""
    now = due.masked_fill(~masked, NEVER).amin(-1)
    return now, masked & (due == now[:, None])


def fresh(view_step: Tensor, state: Tensor, value: float) -> Tensor:
    """State [B, ...] with the rows that begin a block set to `value`."""
    begins = (view_step == 0).view(-1, *[1] * (state.dim() - 1))
    return state.masked_fill(begins, value)
