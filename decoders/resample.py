"""Resample the reveal counts of a schedule to any number of masks.

A schedule of N forward passes is given by its cumulative fractions c_1 < ... < c_N = 1. For m
masks:

    w_k = c_k - c_(k-1)
    q_k = max(1, lambda w_k), lambda such that sum_k q_k = m       where m >= N
    n_k = floor(q_k) + 1[q_k is among the largest remainders]      so that sum_k n_k = m
    n_k = 1[k <= m]                                                where m < N

N stays the same, so the monotone interpolation of c at its own knots is c itself. The lower bound
of 1 applies before the rounding, so n is within one token of q, and a larger w never gets fewer
tokens. For equal w this is LLaDA's quota: m // N, and one more in the first m mod N forward passes.

Shapes: M mask counts, N forward passes.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

MAX_LENGTH = 1 << 20
"""Most masks (tokens); up to here float64 tells different remainders apart from rounding errors."""

REMAINDER_UNIT = 2.0**24
"""Remainders are compared in 1 / REMAINDER_UNIT tokens, so that equal weights tie.

Rounding errors are below 2**-30 tokens at MAX_LENGTH; remainders of weights that are fractions of
such a length differ by 2**-20 or more.
"""


def fractions(counts: Sequence[int]) -> tuple[float, ...]:
    """Cumulative fractions of counts: c_k = (n_1 + ... + n_k) / (n_1 + ... + n_N)."""
    total = sum(counts)
    return tuple(reached / total for reached in accumulate(counts))


def apportion(cum_fraction: Sequence[float], length: int) -> tuple[int, ...]:
    """Reveal counts of each forward pass for `length` masks: min(N, length) ints >= 1 (tokens).

    Args:
        cum_fraction: c, strictly increasing in (0, 1], the last 1.
        length: number of masks, in [0, MAX_LENGTH].
    """
    row: list[int] = _counts(cum_fraction, torch.tensor([length]))[0].tolist()
    return tuple(row[: min(len(row), length)])


def apportion_table(cum_fraction: Sequence[float], max_length: int) -> Tensor:
    """Reveal counts for every number of masks, 0 where there is none. int64 [max_length + 1, N].

    Args:
        cum_fraction: as in `apportion`; row m equals `apportion(cum_fraction, m)`.
        max_length: largest number of masks, in [0, MAX_LENGTH].
    """
    return _counts(cum_fraction, torch.arange(max_length + 1))


def _counts(cum_fraction: Sequence[float], masks: Tensor) -> Tensor:
    """Reveal counts for `masks` [M]. int64 [M, N]."""
    reached = torch.tensor(cum_fraction, dtype=torch.float64)
    weights = torch.diff(reached, prepend=reached.new_zeros(1))
    steps = weights.numel()
    enough = masks.clamp(min=steps)
    rounded = _largest_remainder(_quotas(weights, enough), enough)
    ones = torch.arange(steps) < masks[:, None]
    return torch.where((masks < steps)[:, None], ones.long(), rounded)


def _quotas(weights: Tensor, masks: Tensor) -> Tensor:
    """Real counts q = max(1, lambda w) with sum_k q_k = m, for m >= N. float64 [M, N].

    If the j largest weights are above the lower bound of 1, then
    lambda_j = (m - (N - j)) / (their sum). Exactly j = 1 .. J satisfy lambda_j w_(j) >= 1, and J
    is the solution.
    """
    steps = weights.numel()
    largest = weights.sort(descending=True).values
    spare = masks[:, None] - steps + torch.arange(1, steps + 1)
    rate = spare / largest.cumsum(0)
    above = (rate * largest >= 1).sum(-1, keepdim=True).clamp(min=1)
    return (rate.gather(-1, above - 1) * weights).clamp(min=1)


def _largest_remainder(quotas: Tensor, masks: Tensor) -> Tensor:
    """Round rows to ints that sum to `masks`, ties to the earlier forward pass. int64 [M, N]."""
    # Without this, equal weights differ in their last bit, and a tie goes to a random forward pass.
    snapped = (quotas * REMAINDER_UNIT).round() / REMAINDER_UNIT
    whole = snapped.floor()
    left = masks - whole.sum(-1).long()
    order = (whole - snapped).argsort(dim=-1, stable=True)
    return whole.long() + (order.argsort(dim=-1) < left[:, None])
