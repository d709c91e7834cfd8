"""Selection rules that decoders share: pure functions of scores and a mask.

Shapes: B rows, W window. Ties go to the lower position.
"""

import torch
from torch import Tensor


def rank(scores: Tensor, allowed: Tensor) -> Tensor:
    """Rank of each allowed position of its row, 0 for the highest score. int64 [B, W].

    Positions that are not allowed rank behind all that are, whatever their score.
    """
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    allowed_first = allowed.gather(-1, by_score).argsort(dim=-1, descending=True, stable=True)
    order = by_score.gather(-1, allowed_first)
    columns = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, columns)


def top(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` [B] best allowed positions of each row, or all where fewer are. bool."""
    return allowed & (rank(scores, allowed) < count[:, None])


def at_least(chosen: Tensor, scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Add the best allowed positions until each row has `count` [B] chosen. bool [B, W]."""
    first = torch.where(chosen, float("inf"), scores)
    return chosen | top(first, allowed, count)
