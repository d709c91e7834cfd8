"""Selection rules shared by decoders: pure functions of scores and a mask, or of a view.

Shapes: B rows, W window. Ties go to the lower position.
"""

import torch
from torch import Tensor

from dlm.kernels import fused_ranking, ranking
from dlm.types import StepView

SCORES = ("confidence", "margin", "entropy")
"""Statistics that measure how certain a position is."""

NEVER = 1 << 40
"""A step or an index that no block reaches."""

_FIXED = 2.0**48
_HALF = 24  # bits
_NARROW = 1 << 14
"""Most columns whose sum of multiples of 2^-48 fits an int64, with a factor of 2 to spare."""
_LARGEST = 2.0**8


def descending(scores: Tensor, allowed: Tensor) -> Tensor:
    """Columns of each row, best allowed one first, not allowed ones last; int64 [B, W]."""
    fast = fused_ranking.covers(scores, allowed)
    return (fused_ranking.descending if fast else ranking.descending)(scores, allowed)


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Rank of each allowed position in its row, 0 for the highest score. int64 [B, W].

    Positions that are not allowed rank after all allowed ones, whatever their score.
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
    """Length of the longest prefix of ranks in which a condition holds. int64 [B].

    Args:
        holds: bool [B, W]; column r says whether the condition holds for the first r + 1 positions.
        allowed: bool [B, W]; a row has as many ranks as allowed positions.
    """
    ranks = torch.arange(holds.shape[-1], device=holds.device)
    inside = ranks < allowed.sum(-1, keepdim=True)
    return (holds & inside).int().cumprod(-1).sum(-1)


def exact_sum(values: Tensor, where: Tensor) -> Tensor:
    """Sum of float32 values in [0, 1] over the marked columns, float64 [B].

    Values are added as multiples of 2^-48 and rounded once, so the result depends neither on the
    order of addition nor on padding, and the mean of equal values down to 2^-25 is that value: in
    floating point the mean of c = 0.7 everywhere is below 0.7. An int64 holds the sum of at most
    2^15 ones, so the high and low bits of wide rows are added separately, with the same result.
    """
    fixed = (values.double() * _FIXED).round().long().masked_fill(~where, 0)
    if fixed.shape[-1] <= _NARROW:
        return fixed.sum(-1).double() / _FIXED
    high = fixed >> _HALF
    low = (fixed - (high << _HALF)).sum(-1)
    high = high.sum(-1) + (low >> _HALF)  # makes both exact in float64
    return (high.double() * 2.0**_HALF + (low & ((1 << _HALF) - 1)).double()) / _FIXED


def total(values: Tensor, where: Tensor) -> Tensor:
    """`exact_sum` of float32 values of magnitude up to 256, nats or probabilities.

    The unit is 2^-40. Shapes [..., W] to [...].
    """
    return exact_sum(values / _LARGEST, where) * _LARGEST


def certainty(view: StepView, score: str) -> Tensor:
    """One of `SCORES`, larger for more certain positions: entropy is negated; float32."""
    value = view.want(score)
    return -value if score == "entropy" else value


def log_margin(likeliest: Tensor) -> Tensor:
    """Log ratio of the two likeliest tokens, ln p_(1) - ln p_(2) nats, float32 [B, W].

    Infinite where no other token has any probability.

    Args:
        likeliest: probabilities, largest first, float32 [B, W, K].
    """
    first, second = likeliest[..., 0], likeliest[..., 1]
    return torch.where(second > 0, first.log() - second.log(), float("inf"))


def soonest(due: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """The first step at which any mask of a row is due, int64 [B], and those due, bool [B, W]."""
    now = due.masked_fill(~masked, NEVER).amin(-1)
    return now, masked & (due == now[:, None])


def fresh(view_step: Tensor, state: Tensor, value: float) -> Tensor:
    """Reset the state [B, ...] to `value` in rows that begin a block."""
    begins = (view_step == 0).view(-1, *[1] * (state.dim() - 1))
    return state.masked_fill(begins, value)
