"""Ranks of the columns of a row by a score, in plain torch: the reference of `fused_ranking`.

Shapes: B rows, W columns. Ties go to the lower column, and NaN ranks above everything else.
"""

import torch
from torch import Tensor


def descending(scores: Tensor, allowed: Tensor) -> Tensor:
    """Columns of each row, best allowed one first, not allowed ones last; int64 [B, W].

    Args:
        scores: [B, W], of any dtype with an order.
        allowed: bool [B, W].
    """
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    allowed_first = allowed.gather(-1, by_score).argsort(dim=-1, descending=True, stable=True)
    return by_score.gather(-1, allowed_first)


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Index of each column in `descending`, int64 [B, W]."""
    order = descending(scores, allowed)
    columns = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, columns)


def top(scores: Tensor, allowed: Tensor, count: Tensor | int) -> Tensor:
    """Mark the best allowed columns of each row, or all if there are fewer; bool [B, W].

    Args:
        scores: [B, W].
        allowed: bool [B, W].
        count: how many, int64 [B] or one int for all rows.
    """
    most = count[:, None] if isinstance(count, Tensor) else count
    return allowed & (rank(scores, allowed) < most)


def at_least(chosen: Tensor, scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Add the best allowed columns until `count` of each row are chosen; bool [B, W].

    Args:
        chosen: bool [B, W].
        scores: [B, W].
        allowed: bool [B, W].
        count: int64 [B].
    """
    first = torch.where(chosen, float("inf"), scores)
    return chosen | top(first, allowed, count)
